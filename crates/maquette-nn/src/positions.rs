//! Positions that are added: to embeddings (sinusoids) or to attention scores (ALiBi, buckets).

use burn::tensor::{Device, Tensor, TensorData};

/// Sines and cosines of wavelengths from `2 pi` to `20000 pi` (Vaswani et al. 2017, section 3.5):
/// feature `2 i` of position `p` is `sin(p / 10000^(2 i / d_model))`, feature `2 i + 1` the cosine.
///
/// # Shapes
/// - output: `[seq_len, d_model]`
pub fn sinusoids(seq_len: usize, d_model: usize, device: &Device) -> Tensor<2> {
    let values = waves(seq_len, d_model);
    Tensor::from_data(TensorData::new(values, [seq_len, d_model]), device)
}

/// The numbers of [`sinusoids`], row by row.
pub fn waves(seq_len: usize, d_model: usize) -> Vec<f32> {
    let value = |position: usize, feature: usize| {
        let power = (feature - feature % 2) as f64 / d_model as f64;
        let angle = position as f64 / 10_000f64.powf(power);
        let wave = if feature.is_multiple_of(2) {
            angle.sin()
        } else {
            angle.cos()
        };
        wave as f32
    };
    let row = |position| (0..d_model).map(move |feature| value(position, feature));
    (0..seq_len).flat_map(row).collect()
}

/// The slopes of ALiBi (Press et al. 2021, arXiv:2108.12409): a geometric sequence from
/// `2^(-8 / n_heads)` with that ratio; where `n_heads` is no power of two, that of the power below,
/// then every other one of the power above.
pub fn alibi_slopes(n_heads: usize) -> Vec<f32> {
    let below = match n_heads.is_power_of_two() {
        true => n_heads,
        false => n_heads.next_power_of_two() / 2,
    };
    let slope = |step: usize, heads: usize| (-8.0 * step as f64 / heads as f64).exp2() as f32;
    let first = (1..=below).map(|step| slope(step, below));
    let rest = (1..).step_by(2).map(|step| slope(step, 2 * below));
    first.chain(rest).take(n_heads).collect()
}

/// What ALiBi adds to the scores of `seq` queries after `past` positions: minus the distance times
/// the head's slope.
///
/// # Shapes
/// - output: `[1, n_heads, seq, past + seq]`
pub fn alibi(n_heads: usize, seq: usize, past: usize, device: &Device) -> Tensor<4> {
    let seen = past + seq;
    let mut values = Vec::with_capacity(n_heads * seq * seen);
    for slope in alibi_slopes(n_heads) {
        for query in past..seen {
            values.extend((0..seen).map(|key| slope * (key as f32 - query as f32)));
        }
    }
    Tensor::from_data(TensorData::new(values, [1, n_heads, seq, seen]), device)
}

/// The bucket of every distance between `seq` queries after `past` positions and the `seen` keys
/// (Raffel et al. 2020, arXiv:1910.10683, section 2.1): half of the buckets for single distances,
/// the others for ever wider ranges up to `max_distance`. Where queries see both sides, keys to
/// their right have buckets of their own.
///
/// Row by row, `seq * seen` in all.
pub fn relative_buckets(
    n_buckets: usize,
    max_distance: usize,
    both_sides: bool,
    seq: usize,
    past: usize,
    seen: usize,
) -> Vec<i32> {
    let n = if both_sides { n_buckets / 2 } else { n_buckets };
    let exact = n / 2;
    let bucket = |query: usize, key: usize| {
        let right = key > query;
        let distance = if right && !both_sides {
            0
        } else {
            query.abs_diff(key)
        };
        let near = if distance < exact {
            distance
        } else {
            let range = (max_distance as f32 / exact as f32).ln();
            let far = (distance as f32 / exact as f32).ln() / range * (n - exact) as f32;
            (exact + far as usize).min(n - 1)
        };
        (near + if right && both_sides { n } else { 0 }) as i32
    };
    (past..past + seq)
        .flat_map(|query| (0..seen).map(move |key| bucket(query, key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinusoids_by_hand() {
        let table = sinusoids(3, 4, &Device::flex()).into_data();
        let table = table.try_to_vec::<f32>().unwrap();
        let expected = [2f64.sin(), 2f64.cos(), 0.02f64.sin(), 0.02f64.cos()];
        for (got, expected) in table[8..].iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn slopes_of_the_paper() {
        let eight: Vec<f32> = (1..=8).map(|i| 0.5f32.powi(i)).collect();
        assert_eq!(alibi_slopes(8), eight);
        let three = alibi_slopes(3);
        assert_eq!(three, [0.0625, 0.003_906_25, 0.25]);
    }

    #[test]
    fn distances_fall_into_buckets() {
        // Eight buckets, up to distance 16: 0 to 3 alone, then up to 5, 7, 11 and beyond.
        let back = relative_buckets(8, 16, false, 1, 20, 21);
        let expected = [
            7, 7, 7, 7, 7, 7, 7, 7, 7, 6, 6, 6, 6, 5, 5, 4, 4, 3, 2, 1, 0,
        ];
        assert_eq!(back, expected);
        assert_eq!(relative_buckets(8, 16, true, 1, 1, 4), [1, 0, 5, 6]);
        assert_eq!(relative_buckets(8, 16, false, 1, 0, 2), [0, 0]);
    }

    #[test]
    fn alibi_falls_with_the_distance() {
        let bias = alibi(1, 2, 1, &Device::flex()).into_data();
        let slope = 1.0 / 256.0;
        let expected = [-slope, 0.0, slope, -2.0 * slope, -slope, 0.0];
        assert_eq!(bias.try_to_vec::<f32>().unwrap(), expected);
    }
}
