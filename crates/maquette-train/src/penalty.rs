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
