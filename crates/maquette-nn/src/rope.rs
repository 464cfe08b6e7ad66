//! Rotary position embedding (Su et al. 2021), in the layout of the Llama family.

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};

/// Rotates the pair `(x[i], x[i + d_head / 2])` by `position * theta^(-2 i / d_head)`.
///
/// The two halves of a head are paired, not neighbours: this is how Hugging Face stores the weights
/// of the Llama family, and why Burn's own `RotaryEncoding` (which pairs neighbours) does not fit.
#[derive(Module, Debug)]
pub struct Rope {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rope {
    /// Tables for `seq_len` positions and heads of `d_head` (even) features.
    pub fn new(seq_len: usize, d_head: usize, theta: f64, device: &Device) -> Self {
        let half = d_head / 2;
        let angles = (0..seq_len).flat_map(|position| {
            (0..half).map(move |i| position as f64 * theta.powf(-2.0 * i as f64 / d_head as f64))
        });
        let angles: Vec<f64> = angles.collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|a| f(*a) as f32).collect();
            Tensor::from_data(TensorData::new(values, [seq_len, half]), device)
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// Rotates queries or keys that stand at positions `start..start + seq`.
    ///
    /// # Shapes
    /// - input, output: `[batch, seq, heads, d_head]`
    pub fn apply(&self, x: Tensor<4>, start: usize) -> Tensor<4> {
        let [_, seq, _, d_head] = x.dims();
        let half = d_head / 2;
        let table = |t: &Tensor<2>| {
            let rows = t.clone().narrow(0, start, seq);
            rows.reshape([1, seq, 1, half])
        };
        let (cos, sin) = (table(&self.cos), table(&self.sin));
        let low = x.clone().narrow(3, 0, half);
        let high = x.narrow(3, half, half);
        Tensor::cat(
            vec![
                low.clone() * cos.clone() - high.clone() * sin.clone(),
                high * cos + low * sin,
            ],
            3,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_pairs_by_the_position() {
        let device = Device::flex();
        let rope = Rope::new(4, 2, 10_000.0, &device);
        let x = Tensor::<1>::from_floats([1.0, 0.0], &device).reshape([1, 1, 1, 2]);
        let got = rope.apply(x, 3).into_data().try_to_vec::<f32>().unwrap();
        assert!((got[0] - 3f32.cos()).abs() < 1e-6 && (got[1] - 3f32.sin()).abs() < 1e-6);
    }

    #[test]
    fn scores_depend_on_the_distance_only() {
        let device = Device::flex();
        let rope = Rope::new(32, 8, 10_000.0, &device);
        let vector = |seed| {
            let mut rng = maquette_rng::rng(seed, maquette_rng::Stream::Data, 0);
            let values = maquette_rng::normal(&mut rng, 8);
            Tensor::<4>::from_data(TensorData::new(values, [1, 1, 1, 8]), &device)
        };
        let score = |i, j| {
            let product = rope.apply(vector(1), i) * rope.apply(vector(2), j);
            product.sum().into_scalar::<f32>()
        };
        assert!((score(3, 1) - score(20, 18)).abs() < 1e-4);
        assert!((score(3, 1) - score(20, 17)).abs() > 1e-3);
    }
}
