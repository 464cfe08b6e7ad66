//! Dropout (Srivastava et al. 2014) through the fused kernel.

use burn::{
    module::{Flag, Module, Param},
    tensor::{Device, Distribution, Tensor},
};
use maquette_kernels::dropout;

/// Zeroes numbers during training, that is on a device with autodiff unless the layer is frozen.
#[derive(Module, Debug)]
pub struct Dropout {
    /// Probability of a zero.
    prob: f64,
    /// Cleared when the layer is frozen.
    training: Param<Flag>,
}

impl Dropout {
    /// A layer that drops with `probability`.
    ///
    /// # Panics
    /// If the probability is not in `[0, 1)`.
    pub fn new(probability: f64) -> Self {
        assert!(
            (0.0..1.0).contains(&probability),
            "a dropout of {probability} is not in [0, 1)"
        );
        Self {
            prob: probability,
            training: Param::from_bool(true),
        }
    }

    /// # Shapes
    /// - input, output: any, the same
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.draw(&x.device()) {
            Some(options) => dropout(x, None, options),
            None => x,
        }
    }

    /// `residual + dropout(x)` in one pass.
    ///
    /// # Shapes
    /// - inputs, output: any, the same
    pub fn forward_onto<const D: usize>(&self, x: Tensor<D>, residual: Tensor<D>) -> Tensor<D> {
        match self.draw(&x.device()) {
            Some(options) => dropout(x, Some(residual), options),
            None => residual + x,
        }
    }

    /// What to drop in one call, if anything. The key comes from the device's generator, which the
    /// training loop seeds at every step.
    pub(crate) fn draw(&self, device: &Device) -> Option<maquette_kernels::Dropout> {
        if self.prob == 0.0 || !device.is_autodiff() || !self.training.is_enabled() {
            return None;
        }
        let words = Tensor::<1>::random([4], Distribution::Uniform(0.0, 65_536.0), device);
        let words = words.into_data();
        let key = words
            .iter::<f32>()
            .fold(0, |key, word| key << 16 | u64::from(word as u16));
        Some(maquette_kernels::Dropout {
            probability: self.prob,
            key,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_s_seed_decides() {
        let layer = Dropout::new(0.5);
        let device = Device::flex().autodiff();
        let x = Tensor::<1>::ones([64], &device);
        let on = |seed| {
            device.seed(seed);
            let first = layer.forward(x.clone()).into_data();
            assert_ne!(
                first,
                layer.forward(x.clone()).into_data(),
                "a new mask each call"
            );
            first
        };
        assert_eq!(on(1), on(1));
        assert_ne!(on(1), on(2));
    }

    #[test]
    fn does_nothing_outside_training() {
        let layer = Dropout::new(0.5);
        let x = Tensor::<1>::ones([64], &Device::flex());
        assert_eq!(layer.forward(x.clone()).into_data(), x.clone().into_data());
        let sum = layer.forward_onto(x.clone(), x.clone());
        assert_eq!(sum.into_data(), (x * 2.0).into_data());
    }
}
