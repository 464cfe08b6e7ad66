//! Gradient clipping over the whole model.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use maquette_models::nn::optimizer::{scale, square_sum};

/// The Euclidean norm of all gradients together, taken in module order.
///
/// NaN or infinite when any component is.
pub fn global_norm<M: Module>(model: &M, grads: &GradientsParams) -> f64 {
    let mut squares = Squares {
        grads,
        sums: Vec::new(),
    };
    model.visit(&mut squares);
    if squares.sums.is_empty() {
        return 0.0;
    }
    // One read-back for the whole model: a GPU would otherwise wait once per parameter.
    let sums = Tensor::cat(squares.sums, 0).into_data();
    sums.iter::<f64>().sum::<f64>().sqrt()
}

/// Scales all gradients so that their global norm is at most `max` (Pascanu et al., 2013).
/// `norm` is the present norm, from [`global_norm`].
pub fn by_norm<M: Module>(model: &M, grads: &mut GradientsParams, norm: f64, max: f64) {
    if norm > max {
        let factor = max / norm;
        each(model, grads, Rule::Scale(factor));
    }
}

/// Clamps every component of every gradient to `[-max, max]`.
pub fn by_value<M: Module>(model: &M, grads: &mut GradientsParams, max: f64) {
    each(model, grads, Rule::Clamp(max));
}

/// Clamps every trained weight to `[-max, max]` (Arjovsky et al., 2017).
pub fn weights<M: Module>(model: M, max: f64) -> M {
    model.map(&mut ClampWeights(max))
}

struct ClampWeights(f64);

impl ModuleMapper for ClampWeights {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match param.is_require_grad() {
            true => param.map(|weight| weight.clamp(-self.0, self.0).detach().require_grad()),
            false => param,
        }
    }
}

#[derive(Clone, Copy)]
enum Rule {
    Scale(f64),
    Clamp(f64),
}

fn each<M: Module>(model: &M, grads: &mut GradientsParams, rule: Rule) {
    model.visit(&mut Change { grads, rule });
}

struct Squares<'a> {
    grads: &'a GradientsParams,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            self.sums.push(square_sum(grad));
        }
    }
}

struct Change<'a> {
    grads: &'a mut GradientsParams,
    rule: Rule,
}

impl ModuleVisitor for Change<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.remove::<D>(param.id) else {
            return;
        };
        let grad = match self.rule {
            Rule::Scale(factor) => scale(grad, factor),
            Rule::Clamp(max) => grad.clamp(-max, max),
        };
        self.grads.register(param.id, grad);
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    fn model_and_grads() -> (Linear, GradientsParams) {
        let model = LinearConfig::new(2, 1).init(&Device::flex().autodiff());
        let device = Device::flex();
        let mut grads = GradientsParams::new();
        grads.register(
            model.weight.id,
            Tensor::<2>::from_floats([[3.0], [-4.0]], &device),
        );
        let bias = model.bias.as_ref().unwrap();
        grads.register(bias.id, Tensor::<1>::from_floats([12.0], &device));
        (model, grads)
    }

    fn values(model: &Linear, grads: &GradientsParams) -> Vec<f32> {
        let weight = grads.get::<2>(model.weight.id).unwrap();
        let bias = grads.get::<1>(model.bias.as_ref().unwrap().id).unwrap();
        [
            weight.try_into_vec_as().unwrap(),
            bias.try_into_vec_as().unwrap(),
        ]
        .concat()
    }

    #[test]
    fn the_norm_is_over_all_parameters_together() {
        let (model, mut grads) = model_and_grads();
        // 3, 4 and 12 make 13.
        let norm = global_norm(&model, &grads);
        assert_eq!(norm, 13.0);
        by_norm(&model, &mut grads, norm, 6.5);
        assert_eq!(values(&model, &grads), [1.5, -2.0, 6.0]);
        by_norm(&model, &mut grads, 6.5, 100.0);
        assert_eq!(values(&model, &grads), [1.5, -2.0, 6.0]);
    }

    #[test]
    fn values_are_clamped_on_both_sides() {
        let (model, mut grads) = model_and_grads();
        by_value(&model, &mut grads, 3.5);
        assert_eq!(values(&model, &grads), [3.0, -3.5, 3.5]);
    }

    #[test]
    fn a_component_that_is_not_finite_shows_in_the_norm() {
        let (model, mut grads) = model_and_grads();
        let nan = Tensor::<2>::from_floats([[f32::NAN], [0.0]], &Device::flex());
        grads.register(model.weight.id, nan);
        assert!(global_norm(&model, &grads).is_nan());
    }
}
