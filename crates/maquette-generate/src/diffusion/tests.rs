//! The samplers against data whose best denoiser is known in closed form.

use super::*;
use maquette_models::{DiffusionConfig, Target};
use maquette_rng::{Stream, rng};

const MEAN: f64 = 0.7;
const STD: f64 = 0.3;

/// The cosine schedule of Nichol & Dhariwal 2021 with 1,000 steps.
fn cosine() -> Vec<f64> {
    let f = |t: f64| {
        ((t / 1000.0 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
            .cos()
            .powi(2)
    };
    let mut alpha_bar = 1.0;
    (0..1000)
        .map(|t| {
            let t = f64::from(t);
            alpha_bar *= 1.0 - (1.0 - f(t + 1.0) / f(t)).min(0.999);
            alpha_bar
        })
        .collect()
}

/// Evenly spaced in the log signal-to-noise ratio from e^-4 to e^6, so that any even choice of
/// steps is smooth and orders of convergence show.
fn smooth() -> Vec<f64> {
    (0..=960)
        .map(|t| 1.0 / (1.0 + (-2.0 * (6.0 - f64::from(t) / 96.0)).exp()))
        .collect()
}

fn grid(steps: usize) -> TimeGrid {
    TimeGrid::new(&cosine(), steps, Spacing::LogSnr).unwrap()
}

/// E[x0 | x_t] for data N(MEAN, STD^2): the Gaussian posterior mean.
fn gaussian(alpha_bar: Vec<f64>) -> impl Fn(Tensor<2>, usize) -> Tensor<2> {
    move |x, t| {
        let a = alpha_bar[t];
        let gain = STD * STD * a.sqrt() / (a * STD * STD + 1.0 - a);
        (x - MEAN * a.sqrt()) * gain + MEAN
    }
}

/// Where the probability flow of that data carries `x` from the start of the grid: it scales the
/// distance from the mean by the ratio of the marginal standard deviations.
fn exact(x: f64, start: f64) -> f64 {
    let spread = (start * STD * STD + 1.0 - start).sqrt();
    MEAN + STD * (x - MEAN * start.sqrt()) / spread
}

fn start(n: usize, seed: u64) -> (Tensor<2>, Vec<Rng>) {
    let mut rngs = vec![rng(seed, Stream::Sample, 0)];
    let x = noise([n, 1], &mut rngs, &Device::flex());
    (x, rngs)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    let floats: Vec<f32> = x.try_into_vec_as().unwrap();
    floats.into_iter().map(f64::from).collect()
}

fn moments(x: &[f64]) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
    (mean, variance.sqrt())
}

/// The largest error of a deterministic sampler against the exact flow.
fn flow_error(sampler: Sampler, steps: usize) -> f64 {
    let (x, mut rngs) = start(64, 1);
    let grid = TimeGrid::new(&smooth(), steps, Spacing::Linspace).unwrap();
    let wanted: Vec<f64> = values(x.clone())
        .into_iter()
        .map(|x| exact(x, grid.alpha_bar[0]))
        .collect();
    let denoise = gaussian(smooth());
    let got = values(sample(sampler, denoise, x, &grid, &mut rngs, |_| {}));
    got.iter()
        .zip(&wanted)
        .map(|(g, w)| (g - w).abs())
        .fold(0.0, f64::max)
}

const DDIM: Sampler = Sampler::Ddim { eta: 0.0 };

#[test]
fn deterministic_samplers_follow_the_exact_flow() {
    for (sampler, steps, tolerance) in [
        (DDIM, 241, 0.01),
        (Sampler::Heun, 65, 0.004),
        (Sampler::DpmSolverPp, 33, 0.006),
    ] {
        let error = flow_error(sampler, steps);
        assert!(error < tolerance, "{sampler:?} with {steps} steps: {error}");
    }
}

#[test]
fn higher_order_needs_fewer_steps() {
    // At equal network passes (Heun makes two per step).
    let euler = flow_error(DDIM, 65);
    let heun = flow_error(Sampler::Heun, 33);
    let multistep = flow_error(Sampler::DpmSolverPp, 65);
    assert!(heun < 0.5 * euler, "Heun {heun}, DDIM {euler}");
    assert!(
        multistep < 0.1 * euler,
        "DPM-Solver++ {multistep}, DDIM {euler}"
    );
}

#[test]
fn halving_the_step_divides_the_error_by_two_to_the_order() {
    for (sampler, expected) in [
        (DDIM, 2.0),
        (Sampler::Heun, 4.0),
        (Sampler::DpmSolverPp, 4.0),
    ] {
        let ratio = flow_error(sampler, 33) / flow_error(sampler, 65);
        assert!((ratio / expected - 1.0).abs() < 0.2, "{sampler:?}: {ratio}");
    }
}

#[test]
fn stochastic_samplers_recover_mean_and_spread() {
    let n = 20_000;
    for sampler in [Sampler::Ddpm, Sampler::Ddim { eta: 0.5 }] {
        let (x, mut rngs) = start(n, 2);
        let grid = TimeGrid::new(&cosine(), 250, Spacing::Trailing).unwrap();
        let (mean, std) = moments(&values(sample(
            sampler,
            gaussian(cosine()),
            x,
            &grid,
            &mut rngs,
            |_| {},
        )));
        // Standard errors: 0.3 / sqrt(n) = 0.002 for the mean, 0.0015 for the spread.
        assert!((mean - MEAN).abs() < 0.01, "{sampler:?}: mean {mean}");
        assert!((std - STD).abs() < 0.012, "{sampler:?}: spread {std}");
    }
}

#[test]
fn ddpm_is_ddim_with_full_noise() {
    let run = |sampler| {
        let (x, mut rngs) = start(16, 3);
        values(sample(
            sampler,
            gaussian(cosine()),
            x,
            &grid(20),
            &mut rngs,
            |_| {},
        ))
    };
    let (a, b) = (run(Sampler::Ddpm), run(Sampler::Ddim { eta: 1.0 }));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_mixture_keeps_its_modes_and_their_shares() {
    // Data: 0.3 at -1, 0.7 at 1, each with spread 0.05. E[x0 | x] is the responsibility-weighted
    // mean of the two Gaussian posteriors.
    let alpha_bar = cosine();
    let denoise = |x: Tensor<2>, t: usize| {
        let (a, v) = (alpha_bar[t], 0.05f64 * 0.05);
        let marginal = a * v + 1.0 - a;
        let device = x.device();
        let guesses: Vec<f32> = values(x)
            .into_iter()
            .map(|x| {
                let part = |share: f64, mean: f64| {
                    let away = x - mean * a.sqrt();
                    (
                        share.ln() - away * away / (2.0 * marginal),
                        mean + v * a.sqrt() / marginal * away,
                    )
                };
                let ((l0, m0), (l1, m1)) = (part(0.3, -1.0), part(0.7, 1.0));
                let first = 1.0 / (1.0 + (l1 - l0).exp());
                (first * m0 + (1.0 - first) * m1) as f32
            })
            .collect();
        let n = guesses.len();
        Tensor::from_data(TensorData::new(guesses, [n, 1]), &device)
    };
    for sampler in [Sampler::Ddpm, DDIM, Sampler::Heun, Sampler::DpmSolverPp] {
        let (x, mut rngs) = start(4000, 4);
        let got = values(sample(sampler, denoise, x, &grid(60), &mut rngs, |_| {}));
        let (low, high): (Vec<f64>, Vec<f64>) = got.iter().partition(|x| **x < 0.0);
        let share = low.len() as f64 / got.len() as f64;
        // Standard error sqrt(0.3 * 0.7 / 4000) = 0.007.
        assert!((share - 0.3).abs() < 0.03, "{sampler:?}: share {share}");
        for (side, centre) in [(&low, -1.0), (&high, 1.0)] {
            let (mean, std) = moments(side);
            assert!((mean - centre).abs() < 0.02, "{sampler:?}: mean {mean}");
            assert!((std - 0.05).abs() < 0.02, "{sampler:?}: spread {std}");
        }
    }
}

#[test]
fn guidance_batches_both_passes_and_extrapolates() {
    let device = Device::flex();
    let labels = Tensor::<1, Int>::from_data([3, 5], &device);
    let mut calls = Vec::new();
    let x = Tensor::<2>::from_data([[1.0], [2.0]], &device);
    // A "network" whose guess is x plus its label.
    let mut network = |x: Tensor<2>, _t: usize, labels: Tensor<1, Int>| {
        calls.push(x.dims()[0]);
        x + labels.float().unsqueeze_dim(1)
    };
    // Unconditional: x + 10. Conditional: x + label. Scale 3: x + 10 + 3 (label - 10).
    let got = guided(&mut network, labels.clone(), 10, 3.0)(x.clone(), 0);
    assert_eq!(values(got), [-10.0, -3.0]);
    let plain = guided(&mut network, labels, 10, 1.0)(x, 0);
    assert_eq!(values(plain), [4.0, 7.0]);
    assert_eq!(calls, [4, 2]);
}

#[test]
fn one_generator_per_sample_makes_samples_independent_of_the_batch() {
    let run = |seeds: &[u64]| {
        let mut rngs: Vec<Rng> = seeds.iter().map(|s| rng(*s, Stream::Sample, 0)).collect();
        let x = noise([seeds.len(), 3], &mut rngs, &Device::flex());
        values(ddpm(gaussian(cosine()), x, &grid(10), &mut rngs, |_| {}))
    };
    let together = run(&[5, 6, 7]);
    assert_eq!(together[3..6], run(&[6])[..]);
    assert_eq!(together, run(&[5, 6, 7]));
    assert_ne!(together[..3], together[3..6]);
}

#[test]
fn every_step_is_reported() {
    let (x, mut rngs) = start(2, 8);
    for sampler in [Sampler::Ddpm, DDIM, Sampler::Heun, Sampler::DpmSolverPp] {
        let mut seen = Vec::new();
        let grid = TimeGrid::new(&cosine(), 4, Spacing::Trailing).unwrap();
        let end = sample(
            sampler,
            gaussian(cosine()),
            x.clone(),
            &grid,
            &mut rngs,
            |s| {
                seen.push((s.index, s.total, s.t, values(s.x.clone())));
            },
        );
        let steps: Vec<_> = seen.iter().map(|s| (s.0, s.1, s.2)).collect();
        assert_eq!(steps, [(0, 4, 999), (1, 4, 749), (2, 4, 499), (3, 4, 249)]);
        assert_eq!(seen[3].3, values(end));
    }
}

#[test]
fn time_grids_by_hand() {
    let alpha_bar: Vec<f64> = (0..10).map(|t| 0.95 - 0.09 * f64::from(t)).collect();
    let of = |steps, spacing| TimeGrid::new(&alpha_bar, steps, spacing).unwrap().t;
    assert_eq!(of(5, Spacing::Trailing), [9, 7, 5, 3, 1]);
    assert_eq!(of(4, Spacing::Linspace), [9, 6, 3, 0]);
    assert_eq!(of(2, Spacing::LogSnr), [9, 0]);
    for spacing in [Spacing::Trailing, Spacing::Linspace, Spacing::LogSnr] {
        assert_eq!(of(10, spacing), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(of(1, spacing), [9]);
        for steps in 1..=1000 {
            let t = TimeGrid::new(&cosine(), steps, spacing).unwrap().t;
            assert_eq!((t.len(), t[0]), (steps, 999));
            assert!(
                t.windows(2).all(|w| w[0] > w[1]),
                "{steps} steps {spacing:?}"
            );
        }
    }
}

#[test]
fn impossible_grids_are_refused() {
    let message = |alpha_bar: &[f64], steps| {
        TimeGrid::new(alpha_bar, steps, Spacing::Trailing)
            .unwrap_err()
            .to_string()
    };
    assert!(message(&[0.9, 0.5], 3).contains("from 1 to 2"));
    assert!(message(&[0.9, 0.5], 0).contains("from 1 to 2"));
    assert!(message(&[0.5, 0.9], 1).contains("descend"));
    assert!(message(&[1.0, 0.9], 1).contains("descend"));
    assert!(message(&[0.9, f64::NAN], 1).contains("descend"));
}

/// Two classes of one point each, at -1 and 1: the best guess of the noise is known.
#[test]
fn the_smallest_error_names_the_class() {
    let process = DiffusionConfig {
        target: Target::Eps,
        ..DiffusionConfig::default()
    }
    .init();
    let network = |x: Tensor<2>, times: Tensor<1>, labels: Tensor<1, Int>| {
        let [batch, width] = x.dims();
        let step = times.into_data().iter::<f64>().next().unwrap();
        let alpha_bar = process.alpha_bar((step * process.steps() as f64 / 1000.0) as usize);
        let (signal, sigma) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let points = labels.float() * 2.0 - 1.0;
        (x - points.reshape([batch, 1]).repeat_dim(1, width) * signal) / sigma
    };
    let x0 = Tensor::from_data([[1.0f32, 1.0], [-1.0, -1.0], [5.0, 5.0]], &Device::flex());
    let rng = &mut rng(0, Stream::Noise, 0);
    let errors = values(class_errors(&process, network, x0, [2, 3], rng));
    assert!(errors[1] < 1e-6 && errors[2] < 1e-6, "{errors:?}");
    assert!(errors[0] > 1.0 && errors[3] > 1.0, "{errors:?}");
    // What is like neither is far from both.
    assert!(errors[4] > errors[5] && errors[5] > errors[0], "{errors:?}");
}
