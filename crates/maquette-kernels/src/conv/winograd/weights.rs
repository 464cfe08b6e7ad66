//! Kernels transformed, and the sums of a weight gradient transformed back.

use rayon::prelude::*;

use super::grid::Grid;
use super::product::PANEL;
use super::transform::{self, MAX_SIDE, MAX_TAPS, OUTPUTS, Stage, Tiling, entry};
use super::{Geometry, SKEW, padded, taps};
use crate::shared::Shared;
use crate::simd::{Isa, Lanes};
use crate::transpose::{WIDTH, transpose};

/// One of the short kernels that a strided kernel falls into.
pub(super) struct Part {
    /// Which number of the whole kernel each of its taps is; past the end for a zero.
    pub(super) taps: [usize; MAX_TAPS * MAX_TAPS],
    /// Its first inner channel among those of its matrix.
    pub(super) inner: usize,
    /// Its matrix.
    pub(super) matrix: usize,
}

impl Part {
    pub(super) fn new(
        geometry: &Geometry,
        taps: usize,
        at: impl Fn([usize; 2]) -> [usize; 2],
    ) -> Self {
        let [rows, cols] = geometry.kernel;
        let number = |tap| match at([tap / taps, tap % taps]) {
            [i, j] if i < rows && j < cols => i * cols + j,
            _ => usize::MAX,
        };
        Self {
            taps: std::array::from_fn(number),
            inner: 0,
            matrix: 0,
        }
    }
}

/// The weights seen from the side they are multiplied on.
pub(super) struct Sides<'a> {
    pub(super) weight: &'a [f32],
    /// Numbers of a kernel.
    pub(super) kernel: usize,
    /// Channels summed over and channels made, and the numbers between neighbours of each.
    pub(super) channels: [usize; 2],
    pub(super) strides: [usize; 2],
}

/// The parts of all kernels transformed, `G g G^T`: per matrix `[entry][panel][inner][columns of
/// the panel]`, the entries [`SKEW`] further apart than their length.
pub(super) fn transformed_weights(
    cut: [usize; 2],
    sides: &Sides,
    parts: &[Part],
    isa: Isa,
) -> Vec<Vec<f32>> {
    let [taps, inner] = cut;
    let entries = (OUTPUTS + taps - 1).pow(2);
    let outer = padded(sides.channels[1]);
    let next = inner * outer + SKEW;
    let matrices = 1 + parts.iter().map(|part| part.matrix).max().unwrap_or(0);
    let mut out = vec![vec![0.0; entries * next]; matrices];
    let shared: Vec<Shared> = out.iter_mut().map(|matrix| Shared::new(matrix)).collect();
    (0..sides.channels[0]).into_par_iter().for_each(|channel| {
        // The kernels of sixteen outer channels, [number][channel].
        let mut kernels = vec![0.0; sides.kernel.next_multiple_of(WIDTH) * WIDTH];
        for col in (0..outer).step_by(WIDTH) {
            let first = channel * sides.strides[0] + col * sides.strides[1];
            let rows = (sides.channels[1] - col).min(WIDTH);
            for number in (0..sides.kernel).step_by(WIDTH) {
                let cols = (sides.kernel - number).min(WIDTH);
                let last = first + (rows - 1) * sides.strides[1] + number + cols;
                assert!(last <= sides.weight.len());
                let from = &sides.weight[first + number..];
                let to = kernels[number * WIDTH..].as_mut_ptr();
                // SAFETY: `cols` numbers of the kernels of `rows` channels, as just checked, to a
                // row of sixteen each.
                unsafe {
                    transpose(
                        isa,
                        from.as_ptr(),
                        sides.strides[1],
                        [rows, cols],
                        true,
                        |j| to.add(j * WIDTH),
                    );
                }
            }
            let panel = col / PANEL * PANEL;
            let width = (outer - panel).min(PANEL);
            for part in parts {
                let mut g = [[0.0; WIDTH]; MAX_TAPS * MAX_TAPS];
                for (g, number) in g.iter_mut().zip(part.taps) {
                    if number < sides.kernel {
                        g.copy_from_slice(&kernels[number * WIDTH..][..WIDTH]);
                    }
                }
                let start = panel * inner + (part.inner + channel) * width + col - panel;
                let stage = Weights {
                    g: &g,
                    to: shared[part.matrix].at(start),
                    next,
                };
                // SAFETY: sixteen floats of each entry, those of this inner channel and these
                // columns, which no other task has.
                unsafe { transform::run(isa, taps, &stage) };
            }
        }
    });
    out
}

struct Weights<'a> {
    g: &'a [[f32; WIDTH]; MAX_TAPS * MAX_TAPS],
    to: *mut f32,
    next: usize,
}

