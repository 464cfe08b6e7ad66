//! Update rules against the same composed of Burn's operators, step after step.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::composed;
use maquette_kernels::optimizer::{
    AdamStep, RmsPropStep, SgdStep, adam, lerp, rmsprop, scale, sgd, square_sum,
};

mod support;
use support::tensor;

/// One number, odd, not contiguous, more than one parallel task.
const SHAPES: [[usize; 2]; 4] = [[1, 1], [3, 7], [129, 257], [400, 300]];
const STEPS: usize = 4;

/// Gradients of a step: transposed, so that the rules meet a tensor that is not row-major.
fn grad([rows, columns]: [usize; 2], step: usize) -> Tensor<2> {
    tensor([columns, rows], 10 + step as u64, &Device::flex()).swap_dims(0, 1)
}

fn assert_close(fused: Vec<Tensor<2>>, plain: Vec<Tensor<2>>) {
    for (fused, plain) in fused.into_iter().zip(plain) {
        // Parameters of size one: a few units in their last place.
        let tolerance = Tolerance::rel_abs(1e-4, 5e-6);
        fused
            .into_data()
            .assert_approx_eq::<f32>(&plain.into_data(), tolerance);
    }
}

/// The parameter and all that is remembered after some steps of a rule.
fn walk(
    shape: [usize; 2],
    remembered: usize,
    rule: impl Fn(Tensor<2>, Tensor<2>, Vec<Tensor<2>>, usize) -> Vec<Tensor<2>>,
) -> Vec<Tensor<2>> {
    let device = Device::flex();
    let mut now = vec![tensor(shape, 1, &device)];
    now.extend((0..remembered).map(|_| Tensor::zeros(shape, &device)));
    let untouched = now.clone();
    for step in 1..=STEPS {
        let parameter = now.remove(0);
        now = rule(parameter, grad(shape, step), now, step);
    }
    // What somebody else still holds is copied, not written over.
    let first: Tensor<2> = tensor(shape, 1, &device);
    assert_eq!(untouched[0].to_data(), first.to_data());
    now
}

fn compare(
    remembered: usize,
    rule: impl Fn(Tensor<2>, Tensor<2>, Vec<Tensor<2>>, usize) -> Vec<Tensor<2>>,
) {
    for shape in SHAPES {
        let fused = walk(shape, remembered, &rule);
        let plain = composed(|| walk(shape, remembered, &rule));
        assert_close(fused, plain);
    }
}

#[test]
fn adam_and_adamw() {
    for (decoupled, weight_decay) in [(true, 0.1), (false, 0.1), (true, 0.0)] {
        compare(2, |parameter, grad, mut moments, time| {
            let second = moments.remove(1);
            let step = AdamStep {
                lr: 0.01,
                betas: [0.9, 0.99],
                eps: 1e-8,
                weight_decay,
                decoupled,
                time,
            };
            let moments = [moments.remove(0), second];
            let (parameter, [first, second]) = adam(parameter, grad, moments, &step);
            vec![parameter, first, second]
        });
    }
}

#[test]
fn descent_with_and_without_momentum() {
    for (momentum, nesterov) in [(0.0, false), (0.9, false), (0.9, true)] {
        let step = SgdStep {
            lr: 0.1,
            momentum,
            nesterov,
            weight_decay: 0.01,
        };
        compare(
            usize::from(momentum > 0.0),
            |parameter, grad, mut kept, _| {
                let (parameter, velocity) = sgd(parameter, grad, kept.pop(), &step);
                [parameter].into_iter().chain(velocity).collect()
            },
        );
    }
}

#[test]
fn rmsprop_with_and_without_momentum() {
    for momentum in [0.0, 0.9] {
        let step = RmsPropStep {
            lr: 0.01,
            alpha: 0.99,
            eps: 1e-8,
            momentum,
            weight_decay: 0.01,
        };
        compare(
            1 + usize::from(momentum > 0.0),
            |parameter, grad, mut kept, _| {
                let velocity = (momentum > 0.0).then(|| kept.pop()).flatten();
                let squares = kept.remove(0);
                let (parameter, squares, velocity) =
                    rmsprop(parameter, grad, squares, velocity, &step);
                [parameter, squares].into_iter().chain(velocity).collect()
            },
        );
    }
}

#[test]
fn averages_scales_and_sums_of_squares() {
    for shape in SHAPES {
        let (a, b) = (grad(shape, 1), grad(shape, 2));
        let plain = composed(|| lerp(a.clone(), b.clone(), 0.3));
        assert_close(vec![lerp(a.clone(), b, 0.3)], vec![plain]);
        let plain = a.clone() * 0.7;
        assert_close(vec![scale(a.clone(), 0.7)], vec![plain]);
        let (fused, plain) = (square_sum(a.clone()), a.square().sum());
        let tolerance = Tolerance::rel_abs(1e-5, 0.0);
        fused
            .into_data()
            .assert_approx_eq::<f32>(&plain.into_data(), tolerance);
    }
}

#[test]
fn a_number_that_is_not_finite_shows_in_the_sum() {
    let mut values = vec![0.0; 40_000];
    values[33_333] = f32::NAN;
    let x = Tensor::<1>::from_data(TensorData::new(values, [40_000]), &Device::flex());
    assert!(square_sum(x).into_scalar::<f32>().is_nan());
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let all = || {
        let x = tensor([400, 301], 3, &Device::flex());
        square_sum(x).into_data()
    };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        pool.install(all)
    };
    assert_eq!(on(1), on(3));
}
