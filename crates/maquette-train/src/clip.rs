//! Gradient clipping over the whole model.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

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
            self.sums.push(grad.square().sum());
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
            Rule::Scale(factor) => grad.mul_scalar(factor),
            Rule::Clamp(max) => grad.clamp(-max, max),
        };
        self.grads.register(param.id, grad);
    }
}