/// # Safety
/// `to` has sixteen floats at each of the entries, `next` apart.
impl Stage for Weights<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes, T: Tiling>(&self) {
        for lane in (0..WIDTH).step_by(L::N) {
            // SAFETY: `lane + N <= 16`.
            unsafe {
                let zero = L::splat(0.0);
                let mut half = [[zero; MAX_SIDE]; MAX_TAPS];
                for (j, half) in half.iter_mut().enumerate().take(T::TAPS) {
                    let mut g = [zero; MAX_TAPS];
                    for (i, g) in g.iter_mut().enumerate().take(T::TAPS) {
                        *g = L::load(self.g[i * T::TAPS + j].as_ptr().add(lane));
                    }
                    *half = T::weight::<L>(g);
                }
                for i in 0..T::SIDE {
                    let line = T::weight::<L>(entry(&half, i));
                    for (j, value) in line.iter().enumerate().take(T::SIDE) {
                        L::store(self.to.add((i * T::SIDE + j) * self.next + lane), *value);
                    }
                }
            }
        }
    }
}

/// Adds the groups up, transforms the sums back, `G^T u G`, and puts them in the weight's order.
pub(super) fn back_to_taps(
    isa: Isa,
    geometry: &Geometry,
    grid: &Grid,
    sums: &[Vec<f32>],
) -> Vec<f32> {
    let taps = taps(geometry).expect("minimal filtering suits");
    let (inner, outer) = (grid.depth(), padded(geometry.channels_out));
    let square = taps * taps;
    // [inner][tap][outer]
    let mut weights = vec![0.0; inner * square * outer];
    weights
        .par_chunks_mut(square * outer)
        .enumerate()
        .for_each(|(k, weights)| {
            let stage = WeightsBack {
                sums,
                start: k * outer,
                next: inner * outer,
                to: weights.as_mut_ptr(),
                len: weights.len(),
            };
            // SAFETY: everything is checked.
            unsafe { transform::run(isa, taps, &stage) };
        });
    let [kernel_rows, kernel_cols] = geometry.kernel;
    let (_, _, weight_len) = geometry.lens();
    let mut out = vec![0.0; geometry.channels_out * weight_len];
    out.par_chunks_mut(WIDTH * weight_len)
        .enumerate()
        .for_each(|(block, out)| {
            for k in 0..inner {
                let (channel, [row, col]) = grid.channel(k);
                if channel >= geometry.channels_in {
                    continue;
                }
                for tap in 0..square {
                    let i = tap / taps * grid.step[0] + row;
                    let j = tap % taps * grid.step[1] + col;
                    if i >= kernel_rows || j >= kernel_cols {
                        continue;
                    }
                    let from = &weights[(k * square + tap) * outer + block * WIDTH..];
                    let at = (channel * kernel_rows + i) * kernel_cols + j;
                    for (out, from) in out.chunks_exact_mut(weight_len).zip(from) {
                        out[at] = *from;
                    }
                }
            }
        });
    out
}

struct WeightsBack<'a> {
    sums: &'a [Vec<f32>],
    start: usize,
    next: usize,
    to: *mut f32,
    len: usize,
}

impl Stage for WeightsBack<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes, T: Tiling>(&self) {
        let outer = self.len / (T::TAPS * T::TAPS);
        let last = self.start + (T::SIDE * T::SIDE - 1) * self.next + outer;
        assert!(self.sums.iter().all(|sums| last <= sums.len()) && outer.is_multiple_of(WIDTH));
        for col in (0..outer).step_by(L::N) {
            // SAFETY: as just checked; the lanes divide the columns. `to` is this task's own.
            unsafe {
                let zero = L::splat(0.0);
                let mut half = [[zero; MAX_TAPS]; MAX_SIDE];
                for (j, half) in half.iter_mut().enumerate().take(T::SIDE) {
                    let mut u = [zero; MAX_SIDE];
                    for (i, u) in u.iter_mut().enumerate().take(T::SIDE) {
                        let at = self.start + (i * T::SIDE + j) * self.next + col;
                        for sums in self.sums {
                            *u = L::add(*u, L::load(sums.as_ptr().add(at)));
                        }
                    }
                    *half = T::weight_adjoint::<L>(u);
                }
                for i in 0..T::TAPS {
                    let line = T::weight_adjoint::<L>(entry(&half, i));
                    for (j, value) in line.iter().enumerate().take(T::TAPS) {
                        let at = (i * T::TAPS + j) * outer + col;
                        L::store(self.to.add(at), *value);
                    }
                }
            }
        }
    }
}
