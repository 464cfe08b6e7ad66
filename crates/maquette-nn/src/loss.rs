//! Losses that several families share.

use burn::tensor::{Int, Tensor, activation::log_softmax};

/// Mean negative log-probability of the target classes, in nats.
///
/// # Shapes
/// - logits: `[n, classes]`
/// - targets: `[n]`
/// - output: `[1]`
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let [n, _] = logits.dims();
    log_softmax(logits, 1)
        .gather(1, targets.reshape([n, 1]))
        .mean()
        .neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn two_rows_by_hand() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[0.0, 0.0], [0.0, 3f32.ln()]], &device);
        let targets = Tensor::<1, Int>::from_ints([0, 1], &device);
        // -(ln 1/2 + ln 3/4) / 2
        let expected = -(0.5f32.ln() + 0.75f32.ln()) / 2.0;
        let got = cross_entropy(logits, targets).into_scalar::<f32>();
        assert!((got - expected).abs() < 1e-6, "{got} against {expected}");
    }
}
