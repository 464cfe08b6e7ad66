//! Signs of a game's health, measured every so many steps beside the losses. What they mean is told by
//! [`crate::diagnosis`].

use burn::tensor::Tensor;

use crate::diagnosis::EVERY;

/// What is remembered from one look to the next.
#[derive(Default)]
pub(super) struct Vitals {
    /// The mean of the made examples at the last look, `[1, numbers]`.
    mean: Option<Tensor<2>>,
}

impl Vitals {
    /// The signs of the step after `step` steps, or none when it is not time to look: steps are logged by
    /// how many are done.
    ///
    /// - `diversity`: the variance of made examples over the batch, summed over their numbers, over that of
    ///   real ones; so also the ratio of mean squared distances between two examples
    /// - `drift`: how far the mean of the made examples moved since the last look, in deviations of real ones
    /// - `real_low`, `real_high`, `fake_low`, `fake_high`: the ranges
    ///
    /// # Shapes
    /// - real, fake: `[batch, channels, height, width]`
    pub(super) fn of(
        &mut self,
        real: &Tensor<4>,
        fake: &Tensor<4>,
        step: u64,
    ) -> Vec<(&'static str, Tensor<1>)> {
        if !(step + 1).is_multiple_of(EVERY) {
            return Vec::new();
        }
        let flat = |x: &Tensor<4>| x.clone().detach().flatten::<2>(1, 3);
        let (real, fake) = (flat(real), flat(fake));
        let spread = |x: &Tensor<2>| {
            let centred = x.clone() - x.clone().mean_dim(0);
            centred.square().mean_dim(0).sum() + 1e-12
        };
        let (truth, mean) = (spread(&real), fake.clone().mean_dim(0));
        let mut signs = vec![
            ("diversity", spread(&fake) / truth.clone()),
            ("real_low", real.clone().min()),
            ("real_high", real.max()),
            ("fake_low", fake.clone().min()),
            ("fake_high", fake.max()),
        ];
        if let Some(last) = self.mean.replace(mean.clone()) {
            let moved = (mean - last).square().sum();
            signs.push(("drift", (moved / truth).sqrt()));
        }
        signs
    }
}
