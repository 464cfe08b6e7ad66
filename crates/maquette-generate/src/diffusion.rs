//! Diffusion samplers: from noise to data, given a network that guesses the data.
//!
//! Each sampler is a free function over `denoise(x, t) -> x0`, the best guess of the clean data
//! behind `x` at step `t` of the training schedule. Whatever the network predicts (noise, data or
//! velocity), whatever it is conditioned on, and whether its guess is clamped to the data's range
//! is the closure's business.
//!
//! Notation of Ho et al. 2020 (arXiv 2006.11239): noisy data is
//! `x_t = sqrt(alpha_bar[t]) x0 + sqrt(1 - alpha_bar[t]) eps`, with `t` from 0 (least noise) to
//! `T - 1`. Each sampler makes one network pass per step, Heun two.

use crate::GenerateError;
use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_models::Diffusion;
use maquette_rng::{Rng, normal};
use serde::{Deserialize, Serialize};

/// Which steps of the training schedule a sampler visits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// Evenly, counted from the noisy end, which is always visited ("trailing" in Lin et al.
    /// 2023, arXiv 2305.08891).
    #[default]
    Trailing,
    /// Evenly, both ends visited: a finer last step for data with sharp detail.
    Linspace,
    /// Evenly in the log signal-to-noise ratio (Lu et al. 2022, arXiv 2206.00927): most steps
    /// where little noise is left.
    LogSnr,
}

/// The steps of one sampling run: strictly descending `t`, and the signal left at each.
#[derive(Debug, Clone, PartialEq)]
pub struct TimeGrid {
    t: Vec<usize>,
    /// One more than `t`: the last entry is 1, clean data.
    alpha_bar: Vec<f64>,
}

impl TimeGrid {
    /// Lays `steps` steps over the training schedule `alpha_bar`.
    ///
    /// # Errors
    /// A schedule that is not strictly descending within (0, 1), no steps, or more steps than the
    /// schedule has.
    pub fn new(alpha_bar: &[f64], steps: usize, spacing: Spacing) -> Result<Self, GenerateError> {
        let total = alpha_bar.len();
        let inside = alpha_bar.iter().all(|a| *a > 0.0 && *a < 1.0);
        if !inside || !alpha_bar.windows(2).all(|w| w[0] > w[1]) {
            return Err(GenerateError::Steps(
                "alpha_bar must descend strictly and stay between 0 and 1, both excluded".into(),
            ));
        }
        if steps == 0 || steps > total {
            return Err(GenerateError::Steps(format!(
                "{steps} sampling steps over a schedule of {total}; choose from 1 to {total}"
            )));
        }
        let t = match spacing {
            Spacing::Trailing => trailing(total, steps),
            Spacing::Linspace => linspace(total, steps),
            Spacing::LogSnr => log_snr(alpha_bar, steps),
        };
        let mut chosen: Vec<f64> = t.iter().map(|&t| alpha_bar[t]).collect();
        chosen.push(1.0);
        Ok(Self {
            t,
            alpha_bar: chosen,
        })
    }

    /// The visited steps of the training schedule, in the order of sampling.
    pub fn timesteps(&self) -> &[usize] {
        &self.t
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.t.len()
    }

    /// Never: a grid has at least one step.
    pub fn is_empty(&self) -> bool {
        self.t.is_empty()
    }

    /// Square roots of the signal and noise shares at grid position `i`; clean data at the end.
    fn scales(&self, i: usize) -> (f64, f64) {
        let a = self.alpha_bar[i];
        (a.sqrt(), (1.0 - a).sqrt())
    }

    /// Noise over signal, the `sigma` of Karras et al. 2022.
    fn sigma(&self, i: usize) -> f64 {
        let (signal, noise) = self.scales(i);
        noise / signal
    }
}

fn trailing(total: usize, steps: usize) -> Vec<usize> {
    let share = total as f64 / steps as f64;
    (0..steps)
        .map(|i| (total as f64 - i as f64 * share).round() as usize - 1)
        .collect()
}

fn linspace(total: usize, steps: usize) -> Vec<usize> {
    let share = (total - 1) as f64 / (steps.max(2) - 1) as f64;
    (0..steps)
        .map(|i| ((total - 1) as f64 - i as f64 * share).round() as usize)
        .collect()
}

