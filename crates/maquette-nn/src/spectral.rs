//! Spectral normalisation: a weight matrix divided by its largest singular value.

use burn::{
    module::{Module, RunningState},
    tensor::{Device, Tensor},
};

/// `weight / sigma`, where `sigma` is the largest singular value (Miyato et al. 2018, arXiv
/// 1802.05957), so that the layer stretches no direction by more than one.
///
/// `sigma = u^T W v` with `u`, `v` from `iterations` rounds of power iteration that start from the
/// vector of ones; they count as constants in the backward pass, as in the paper. A weight that is
/// zero stays zero.
///
/// # Shapes
/// - weight, output: `[d_in, d_out]`
pub fn spectral_norm(weight: Tensor<2>, iterations: usize) -> Tensor<2> {
    let fixed = weight.clone().detach();
    let [d_in, _] = fixed.dims();
    let mut u = unit(Tensor::ones([1, d_in], &fixed.device()));
    let mut v = unit(u.clone().matmul(fixed.clone()));
    for _ in 0..iterations {
        u = unit(v.clone().matmul(fixed.clone().transpose()));
        v = unit(u.clone().matmul(fixed.clone()));
    }
    let sigma = u.matmul(weight.clone()).matmul(v.transpose()) + 1e-12;
    weight / sigma
}

fn unit(x: Tensor<2>) -> Tensor<2> {
    let norm = (x.clone() * x.clone()).sum().sqrt() + 1e-12;
    x / norm.reshape([1, 1])
}

/// Spectral normalisation of a weight that changes slowly: one round of power iteration per training
/// step, from where the last one ended (Miyato et al. 2018, algorithm 1). The vector is state: it is
/// saved with the weights, and only [`PowerIteration::renew`] moves it.
#[derive(Module, Debug)]
pub struct PowerIteration {
    /// The left singular vector, `[1, rows]`, of any length.
    u: RunningState<Tensor<2>>,
}

impl PowerIteration {
    /// For a weight with so many rows. The vector is to be drawn by [`crate::init::initialise`].
    pub fn new(rows: usize, device: &Device) -> Self {
        Self {
            u: RunningState::new(Tensor::ones([1, rows], device)),
        }
    }

    /// One round of power iteration.
    ///
    /// # Shapes
    /// - weight: `[rows, ..]`, what follows flattened
    pub fn renew<const D: usize>(&self, weight: Tensor<D>) {
        let weight = matrix(weight.detach());
        let v = unit(self.vector(&weight).matmul(weight.clone()));
        let u = unit(v.matmul(weight.transpose()));
        self.u.update(u);
        // A saved module holds what was synchronised.
        self.u.value_sync();
    }

    /// `weight / sigma`; both vectors count as constants in the backward pass.
    ///
    /// # Shapes
    /// - weight, output: `[rows, ..]`, what follows flattened
    pub fn divide<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let rows = matrix(weight.clone());
        let u = unit(self.vector(&rows));
        let v = unit(u.clone().matmul(rows.clone().detach()));
        let sigma = u.matmul(rows).matmul(v.transpose()) + 1e-12;
        weight / sigma.reshape([1; D])
    }

    /// The left vector of length one, `[1, rows]`, a constant. With it, `sigma` is the length of `u W`.
    pub fn left(&self) -> Tensor<2> {
        unit(self.u.value())
    }

    fn vector(&self, like: &Tensor<2>) -> Tensor<2> {
        self.u.value().to_device(&like.device())
    }
}

fn matrix<const D: usize>(weight: Tensor<D>) -> Tensor<2> {
    let rows = weight.dims()[0];
    weight.reshape([rows as i32, -1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn largest_singular_value_becomes_one() {
        // Singular values 3 and 2, along the axes.
        let weight = Tensor::<2>::from_floats([[3.0, 0.0], [0.0, 2.0]], &Device::flex());
        let got = spectral_norm(weight, 50)
            .into_data()
            .try_to_vec::<f32>()
            .unwrap();
        for (got, expected) in got.iter().zip([1.0, 0.0, 0.0, 2.0 / 3.0]) {
            assert!((got - expected).abs() < 1e-4, "{got} against {expected}");
        }
    }

    #[test]
    fn power_iteration_walks_to_the_largest_singular_value() {
        let weight = || Tensor::<2>::from_floats([[3.0, 0.0], [0.0, 2.0]], &Device::flex());
        let state = PowerIteration::new(2, &Device::flex());
        let first = || {
            let divided = state.divide(weight().reshape([2, 2, 1, 1]));
            divided.into_data().try_to_vec::<f32>().unwrap()[0]
        };
        // u = (1, 1) / sqrt 2: sigma = |u W| = sqrt(13 / 2).
        let before = first();
        assert!((before - 3.0 / 6.5f32.sqrt()).abs() < 1e-5, "{before}");
        (0..20).for_each(|_| state.renew(weight()));
        let after = first();
        assert!((after - 1.0).abs() < 1e-5, "{after}");
    }

    #[test]
    fn zero_stays_zero() {
        let weight = Tensor::<2>::zeros([3, 2], &Device::flex());
        let got = spectral_norm(weight, 3)
            .into_data()
            .try_to_vec::<f32>()
            .unwrap();
        assert_eq!(got, [0.0; 6]);
    }
}
