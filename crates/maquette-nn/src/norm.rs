//! Layer, root-mean-square, group and batch normalisation in one module.

use burn::{
    module::{Module, Param, RunningState},
    nn::Initializer,
    tensor::{Device, Tensor},
};
use maquette_kernels::{
    Activation, GroupNormOptions, activate, batch_norm, group_norm, layer_norm, rms_norm,
};
use serde::{Deserialize, Serialize};

/// How features are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// Subtract the mean, divide by the standard deviation (Ba et al. 2016).
    LayerNorm,
    /// Divide by the root mean square (Zhang & Sennrich 2019).
    RmsNorm,
}

/// Configuration of a [`Norm`].
#[derive(Debug, Clone, Copy)]
pub struct NormConfig {
    /// Layer norm or RMS norm.
    pub kind: NormKind,
    /// Number of features.
    pub d_model: usize,
    /// Added under the square root.
    pub eps: f64,
    /// Whether a layer norm also adds a learnt offset; an RMS norm never does.
    pub bias: bool,
}

impl NormConfig {
    /// A norm with gains of one and offsets of zero.
    pub fn init(&self, device: &Device) -> Norm {
        let bias = self.bias && self.kind == NormKind::LayerNorm;
        Norm {
            weight: Initializer::Ones.init([self.d_model], device),
            bias: bias.then(|| Initializer::Zeros.init([self.d_model], device)),
            kind: self.kind,
            eps: self.eps,
        }
    }
}

/// Normalises the last dimension.
#[derive(Module, Debug)]
pub struct Norm {
    /// Gain, `[d_model]`.
    pub weight: Param<Tensor<1>>,
    /// Offset, `[d_model]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    kind: NormKind,
    eps: f64,
}

impl Norm {
    /// # Shapes
    /// - input, output: `[..., d_model]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        match self.kind {
            NormKind::LayerNorm => layer_norm(x, self.weight.val(), bias, self.eps),
            NormKind::RmsNorm => rms_norm(x, self.weight.val(), self.eps),
        }
    }
}

/// Normalises groups of channels of an image (Wu & He 2018).
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// Gain, `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// Offset, `[channels]`.
    pub bias: Param<Tensor<1>>,
    groups: usize,
}

impl GroupNorm {
    /// A group norm with gains of one and offsets of zero.
    ///
    /// The number of groups is the largest divisor of `channels` that is at most `groups`.
    pub fn new(groups: usize, channels: usize, device: &Device) -> Self {
        let groups = (1..=groups.clamp(1, channels.max(1)))
            .rev()
            .find(|g| channels.is_multiple_of(*g))
            .unwrap_or(1);
        Self {
            weight: Initializer::Ones.init([channels], device),
            bias: Initializer::Zeros.init([channels], device),
            groups,
        }
    }

    /// Normalises, scales, shifts, then applies `activation`.
    ///
    /// # Shapes
    /// - input, output: `[batch, channels, height, width]`
    pub fn forward(&self, x: Tensor<4>, activation: Activation) -> Tensor<4> {
        let (gain, offset) = self.affine();
        group_norm(x, gain, offset, self.options(activation))
    }

    /// Multiplies the normalised image by `1 + scale` and adds `shift` before `activation` (FiLM,
    /// Perez et al. 2018).
    ///
    /// # Shapes
    /// - input, output: `[batch, channels, height, width]`
    /// - scale, shift: `[batch, channels]`
    pub fn forward_film(
        &self,
        x: Tensor<4>,
        scale: Tensor<2>,
        shift: Tensor<2>,
        activation: Activation,
    ) -> Tensor<4> {
        let (gain, offset) = self.affine();
        let scale = scale + 1.0;
        let (gain, offset) = (gain * scale.clone(), offset * scale + shift);
        group_norm(x, gain, offset, self.options(activation))
    }

    /// Groups that the channels fall into.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Added to the variance.
    pub const EPSILON: f64 = 1e-5;

    /// Gain and offset, `[1, channels]`.
    fn affine(&self) -> (Tensor<2>, Tensor<2>) {
        (self.weight.val().unsqueeze(), self.bias.val().unsqueeze())
    }

    fn options(&self, activation: Activation) -> GroupNormOptions {
        GroupNormOptions {
            groups: self.groups,
            epsilon: Self::EPSILON as f32,
            activation,
        }
    }
}

/// Normalises channels of an image over the batch (Ioffe & Szegedy 2015). On an autodiff device it
/// takes the batch's statistics and updates their running means; elsewhere it takes those.
#[derive(Module, Debug)]
pub struct BatchNorm {
    /// Gain, `[channels]`.
    pub gamma: Param<Tensor<1>>,
    /// Offset, `[channels]`.
    pub beta: Param<Tensor<1>>,
    /// Mean of the channels over the last batches, `[channels]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// Variance of the channels over the last batches, `[channels]`.
    pub running_var: RunningState<Tensor<1>>,
}

