//! One Gaussian fitted to a mixture of two, once by each direction of KL.

use burn::tensor::Tensor;

use crate::eval::divergence::{
    Gaussian, KlEstimator, estimate_kl, gaussian_kl, jensen_shannon, kl,
};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome};
use crate::models::vae::Posterior;
use crate::rng::{Stream, normal, rng};

/// The modes stand at plus and minus this, each with deviation `SIGMA`.
const MODE: f64 = 2.0;
const SIGMA: f64 = 0.5;
const SAMPLES: usize = 200_000;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let grid: Vec<f64> = (-400..=400).map(|i| f64::from(i) * 0.02).collect();
    let data = normalised(
        grid.iter()
            .map(|x| density(*x, -MODE, SIGMA) + density(*x, MODE, SIGMA)),
    );

    lab.say("fitting both directions");
    let forward = best(&grid, |model| kl(&data, model).doing("forward KL"))?;
    let reverse = best(&grid, |model| kl(model, &data).doing("reverse KL"))?;

    // The mixture's own mean is 0 and its variance SIGMA^2 + MODE^2: what maximum likelihood finds.
    let spread = (SIGMA * SIGMA + MODE * MODE).sqrt();
    let near = |fit: Fit, mode: f64| -> f64 {
        let model = fit.on(&grid);
        grid.iter()
            .zip(&model)
            .filter(|(x, _)| (*x - mode).abs() < SIGMA)
            .map(|(_, p)| p)
            .sum()
    };
    let covered = near(forward, MODE).min(near(forward, -MODE));
    let forgotten = near(reverse, -MODE).min(near(reverse, MODE));
    let mut claims = vec![
        Claim::within("forward KL: mean of the fit", forward.mean, 0.0, 0.03),
        Claim::within(
            "forward KL: deviation of the fit",
            forward.deviation,
            spread,
            0.03,
        ),
        Claim::at_least("forward KL: probability near the lesser mode", covered, 0.1),
        Claim::within(
            "reverse KL: |mean| of the fit",
            reverse.mean.abs(),
            MODE,
            0.03,
        ),
        Claim::within(
            "reverse KL: deviation of the fit",
            reverse.deviation,
            SIGMA,
            0.03,
        ),
        Claim::at_most(
            "reverse KL: probability near the forgotten mode",
            forgotten,
            1e-6,
        ),
    ];
    claims.extend(estimators(lab)?);
    claims.extend(bounded(&grid, &data, &reverse)?);

    let height = |values: Vec<f64>| {
        grid.clone()
            .into_iter()
            .zip(values.into_iter().map(|p| p / 0.02))
    };
    let plot = Chart::new("One Gaussian for two modes", "x", "density")
        .line("data", height(data.clone()))
        .line("forward KL: covers", height(forward.on(&grid)))
        .line("reverse KL: seeks", height(reverse.on(&grid)))
        .svg();
    Ok(Outcome {
        claims,
        plot,
        notes: vec![],
    })
}

#[derive(Clone, Copy)]
struct Fit {
    mean: f64,
    deviation: f64,
}

impl Fit {
    fn on(&self, grid: &[f64]) -> Vec<f64> {
        normalised(grid.iter().map(|x| density(*x, self.mean, self.deviation)))
    }
}

/// The Gaussian of least divergence, by trying all.
fn best(
    grid: &[f64],
    divergence: impl Fn(&[f64]) -> Result<f64, LabError>,
) -> Result<Fit, LabError> {
    let mut best = (
        f64::INFINITY,
        Fit {
            mean: 0.0,
            deviation: 1.0,
        },
    );
    for m in -60..=60 {
        for s in 10..=60 {
            let fit = Fit {
                mean: f64::from(m) * 0.05,
                deviation: f64::from(s) * 0.05,
            };
            let value = divergence(&fit.on(grid))?;
            if value < best.0 {
                best = (value, fit);
            }
        }
    }
    // The coarse grid's best, refined.
    for _ in 0..2 {
        let centre = best.1;
        for m in -10..=10 {
            for s in -10..=10 {
                let fit = Fit {
                    mean: centre.mean + f64::from(m) * 0.005,
                    deviation: centre.deviation + f64::from(s) * 0.005,
                };
                let value = divergence(&fit.on(grid))?;
                if value < best.0 {
                    best = (value, fit);
                }
            }
        }
    }
    Ok(best.1)
}

