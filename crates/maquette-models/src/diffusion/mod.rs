//! Denoising diffusion: the forward process and the training objective, for any network.
//!
//! Ho, Jain & Abbeel 2020 (arXiv:2006.11239); cosine schedule of Nichol & Dhariwal 2021
//! (arXiv:2102.09672); `v` target of Salimans & Ho 2022 (arXiv:2202.00512).
//!
//! A network maps a noisy `x_t` and a time to what [`Target`] says; [`Diffusion`] holds no weights.
//! Steps count from 0 (least noise) to `steps - 1` (most); networks see the time
//! `1000 * step / steps`, so that one network fits schedules of any length.

pub mod mlp;
pub mod unet;

use burn::tensor::{Device, Tensor, TensorData};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};

/// How much noise each step holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseSchedule {
    /// `beta` rises linearly from 1e-4 to 0.02 over 1,000 steps (Ho et al., section 4); for other
    /// lengths both ends are scaled by `1000 / steps`, so that the total noise stays.
    Linear,
    /// `alpha_bar = cos^2((t / steps + 0.008) / 1.008 * pi / 2)`, `beta` at most 0.999 (Nichol &
    /// Dhariwal, eq. 17).
    Cosine,
}

/// What the network is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The noise.
    Eps,
    /// The clean data.
    X0,
    /// `sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0`.
    V,
}

/// Configuration of a [`Diffusion`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffusionConfig {
    /// Linear or cosine.
    pub schedule: NoiseSchedule,
    /// Number of steps.
    pub steps: usize,
    /// What the network is asked for.
    pub target: Target,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            schedule: NoiseSchedule::Cosine,
            steps: 1000,
            target: Target::V,
        }
    }
}

impl DiffusionConfig {
    /// Checks the number of steps.
    ///
    /// # Errors
    /// [`ModelError::Config`] if there are fewer than 21 steps (of the linear schedule, whose
    /// noise would exceed one) or 2.
    pub fn validate(&self) -> Result<(), ModelError> {
        let least = match self.schedule {
            NoiseSchedule::Linear => 21,
            NoiseSchedule::Cosine => 2,
        };
        require(self.steps >= least, "steps", || {
            format!("must be at least {least}")
        })
    }

    /// The process with its table of noise levels.
    ///
    /// # Panics
    /// If [`DiffusionConfig::validate`] fails.
    pub fn init(&self) -> Diffusion {
        if let Err(error) = self.validate() {
            panic!("invalid DiffusionConfig: {error}");
        }
        Diffusion {
            alpha_bar: self.schedule.alpha_bar(self.steps),
            target: self.target,
        }
    }
}

