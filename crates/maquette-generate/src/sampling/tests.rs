use super::*;
use maquette_rng::{Stream, rng};
use proptest::prelude::*;

fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 1e-6, "{got:?} is not {want:?}");
    }
}

/// Logits whose softmax is exactly these probabilities.
fn logits(p: &[f32]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

const P: [f32; 4] = [0.1, 0.4, 0.2, 0.3];

fn with(change: impl FnOnce(&mut Decoding)) -> Decoding {
    let mut decoding = Decoding::default();
    change(&mut decoding);
    decoding
}

#[test]
fn default_is_softmax() {
    close(
        &distribution(&logits(&P), &[], &Decoding::default()).unwrap(),
        &P,
    );
}

#[test]
fn temperature_half_squares_the_probabilities() {
    // 0.01, 0.16, 0.04, 0.09 over their sum 0.30.
    let got = distribution(&logits(&P), &[], &with(|d| d.temperature = 0.5)).unwrap();
    close(&got, &[0.01 / 0.30, 0.16 / 0.30, 0.04 / 0.30, 0.09 / 0.30]);
}

#[test]
fn zero_temperature_is_greedy_and_takes_the_lowest_id_of_equals() {
    let got = distribution(&[1.0, 3.0, 3.0], &[], &Decoding::greedy()).unwrap();
    close(&got, &[0.0, 1.0, 0.0]);
}

#[test]
fn top_k_keeps_the_k_best() {
    let got = distribution(&logits(&P), &[], &with(|d| d.top_k = Some(2))).unwrap();
    close(&got, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_p() {
    // 0.4 + 0.3 reaches 0.65; 0.4 alone does not.
    let got = distribution(&logits(&P), &[], &with(|d| d.top_p = Some(0.65))).unwrap();
    close(&got, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    let tiny = distribution(&logits(&P), &[], &with(|d| d.top_p = Some(1e-9))).unwrap();
    close(&tiny, &[0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn top_p_works_on_what_top_k_left() {
    // Of {0.4, 0.3} = {4/7, 3/7}, the first alone reaches 0.5.
    let both = with(|d| (d.top_k, d.top_p) = (Some(2), Some(0.5)));
    close(
        &distribution(&logits(&P), &[], &both).unwrap(),
        &[0.0, 1.0, 0.0, 0.0],
    );
}

#[test]
fn temperature_comes_after_the_cuts_unless_the_order_says_otherwise() {
    // At temperature 2 the masses are as the square roots: 0.4 and 0.3 hold less than 0.6.
    let mut hot = with(|d| (d.temperature, d.top_p) = (2.0, Some(0.65)));
    let kept = |d: &Decoding| {
        let p = distribution(&logits(&P), &[], d).unwrap();
        p.iter().filter(|p| **p > 0.0).count()
    };
    assert_eq!(kept(&hot), 2);
    hot.order = "penalties;temperature;top-k;top-p;min-p".parse().unwrap();
    assert_eq!(kept(&hot), 3);
}

#[test]
fn typical_prefers_what_surprises_as_expected() {
    // Entropy 1.28 nats; surprises 2.30, 0.92, 1.61, 1.20: the last is nearest, then 0.2.
    let got = distribution(&logits(&P), &[], &with(|d| d.typical_p = Some(0.45))).unwrap();
    close(&got, &[0.0, 0.0, 0.4, 0.6]);
}

#[test]
fn top_n_sigma_measures_in_deviations_of_the_logits() {
    // Deviation sqrt(2): what is within one of the best, 3, stays.
    let sigma = |n| with(|d| d.top_n_sigma = Some(n));
    let got = distribution(&[-1.0, 0.0, 1.0, 2.0, 3.0], &[], &sigma(1.0)).unwrap();
    let rest = 1.0 / (1.0 + 1f32.exp());
    close(&got, &[0.0, 0.0, 0.0, rest, 1.0 - rest]);
    let one = distribution(&[-1.0, 0.0, 1.0, 2.0, 3.0], &[], &sigma(0.0)).unwrap();
    close(&one, &[0.0, 0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn top_choices_are_excluded_as_often_as_asked() {
    // Of 0.4, 0.3 and 0.2 (at least 0.15) the first two go: 0.1 and 0.2 are left.
    let xtc = |probability| {
        let rule = Xtc {
            probability,
            threshold: 0.15,
        };
        distribution(&logits(&P), &[], &with(|d| d.xtc = Some(rule))).unwrap()
    };
    close(&xtc(1.0), &[1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0]);
    let mixed = [0.05 + 0.5 / 3.0, 0.2, 0.1 + 1.0 / 3.0, 0.15];
    close(&xtc(0.5), &mixed);
}

#[test]
fn penalties_count_what_was_seen_in_the_window() {
    let penalty = with(|d| (d.presence_penalty, d.frequency_penalty) = (0.5, 0.25));
    let got = distribution(&[0.0, 0.0, 0.0], &[0, 1, 0], &penalty).unwrap();
    // 0 was seen twice, 1 once: logits -1, -0.75, 0.
    let sum = (-1f32).exp() + (-0.75f32).exp() + 1.0;
    close(
        &got,
        &[(-1f32).exp() / sum, (-0.75f32).exp() / sum, 1.0 / sum],
    );
    let last = Decoding {
        penalty_window: Some(1),
        ..penalty
    };
    let got = distribution(&[0.0, 0.0, 0.0], &[1, 2, 0], &last).unwrap();
    assert!(got[0] < got[1] && got[1] == got[2]);
}

#[test]
fn mirostat_holds_the_surprise() {
    let logits: Vec<f32> = (0..500).map(|i| -(i as f32 + 1.0).ln() * 1.1).collect();
    let decoding = with(|d| d.mirostat = Some(Mirostat { tau: 3.0, eta: 0.1 }));
    let mut sampler = TokenSampler::new(decoding, &[0]).unwrap();
    let mut random = rng(3, Stream::Sample, 0);
    let mut bits = 0.0;
    let (settle, count) = (200, 4000);
    for i in 0..settle + count {
        let drawn = sampler.draw(&logits, &mut random).unwrap().probability;
        bits += if i >= settle {
            -f64::from(drawn).log2()
        } else {
            0.0
        };
    }
    let mean = bits / f64::from(count);
    assert!((mean - 3.0).abs() < 0.05, "{mean} bits");
}

#[test]
fn min_p_is_relative_to_the_best() {
    // The floor is 0.6 * 0.4 = 0.24: 0.3 stays, 0.2 goes.
    let got = distribution(&logits(&P), &[], &with(|d| d.min_p = Some(0.6))).unwrap();
    close(&got, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
}

#[test]
fn repetition_penalty_counts_each_token_once() {
    // Logits 2, -1, 0 with tokens 0 and 1 seen: 1, -2, 0.
    let penalty = with(|d| d.repetition_penalty = 2.0);
    let got = distribution(&[2.0, -1.0, 0.0], &[0, 1, 0, 0], &penalty).unwrap();
    let sum = 1f32.exp() + (-2f32).exp() + 1.0;
    close(&got, &[1f32.exp() / sum, (-2f32).exp() / sum, 1.0 / sum]);
}

#[test]
fn extreme_logits_stay_finite() {
    for (logits, want) in [
        ([f32::MAX, -f32::MAX, 0.0], [1.0, 0.0, 0.0]),
        (
            [f32::NEG_INFINITY, f32::NEG_INFINITY, -1e30],
            [0.0, 0.0, 1.0],
        ),
        ([f32::INFINITY, 3.0, 2.0], [1.0, 0.0, 0.0]),
        ([f32::INFINITY, f32::INFINITY, 2.0], [0.5, 0.5, 0.0]),
    ] {
        for temperature in [1e-300, 1e-3, 1.0, 1e3] {
            let d = with(|d| d.temperature = temperature);
            close(&distribution(&logits, &[], &d).unwrap(), &want);
        }
    }
}

#[test]
fn bad_input_is_named() {
    let message = |logits: &[f32], history: &[u32], d: &Decoding| {
        distribution(logits, history, d).unwrap_err().to_string()
    };
    let d = Decoding::default();
    assert!(message(&[0.0, f32::NAN], &[], &d).contains("token 1"));
    assert!(message(&[f32::NEG_INFINITY], &[], &d).contains("no token"));
    assert!(message(&[], &[], &d).contains("no token"));
    assert!(message(&[0.0], &[7], &d).contains("token 7"));
    assert!(message(&[0.0], &[], &with(|d| d.top_k = Some(0))).contains("top_k"));
    assert!(message(&[0.0], &[], &with(|d| d.top_p = Some(0.0))).contains("top_p"));
    assert!(message(&[0.0], &[], &with(|d| d.min_p = Some(2.0))).contains("min_p"));
    assert!(message(&[0.0], &[], &with(|d| d.temperature = -1.0)).contains("temperature"));
    assert!(message(&[0.0], &[], &with(|d| d.temperature = f64::NAN)).contains("temperature"));
    assert!(message(&[0.0], &[], &with(|d| d.repetition_penalty = 0.0)).contains("repetition"));
    assert!(message(&[0.0], &[], &with(|d| d.typical_p = Some(0.0))).contains("typical_p"));
    assert!(message(&[0.0], &[], &with(|d| d.top_n_sigma = Some(-1.0))).contains("top_n_sigma"));
}

#[test]
fn frequencies_match_the_analytic_distribution() {
    // Pearson's chi-square against the exact probabilities. With 7 degrees of freedom a
    // correct sampler exceeds 29.9 once in 10,000 seeds; the seed is pinned.
    let logits: Vec<f32> = (0..10).map(|i| (i as f32 * 1.7).sin() * 2.0).collect();
    let decoding = Decoding {
        temperature: 0.8,
        top_k: Some(8),
        top_p: Some(0.999),
        min_p: Some(0.01),
        repetition_penalty: 1.2,
        typical_p: Some(0.99),
        xtc: Some(Xtc {
            probability: 0.3,
            threshold: 0.1,
        }),
        ..Decoding::default()
    };
    let p = distribution(&logits, &[1, 2], &decoding).unwrap();
    let n = 200_000;
    let mut counts = [0u32; 10];
    let mut rng = rng(11, Stream::Sample, 0);
    for _ in 0..n {
        counts[sample(&p, &mut rng) as usize] += 1;
    }
    let mut chi = 0.0;
    for (count, p) in counts.iter().zip(&p) {
        if *p == 0.0 {
            assert_eq!(*count, 0, "a forbidden token was drawn");
        } else {
            let expected = f64::from(*p) * f64::from(n);
            chi += (f64::from(*count) - expected).powi(2) / expected;
        }
    }
    assert!(chi < 29.9, "chi-square {chi}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_distribution_sums_to_one_and_never_forbids_the_best(
        logits in prop::collection::vec(-1e4f32..1e4, 1..60),
        temperature in prop_oneof![Just(0.0), 1e-6f64..5.0],
        top_k in prop::option::of(1usize..70),
        top_p in prop::option::of(1e-6f64..=1.0),
        min_p in prop::option::of(0.0f64..=1.0),
    ) {
        let d = Decoding { temperature, top_k, top_p, min_p, ..Decoding::default() };
        let p = distribution(&logits, &[], &d).unwrap();
        let sum: f64 = p.iter().map(|&p| f64::from(p)).sum();
        prop_assert!((sum - 1.0).abs() < 1e-5, "sum {sum}");
        let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
        prop_assert!(p.iter().all(|&q| q >= 0.0 && q <= p[best]));
        prop_assert!(p[best] > 0.0);
        if let Some(k) = top_k {
            prop_assert!(p.iter().filter(|&&q| q > 0.0).count() <= k);
        }
    }

    #[test]
    fn a_draw_is_possible_and_repeatable(
        logits in prop::collection::vec(-50f32..50.0, 1..40),
        seed in any::<u64>(),
    ) {
        let p = distribution(&logits, &[], &Decoding::default()).unwrap();
        let draw = || sample(&p, &mut rng(seed, Stream::Sample, 0));
        prop_assert!(p[draw() as usize] > 0.0);
        prop_assert_eq!(draw(), draw());
    }
}
