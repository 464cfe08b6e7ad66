//! Update rules, each in one pass over memory: parameters, gradients and what the rule remembers
//! are read once and written once, in place where nothing else holds them.
//!
//! These work on plain tensors. Tracked ones are not differentiated through.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32};
use crate::elementwise::{GRAIN, sums, vectorized};
use crate::simd::Isa;

/// The constants of one step of [`adam`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f64,
    /// Share of the old moments that is kept.
    pub betas: [f64; 2],
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// Weight decay: share of the weight, per unit of learning rate if `decoupled`, else added to
    /// the gradient.
    pub weight_decay: f64,
    /// AdamW (Loshchilov & Hutter 2019) rather than Adam.
    pub decoupled: bool,
    /// Number of this step, from 1.
    pub time: usize,
}

/// One step of Adam (Kingma & Ba 2015, arXiv:1412.6980) or AdamW (arXiv:1711.05101): the new
/// parameter and the new first and second moments. `moments` are zero before the first step.
///
/// # Shapes
/// - all: any, the same
pub fn adam<const D: usize>(
    parameter: Tensor<D>,
    grad: Tensor<D>,
    moments: [Tensor<D>; 2],
    step: &AdamStep,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let c = AdamConstants::of(step);
    let [first, second] = moments;
    if !all_flex_f32([&parameter, &grad, &first, &second]) {
        let grad = match step.decoupled {
            true => grad,
            false => grad + parameter.clone() * c.l2,
        };
        let first = first * c.beta_1 + grad.clone() * c.rest_1;
        let second = second * c.beta_2 + grad.square() * c.rest_2;
        let delta = first.clone() * c.rate / (second.clone().sqrt() * c.root + c.eps);
        return (parameter * c.keep - delta, [first, second]);
    }
    let (parameter, first, second) = Dispatch::fused_adam(
        parameter.into_dispatch(),
        grad.into_dispatch(),
        first.into_dispatch(),
        second.into_dispatch(),
        c,
    );
    let moments = [Tensor::from_dispatch(first), Tensor::from_dispatch(second)];
    (Tensor::from_dispatch(parameter), moments)
}

/// What [`AdamStep`] comes to, in the order the pass uses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamConstants {
    l2: f32,
    beta_1: f32,
    rest_1: f32,
    beta_2: f32,
    rest_2: f32,
    /// `lr / (1 - beta_1^t)`
    rate: f32,
    /// `1 / sqrt(1 - beta_2^t)`
    root: f32,
    eps: f32,
    /// `1 - lr weight_decay` when decoupled.
    keep: f32,
}

impl AdamConstants {
    fn of(step: &AdamStep) -> Self {
        let [beta_1, beta_2] = step.betas;
        let time = step.time as f64;
        let (l2, decay) = match step.decoupled {
            true => (0.0, step.lr * step.weight_decay),
            false => (step.weight_decay, 0.0),
        };
        Self {
            l2: l2 as f32,
            beta_1: beta_1 as f32,
            rest_1: (1.0 - beta_1) as f32,
            beta_2: beta_2 as f32,
            rest_2: (1.0 - beta_2) as f32,
            rate: (step.lr / (1.0 - beta_1.powf(time))) as f32,
            root: (1.0 - beta_2.powf(time)).sqrt().recip() as f32,
            eps: step.eps as f32,
            keep: (1.0 - decay) as f32,
        }
    }
}

/// The constants of one step of [`sgd`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Share of the old velocity that is kept.
    pub momentum: f64,
    /// Nesterov's look ahead.
    pub nesterov: bool,
    /// Added to the gradient, times the weight.
    pub weight_decay: f64,
}