fn log_snr(alpha_bar: &[f64], steps: usize) -> Vec<usize> {
    let lambda: Vec<f64> = alpha_bar
        .iter()
        .map(|a| 0.5 * (a / (1.0 - a)).ln())
        .collect();
    let last = lambda.len() - 1;
    let step = (lambda[0] - lambda[last]) / (steps.max(2) - 1) as f64;
    let mut ceiling = last;
    (0..steps)
        .map(|i| {
            let wanted = lambda[last] + i as f64 * step;
            // Lambda falls with t: the first entry at or below the wanted one, or its neighbour.
            let at = lambda.partition_point(|l| *l > wanted).min(last);
            let nearest = match at.checked_sub(1) {
                Some(before) if lambda[before] - wanted < wanted - lambda[at] => before,
                _ => at,
            };
            // Below the step before, and leaving room for those to come.
            let t = nearest.clamp(steps - 1 - i, ceiling);
            ceiling = t.saturating_sub(1);
            t
        })
        .collect()
}

/// What a sampler reports after each step.
#[derive(Debug)]
pub struct Step<'a, const D: usize> {
    /// Which step this was, from 0.
    pub index: usize,
    /// How many there are.
    pub total: usize,
    /// The step of the training schedule the network was asked at.
    pub t: usize,
    /// The state after the step.
    pub x: &'a Tensor<D>,
    /// The guess of the clean data the step was made with.
    pub x0: &'a Tensor<D>,
}

/// A sampler by name, for recipes and the command line; [`sample`] runs it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sampler {
    /// [`ddpm`].
    Ddpm,
    /// [`ddim`].
    Ddim {
        /// How much fresh noise each step adds: 0 none, 1 as much as [`ddpm`].
        #[serde(default)]
        eta: f64,
    },
    /// [`heun`].
    Heun,
    /// [`dpm_solver_pp`].
    DpmSolverPp,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::Ddim { eta: 0.0 }
    }
}

