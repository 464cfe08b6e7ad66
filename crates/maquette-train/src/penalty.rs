//! L1 and L2 penalties on groups of parameters.
//!
//! Their gradients are closed forms, so they are added to the gradients directly instead of
//! growing the graph of the loss.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::TrainError;
use crate::parameters::{PathStack, matching};
use crate::spec::{PenaltyKind, PenaltySpec};

/// A penalty bound to the parameters of one model.
#[derive(Debug, Clone)]
pub struct Penalty {
    kind: PenaltyKind,
    weight: f64,
    paths: Vec<String>,
}

impl Penalty {
    /// Binds `spec` to `model`.
    ///
    /// # Errors
    /// [`TrainError::NoSuchParameters`] when its pattern matches nothing.
    pub fn new<M: Module>(spec: &PenaltySpec, model: &M) -> Result<Self, TrainError> {
        Ok(Self {
            kind: spec.kind,
            weight: spec.weight,
            paths: matching(model, &spec.params)?,
        })
    }

    /// The penalty's value: `weight * sum |w|` or `weight * sum w^2`.
    pub fn value<M: Module>(&self, model: &M) -> f64 {
        let mut walk = Walk::new(self, None);
        model.visit(&mut walk);
        self.weight * walk.terms.iter().sum::<f64>()
    }

    /// Adds the penalty's gradient: `weight * sign(w)` or `2 weight w`.
    pub fn add_gradient<M: Module>(&self, model: &M, grads: &mut GradientsParams) {
        model.visit(&mut Walk::new(self, Some(grads)));
    }
}

struct Walk<'a> {
    penalty: &'a Penalty,
    /// With gradients the walk adds to them, without it measures.
    grads: Option<&'a mut GradientsParams>,
    path: PathStack,
    terms: Vec<f64>,
}

impl<'a> Walk<'a> {
    fn new(penalty: &'a Penalty, grads: Option<&'a mut GradientsParams>) -> Self {
        Self {
            penalty,
            grads,
            path: PathStack::default(),
            terms: Vec::new(),
        }
    }
}

impl ModuleVisitor for Walk<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.penalty.paths.contains(&self.path.path()) {
            return;
        }
        let (kind, weight) = (self.penalty.kind, self.penalty.weight);
        let w = param.val().inner();
        let Some(grads) = self.grads.as_mut() else {
            let sum = match kind {
                PenaltyKind::L1 => w.abs().sum(),
                PenaltyKind::L2 => w.square().sum(),
            };
            self.terms.push(f64::from(sum.into_scalar::<f32>()));
            return;
        };
        let own = match kind {
            PenaltyKind::L1 => w.sign().mul_scalar(weight),
            PenaltyKind::L2 => w.mul_scalar(2.0 * weight),
        };
        let grad = match grads.remove::<D>(param.id) {
            Some(grad) => grad + own,
            None => own,
        };
        grads.register(param.id, grad);
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    fn linear() -> Linear {
        let device = Device::flex().autodiff();
        let mut model = LinearConfig::new(2, 1).init(&device);
        let weight = Tensor::<2>::from_floats([[2.0], [-3.0]], &device);
        model.weight = model.weight.map(|_| weight.require_grad());
        model
    }

    fn penalty(kind: PenaltyKind, params: &str, model: &Linear) -> Result<Penalty, TrainError> {
        let params = params.into();
        Penalty::new(
            &PenaltySpec {
                kind,
                weight: 0.5,
                params,
            },
            model,
        )
    }

    #[test]
    fn values_and_gradients_agree_with_autodiff() {
        let model = linear();
        for (kind, value) in [(PenaltyKind::L1, 2.5), (PenaltyKind::L2, 6.5)] {
            let penalty = penalty(kind, "weight", &model).unwrap();
            assert_eq!(penalty.value(&model), value);
            let w = model.weight.val();
            let term = match kind {
                PenaltyKind::L1 => w.clone().abs().sum(),
                PenaltyKind::L2 => w.clone().square().sum(),
            };
            let expected = w.grad(&term.mul_scalar(0.5).backward()).unwrap();
            let mut grads = GradientsParams::new();
            grads.register(model.weight.id, expected.ones_like());
            penalty.add_gradient(&model, &mut grads);
            let got = grads.get::<2>(model.weight.id).unwrap() - 1.0;
            got.into_data().assert_eq(&expected.into_data(), true);
            assert_eq!(grads.len(), 1, "the bias is not in the group");
        }
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_an_error() {
        let error = penalty(PenaltyKind::L1, "gain", &linear()).unwrap_err();
        assert!(error.to_string().contains("weight, bias"), "{error}");
    }
}
