//! The binary cross-entropy against the same built of Burn's operators and finite differences.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{binary_cross_entropy, composed};

mod support;
use support::tensor;

/// Loss and the gradient of logits that are not contiguous.
fn run(shape: [usize; 2], spread: f32) -> [TensorData; 2] {
    let device = Device::flex().autodiff();
    let leaf = (tensor([shape[1], shape[0]], 1, &device) * spread).require_grad();
    let targets = tensor([shape[1], shape[0]], 2, &device).abs().transpose();
    let loss = binary_cross_entropy(leaf.clone().transpose(), targets);
    let upstream = tensor([shape[0], 1], 3, &device);
    let grads = (loss.clone() * upstream).sum().backward();
    [
        loss.into_data(),
        leaf.grad(&grads).expect("tracked").into_data(),
    ]
}

#[test]
fn it_agrees_with_the_composed_form() {
    for shape in [[1, 1], [3, 17], [5, 1], [1, 100], [129, 784]] {
        for spread in [1.0, 30.0] {
            let (fused, plain) = (run(shape, spread), composed(|| run(shape, spread)));
            for (fused, plain) in fused.iter().zip(&plain) {
                fused.assert_approx_eq::<f32>(plain, Tolerance::rel_abs(1e-4, 1e-5));
            }
        }
    }
}

#[test]
fn its_gradient_is_its_slope() {
    let device = Device::flex();
    let [_, gradient] = run([2, 3], 2.0);
    let gradient: Vec<f32> = gradient.iter().collect();
    let logits = tensor([3, 2], 1, &device) * 2.0;
    let targets = tensor([3, 2], 2, &device).abs().transpose();
    let upstream = tensor([2, 1], 3, &device);
    for (index, gradient) in gradient.iter().enumerate() {
        let shifted = |by: f32| -> f32 {
            let mut unit = [0.0; 6];
            unit[index] = by;
            let by = Tensor::<1>::from_floats(unit, &device).reshape([3, 2]);
            let logits = (logits.clone() + by).transpose();
            (binary_cross_entropy(logits, targets.clone()) * upstream.clone())
                .sum()
                .into_scalar()
        };
        let slope = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
        assert!((slope - gradient).abs() < 1e-3, "{slope} {gradient}");
    }
}

#[test]
fn huge_logits_stay_finite() {
    let device = Device::flex();
    let logits = Tensor::<2>::from_floats([[1e30, -1e30, 0.0]], &device);
    let targets = Tensor::<2>::from_floats([[1.0, 0.0, 0.5]], &device);
    let loss = binary_cross_entropy(logits, targets).into_scalar::<f32>();
    assert!((loss - 2f32.ln()).abs() < 1e-6, "{loss}");
}