/// Runs the named sampler; see [`ddim`] for the arguments.
pub fn sample<const D: usize>(
    sampler: Sampler,
    denoise: impl FnMut(Tensor<D>, usize) -> Tensor<D>,
    x: Tensor<D>,
    grid: &TimeGrid,
    rngs: &mut [Rng],
    on_step: impl FnMut(Step<'_, D>),
) -> Tensor<D> {
    match sampler {
        Sampler::Ddpm => ddpm(denoise, x, grid, rngs, on_step),
        Sampler::Ddim { eta } => ddim(denoise, x, grid, eta, rngs, on_step),
        Sampler::Heun => heun(denoise, x, grid, on_step),
        Sampler::DpmSolverPp => dpm_solver_pp(denoise, x, grid, on_step),
    }
}

/// Standard normal noise of `shape`, drawn on the host.
///
/// The rows of the batch are shared out evenly among the generators, in order. With one generator
/// per row a sample depends on its own generator alone, not on what else is in the batch.
///
/// # Panics
/// When `shape[0]` is not a multiple of the number of generators.
pub fn noise<const D: usize>(shape: [usize; D], rngs: &mut [Rng], device: &Device) -> Tensor<D> {
    assert!(
        !rngs.is_empty() && shape[0].is_multiple_of(rngs.len()),
        "{} generators cannot share a batch of {} evenly",
        rngs.len(),
        shape[0]
    );
    let each = shape.iter().product::<usize>() / rngs.len();
    let values: Vec<f32> = rngs.iter_mut().flat_map(|rng| normal(rng, each)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Ancestral sampling (Ho et al. 2020, algorithm 2) with the posterior variance `beta_tilde`; on
/// a shortened grid with the betas of that grid (Nichol & Dhariwal 2021, arXiv 2102.09672).
///
/// Arguments as in [`ddim`].
///
/// # Shapes
/// - x, and every call of `denoise`: `[batch, ...]`
pub fn ddpm<const D: usize>(
    mut denoise: impl FnMut(Tensor<D>, usize) -> Tensor<D>,
    mut x: Tensor<D>,
    grid: &TimeGrid,
    rngs: &mut [Rng],
    mut on_step: impl FnMut(Step<'_, D>),
) -> Tensor<D> {
    for (i, &t) in grid.t.iter().enumerate() {
        // 1. guess the data
        let x0 = denoise(x.clone(), t);
        // 2. posterior mean and variance of the previous state, eqs. (6) and (7)
        let (now, previous) = (grid.alpha_bar[i], grid.alpha_bar[i + 1]);
        let alpha = now / previous;
        let beta = 1.0 - alpha;
        let mean = x0.clone() * (previous.sqrt() * beta / (1.0 - now))
            + x.clone() * (alpha.sqrt() * (1.0 - previous) / (1.0 - now));
        let variance = beta * (1.0 - previous) / (1.0 - now);
        // 3. draw from it; the last step has no variance
        x = if variance > 0.0 {
            mean + noise(x.dims(), rngs, &x.device()) * variance.sqrt()
        } else {
            mean
        };
        report(&mut on_step, grid, i, &x, &x0);
    }
    x
}

/// Denoising diffusion implicit models (Song et al. 2021, arXiv 2010.02502, eqs. 12 and 16).
///
/// - `denoise(x, t)` guesses the clean data; called with `t` descending along `grid`.
/// - `x` is where to start: [`noise`] of the data's shape.
/// - `eta` is the share of fresh noise: 0 makes the map from `x` deterministic and draws nothing
///   from `rngs`, 1 is [`ddpm`].
/// - `rngs`: one generator for the batch or one per sample, see [`noise`].
/// - `on_step` sees every step, for progress or a film.
///
/// # Shapes
/// - x, and every call of `denoise`: `[batch, ...]`
pub fn ddim<const D: usize>(
    mut denoise: impl FnMut(Tensor<D>, usize) -> Tensor<D>,
    mut x: Tensor<D>,
    grid: &TimeGrid,
    eta: f64,
    rngs: &mut [Rng],
    mut on_step: impl FnMut(Step<'_, D>),
) -> Tensor<D> {
    for (i, &t) in grid.t.iter().enumerate() {
        // 1. guess the data, and with it the noise
        let x0 = denoise(x.clone(), t);
        let eps = implied_noise(&x, &x0, grid.scales(i));
        // 2. the size of the fresh noise, eq. (16)
        let (now, previous) = (grid.alpha_bar[i], grid.alpha_bar[i + 1]);
        let sigma = eta * ((1.0 - previous) / (1.0 - now) * (1.0 - now / previous)).sqrt();
        // 3. to the previous step along the old noise, eq. (12)
        let along = (1.0 - previous - sigma * sigma).max(0.0).sqrt();
        let mean = x0.clone() * previous.sqrt() + eps * along;
        x = if sigma > 0.0 {
            mean + noise(x.dims(), rngs, &x.device()) * sigma
        } else {
            mean
        };
        report(&mut on_step, grid, i, &x, &x0);
    }
    x
}

/// Heun's second-order method on the probability-flow equation `d(x/signal)/d(sigma) = eps`
/// (Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn). Two network passes per
/// step except the last, deterministic. Arguments as in [`ddim`].
///
/// # Shapes
/// - x, and every call of `denoise`: `[batch, ...]`
pub fn heun<const D: usize>(
    mut denoise: impl FnMut(Tensor<D>, usize) -> Tensor<D>,
    mut x: Tensor<D>,
    grid: &TimeGrid,
    mut on_step: impl FnMut(Step<'_, D>),
) -> Tensor<D> {
    for (i, &t) in grid.t.iter().enumerate() {
        // 1. Euler step, which is DDIM's
        let x0 = denoise(x.clone(), t);
        let eps = implied_noise(&x, &x0, grid.scales(i));
        let (signal, remaining) = grid.scales(i + 1);
        x = x0.clone() * signal + eps.clone() * remaining;
        // 2. the slope where that step ended, and the mean of the two slopes
        if let Some(&next) = grid.t.get(i + 1) {
            let eps_next = implied_noise(&x, &denoise(x.clone(), next), (signal, remaining));
            let half = 0.5 * signal * (grid.sigma(i + 1) - grid.sigma(i));
            x = x + (eps_next - eps) * half;
        }
        report(&mut on_step, grid, i, &x, &x0);
    }
    x
}

/// DPM-Solver++(2M): second order from the guesses of two neighbouring steps, one network pass
/// each (Lu et al. 2022, arXiv 2211.01095, algorithm 2); first and last step are first order.
/// Deterministic. Arguments as in [`ddim`].
///
/// # Shapes
/// - x, and every call of `denoise`: `[batch, ...]`
pub fn dpm_solver_pp<const D: usize>(
    mut denoise: impl FnMut(Tensor<D>, usize) -> Tensor<D>,
    mut x: Tensor<D>,
    grid: &TimeGrid,
    mut on_step: impl FnMut(Step<'_, D>),
) -> Tensor<D> {
    // Half the log signal-to-noise ratio; infinite for clean data.
    let lambda = |i: usize| -grid.sigma(i).ln();
    let mut before: Option<Tensor<D>> = None;
    for (i, &t) in grid.t.iter().enumerate() {
        // 1. guess the data
        let x0 = denoise(x.clone(), t);
        let h = lambda(i + 1) - lambda(i);
        // 2. extrapolate the guess to the middle of the step
        let guess = match before {
            Some(before) if h.is_finite() => {
                let r = (lambda(i) - lambda(i - 1)) / h;
                x0.clone() + (x0.clone() - before) * (0.5 / r)
            }
            _ => x0.clone(),
        };
        // 3. exact solution of the linear part
        let ((_, noise), (signal, remaining)) = (grid.scales(i), grid.scales(i + 1));
        x = x * (remaining / noise) - guess * (signal * (-h).exp_m1());
        report(&mut on_step, grid, i, &x, &x0);
        before = Some(x0);
    }
    x
}

/// Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): wraps a label-conditioned
/// `denoise` into an unlabelled one that overshoots from the unconditional guess towards the
/// conditional by `scale`. 1 is the plain conditional model, 0 the unconditional; the paper's `w`
/// is `scale - 1`.
///
/// Both passes go through the network as one batch of twice the size: the conditional half first,
/// then the same `x` with `null_label`. With a scale of 1 only the conditional pass is made.
///
/// # Shapes
/// - labels: `[batch]`
/// - calls of `denoise`: x `[2 batch, ...]`, labels `[2 batch]`
/// - calls of the result: `[batch, ...]`
pub fn guided<const D: usize>(
    mut denoise: impl FnMut(Tensor<D>, usize, Tensor<1, Int>) -> Tensor<D>,
    labels: Tensor<1, Int>,
    null_label: i64,
    scale: f64,
) -> impl FnMut(Tensor<D>, usize) -> Tensor<D> {
    let both = Tensor::cat(
        vec![labels.clone(), Tensor::full_like(&labels, null_label)],
        0,
    );
    move |x, t| {
        if scale == 1.0 {
            return denoise(x, t, labels.clone());
        }
        let batch = x.dims()[0];
        let x0 = denoise(Tensor::cat(vec![x.clone(), x], 0), t, both.clone());
        let conditional = x0.clone().narrow(0, 0, batch);
        let unconditional = x0.narrow(0, batch, batch);
        unconditional.clone() + (conditional - unconditional) * scale
    }
}

/// How badly a class-conditional network undoes the noise on each example when told each class: the
/// smallest error names the example's class (Li et al. 2023, arXiv 2303.16203). It stands in for the
/// bound on the likelihood that it is the unweighted form of, so a large smallest error says that
/// the example is like none of the data.
///
/// Errors are means over `draws` noise levels, evenly spread over the process. All classes see the
/// same noise: what it adds to their errors cancels out in the comparison.
///
/// # Shapes
/// - x0: `[batch, ...]`
/// - calls of `network`: x_t `[batch, ...]`, times `[batch]`, labels `[batch]`
/// - output: `[batch, n_classes]`
///
/// # Panics
/// Without classes or draws.
pub fn class_errors<const D: usize>(
    process: &Diffusion,
    mut network: impl FnMut(Tensor<D>, Tensor<1>, Tensor<1, Int>) -> Tensor<D>,
    x0: Tensor<D>,
    [n_classes, draws]: [usize; 2],
    rng: &mut Rng,
) -> Tensor<2> {
    assert!(n_classes > 0 && draws > 0, "nothing to compare");
    let (batch, device) = (x0.dims()[0], x0.device());
    let mean_over = |draw: usize| {
        let level = (2 * draw + 1) * process.steps() / (2 * draws);
        let levels = vec![level; batch];
        let noise = noise(x0.dims(), std::slice::from_mut(rng), &device);
        let x_t = process.q_sample(x0.clone(), &levels, noise.clone());
        let truth = process.truth(x0.clone(), &levels, noise);
        let times = process.times(&levels, &device);
        let errors = (0..n_classes).map(|class| {
            let labels = Tensor::full([batch], class as i64, &device);
            let output = network(x_t.clone(), times.clone(), labels);
            let difference: Tensor<2> = (output - truth.clone()).reshape([batch as i32, -1]);
            difference.square().mean_dim(1)
        });
        Tensor::cat(errors.collect(), 1)
    };
    let total = (0..draws).map(mean_over).reduce(|a, b| a + b);
    total.expect("one draw or more") / draws as f64
}

/// The noise that makes `x` of the guess `x0`.
fn implied_noise<const D: usize>(
    x: &Tensor<D>,
    x0: &Tensor<D>,
    (signal, noise): (f64, f64),
) -> Tensor<D> {
    (x.clone() - x0.clone() * signal) / noise
}

fn report<const D: usize>(
    on_step: &mut impl FnMut(Step<'_, D>),
    grid: &TimeGrid,
    index: usize,
    x: &Tensor<D>,
    x0: &Tensor<D>,
) {
    on_step(Step {
        index,
        total: grid.len(),
        t: grid.t[index],
        x,
        x0,
    });
}

#[cfg(test)]
mod tests;
