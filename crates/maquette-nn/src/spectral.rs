//! Spectral normalisation: a weight matrix divided by its largest singular value.

use burn::tensor::Tensor;

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
    let unit = |x: Tensor<2>| {
        let norm = (x.clone() * x.clone()).sum().sqrt() + 1e-12;
        x / norm.reshape([1, 1])
    };
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
    fn zero_stays_zero() {
        let weight = Tensor::<2>::zeros([3, 2], &Device::flex());
        let got = spectral_norm(weight, 3)
            .into_data()
            .try_to_vec::<f32>()
            .unwrap();
        assert_eq!(got, [0.0; 6]);
    }
}