impl BatchNorm {
    const EPSILON: f32 = 1e-5;
    /// Share of a batch in the running statistics.
    const MOMENTUM: f64 = 0.1;

    /// A batch norm with gains of one and offsets of zero.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self {
            gamma: Initializer::Ones.init([channels], device),
            beta: Initializer::Zeros.init([channels], device),
            running_mean: RunningState::new(Tensor::zeros([channels], device)),
            running_var: RunningState::new(Tensor::ones([channels], device)),
        }
    }

    /// Normalises, scales, shifts, then applies `activation`.
    ///
    /// # Shapes
    /// - input, output: `[batch, channels, height, width]`
    pub fn forward(&self, x: Tensor<4>, activation: Activation) -> Tensor<4> {
        let (gamma, beta, device) = (self.gamma.val(), self.beta.val(), x.device());
        if !device.is_autodiff() {
            let mean = self.running_mean.value().to_device(&device);
            let variance = self.running_var.value().to_device(&device);
            let slope = gamma / (variance + Self::EPSILON).sqrt();
            let offset = beta - mean * slope.clone();
            let spread = |values: Tensor<1>| values.reshape([1, -1, 1, 1]);
            return activate(x * spread(slope) + spread(offset), activation);
        }
        let [batch, _, height, width] = x.dims();
        let found = batch_norm(x, gamma, beta, Self::EPSILON, activation);
        // Bessel's correction: the running variance estimates that of all images.
        let count = (batch * height * width) as f64;
        let variance = found.variance * (count / (count - 1.0).max(1.0));
        for (state, value) in [
            (&self.running_mean, found.mean),
            (&self.running_var, variance),
        ] {
            let old = state.value().to_device(&device);
            let new = old * (1.0 - Self::MOMENTUM) + value * Self::MOMENTUM;
            state.update(new.detach());
            // A checkpoint holds what was synchronised: without this it would lack the last batch.
            state.value_sync();
        }
        found.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(kind: NormKind) -> Vec<f32> {
        let config = NormConfig {
            kind,
            d_model: 4,
            eps: 1e-5,
            bias: true,
        };
        let x = Tensor::<2>::from_floats([[1.0, 2.0, 3.0, 6.0]], &Device::flex());
        let y = config.init(&Device::flex()).forward(x);
        y.into_data().try_to_vec().unwrap()
    }

    fn close(got: &[f32], expected: &[f32]) {
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 1e-5, "{got:?} against {expected:?}");
        }
    }

    #[test]
    fn layer_norm_by_hand() {
        // mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5
        let s = (3.5f32 + 1e-5).sqrt();
        close(
            &norm(NormKind::LayerNorm),
            &[-2.0 / s, -1.0 / s, 0.0, 3.0 / s],
        );
    }

    #[test]
    fn rms_norm_by_hand() {
        // mean square (1 + 4 + 9 + 36) / 4 = 12.5
        let s = (12.5f32 + 1e-5).sqrt();
        close(
            &norm(NormKind::RmsNorm),
            &[1.0 / s, 2.0 / s, 3.0 / s, 6.0 / s],
        );
    }

    #[test]
    fn group_norm_by_hand() {
        // two groups of one channel, each of mean 2 / 20 and deviation 1 / 10
        let x = Tensor::<1>::from_floats([1.0, 3.0, 10.0, 30.0], &Device::flex());
        let y = GroupNorm::new(2, 2, &Device::flex())
            .forward(x.reshape([1, 2, 1, 2]), Activation::Identity);
        close(
            &y.into_data().try_to_vec::<f32>().unwrap(),
            &[-1.0, 1.0, -1.0, 1.0],
        );
    }

    #[test]
    fn batch_norm_by_hand() {
        let device = Device::flex();
        let norm = BatchNorm::new(1, &device.clone().autodiff());
        // Mean 2; variance 1 of the batch, 2 of what it is a sample of.
        let x = || Tensor::<4>::from_floats([[[[1.0]]], [[[3.0]]]], &device);
        let y = norm.forward(x().autodiff(), Activation::LeakyRelu(0.5));
        close(&y.into_data().try_to_vec::<f32>().unwrap(), &[-0.5, 1.0]);
        // Running mean 0.2 and variance 1.1.
        let norm = norm.valid();
        let y = norm.forward(x(), Activation::Identity);
        let s = (1.1f32 + 1e-5).sqrt();
        close(
            &y.into_data().try_to_vec::<f32>().unwrap(),
            &[0.8 / s, 2.8 / s],
        );
    }
}
