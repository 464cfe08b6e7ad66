//! Exponential moving average of a model's parameters.

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::Tensor,
};
use maquette_kernels::optimizer::lerp;

/// A slow copy of a model: after every step, each parameter moves a little towards the model's.
///
/// Save and load it as the module it holds, [`Ema::model`].
#[derive(Debug, Clone)]
pub struct Ema<M> {
    model: M,
    decay: f64,
}

impl<M: Module> Ema<M> {
    /// Starts at the model's parameters. `decay` is the share of the old average kept per step.
    pub fn new(model: &M, decay: f64) -> Self {
        Self {
            model: model.valid(),
            decay,
        }
    }

    /// Continues from a saved average.
    pub fn resume(model: M, decay: f64) -> Self {
        Self {
            model: model.valid(),
            decay,
        }
    }

    /// The averaged model, without gradients.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Moves the average towards the model after step `step` (counted from zero).
    ///
    /// The decay grows as `(1 + step) / (10 + step)` until it reaches the configured one, so that
    /// the first, bad parameters are soon forgotten.
    #[must_use]
    pub fn update(self, model: &M, step: u64) -> Self {
        let warm_up = (1 + step) as f64 / (10 + step) as f64;
        let mut collect = Collect(HashMap::new());
        model.visit(&mut collect);
        let mut blend = Blend {
            towards: collect.0,
            rate: 1.0 - self.decay.min(warm_up),
        };
        Self {
            model: self.model.map(&mut blend),
            decay: self.decay,
        }
    }
}

struct Collect(HashMap<ParamId, Tensor<1>>);

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let n = param.lazy_shape().num_elements();
        self.0.insert(param.id, param.val().inner().reshape([n]));
    }
}

struct Blend {
    towards: HashMap<ParamId, Tensor<1>>,
    rate: f64,
}

impl ModuleMapper for Blend {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.towards.remove(&param.id) {
            Some(target) => param.map(|average| {
                let target = target.reshape(average.shape());
                lerp(average, target, self.rate)
            }),
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{
        nn::{Initializer, Linear, LinearConfig},
        tensor::Device,
    };

    fn constant(value: f64) -> Linear {
        LinearConfig::new(1, 1)
            .with_bias(false)
            .with_initializer(Initializer::Constant { value })
            .init(&Device::flex().autodiff())
    }

    #[test]
    fn moves_by_one_minus_decay() {
        let mut model = constant(0.0);
        let ema = Ema::new(&model, 0.75);
        model.weight = model
            .weight
            .map(|w| w.add_scalar(8.0).detach().require_grad());
        // Warm-up: at step 0 the decay is 1/10; from step 26 on it is the configured 3/4.
        let ema = ema.update(&model, 0);
        let value = |ema: &Ema<Linear>| ema.model().weight.val().into_scalar::<f32>();
        assert!((value(&ema) - 7.2).abs() < 1e-5, "{}", value(&ema));
        let ema = ema.update(&model, 1000);
        assert!((value(&ema) - 7.4).abs() < 1e-5, "{}", value(&ema));
        assert!(!ema.model().weight.is_require_grad());
    }
}
