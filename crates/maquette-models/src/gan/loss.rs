//! What each player wants, as a function of the critic's scores. All means are over the batch.

use burn::tensor::{
    Tensor,
    activation::{relu, sigmoid},
};
use maquette_nn::binary_cross_entropy;
use serde::{Deserialize, Serialize};

/// The losses. `r` and `f` are the critic's scores of real and of made examples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdversarialLoss {
    /// The game as first written: both players share `log s(r) + log(1 - s(f))`, `s` the logistic function
    /// (Goodfellow et al. 2014, eq. 1, arXiv:1406.2661).
    Minimax,
    /// The generator maximises `log s(f)` instead, whose gradient does not vanish when the critic wins
    /// (the same, section 3).
    #[default]
    NonSaturating,
    /// `(r - 1)^2 / 2 + f^2 / 2` against `(f - 1)^2 / 2` (Mao et al. 2017, eq. 9, arXiv:1611.04076).
    LeastSquares,
    /// `max(0, 1 - r) + max(0, 1 + f)` against `-f` (Lim and Ye 2017, arXiv:1705.02894).
    Hinge,
    /// `f - r` against `-f`, for a critic that is held to be Lipschitz by clipped weights or a penalty
    /// (Arjovsky et al. 2017, arXiv:1701.07875).
    Wasserstein,
    /// `-log s(r - f)` against `-log s(f - r)`: how much more real is real (Jolicoeur-Martineau 2018, RSGAN,
    /// arXiv:1807.00734).
    Relativistic,
}

impl AdversarialLoss {
    /// What the critic minimises. With `smoothing`, the target of real examples is `1 - smoothing` rather
    /// than 1, that of made ones stays 0 (Salimans et al. 2016, section 3.4, arXiv:1606.03498); only the
    /// losses of [`AdversarialLoss::has_targets`] heed it.
    ///
    /// # Shapes
    /// - real, fake: `[batch]`
    /// - output: `[1]`
    pub fn critic(self, real: Tensor<1>, fake: Tensor<1>, smoothing: f64) -> Tensor<1> {
        match self {
            Self::Minimax | Self::NonSaturating => {
                let smoothed = real.clone().mean() * smoothing;
                softplus(real.neg()) + smoothed + softplus(fake)
            }
            Self::LeastSquares => {
                let miss = real - (1.0 - smoothing);
                (miss.square().mean() + fake.square().mean()) * 0.5
            }
            Self::Hinge => relu(real.neg() + 1.0).mean() + relu(fake + 1.0).mean(),
            Self::Wasserstein => fake.mean() - real.mean(),
            Self::Relativistic => softplus(fake - real),
        }
    }

    /// The derivative of [`AdversarialLoss::critic`] with respect to each score, as forward operators.
    ///
    /// # Shapes
    /// - real, fake, outputs: `[batch]`
    pub fn critic_slopes(self, real: Tensor<1>, fake: Tensor<1>, smoothing: f64) -> [Tensor<1>; 2] {
        let n = real.dims()[0] as f64;
        let [real, fake] = match self {
            Self::Minimax | Self::NonSaturating => {
                [sigmoid(real) - (1.0 - smoothing), sigmoid(fake)]
            }
            Self::LeastSquares => [real - (1.0 - smoothing), fake],
            Self::Hinge => [
                real.detach().lower_elem(1.0).float().neg(),
                fake.detach().greater_elem(-1.0).float(),
            ],
            Self::Wasserstein => [real.ones_like().neg(), fake.ones_like()],
            Self::Relativistic => {
                let slope = sigmoid(fake - real);
                [slope.clone().neg(), slope]
            }
        };
        [real / n, fake / n]
    }

