//! What a decoder does between its products, on slices.
//!
//! Each row's result depends on that row alone, whichever rows are computed with it.

use crate::activation::{Activation, apply_to};
use crate::elementwise::{GRAIN, add as add_to, multiply_by, vectorized};
use crate::row_norm;
use crate::simd::Isa;
use crate::team;

/// `x / sqrt(mean(x^2) + epsilon) * gamma`, row by row (Zhang and Sennrich 2019).
///
/// # Shapes
/// - `x`, `out`: `[n, d]`
/// - `gamma`: `[d]`
///
/// # Panics
/// If the lengths are others.
pub fn rms_norm(x: &[f32], gamma: &[f32], epsilon: f32, out: &mut [f32]) {
    row_norm::rows(x, gamma, None, epsilon, out);
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta`, row by row (Ba et al. 2016).
///
/// # Shapes
/// - `x`, `out`: `[n, d]`
/// - `gamma`, `beta`: `[d]`
///
/// # Panics
/// If the lengths are others.
pub fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, out: &mut [f32]) {
    row_norm::rows(x, gamma, Some(beta), epsilon, out);
}

/// `x = activation(x)`.
pub fn activate(x: &mut [f32], activation: Activation) {
    each_part(x, |_, x| apply_to(Isa::detect(), activation, x));
}

/// `gate = activation(gate) * x`, the gated linear unit (Shazeer 2020).
///
/// # Panics
/// If the lengths differ.
pub fn gate(gate: &mut [f32], x: &[f32], activation: Activation) {
    assert_eq!(gate.len(), x.len(), "one gate per number");
    let isa = Isa::detect();
    each_part(gate, |start, gate| {
        apply_to(isa, activation, gate);
        multiply_by(isa, gate, &x[start..][..gate.len()]);
    });
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "numbers to be added");
    each_part(x, |start, x| {
        add_to(Isa::detect(), x, &y[start..][..x.len()])
    });
}

/// Parts of a slice with their starts, in parallel if there are several.
fn each_part(x: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    team::each_part(x, GRAIN, |i, x| work(i * GRAIN, x));
}

/// Which numbers of a head a rotation turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `x[i]` and `x[i + turned / 2]`, as in Hugging Face's files.
    Halves,
    /// `x[2 i]` and `x[2 i + 1]`, as in llama.cpp's of architecture `llama`.
    Neighbours,
}

/// Turns pairs of each head by the angles of its row (Su et al. 2021).
///
/// # Shapes
/// - `x`: `[n, heads, d_head]`, with rows `stride` apart of which the first `heads * d_head` are turned
/// - `cos`, `sin`: `[n, turned / 2]`, `turned` at most `d_head`
///
/// # Panics
/// If the lengths are others.
pub fn rotary(
    x: &mut [f32],
    [stride, heads, d_head]: [usize; 3],
    cos: &[f32],
    sin: &[f32],
    pairs: Pairs,
) {
    let n = x.len() / stride;
    let half = cos.len() / n.max(1);
    assert!(
        x.len() == n * stride && heads * d_head <= stride && 2 * half <= d_head,
        "rotary: {n} rows of {stride} numbers, {heads} heads of {d_head}, {half} angles"
    );
    assert_eq!(
        [cos.len(), sin.len()],
        [n * half; 2],
        "rotary: angles of {n} rows"
    );
    if half == 0 {
        return;
    }
    let isa = Isa::detect();
    let rows = GRAIN.div_ceil(stride);
    let work = |task: usize, x: &mut [f32]| {
        for (row, x) in (task * rows..).zip(x.chunks_exact_mut(stride)) {
            let [cos, sin] = [cos, sin].map(|table| &table[row * half..][..half]);
            turn(
                isa,
                &mut x[..heads * d_head],
                d_head,
                cos,
                sin,
                pairs == Pairs::Halves,
            );
        }
    };
    team::each_part(x, rows * stride, work);
}

vectorized! {
    fn turn(x: &mut [f32], d_head: usize, cos: &[f32], sin: &[f32], halves: bool) {
        for head in x.chunks_exact_mut(d_head) {
            if halves {
                let (low, high) = head.split_at_mut(cos.len());
                for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                    (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
                }
            } else {
                for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                    *pair = [pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }

    #[test]
    fn norms_by_hand() {
        let mut out = [0.0; 4];
        rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0], 0.0, &mut out[..]);
        close(&out[..2], &[3.0 / 12.5f32.sqrt(), 8.0 / 12.5f32.sqrt()]);
        assert!(out[2].is_nan(), "zero by zero");
        layer_norm(
            &[1.0, 3.0, 0.0, 4.0],
            &[1.0, 2.0],
            &[5.0, 6.0],
            0.0,
            &mut out,
        );
        close(&out, &[4.0, 8.0, 4.0, 8.0]);
    }

    #[test]
    fn gates_by_hand() {
        let mut x = [-1.0, 2.0];
        activate(&mut x, Activation::Relu);
        close(&x, &[0.0, 2.0]);
        gate(&mut x, &[5.0, 7.0], Activation::Silu);
        close(&x, &[0.0, 14.0 / (1.0 + (-2f32).exp())]);
        add(&mut x, &[1.0, -1.0]);
        close(&x[..1], &[1.0]);
    }

    #[test]
    fn both_ways_of_pairing_turn_the_same_pairs() {
        // Two rows of one turned head of four and a half more that stays.
        let halves = [1.0, 2.0, 3.0, 4.0, 9.0, 9.0, 5.0, 6.0, 7.0, 8.0, 9.0, 9.0];
        let neighbours = [1.0, 3.0, 2.0, 4.0, 9.0, 9.0, 5.0, 7.0, 6.0, 8.0, 9.0, 9.0];
        let (cos, sin) = ([1.0, 0.0, 0.6, -1.0], [0.0, 1.0, 0.8, 0.0]);
        let [mut a, mut b] = [halves, neighbours];
        rotary(&mut a, [6, 1, 4], &cos, &sin, Pairs::Halves);
        rotary(&mut b, [6, 1, 4], &cos, &sin, Pairs::Neighbours);
        close(
            &a,
            &[
                1.0, -4.0, 3.0, 2.0, 9.0, 9.0, -2.6, -6.0, 8.2, -8.0, 9.0, 9.0,
            ],
        );
        close(
            &b,
            &[
                1.0, 3.0, -4.0, 2.0, 9.0, 9.0, -2.6, 8.2, -6.0, -8.0, 9.0, 9.0,
            ],
        );
    }
}