fn density(x: f64, mean: f64, deviation: f64) -> f64 {
    let z = (x - mean) / deviation;
    (-0.5 * z * z).exp() / deviation
}

/// Probabilities; never exactly zero, so that both directions stay finite on the grid.
fn normalised(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.map(|v| v.max(1e-300)).collect();
    let sum: f64 = values.iter().sum();
    values.into_iter().map(|v| v / sum).collect()
}

/// Sampled estimates against the closed form, in four dimensions.
fn estimators(lab: &LabContext<'_>) -> Result<Vec<Claim>, LabError> {
    const D: usize = 4;
    let (mean, variance): ([f64; D], [f64; D]) = ([0.5, -0.3, 0.0, 0.2], [0.8, 1.2, 1.0, 0.9]);
    let standard = Gaussian {
        mean: &[0.0; D],
        variance: &[1.0; D],
    };
    let p = Gaussian {
        mean: &mean,
        variance: &variance,
    };
    let exact = gaussian_kl(p, standard).doing("closed form")?;

    let z = normal(&mut rng(lab.seed, Stream::Evaluate, 0), SAMPLES * D);
    let log_density = |x: &[f64], g: &Gaussian<'_>| -> f64 {
        (0..D)
            .map(|i| -0.5 * ((x[i] - g.mean[i]).powi(2) / g.variance[i] + g.variance[i].ln()))
            .sum()
    };
    let (mut log_p, mut log_q) = (Vec::new(), Vec::new());
    for z in z.chunks(D) {
        let x: Vec<f64> = (0..D)
            .map(|i| mean[i] + variance[i].sqrt() * f64::from(z[i]))
            .collect();
        log_p.push(log_density(&x, &p));
        log_q.push(log_density(&x, &standard));
    }
    let k1 = estimate_kl(&log_p, &log_q, KlEstimator::K1).doing("estimating KL")?;
    let k3 = estimate_kl(&log_p, &log_q, KlEstimator::K3).doing("estimating KL")?;
    Ok(vec![
        Claim::within(
            "KL of two Gaussians from 200,000 samples, nats (log-ratio)",
            k1.mean,
            exact,
            4.0 * k1.standard_error,
        ),
        Claim::within(
            "the same with the estimator r - 1 - ln r",
            k3.mean,
            exact,
            4.0 * k3.standard_error,
        ),
        Claim::at_most(
            "its standard error over that of the log-ratio",
            k3.standard_error / k1.standard_error,
            0.9,
        ),
        vae_term(lab, exact, &mean, &variance)?,
    ])
}

/// The autoencoder's KL term, computed as its loss computes it.
fn vae_term(
    lab: &LabContext<'_>,
    exact: f64,
    mean: &[f64],
    variance: &[f64],
) -> Result<Claim, LabError> {
    let row =
        |values: Vec<f32>| Tensor::<1>::from_floats(values.as_slice(), &lab.device).unsqueeze();
    let mean: Tensor<2> = row(mean.iter().map(|m| *m as f32).collect());
    let log_variance: Tensor<2> = row(variance.iter().map(|v| v.ln() as f32).collect());
    let term = Posterior::new(mean, log_variance).kl().into_scalar::<f32>();
    Ok(Claim::within(
        "the VAE's KL term for the same Gaussian, nats",
        term,
        exact,
        1e-5,
    ))
}

/// Jensen-Shannon: symmetric and never above ln 2.
fn bounded(grid: &[f64], data: &[f64], fit: &Fit) -> Result<Vec<Claim>, LabError> {
    let model = fit.on(grid);
    let there = jensen_shannon(data, &model).doing("Jensen-Shannon")?;
    let back = jensen_shannon(&model, data).doing("Jensen-Shannon")?;
    let far = Fit {
        mean: 7.0,
        deviation: 0.1,
    }
    .on(grid);
    let apart = jensen_shannon(data, &far).doing("Jensen-Shannon")?;
    Ok(vec![
        Claim::at_most(
            "Jensen-Shannon: difference between the two directions, nats",
            (there - back).abs(),
            1e-12,
        ),
        Claim::within(
            "Jensen-Shannon of disjoint distributions against ln 2, nats",
            apart,
            2f64.ln(),
            1e-6,
        ),
    ])
}
