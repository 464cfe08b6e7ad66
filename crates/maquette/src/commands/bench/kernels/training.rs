//! What every training step ends with, and the recurrence.

use maquette::burn::tensor::Tensor;
use maquette::kernels::lstm;
use maquette::kernels::optimizer::{AdamStep, SgdStep, adam, lerp, scale, sgd, square_sum};

use super::{Case, Work, plain, random, train};

/// As many numbers as `gpt-baby` has.
const SIZE: usize = 10 << 20;

pub(super) fn cases() -> Vec<Case> {
    let name = |what: &str| format!("{what} of 10 Mi numbers");
    let mut cases = Vec::new();
    let step = AdamStep {
        lr: 1e-3,
        betas: [0.9, 0.99],
        eps: 1e-8,
        weight_decay: 0.1,
        decoupled: true,
        time: 1,
    };
    let grad = plain([SIZE]);
    let mut kept = Kept::<3>::new();
    cases.push(Case::new(
        name("AdamW"),
        Work::Floats(7 * SIZE),
        move || {
            kept.change(|[parameter, first, second]| {
                let (parameter, [first, second]) =
                    adam(parameter, grad.clone(), [first, second], &step);
                [parameter, first, second]
            })
        },
    ));
    let step = SgdStep {
        lr: 1e-3,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 0.0,
    };
    let grad = plain([SIZE]);
    let mut kept = Kept::<2>::new();
    cases.push(Case::new(
        name("SGD with momentum"),
        Work::Floats(5 * SIZE),
        move || {
            kept.change(|[parameter, velocity]| {
                let (parameter, velocity) = sgd(parameter, grad.clone(), Some(velocity), &step);
                [parameter, velocity.unwrap_or_else(|| plain([SIZE]))]
            })
        },
    ));
    let to = plain([SIZE]);
    let mut kept = Kept::<1>::new();
    cases.push(Case::new(
        name("moving average"),
        Work::Floats(3 * SIZE),
        move || kept.change(|[average]| [lerp(average, to.clone(), 0.01)]),
    ));
    let mut kept = Kept::<1>::new();
    cases.push(Case::new(
        name("scaling"),
        Work::Floats(2 * SIZE),
        move || kept.change(|[x]| [scale(x, 0.999)]),
    ));
    let x = plain([SIZE]);
    cases.push(Case::new(
        name("sum of squares"),
        Work::Floats(SIZE),
        move || drop(square_sum(x.clone())),
    ));
    // [batch, seq, d_hidden]
    let [batch, seq, d] = [32, 64, 256];
    let x = random([batch, seq, 4 * d]);
    let weight = plain([d, 4 * d]) / (d as f64).sqrt();
    let weight = weight.autodiff().require_grad();
    cases.push(Case::new(
        format!("LSTM recurrence [{batch}, {seq}, {d}], both ways"),
        Work::Flops(3 * 2 * batch * seq * d * 4 * d),
        move || train(lstm(x.clone(), weight.clone())),
    ));
    cases
}

/// Tensors that a rule changes in place, because nobody else holds them.
struct Kept<const N: usize>(Option<[Tensor<1>; N]>);

impl<const N: usize> Kept<N> {
    fn new() -> Self {
        // Second moments must not be negative.
        Self(Some(std::array::from_fn(|_| plain([SIZE]).abs())))
    }

    fn change(&mut self, rule: impl FnOnce([Tensor<1>; N]) -> [Tensor<1>; N]) {
        self.0 = self.0.take().map(rule);
    }
}