/// One step of gradient descent with momentum (Sutskever et al. 2013, as PyTorch has it): the new
/// parameter and velocity. `velocity` is zero before the first step, and absent without momentum.
///
/// # Shapes
/// - all: any, the same
pub fn sgd<const D: usize>(
    parameter: Tensor<D>,
    grad: Tensor<D>,
    velocity: Option<Tensor<D>>,
    step: &SgdStep,
) -> (Tensor<D>, Option<Tensor<D>>) {
    let c = SgdConstants {
        lr: step.lr as f32,
        momentum: step.momentum as f32,
        // The gradient's share in the move: with Nesterov the velocity is looked at one step on.
        look: if step.nesterov { 1.0 } else { 0.0 },
        carry: if step.nesterov {
            step.momentum as f32
        } else {
            1.0
        },
        l2: step.weight_decay as f32,
    };
    let Some(velocity) = velocity else {
        if !all_flex_f32([&parameter, &grad]) {
            let grad = grad + parameter.clone() * c.l2;
            return (parameter - grad * c.lr, None);
        }
        let parameter = Dispatch::fused_descent(parameter.into_dispatch(), grad.into_dispatch(), c);
        return (Tensor::from_dispatch(parameter), None);
    };
    if !all_flex_f32([&parameter, &grad, &velocity]) {
        let grad = grad + parameter.clone() * c.l2;
        let velocity = velocity * c.momentum + grad.clone();
        let delta = grad * c.look + velocity.clone() * c.carry;
        return (parameter - delta * c.lr, Some(velocity));
    }
    let (parameter, velocity) = Dispatch::fused_momentum(
        parameter.into_dispatch(),
        grad.into_dispatch(),
        velocity.into_dispatch(),
        c,
    );
    let velocity = Tensor::from_dispatch(velocity);
    (Tensor::from_dispatch(parameter), Some(velocity))
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SgdConstants {
    lr: f32,
    momentum: f32,
    look: f32,
    carry: f32,
    l2: f32,
}

/// The constants of one step of [`rmsprop`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsPropStep {
    /// Learning rate.
    pub lr: f64,
    /// Share of the old squares that is kept.
    pub alpha: f64,
    /// Added to the square root.
    pub eps: f64,
    /// Share of the old move that is kept.
    pub momentum: f64,
    /// Added to the gradient, times the weight.
    pub weight_decay: f64,
}