    /// What the generator minimises. Only the relativistic loss looks at `real`.
    ///
    /// # Shapes
    /// - real, fake: `[batch]`
    /// - output: `[1]`
    pub fn generator(self, real: Tensor<1>, fake: Tensor<1>) -> Tensor<1> {
        match self {
            Self::Minimax => softplus(fake).neg(),
            Self::NonSaturating => softplus(fake.neg()),
            Self::LeastSquares => (fake - 1.0).square().mean() * 0.5,
            Self::Hinge | Self::Wasserstein => fake.mean().neg(),
            Self::Relativistic => softplus(real - fake),
        }
    }

    /// What the generator minimises where the critic answers to it, so that the scores of real examples
    /// are its doing as well: the players' shared value with the sign turned, or, for losses that have no
    /// such value, the critic's wish with real and made exchanged.
    ///
    /// Leaving `real` out would leave out half of the critic's answer; with it, the part of the gradient
    /// that goes through the critic's updates vanishes when the critic is at its best (Metz et al. 2017,
    /// section 2.3, arXiv:1611.02163).
    ///
    /// # Shapes
    /// - real, fake: `[batch]`
    /// - output: `[1]`
    pub fn answered(self, real: Tensor<1>, fake: Tensor<1>) -> Tensor<1> {
        match self {
            Self::Minimax => self.critic(real, fake, 0.0).neg(),
            Self::NonSaturating | Self::LeastSquares | Self::Relativistic => {
                self.critic(fake, real, 0.0)
            }
            Self::Hinge | Self::Wasserstein => real.mean() - fake.mean(),
        }
    }

    /// Whether scores are pulled to targets, which can be smoothed.
    pub fn has_targets(self) -> bool {
        matches!(
            self,
            Self::Minimax | Self::NonSaturating | Self::LeastSquares
        )
    }

    /// Whether the generator's loss depends on the scores of real examples.
    pub fn compares(self) -> bool {
        self == Self::Relativistic
    }

    /// The score above which an example passes for real; none where only differences mean anything.
    pub fn boundary(self) -> Option<f64> {
        match self {
            Self::Minimax | Self::NonSaturating | Self::Hinge => Some(0.0),
            Self::LeastSquares => Some(0.5),
            Self::Wasserstein | Self::Relativistic => None,
        }
    }

    /// The share of examples that the critic judges right; where there is no boundary, the share of pairs
    /// that it puts in order.
    ///
    /// # Shapes
    /// - real, fake: `[batch]`
    /// - output: `[1]`
    pub fn accuracy(self, real: Tensor<1>, fake: Tensor<1>) -> Tensor<1> {
        let (real, fake) = (real.detach(), fake.detach());
        match self.boundary() {
            Some(boundary) => {
                let right = |scores: Tensor<1>| scores.greater_elem(boundary).float().mean();
                (right(real) + 1.0 - right(fake)) * 0.5
            }
            None => real.greater(fake).float().mean(),
        }
    }
}

