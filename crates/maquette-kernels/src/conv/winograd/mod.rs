//! Convolution by minimal filtering: four by four outputs at a time, each axis as [`transform`]
//! says, so that a 3x3 kernel takes a quarter of the multiplications and a 4x4 kernel of stride two
//! less than half.
//!
//! With `U = G w G^T` for the weights and `V = B^T d B` for a tile of the input, a tile of the
//! output is `A^T (U * V) A`, and `U * V`, summed over channels, is one matrix product per entry of
//! the tile. Everything between is channels last: a [`Grid`] takes the pixels there.
//!
//! A stride is a grid whose cells hold `stride x stride` pixels, beside a kernel that is shorter by
//! the same factor. Of the input gradient each residue of the position modulo the stride is a
//! correlation of its own, a [`Pass`].

mod correlation;
mod cut;
mod grid;
mod product;
mod sums;
mod tiles;
mod transform;
mod weights;

use self::correlation::{Correlation, Pass};
use self::cut::Cut;
use self::grid::Grid;
pub(super) use self::sums::weight_gradient;
use self::transform::{MAX_TAPS, OUTPUTS};
use self::weights::{Part, Sides, transformed_weights};
use super::Geometry;
use crate::simd::Isa;
use crate::transpose::WIDTH;

/// Distance added between the entries of tiles, lest all of them fall into the same cache set.
const SKEW: usize = 16;
/// Channels of a cell.
fn padded(channels: usize) -> usize {
    channels.next_multiple_of(WIDTH)
}

/// Whether minimal filtering, which stays in 32-bit floats, covers a convolution and saves work.
pub(super) fn suits(geometry: &Geometry) -> bool {
    let Some(taps) = taps(geometry).filter(|_| geometry.dilation == [1, 1]) else {
        return false;
    };
    let covered = (0..2).all(|axis| geometry.padding[axis] / geometry.stride[axis] < taps);
    let [rows, cols] = geometry.output.map(|n| n.div_ceil(OUTPUTS));
    let phases = geometry.stride[0] * geometry.stride[1];
    let [c_in, c_out] = [geometry.channels_in, geometry.channels_out];
    let (p_in, p_out) = (phases * padded(c_in), padded(c_out));
    // Multiplications, with what the transforms cost in the same unit.
    let side = OUTPUTS + taps - 1;
    let fast = rows * cols * side * side * (p_in * p_out + 16 * (p_in + p_out));
    let [kernel, output] = [geometry.kernel, geometry.output].map(|[a, b]| a * b);
    // A sum over taps takes half the time in bf16.
    let plain = output * kernel * c_in * c_out / geometry.precision.pair();
    covered && fast < plain
}

/// Taps of the shortened kernel, if minimal filtering covers them.
fn taps(geometry: &Geometry) -> Option<usize> {
    let [rows, cols] = [0, 1].map(|axis| geometry.kernel[axis].div_ceil(geometry.stride[axis]));
    (rows == cols && (2..=MAX_TAPS).contains(&rows)).then_some(rows)
}

/// The grid the input of a convolution is read in.
fn input_grid(geometry: &Geometry) -> Grid {
    Grid {
        channels: geometry.channels_in,
        size: geometry.input,
        step: geometry.stride,
        before: geometry.padding,
    }
}

/// # Panics
/// If minimal filtering does not suit.
pub(super) fn forward(
    isa: Isa,
    geometry: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let taps = taps(geometry).expect("minimal filtering suits");
    let grid = input_grid(geometry);
    let (inner, outer) = (grid.depth(), padded(geometry.channels_out));
    let phases = (0..grid.step[0]).flat_map(|i| (0..grid.step[1]).map(move |j| [i, j]));
    let parts: Vec<Part> = phases
        .enumerate()
        .map(|(n, phase)| Part {
            inner: n * padded(geometry.channels_in),
            ..Part::new(geometry, taps, |tap| {
                [0, 1].map(|axis| tap[axis] * grid.step[axis] + phase[axis])
            })
        })
        .collect();
    let (_, _, weight_len) = geometry.lens();
    let kernel = geometry.kernel[0] * geometry.kernel[1];
    let sides = Sides {
        weight,
        kernel,
        channels: [geometry.channels_in, geometry.channels_out],
        strides: [kernel, weight_len],
    };
    let weights = transformed_weights([taps, inner], &sides, &parts, isa);
    let correlation = Correlation {
        cut: Cut::new(isa, taps, geometry.batch, geometry.output, inner + outer),
        grid,
        passes: weights
            .into_iter()
            .map(|weights| Pass {
                shift: [0, 0],
                residue: [0, 0],
                weights,
            })
            .collect(),
        bias,
        channels: geometry.channels_out,
        size: geometry.output,
        step: [1, 1],
    };
    correlation.run(x)
}

/// Pixel `step * i + residue` of the input is position `u = pixel + padding` of the padded one; it
/// is reached by the taps `u % step + step * t` from the outputs `u / step - t`.
///
/// # Panics
/// If minimal filtering does not suit.
pub(super) fn input_gradient(
    isa: Isa,
    geometry: &Geometry,
    weight: &[f32],
    grad: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let taps = taps(geometry).expect("minimal filtering suits");
    let Geometry {
        stride, padding, ..
    } = *geometry;
    let grid = Grid {
        channels: geometry.channels_out,
        size: geometry.output,
        step: [1, 1],
        before: [0, 1].map(|axis| taps - 1 - padding[axis] / stride[axis]),
    };
    let (inner, outer) = (grid.depth(), padded(geometry.channels_in));
    let residues: Vec<[usize; 2]> = (0..stride[0])
        .flat_map(|i| (0..stride[1]).map(move |j| [i, j]))
        .collect();
    let position = |residue: [usize; 2]| [0, 1].map(|axis| residue[axis] + padding[axis]);
    let parts: Vec<Part> = residues
        .iter()
        .enumerate()
        .map(|(matrix, residue)| Part {
            matrix,
            ..Part::new(geometry, taps, |tap| {
                let u = position(*residue);
                [0, 1].map(|axis| u[axis] % stride[axis] + stride[axis] * (taps - 1 - tap[axis]))
            })
        })
        .collect();
    let (_, _, weight_len) = geometry.lens();
    let kernel = geometry.kernel[0] * geometry.kernel[1];
    let sides = Sides {
        weight,
        kernel,
        channels: [geometry.channels_out, geometry.channels_in],
        strides: [weight_len, kernel],
    };
    let weights = transformed_weights([taps, inner], &sides, &parts, isa);
    let passes = residues.into_iter().zip(weights).map(|(residue, weights)| {
        let u = position(residue);
        Pass {
            shift: [0, 1].map(|axis| u[axis] / stride[axis] - padding[axis] / stride[axis]),
            residue,
            weights,
        }
    });
    let positions = [0, 1].map(|axis| geometry.input[axis].div_ceil(stride[axis]));
    let correlation = Correlation {
        cut: Cut::new(isa, taps, geometry.batch, positions, inner + outer),
        grid,
        passes: passes.collect(),
        bias,
        channels: geometry.channels_in,
        size: geometry.input,
        step: stride,
    };
    correlation.run(grad)
}