/// One step of RMSProp (Hinton 2012, lecture 6e, as PyTorch has it): the new parameter, the mean of
/// squares and the velocity. Both are zero before the first step; the velocity is absent without
/// momentum.
///
/// # Shapes
/// - all: any, the same
pub fn rmsprop<const D: usize>(
    parameter: Tensor<D>,
    grad: Tensor<D>,
    squares: Tensor<D>,
    velocity: Option<Tensor<D>>,
    step: &RmsPropStep,
) -> (Tensor<D>, Tensor<D>, Option<Tensor<D>>) {
    let c = RmsPropConstants {
        lr: step.lr as f32,
        alpha: step.alpha as f32,
        rest: (1.0 - step.alpha) as f32,
        eps: step.eps as f32,
        momentum: step.momentum as f32,
        l2: step.weight_decay as f32,
    };
    let fused =
        all_flex_f32([&parameter, &grad, &squares]) && velocity.as_ref().is_none_or(is_flex_f32);
    if !fused {
        let grad = grad + parameter.clone() * c.l2;
        let squares = squares * c.alpha + grad.clone().square() * c.rest;
        let delta = grad / (squares.clone().sqrt() + c.eps);
        let velocity = velocity.map(|velocity| velocity * c.momentum + delta.clone());
        let delta = velocity.clone().unwrap_or(delta);
        return (parameter - delta * c.lr, squares, velocity);
    }
    let [parameter, grad, squares] = [parameter, grad, squares].map(Tensor::into_dispatch);
    match velocity {
        None => {
            let (parameter, squares) = Dispatch::fused_rmsprop(parameter, grad, squares, c);
            let squares = Tensor::from_dispatch(squares);
            (Tensor::from_dispatch(parameter), squares, None)
        }
        Some(velocity) => {
            let velocity = velocity.into_dispatch();
            let (parameter, squares, velocity) =
                Dispatch::fused_rmsprop_momentum(parameter, grad, squares, velocity, c);
            let squares = Tensor::from_dispatch(squares);
            let velocity = Some(Tensor::from_dispatch(velocity));
            (Tensor::from_dispatch(parameter), squares, velocity)
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RmsPropConstants {
    lr: f32,
    alpha: f32,
    rest: f32,
    eps: f32,
    momentum: f32,
    l2: f32,
}

/// `from + (to - from) * rate`: a step of a moving average.
///
/// # Shapes
/// - all: any, the same
pub fn lerp<const D: usize>(from: Tensor<D>, to: Tensor<D>, rate: f64) -> Tensor<D> {
    if !all_flex_f32([&from, &to]) {
        return from.clone() + (to - from) * rate;
    }
    Tensor::from_dispatch(Dispatch::fused_lerp(
        from.into_dispatch(),
        to.into_dispatch(),
        rate as f32,
    ))
}

/// `x * factor`.
///
/// # Shapes
/// - input, output: any, the same
pub fn scale<const D: usize>(x: Tensor<D>, factor: f64) -> Tensor<D> {
    if !is_flex_f32(&x) {
        return x * factor;
    }
    Tensor::from_dispatch(Dispatch::fused_scale(x.into_dispatch(), factor as f32))
}

/// The sum of all squares. NaN or infinite if any number is.
///
/// # Shapes
/// - input: any
/// - output: `[1]`
pub fn square_sum<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    if !is_flex_f32(&x) {
        return x.square().sum();
    }
    Tensor::from_dispatch(Dispatch::fused_square_sum(x.into_dispatch()))
}

fn all_flex_f32<const D: usize, const N: usize>(tensors: [&Tensor<D>; N]) -> bool {
    tensors.into_iter().all(is_flex_f32)
}

/// The rules as Burn's dispatch sees them.
#[backend_extension(Flex)]
pub(crate) trait FusedOptimizer: Backend {
    /// Parameter and both moments.
    fn fused_adam(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        constants: AdamConstants,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Parameter.
    fn fused_descent(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        constants: SgdConstants,
    ) -> FloatTensor<Self>;

    /// Parameter and velocity.
    fn fused_momentum(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        constants: SgdConstants,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Parameter and mean of squares.
    fn fused_rmsprop(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        squares: FloatTensor<Self>,
        constants: RmsPropConstants,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Parameter, mean of squares and velocity.
    fn fused_rmsprop_momentum(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        squares: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        constants: RmsPropConstants,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Moves `from` towards `to`.
    fn fused_lerp(from: FloatTensor<Self>, to: FloatTensor<Self>, rate: f32) -> FloatTensor<Self>;

    /// Multiplies every number.
    fn fused_scale(x: FloatTensor<Self>, factor: f32) -> FloatTensor<Self>;

    /// One number.
    fn fused_square_sum(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl FusedOptimizer for Flex {
    fn fused_adam(
        parameter: FlexTensor,
        grad: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        constants: AdamConstants,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let isa = Isa::detect();
        let [p, m, v] = sweep([parameter, first, second], grad, |[p, m, v], g| {
            adam_pass(isa, p, g, m, v, constants)
        });
        (p, m, v)
    }

    fn fused_descent(
        parameter: FlexTensor,
        grad: FlexTensor,
        constants: SgdConstants,
    ) -> FlexTensor {
        let isa = Isa::detect();
        let [p] = sweep([parameter], grad, |[p], g| {
            descent_pass(isa, p, g, constants)
        });
        p
    }

    fn fused_momentum(
        parameter: FlexTensor,
        grad: FlexTensor,
        velocity: FlexTensor,
        constants: SgdConstants,
    ) -> (FlexTensor, FlexTensor) {
        let isa = Isa::detect();
        let [p, u] = sweep([parameter, velocity], grad, |[p, u], g| {
            momentum_pass(isa, p, g, u, constants)
        });
        (p, u)
    }

    fn fused_rmsprop(
        parameter: FlexTensor,
        grad: FlexTensor,
        squares: FlexTensor,
        constants: RmsPropConstants,
    ) -> (FlexTensor, FlexTensor) {
        let isa = Isa::detect();
        let [p, s] = sweep([parameter, squares], grad, |[p, s], g| {
            rmsprop_pass(isa, p, g, s, constants)
        });
        (p, s)
    }

    fn fused_rmsprop_momentum(
        parameter: FlexTensor,
        grad: FlexTensor,
        squares: FlexTensor,
        velocity: FlexTensor,
        constants: RmsPropConstants,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let isa = Isa::detect();
        let [p, s, u] = sweep([parameter, squares, velocity], grad, |[p, s, u], g| {
            rmsprop_momentum_pass(isa, p, g, s, u, constants)
        });
        (p, s, u)
    }

    fn fused_lerp(from: FlexTensor, to: FlexTensor, rate: f32) -> FlexTensor {
        let isa = Isa::detect();
        let [from] = sweep([from], to, |[from], to| lerp_pass(isa, from, to, rate));
        from
    }

    fn fused_scale(x: FlexTensor, factor: f32) -> FlexTensor {
        let isa = Isa::detect();
        let mut x = contiguous(x);
        split(
            [values_mut(&mut x)],
            &[],
            &|[x]: [&mut [f32]; 1], _: &[f32]| scale_pass(isa, x, factor),
        );
        x
    }

    fn fused_square_sum(x: FlexTensor) -> FlexTensor {
        let isa = Isa::detect();
        let x = contiguous(x);
        let values = values(&x);
        // Parts of fixed size, added up in their order.
        let total = if values.len() <= GRAIN {
            square_sum_pass(isa, values)
        } else {
            let parts = values.par_chunks(GRAIN);
            let parts: Vec<f32> = parts.map(|x| square_sum_pass(isa, x)).collect();
            parts.into_iter().map(f64::from).sum::<f64>() as f32
        };
        flex_tensor(vec![total], &[1])
    }
}

/// Runs `pass` over equal parts of all tensors, on all threads, changing `state` in place.
fn sweep<const N: usize>(
    state: [FlexTensor; N],
    read: FlexTensor,
    pass: impl Fn([&mut [f32]; N], &[f32]) + Sync,
) -> [FlexTensor; N] {
    let mut state = state.map(contiguous);
    let read = contiguous(read);
    split(state.each_mut().map(values_mut), values(&read), &pass);
    state
}

/// Halves what is longer than a task; a short one does not leave the thread. `read` is as long as
/// the others, or empty.
fn split<const N: usize>(
    state: [&mut [f32]; N],
    read: &[f32],
    pass: &(impl Fn([&mut [f32]; N], &[f32]) + Sync),
) {
    let len = state[0].len();
    if len <= GRAIN {
        return pass(state, read);
    }
    let middle = (len / 2).next_multiple_of(GRAIN);
    let mut right: [&mut [f32]; N] = std::array::from_fn(|_| Default::default());
    let mut halves = right.iter_mut();
    let left = state.map(|state| {
        let (left, rest) = state.split_at_mut(middle);
        if let Some(half) = halves.next() {
            *half = rest;
        }
        left
    });
    let (first, second) = read.split_at(middle.min(read.len()));
    rayon::join(|| split(left, first, pass), || split(right, second, pass));
}

fn values(x: &FlexTensor) -> &[f32] {
    &x.storage()[..x.shape().num_elements()]
}

fn values_mut(x: &mut FlexTensor) -> &mut [f32] {
    let len = x.shape().num_elements();
    &mut x.storage_mut()[..len]
}

vectorized! {
    fn adam_pass(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: AdamConstants) {
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g + c.l2 * *p;
            *m = c.beta_1 * *m + c.rest_1 * g;
            *v = c.beta_2 * *v + c.rest_2 * g * g;
            *p = c.keep * *p - c.rate * *m / (v.sqrt() * c.root + c.eps);
        }
    }
}

vectorized! {
    fn descent_pass(p: &mut [f32], g: &[f32], c: SgdConstants) {
        for (p, &g) in p.iter_mut().zip(g) {
            *p -= c.lr * (g + c.l2 * *p);
        }
    }
}

vectorized! {
    fn momentum_pass(p: &mut [f32], g: &[f32], u: &mut [f32], c: SgdConstants) {
        for ((p, &g), u) in p.iter_mut().zip(g).zip(u) {
            let g = g + c.l2 * *p;
            *u = c.momentum * *u + g;
            *p -= c.lr * (c.look * g + c.carry * *u);
        }
    }
}

vectorized! {
    fn rmsprop_pass(p: &mut [f32], g: &[f32], s: &mut [f32], c: RmsPropConstants) {
        for ((p, &g), s) in p.iter_mut().zip(g).zip(s) {
            let g = g + c.l2 * *p;
            *s = c.alpha * *s + c.rest * g * g;
            *p -= c.lr * g / (s.sqrt() + c.eps);
        }
    }
}

vectorized! {
    fn rmsprop_momentum_pass(p: &mut [f32], g: &[f32], s: &mut [f32], u: &mut [f32], c: RmsPropConstants) {
        for (((p, &g), s), u) in p.iter_mut().zip(g).zip(s).zip(u) {
            let g = g + c.l2 * *p;
            *s = c.alpha * *s + c.rest * g * g;
            *u = c.momentum * *u + g / (s.sqrt() + c.eps);
            *p -= c.lr * *u;
        }
    }
}

vectorized! {
    fn lerp_pass(from: &mut [f32], to: &[f32], rate: f32) {
        for (from, &to) in from.iter_mut().zip(to) {
            *from += (to - *from) * rate;
        }
    }
}

vectorized! {
    fn scale_pass(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}

vectorized! {
    fn square_sum_pass<L>(machine, x: &[f32]) -> f32 {
        sums(machine, [x], |[x]| [x * x])[0]
    }
}
