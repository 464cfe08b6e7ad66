//! The recurrence against the same of Burn's operators, and against finite differences.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{composed, lstm};

mod support;
use support::tensor;

/// Output and both gradients, `[batch, seq, d_hidden]`, from inputs that are not contiguous.
fn run([batch, seq, d]: [usize; 3]) -> Vec<TensorData> {
    let device = Device::flex().autodiff();
    let x = (tensor([seq, batch, 4 * d], 1, &device) * 2.0).require_grad();
    // As large as weights are drawn: larger ones make the recurrence amplify rounding.
    let weight = (tensor([4 * d, d], 2, &device) / (d as f64).sqrt()).require_grad();
    let out = lstm(x.clone().swap_dims(0, 1), weight.clone().transpose());
    let grads = (out.clone() * tensor([batch, seq, d], 3, &device))
        .sum()
        .backward();
    vec![
        out.into_data(),
        x.grad(&grads).expect("tracked").into_data(),
        // The composed form does not touch the weight of a sequence of one.
        weight
            .grad(&grads)
            .unwrap_or_else(|| Tensor::zeros([4 * d, d], &Device::flex()))
            .into_data(),
    ]
}

#[test]
fn agrees_with_its_definition() {
    for shape in [[1, 1, 1], [3, 2, 5], [7, 9, 33], [40, 6, 20], [33, 17, 64]] {
        let plain = composed(|| run(shape));
        for (fused, plain) in run(shape).iter().zip(&plain) {
            assert_eq!(fused.shape(), plain.shape(), "{shape:?}");
            fused.assert_approx_eq::<f32>(plain, Tolerance::rel_abs(1e-4, 2e-5));
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    const STEP: f32 = 1e-2;
    let device = Device::flex();
    let (x, weight): (Tensor<3>, Tensor<2>) =
        (tensor([2, 3, 8], 1, &device), tensor([2, 8], 2, &device));
    let loss = |x: Tensor<3>, weight: Tensor<2>| {
        let out = lstm(x, weight);
        (out * tensor([2, 3, 2], 3, &device))
            .sum()
            .into_scalar::<f32>()
    };
    let device = Device::flex().autodiff();
    let (tx, tw) = (
        Tensor::<3>::from_data(x.to_data(), &device).require_grad(),
        Tensor::<2>::from_data(weight.to_data(), &device).require_grad(),
    );
    let grads = (lstm(tx.clone(), tw.clone()) * tensor([2, 3, 2], 3, &device))
        .sum()
        .backward();
    let floats = |data: TensorData| data.try_to_vec::<f32>().expect("floats");
    let dx = floats(tx.grad(&grads).expect("tracked").into_data());
    let dw = floats(tw.grad(&grads).expect("tracked").into_data());
    let nudge = |data: TensorData, index: usize, by: f32| {
        let shape = data.shape().clone();
        let mut values = data.try_to_vec::<f32>().expect("floats");
        values[index] += by;
        TensorData::new(values, shape)
    };
    let plain = Device::flex();
    for (index, slope) in dx.iter().enumerate() {
        let at = |by| Tensor::<3>::from_data(nudge(x.to_data(), index, by), &plain);
        let up = loss(at(STEP), weight.clone());
        let down = loss(at(-STEP), weight.clone());
        let difference = (up - down) / (2.0 * STEP);
        assert!((difference - slope).abs() < 1e-3, "{difference} {slope}");
    }
    for (index, slope) in dw.iter().enumerate() {
        let at = |by| Tensor::<2>::from_data(nudge(weight.to_data(), index, by), &plain);
        let up = loss(x.clone(), at(STEP));
        let down = loss(x.clone(), at(-STEP));
        let difference = (up - down) / (2.0 * STEP);
        assert!((difference - slope).abs() < 1e-3, "{difference} {slope}");
    }
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        pool.install(|| run([35, 5, 70]))
    };
    assert_eq!(on(1), on(3));
}