/// Mean of `log(1 + e^x)`, which is `-log(1 - s(x))`.
fn softplus(x: Tensor<1>) -> Tensor<1> {
    let x: Tensor<2> = x.unsqueeze_dim(1);
    let zero = x.zeros_like();
    binary_cross_entropy(x, zero).mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use AdversarialLoss::*;
    use burn::tensor::Device;

    fn scores(values: [f32; 2]) -> Tensor<1> {
        Tensor::from_floats(values, &Device::flex().autodiff())
    }

    #[test]
    fn every_loss_by_hand() {
        let ln = |x: f64| x.ln();
        let s = |x: f64| 1.0 / (1.0 + (-x).exp());
        // Real scores 1 and 3, made ones -1 and 0.5.
        let logistic = -(ln(s(1.0)) + ln(s(3.0))) / 2.0 - (ln(s(1.0)) + ln(s(-0.5))) / 2.0;
        for (loss, critic, generator) in [
            (Minimax, logistic, (ln(s(1.0)) + ln(s(-0.5))) / 2.0),
            (NonSaturating, logistic, -(ln(s(-1.0)) + ln(s(0.5))) / 2.0),
            (LeastSquares, (4.0 + 1.25) / 4.0, (4.0 + 0.25) / 4.0),
            (Hinge, 0.75, 0.25),
            (Wasserstein, -2.25, 0.25),
            (
                Relativistic,
                -(ln(s(2.0)) + ln(s(2.5))) / 2.0,
                -(ln(s(-2.0)) + ln(s(-2.5))) / 2.0,
            ),
        ] {
            let (real, fake) = (scores([1.0, 3.0]), scores([-1.0, 0.5]));
            let got = loss.critic(real.clone(), fake.clone(), 0.0);
            let got = f64::from(got.into_scalar::<f32>());
            assert!((got - critic).abs() < 1e-5, "{loss:?}: {got}, {critic}");
            let got = f64::from(loss.generator(real, fake).into_scalar::<f32>());
            assert!(
                (got - generator).abs() < 1e-5,
                "{loss:?}: {got}, {generator}"
            );
        }
    }

    #[test]
    fn smoothing_moves_the_real_target_alone() {
        // Cross-entropy with target 0.9 at score 1: softplus(1) - 0.9.
        let softplus = |x: f64| x.exp().ln_1p();
        let got = NonSaturating.critic(scores([1.0; 2]), scores([0.0; 2]), 0.1);
        let expected = softplus(1.0) - 0.9 + softplus(0.0);
        assert!((f64::from(got.into_scalar::<f32>()) - expected).abs() < 1e-5);
        let got = LeastSquares.critic(scores([1.0; 2]), scores([0.0; 2]), 0.1);
        assert!((got.into_scalar::<f32>() - 0.005).abs() < 1e-6);
    }

    #[test]
    fn slopes_are_the_gradient_of_the_critic_s_loss() {
        for loss in [
            Minimax,
            NonSaturating,
            LeastSquares,
            Hinge,
            Wasserstein,
            Relativistic,
        ] {
            let smoothing = if loss.has_targets() { 0.1 } else { 0.0 };
            let (real, fake) = (
                scores([0.3, 1.5]).require_grad(),
                scores([-2.0, 0.4]).require_grad(),
            );
            let grads = loss
                .critic(real.clone(), fake.clone(), smoothing)
                .backward();
            let slopes = loss.critic_slopes(real.clone(), fake.clone(), smoothing);
            for (slope, scores) in slopes.into_iter().zip([real, fake]) {
                let gap = slope.inner() - scores.grad(&grads).unwrap();
                assert!(gap.abs().max().into_scalar::<f32>() < 1e-6, "{loss:?}");
            }
        }
    }

    #[test]
    fn a_perfect_critic_silences_minimax_alone() {
        for (loss, least) in [
            (Minimax, None),
            (NonSaturating, Some(0.5)),
            (LeastSquares, Some(0.5)),
            (Hinge, Some(0.5)),
            (Wasserstein, Some(0.5)),
            (Relativistic, Some(0.5)),
        ] {
            let fake = scores([-20.0; 2]).require_grad();
            let grads = loss.generator(scores([20.0; 2]), fake.clone()).backward();
            let slope = fake.grad(&grads).unwrap().abs().sum().into_scalar::<f32>();
            match least {
                Some(least) => assert!(slope > least, "{loss:?}: {slope}"),
                None => assert!(slope < 1e-6, "{loss:?}: {slope}"),
            }
        }
    }

    #[test]
    fn accuracy_counts_both_sides() {
        let accuracy = |loss: AdversarialLoss, real, fake| {
            let value = loss.accuracy(scores(real), scores(fake));
            value.into_scalar::<f32>()
        };
        assert_eq!(accuracy(Hinge, [1.0, -1.0], [-1.0, -2.0]), 0.75);
        assert_eq!(accuracy(LeastSquares, [0.4, 0.6], [0.4, 0.6]), 0.5);
        assert_eq!(accuracy(Wasserstein, [9.0, 5.0], [8.0, 6.0]), 0.5);
    }
}
