//! `maquette bench`.

use crate::common::Bench;

#[test]
fn bench_measures_a_suite_and_goes_on_without_a_peer() {
    let bench = Bench::new();
    let ran = bench
        .run("bench train vae-mnist --peers --python no-such-python --rounds 1 --seconds 0.01 --json")
        .succeeds();
    assert!(
        ran.stderr.contains("-m pip install torch=="),
        "{}",
        ran.stderr
    );
    let result = &ran.json()["results"][0];
    assert_eq!(result["suite"], "vae-mnist");
    assert_eq!(result["precision"], "f32");
    assert_eq!(result["unit"], "images/s");
    assert!(result["ours"].as_f64().is_some_and(|rate| rate > 0.0));
    assert!(result["plain_burn"].as_f64().is_some_and(|rate| rate > 0.0));
    for absent in ["peer", "peer_name", "ratio", "peer_peak_mb"] {
        assert!(result[absent].is_null(), "{absent} is {}", result[absent]);
    }
    let sides = result["sides"].as_array().map_or(&[][..], Vec::as_slice);
    assert!(sides.iter().all(|side| side["loss"].as_f64().is_some()));

    bench
        .run("bench train no-such-suite")
        .fails(2, &["no-such-suite", "gpt-tiny"]);
    bench
        .run("bench train --seconds 0")
        .fails(2, &["--seconds"]);
}

#[test]
fn bench_plays_the_gan_under_the_losses_asked_for() {
    let json = Bench::new()
        .run("bench train dcgan32 --losses=non-saturating,wgan-gp,wasserstein-clip --rounds 1 --seconds 0.01 --json")
        .succeeds()
        .json();
    let suites: Vec<_> = json["results"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .collect();
    let names: Vec<_> = suites.iter().map(|result| &result["suite"]).collect();
    assert_eq!(
        names,
        ["dcgan32", "dcgan32 wgan-gp", "dcgan32 wasserstein-clip"]
    );
    for result in suites {
        let loss = result["sides"][0]["loss"].as_f64();
        assert!(loss.is_some_and(f64::is_finite), "{result}");
    }
    let cost = json["in_plain_steps"]["wgan-gp"].as_f64();
    assert!(cost.is_some_and(|cost| cost > 0.0), "{json}");
    Bench::new()
        .run("bench train dcgan32 --losses=no-such-loss")
        .fails(2, &["no-such-loss", "relativistic"]);
}

#[test]
fn bench_holds_kernels_against_the_machine() {
    let ran = Bench::new()
        .run("bench kernels training --rounds 1 --json")
        .succeeds()
        .json();
    assert!(ran["peak_gflops"].as_f64().is_some_and(|peak| peak > 0.0));
    let results = ran["results"].as_array().map_or(&[][..], Vec::as_slice);
    assert!(results.len() > 3);
    for result in results {
        assert!(result["share"].as_f64().is_some_and(|share| share > 0.0));
    }
}
