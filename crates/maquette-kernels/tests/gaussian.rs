//! Draws from normal distributions and their divergence, against the same of Burn's operators and finite
//! differences.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{composed, gaussian_kl, gaussian_sample};

mod support;
use support::tensor;

/// Draws, divergences, and the gradient of what is not contiguous.
fn run([rows, variables]: [usize; 2]) -> [TensorData; 3] {
    let device = Device::flex().autodiff();
    let leaf = (tensor([2 * variables, rows], 1, &device) * 2.0).require_grad();
    let noise = tensor([variables, rows], 2, &device).transpose();
    let normal = leaf.clone().transpose();
    let (draws, kl) = (gaussian_sample(normal.clone(), noise), gaussian_kl(normal));
    let upstream = [variables, 1].map(|width| tensor([rows, width], 3, &device));
    let [to_draws, to_kl] = upstream;
    let loss = (draws.clone() * to_draws).sum() + (kl.clone() * to_kl).sum();
    let gradient = leaf.grad(&loss.backward()).expect("tracked");
    [draws.into_data(), kl.into_data(), gradient.into_data()]
}

#[test]
fn they_agree_with_the_composed_form() {
    for shape in [[1, 1], [3, 17], [128, 20], [5, 1], [300, 129]] {
        let (fused, plain) = (run(shape), composed(|| run(shape)));
        for (fused, plain) in fused.iter().zip(&plain) {
            fused.assert_approx_eq::<f32>(plain, Tolerance::rel_abs(1e-4, 1e-5));
        }
    }
}

#[test]
fn the_gradient_is_the_slope() {
    const ROWS: usize = 2;
    let [_, _, gradient] = run([ROWS, 3]);
    let gradient: Vec<f32> = gradient.iter().collect();
    let device = Device::flex();
    let leaf: Tensor<2> = tensor([6, ROWS], 1, &device) * 2.0;
    let noise = tensor([3, ROWS], 2, &device).transpose();
    let [to_draws, to_kl] = [3, 1].map(|width| tensor([ROWS, width], 3, &device));
    for (index, gradient) in gradient.iter().enumerate() {
        let shifted = |by: f32| -> f32 {
            let mut unit = [0.0; 6 * ROWS];
            unit[index] = by;
            let by = Tensor::<1>::from_floats(unit, &device).reshape([6, ROWS]);
            let normal = (leaf.clone() + by).transpose();
            let draws = gaussian_sample(normal.clone(), noise.clone()) * to_draws.clone();
            let kl = gaussian_kl(normal) * to_kl.clone();
            (draws.sum() + kl.sum()).into_scalar()
        };
        let slope = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
        assert!(
            (slope - gradient).abs() < 2e-3 * gradient.abs().max(1.0),
            "{slope} {gradient}"
        );
    }
}

#[test]
fn a_standard_normal_diverges_from_nothing() {
    let kl = gaussian_kl(Tensor::zeros([4, 6], &Device::flex()));
    let kl: Vec<f32> = kl.into_data().iter().collect();
    assert!(kl.iter().all(|kl| kl.abs() < 1e-6), "{kl:?}");
}
