//! Update rules for Burn's [`ModuleOptimizer`](burn::optim::ModuleOptimizer), each one call of a
//! kernel.

use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor};
use maquette_models::nn::optimizer::{self, AdamStep, RmsPropStep, SgdStep};

/// What a rule remembers of one parameter.
#[derive(Debug, Clone)]
pub(super) struct Memory<const D: usize> {
    /// Steps taken.
    steps: usize,
    /// The velocity, or first moment.
    first: Option<Tensor<D>>,
    /// The mean of squares, or second moment.
    second: Option<Tensor<D>>,
}

/// By hand: the derived form names a crate that only Burn sees.
impl<const D: usize> RecordState for Memory<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_scalar(prefix, "steps", self.steps.into());
        for (name, tensor) in [("first", &self.first), ("second", &self.second)] {
            if let Some(tensor) = tensor {
                out.push_tensor(prefix, name, tensor.to_data());
            }
        }
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        let steps = usize::try_from(src.take_scalar(prefix, "steps")?).ok()?;
        let mut tensor = |name| {
            let data = src.take_tensor(prefix, name);
            data.map(|data| Tensor::from_data(data, device))
        };
        Some(Self {
            steps,
            first: tensor("first"),
            second: tensor("second"),
        })
    }
}

/// Adam and AdamW.
#[derive(Debug, Clone)]
pub(super) struct Adam {
    pub(super) betas: [f64; 2],
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
    pub(super) decoupled: bool,
}

impl Optimizer for Adam {
    type State<const D: usize> = Memory<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Memory<D>>,
    ) -> (Tensor<D>, Option<Memory<D>>) {
        let (steps, first, second) = parts(state);
        let zeros = || grad.zeros_like();
        let moments = [first, second].map(|moment| moment.unwrap_or_else(zeros));
        let step = AdamStep {
            lr,
            betas: self.betas,
            eps: self.eps,
            weight_decay: self.weight_decay,
            decoupled: self.decoupled,
            time: steps + 1,
        };
        let (tensor, [first, second]) = optimizer::adam(tensor, grad, moments, &step);
        let state = Memory {
            steps: steps + 1,
            first: Some(first),
            second: Some(second),
        };
        (tensor, Some(state))
    }

    fn to_device<const D: usize>(state: Memory<D>, device: &Device) -> Memory<D> {
        moved(state, device)
    }
}

/// Gradient descent, with momentum if it is not zero.
#[derive(Debug, Clone)]
pub(super) struct Sgd {
    pub(super) momentum: f64,
    pub(super) nesterov: bool,
    pub(super) weight_decay: f64,
}

impl Optimizer for Sgd {
    type State<const D: usize> = Memory<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Memory<D>>,
    ) -> (Tensor<D>, Option<Memory<D>>) {
        let (steps, velocity, _) = parts(state);
        let zeros = || (self.momentum > 0.0).then(|| grad.zeros_like());
        let velocity = velocity.or_else(zeros);
        let step = SgdStep {
            lr,
            momentum: self.momentum,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay,
        };
        let (tensor, velocity) = optimizer::sgd(tensor, grad, velocity, &step);
        let state = Memory {
            steps: steps + 1,
            first: velocity,
            second: None,
        };
        (tensor, Some(state))
    }

    fn to_device<const D: usize>(state: Memory<D>, device: &Device) -> Memory<D> {
        moved(state, device)
    }
}

/// RMSProp, with momentum if it is not zero.
#[derive(Debug, Clone)]
pub(super) struct RmsProp {
    pub(super) alpha: f64,
    pub(super) eps: f64,
    pub(super) momentum: f64,
    pub(super) weight_decay: f64,
}

impl Optimizer for RmsProp {
    type State<const D: usize> = Memory<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Memory<D>>,
    ) -> (Tensor<D>, Option<Memory<D>>) {
        let (steps, velocity, squares) = parts(state);
        let squares = squares.unwrap_or_else(|| grad.zeros_like());
        let zeros = || (self.momentum > 0.0).then(|| grad.zeros_like());
        let velocity = velocity.or_else(zeros);
        let step = RmsPropStep {
            lr,
            alpha: self.alpha,
            eps: self.eps,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
        };
        let (tensor, squares, velocity) =
            optimizer::rmsprop(tensor, grad, squares, velocity, &step);
        let state = Memory {
            steps: steps + 1,
            first: velocity,
            second: Some(squares),
        };
        (tensor, Some(state))
    }

    fn to_device<const D: usize>(state: Memory<D>, device: &Device) -> Memory<D> {
        moved(state, device)
    }
}

type Parts<const D: usize> = (usize, Option<Tensor<D>>, Option<Tensor<D>>);

fn parts<const D: usize>(state: Option<Memory<D>>) -> Parts<D> {
    state.map_or((0, None, None), |state| {
        (state.steps, state.first, state.second)
    })
}

/// Takes the state apart, so that its tensors stay unshared and can be written in place.
fn moved<const D: usize>(state: Memory<D>, device: &Device) -> Memory<D> {
    Memory {
        steps: state.steps,
        first: state.first.map(|tensor| tensor.to_device(device)),
        second: state.second.map(|tensor| tensor.to_device(device)),
    }
}