impl NoiseSchedule {
    /// `alpha_bar` of every step, strictly falling: the share of the data's variance left in `x_t`.
    pub fn alpha_bar(self, steps: usize) -> Vec<f64> {
        let n = steps as f64;
        let betas = (0..steps).map(|step| match self {
            Self::Linear => {
                let fraction = step as f64 / (n - 1.0).max(1.0);
                (1e-4 + fraction * (0.02 - 1e-4)) * 1000.0 / n
            }
            Self::Cosine => {
                let f = |t: f64| {
                    ((t / n + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                        .cos()
                        .powi(2)
                };
                (1.0 - f(step as f64 + 1.0) / f(step as f64)).min(0.999)
            }
        });
        betas
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect()
    }
}

/// What a network's output says about `x_t`.
#[derive(Debug, Clone)]
pub struct Prediction<const D: usize> {
    /// Estimate of the clean data.
    pub x0: Tensor<D>,
    /// Estimate of the noise.
    pub eps: Tensor<D>,
}

/// The forward process and the objective.
#[derive(Debug, Clone, PartialEq)]
pub struct Diffusion {
    alpha_bar: Vec<f64>,
    target: Target,
}

impl Diffusion {
    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.alpha_bar.len()
    }

    /// What the network is asked for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Share of the data's variance left at `step`.
    pub fn alpha_bar(&self, step: usize) -> f64 {
        self.alpha_bar[step]
    }

    /// The time a network sees for `step`, on `[0, 1000)`.
    pub fn time(&self, step: usize) -> f32 {
        step as f32 * 1000.0 / self.steps() as f32
    }

    /// Times of a batch, `[batch]`.
    pub fn times(&self, steps: &[usize], device: &Device) -> Tensor<1> {
        let times: Vec<f32> = steps.iter().map(|step| self.time(*step)).collect();
        Tensor::from_data(TensorData::new(times, [steps.len()]), device)
    }

    /// One step per example, uniform.
    pub fn draw_steps(&self, batch: usize, rng: &mut Rng) -> Vec<usize> {
        let n = self.steps();
        let uniform = maquette_rng::uniform(rng, batch);
        uniform
            .into_iter()
            .map(|u| ((u * n as f32) as usize).min(n - 1))
            .collect()
    }

    /// `sqrt(alpha_bar)` and `sqrt(1 - alpha_bar)` of a batch, `[batch, 1, ...]`.
    fn levels<const D: usize>(&self, steps: &[usize], device: &Device) -> (Tensor<D>, Tensor<D>) {
        let mut shape = [1; D];
        shape[0] = steps.len();
        let column = |f: fn(f64) -> f64| {
            let values: Vec<f32> = steps.iter().map(|s| f(self.alpha_bar[*s]) as f32).collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        (
            column(f64::sqrt),
            column(|alpha_bar| (1.0 - alpha_bar).sqrt()),
        )
    }

    /// `sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise`, eq. (4) of Ho et al.
    ///
    /// # Shapes
    /// - x0, noise, output: `[batch, ...]`
    pub fn q_sample<const D: usize>(
        &self,
        x0: Tensor<D>,
        steps: &[usize],
        noise: Tensor<D>,
    ) -> Tensor<D> {
        let (signal, sigma) = self.levels(steps, &x0.device());
        x0 * signal + noise * sigma
    }

    /// What a perfect network would answer, `[batch, ...]`.
    pub fn truth<const D: usize>(
        &self,
        x0: Tensor<D>,
        steps: &[usize],
        noise: Tensor<D>,
    ) -> Tensor<D> {
        match self.target {
            Target::Eps => noise,
            Target::X0 => x0,
            Target::V => {
                let (signal, sigma) = self.levels(steps, &x0.device());
                noise * signal - x0 * sigma
            }
        }
    }

    /// Mean squared error of the network's answer, eq. (14) of Ho et al., `[1]`.
    ///
    /// # Shapes
    /// - denoise: `([batch, ...], [batch])` to `[batch, ...]`
    /// - x0, noise: `[batch, ...]`
    pub fn loss<const D: usize>(
        &self,
        denoise: impl FnOnce(Tensor<D>, Tensor<1>) -> Tensor<D>,
        x0: Tensor<D>,
        steps: &[usize],
        noise: Tensor<D>,
    ) -> Tensor<1> {
        let x_t = self.q_sample(x0.clone(), steps, noise.clone());
        let times = self.times(steps, &x0.device());
        let difference = denoise(x_t, times) - self.truth(x0, steps, noise);
        (difference.clone() * difference).mean()
    }

    /// Reads `x0` and `eps` out of the network's answer for a batch that stands at one noise level.
    ///
    /// Near pure noise `x0` is not determined by `eps` (eq. 15 of Ho et al. divides by
    /// `sqrt(alpha_bar)`); clipping it is the sampler's choice.
    ///
    /// # Shapes
    /// - output, x_t: `[batch, ...]`
    pub fn predict<const D: usize>(
        &self,
        output: Tensor<D>,
        x_t: Tensor<D>,
        alpha_bar: f64,
    ) -> Prediction<D> {
        let (signal, sigma) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        match self.target {
            Target::Eps => {
                let x0 = (x_t - output.clone() * sigma) / signal;
                Prediction { x0, eps: output }
            }
            Target::X0 => {
                let eps = (x_t - output.clone() * signal) / sigma;
                Prediction { x0: output, eps }
            }
            Target::V => {
                let x0 = x_t.clone() * signal - output.clone() * sigma;
                let eps = x_t * sigma + output * signal;
                Prediction { x0, eps }
            }
        }
    }
}

/// Replaces each label by the null label `n_classes` with probability `p`, so that one network
/// learns with and without its condition (Ho & Salimans 2022, arXiv:2207.12598, algorithm 1).
pub fn drop_labels(labels: &[usize], p: f32, n_classes: usize, rng: &mut Rng) -> Vec<usize> {
    let uniform = maquette_rng::uniform(rng, labels.len());
    labels
        .iter()
        .zip(uniform)
        .map(|(label, u)| if u < p { n_classes } else { *label })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, normal, rng};

    fn batch(seed: u64) -> Tensor<2> {
        let values = normal(&mut rng(seed, Stream::Data, 0), 6);
        Tensor::from_data(TensorData::new(values, [3, 2]), &Device::flex())
    }

    fn difference(a: Tensor<2>, b: Tensor<2>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn schedules_fall_from_data_to_noise() {
        for schedule in [NoiseSchedule::Linear, NoiseSchedule::Cosine] {
            for steps in [100, 1000] {
                let alpha_bar = schedule.alpha_bar(steps);
                assert_eq!(alpha_bar.len(), steps);
                assert!(
                    alpha_bar
                        .windows(2)
                        .all(|pair| pair[1] < pair[0] && pair[1] > 0.0)
                );
                assert!(
                    alpha_bar[0] > 0.99 && alpha_bar[steps - 1] < 1e-4,
                    "{schedule:?} {steps}"
                );
            }
        }
    }

    #[test]
    fn schedules_agree_with_the_papers() {
        // numpy.cumprod(1 - numpy.linspace(1e-4, 0.02, 1000))[[0, 499, 999]]
        let linear = NoiseSchedule::Linear.alpha_bar(1000);
        for (step, expected) in [(0, 0.9999), (499, 0.0786), (999, 4.036e-5)] {
            assert!(
                (linear[step] / expected - 1.0).abs() < 2e-3,
                "{step}: {}",
                linear[step]
            );
        }
        // Half way: cos^2((0.5 + 0.008) / 1.008 * pi / 2) / cos^2(0.008 / 1.008 * pi / 2)
        let cosine = NoiseSchedule::Cosine.alpha_bar(1000)[499];
        let f = |t: f64| {
            ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                .cos()
                .powi(2)
        };
        assert!((cosine - f(0.5) / f(0.0)).abs() < 1e-12);
    }

    #[test]
    fn a_perfect_answer_gives_back_data_and_noise() {
        for target in [Target::Eps, Target::X0, Target::V] {
            let diffusion = DiffusionConfig {
                target,
                ..DiffusionConfig::default()
            }
            .init();
            let (x0, noise) = (batch(1), batch(2));
            for step in [1, 500, 900] {
                let steps = [step; 3];
                let x_t = diffusion.q_sample(x0.clone(), &steps, noise.clone());
                let truth = diffusion.truth(x0.clone(), &steps, noise.clone());
                let got = diffusion.predict(truth, x_t, diffusion.alpha_bar(step));
                assert!(difference(got.x0, x0.clone()) < 1e-4, "{target:?} {step}");
                assert!(
                    difference(got.eps, noise.clone()) < 1e-4,
                    "{target:?} {step}"
                );
            }
        }
    }

    #[test]
    fn loss_is_zero_for_the_truth_and_one_for_no_answer() {
        let diffusion = DiffusionConfig {
            target: Target::Eps,
            ..DiffusionConfig::default()
        }
        .init();
        let (x0, noise, steps) = (batch(1), batch(2), [0, 10, 999]);
        let zero = diffusion.loss(|_, _| noise.clone(), x0.clone(), &steps, noise.clone());
        assert_eq!(zero.into_scalar::<f32>(), 0.0);
        let expected = (noise.clone() * noise.clone()).mean().into_scalar::<f32>();
        let got = diffusion.loss(|x, _| x.zeros_like(), x0, &steps, noise);
        assert!((got.into_scalar::<f32>() - expected).abs() < 1e-6);
    }

    #[test]
    fn steps_and_dropped_labels_follow_the_generator() {
        let diffusion = DiffusionConfig::default().init();
        let steps = diffusion.draw_steps(10_000, &mut rng(0, Stream::Noise, 0));
        let mean = steps.iter().sum::<usize>() as f64 / 1e4;
        assert!(
            steps.iter().all(|s| *s < 1000) && (mean - 499.5).abs() < 10.0,
            "{mean}"
        );
        let labels = drop_labels(&[3; 10_000], 0.1, 10, &mut rng(0, Stream::Noise, 0));
        let dropped = labels.iter().filter(|label| **label == 10).count();
        assert!((900..1100).contains(&dropped), "{dropped}");
    }
}
