//! The inner loops of convolution, free of geometry.
//!
//! An image is a flat slice; a *tap* is an offset into it. With the image padded and, for strides
//! above one, split into its phases, every convolution is the same sum over taps:
//!
//! - [`correlate`]: `out[c][p] = sum over taps k of weights[k][c] * image[start + taps[k] + p]`
//! - [`accumulate_outer`]: `sums[k][c] += sum over positions of image[taps[k] + position] * grads[position][c]`
//! - [`accumulate_inner`]: the same of one channel, for few of them
//!
//! Nothing is unrolled into columns first: the taps *are* the im2col matrix, read in place.
//!
//! In bf16 every number of an image, weight or gradient is a pair of neighbours along the reduction,
//! its bits in the place of a float's, as in [`gemm`](crate::gemm). Sums are floats.

#[cfg(target_arch = "x86_64")]
use crate::gemm::Native;
use crate::gemm::{Emulated, Multiply, Single};
use crate::precision::Precision;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Lanes, Portable};

/// A loop compiled for every instruction set and precision.
trait Loop {
    /// # Safety
    /// The machine has the instructions of `L` and `M`; the rest is each loop's.
    unsafe fn run<L: Lanes, M: Multiply<L>>(&self);
}

/// # Safety
/// As the loop asks.
unsafe fn run(isa: Isa, precision: Precision, job: &impl Loop) {
    // SAFETY: `Isa` values other than `Portable` exist only where detection found the instruction
    // set; the rest is the caller's.
    unsafe {
        match (isa, precision) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Precision::F32) => avx512::<Single>(job),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Precision::Bf16) if Isa::has_bf16() => avx512_bf16(job),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Precision::Bf16) => avx512::<Emulated>(job),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Precision::F32) => avx2::<Single>(job),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Precision::Bf16) => avx2::<Emulated>(job),
            (Isa::Portable, Precision::F32) => job.run::<Portable, Single>(),
            (Isa::Portable, Precision::Bf16) => job.run::<Portable, Emulated>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<M: Multiply<Avx512>>(job: &impl Loop) {
    // SAFETY: the caller's.
    unsafe { job.run::<Avx512, M>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512_bf16(job: &impl Loop) {
    // SAFETY: the caller's.
    unsafe { job.run::<Avx512, Native>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<M: Multiply<Avx2>>(job: &impl Loop) {
    // SAFETY: the caller's.
    unsafe { job.run::<Avx2, M>() }
}

/// Taps are given to [`accumulate_outer`] in multiples of this (repeat the last one).
pub(crate) const TAP_BLOCK: usize = 12;

/// Taps are given to [`accumulate_inner`] in multiples of this: a 3x3 kernel's.
pub(crate) const INNER_BLOCK: usize = 9;

/// Floats an image must have beyond its last position, because whole vectors are read.
pub(crate) const SLACK: usize = 16;

/// Output channels computed together by [`correlate`]: the width of a panel of packed weights, no
/// wider than `channels` need.
fn panel_width(isa: Isa, channels: usize) -> usize {
    let widest = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => 6,
        _ => 8,
    };
    channels.next_power_of_two().min(widest)
}

/// Weights packed for [`correlate`], with where each reads.
pub(crate) struct Taps {
    /// Where tap `k` reads, relative to the position.
    pub(crate) offsets: Vec<usize>,
    /// `[panel][tap][channel in panel]`, the last panel filled up with zeros.
    weights: Vec<f32>,
    panels: usize,
    width: usize,
    isa: Isa,
    precision: Precision,
}

impl Taps {
    /// Packs `weight(channel, tap)` of `channels` output channels for the taps at `offsets`.
    pub(crate) fn pack(
        isa: Isa,
        precision: Precision,
        offsets: Vec<usize>,
        channels: usize,
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let width = panel_width(isa, channels);
        let panels = channels.div_ceil(width);
        let mut weights = vec![0.0; panels * offsets.len() * width];
        for channel in 0..channels {
            let start = (channel / width) * offsets.len() * width + channel % width;
            for tap in 0..offsets.len() {
                weights[start + tap * width] = weight(channel, tap);
            }
        }
        Self {
            offsets,
            weights,
            panels,
            width,
            isa,
            precision,
        }
    }

    /// Rows of the output of [`correlate`]: the channels rounded up to whole panels.
    pub(crate) fn rows(&self) -> usize {
        self.panels * self.width
    }
}

/// Length of one row of the output of [`correlate`]: the positions rounded up to whole vectors.
pub(crate) fn row_len(isa: Isa, positions: usize) -> usize {
    positions.next_multiple_of(isa.lanes())
}

/// `out[c][p] = sum_k weights[k][c] * image[start + offsets[k] + p]` for `p` in `0..positions`.
///
/// `out` is `[taps.rows()][row_len(positions)]`; numbers past `positions` in a row are garbage.
///
/// # Panics
/// If the image or `out` is too short.
pub(crate) fn correlate(
    taps: &Taps,
    image: &[f32],
    start: usize,
    positions: usize,
    out: &mut [f32],
) {
    let stride = row_len(taps.isa, positions);
    let furthest = taps.offsets.iter().max().copied().unwrap_or(0);
    assert!(
        start + furthest + stride <= image.len(),
        "image too short for its taps"
    );
    assert!(taps.rows() * stride <= out.len(), "output too short");
    let job = Correlate {
        offsets: &taps.offsets,
        weights: taps.weights.as_ptr(),
        panels: taps.panels,
        width: taps.width,
        image: image[start..].as_ptr(),
        out: out.as_mut_ptr(),
        stride,
    };
    // SAFETY: the reads of the loop reach `offset + stride` floats into the image and its writes
    // `panels * width * stride` floats into `out`, both checked above; the packed weights hold
    // `panels * taps * width` floats by construction in `Taps::pack`, with the same width.
    unsafe { run(taps.isa, taps.precision, &job) }
}

struct Correlate<'a> {
    offsets: &'a [usize],
    weights: *const f32,
    panels: usize,
    width: usize,
    image: *const f32,
    out: *mut f32,
    /// Length of a row of `out`, a multiple of the lanes.
    stride: usize,
}

impl Loop for Correlate<'_> {
    /// # Safety
    /// `width` is the panel width the weights were packed with; the lengths are as [`correlate`]
    /// checks them.
    #[inline(always)]
    unsafe fn run<L: Lanes, M: Multiply<L>>(&self) {
        // SAFETY: the caller's. The narrower the panel, the more vectors fill the registers.
        unsafe {
            match self.width {
                1 => self.tiles::<L, M, 1, 8>(),
                2 => self.tiles::<L, M, 2, 5>(),
                4 => self.tiles::<L, M, 4, 3>(),
                6 => self.tiles::<L, M, 6, 2>(),
                _ => self.tiles::<L, M, 8, 3>(),
            }
        }
    }
}

impl Correlate<'_> {
    /// Tiles of positions outside, panels inside: the image's tile stays in the first cache while
    /// the weights stream past.
    ///
    /// # Safety
    /// As [`Loop::run`].
    #[inline(always)]
    unsafe fn tiles<L: Lanes, M: Multiply<L>, const WIDTH: usize, const MOST: usize>(&self) {
        let mut position = 0;
        while position < self.stride {
            let vectors = match (self.stride - position) / L::N {
                left if left >= MOST => MOST,
                left => left.min(3).min(MOST),
            };
            for panel in 0..self.panels {
                // SAFETY: `position + vectors * N <= stride` and `panel < panels`, so every access
                // of the tile stays inside what the caller vouches for.
                unsafe {
                    match vectors {
                        1 => self.tile::<L, M, 1, WIDTH>(position, panel),
                        2 => self.tile::<L, M, 2, WIDTH>(position, panel),
                        3 => self.tile::<L, M, 3, WIDTH>(position, panel),
                        _ => self.tile::<L, M, MOST, WIDTH>(position, panel),
                    }
                }
            }
            position += vectors * L::N;
        }
    }

    /// `VECTORS` vectors of positions times `WIDTH` channels, all sums in registers.
    ///
    /// # Safety
    /// As [`Loop::run`], with `position + VECTORS * L::N <= stride` and `panel < panels`.
    #[inline(always)]
    unsafe fn tile<L: Lanes, M: Multiply<L>, const VECTORS: usize, const WIDTH: usize>(
        &self,
        position: usize,
        panel: usize,
    ) {
        // SAFETY: see above; `weights` advances `WIDTH` floats per tap inside its panel.
        unsafe {
            let mut sums = [[L::splat(0.0); VECTORS]; WIDTH];
            let mut weights = self.weights.add(panel * self.offsets.len() * WIDTH);
            for &offset in self.offsets {
                let from = self.image.add(offset + position);
                let mut x = [L::splat(0.0); VECTORS];
                for (i, x) in x.iter_mut().enumerate() {
                    *x = L::load(from.add(i * L::N));
                }
                for (channel, sums) in sums.iter_mut().enumerate() {
                    let w = L::splat(*weights.add(channel));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = M::multiply_add(w, x, *sum);
                    }
                }
                weights = weights.add(WIDTH);
            }
            for (channel, sums) in sums.iter().enumerate() {
                let to = self
                    .out
                    .add((panel * WIDTH + channel) * self.stride + position);
                for (i, sum) in sums.iter().enumerate() {
                    L::store(to.add(i * L::N), *sum);
                }
            }
        }
    }
}

/// A grid of positions: `rows` rows of `cols` neighbours, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

/// `sums[k][c] += sum over the grid of image[offsets[k] + position] * grads[index][c]`.
///
/// `grads` is `[rows * cols][channels]` and `sums` `[offsets][channels]`, `channels` a multiple of
/// the lanes and `offsets.len()` of [`TAP_BLOCK`].
///
/// # Panics
/// If a slice is too short or a length not such a multiple.
#[allow(clippy::too_many_arguments)] // a loop with all that it reads
pub(crate) fn accumulate_outer(
    isa: Isa,
    precision: Precision,
    offsets: &[usize],
    image: &[f32],
    grid: Grid,
    grads: &[f32],
    channels: usize,
    sums: &mut [f32],
) {
    if grid.rows == 0 || grid.cols == 0 || offsets.is_empty() {
        return;
    }
    let last = (grid.rows - 1) * grid.stride + grid.cols - 1;
    let furthest = offsets.iter().max().copied().unwrap_or(0);
    assert!(
        furthest + last < image.len(),
        "image too short for its taps"
    );
    assert!(channels.is_multiple_of(isa.lanes()) && offsets.len().is_multiple_of(TAP_BLOCK));
    assert!(
        grid.rows * grid.cols * channels <= grads.len(),
        "gradient too short"
    );
    assert!(offsets.len() * channels <= sums.len(), "sums too short");
    let job = Outer {
        offsets,
        image: image.as_ptr(),
        grid,
        grads: grads.as_ptr(),
        channels,
        sums: sums.as_mut_ptr(),
    };
    // SAFETY: the loop reads the image at `offset + position`, the gradient in its
    // `rows * cols * channels` floats, and updates `sums` in its `offsets * channels` floats, all
    // checked above.
    unsafe { run(isa, precision, &job) }
}

struct Outer<'a> {
    offsets: &'a [usize],
    image: *const f32,
    grid: Grid,
    grads: *const f32,
    channels: usize,
    sums: *mut f32,
}

impl Loop for Outer<'_> {
    /// # Safety
    /// The lengths are as [`accumulate_outer`] checks them.
    #[inline(always)]
    unsafe fn run<L: Lanes, M: Multiply<L>>(&self) {
        // SAFETY: the caller's. Fewer taps at a time where there are only sixteen registers.
        unsafe {
            match L::N {
                8 => self.blocks::<L, M, 2, 6>(),
                _ => self.blocks::<L, M, 6, 12>(),
            }
        }
    }
}

impl Outer<'_> {
    /// Blocks of channels outside, taps inside. `FOUR` and `TWO` are the taps held in registers
    /// against four and two vectors of channels.
    ///
    /// # Safety
    /// As [`Loop::run`]; `FOUR` and `TWO` divide [`TAP_BLOCK`].
    #[inline(always)]
    unsafe fn blocks<L: Lanes, M: Multiply<L>, const FOUR: usize, const TWO: usize>(&self) {
        let mut channel = 0;
        while channel < self.channels {
            // SAFETY: each block stays below `channels`, and `chunks_exact` leaves no tap over
            // because the block sizes divide the number of taps.
            unsafe {
                match (self.channels - channel) / L::N {
                    1 => {
                        self.block::<L, M, 1, TAP_BLOCK>(channel);
                        channel += L::N;
                    }
                    2 | 3 => {
                        self.block::<L, M, 2, TWO>(channel);
                        channel += 2 * L::N;
                    }
                    _ => {
                        self.block::<L, M, 4, FOUR>(channel);
                        channel += 4 * L::N;
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Loop::run`], with `channel + VECTORS * L::N <= channels`.
    #[inline(always)]
    unsafe fn block<L: Lanes, M: Multiply<L>, const VECTORS: usize, const TAPS: usize>(
        &self,
        channel: usize,
    ) {
        for (block, offsets) in self.offsets.chunks_exact(TAPS).enumerate() {
            // SAFETY: positions of the grid, taps of the block and channels of the vectors are all
            // within the checked lengths.
            unsafe {
                let mut sums = [[L::splat(0.0); VECTORS]; TAPS];
                let mut from = [self.image; TAPS];
                for (from, offset) in from.iter_mut().zip(offsets) {
                    *from = self.image.add(*offset);
                }
                let mut grads = self.grads.add(channel);
                for row in 0..self.grid.rows {
                    let row = row * self.grid.stride;
                    for position in row..row + self.grid.cols {
                        let mut g = [L::splat(0.0); VECTORS];
                        for (i, g) in g.iter_mut().enumerate() {
                            *g = L::load(grads.add(i * L::N));
                        }
                        for (sums, from) in sums.iter_mut().zip(from) {
                            let x = L::splat(*from.add(position));
                            for (sum, g) in sums.iter_mut().zip(g) {
                                *sum = M::multiply_add(x, g, *sum);
                            }
                        }
                        grads = grads.add(self.channels);
                    }
                }
                for (tap, added) in sums.iter().enumerate() {
                    let to = self
                        .sums
                        .add((block * TAPS + tap) * self.channels + channel);
                    for (i, added) in added.iter().enumerate() {
                        let to = to.add(i * L::N);
                        L::store(to, L::add(L::load(to), *added));
                    }
                }
            }
        }
    }
}

/// `sums[k] += sum over p of image[offsets[k] + p] * line[p]`.
///
/// `line` is a multiple of the lanes long, `offsets` and `sums` of [`INNER_BLOCK`].
///
/// # Panics
/// If a slice is too short or a length not such a multiple.
pub(crate) fn accumulate_inner(
    isa: Isa,
    precision: Precision,
    offsets: &[usize],
    image: &[f32],
    line: &[f32],
    sums: &mut [f32],
) {
    let furthest = offsets.iter().max().copied().unwrap_or(0);
    assert!(
        furthest + line.len() <= image.len(),
        "image too short for its taps"
    );
    assert!(line.len().is_multiple_of(isa.lanes()) && sums.len() == offsets.len());
    let (blocks, rest) = offsets.as_chunks::<INNER_BLOCK>();
    assert!(rest.is_empty(), "taps in whole blocks");
    for (offsets, sums) in blocks.iter().zip(sums.as_chunks_mut::<INNER_BLOCK>().0) {
        let job = Inner {
            offsets,
            image: image.as_ptr(),
            line,
            sums: sums.as_mut_ptr(),
        };
        // SAFETY: reads reach `line.len()` floats from each offset on, as checked; as many sums as
        // offsets.
        unsafe { run(isa, precision, &job) };
    }
}

struct Inner<'a> {
    offsets: &'a [usize; INNER_BLOCK],
    image: *const f32,
    line: &'a [f32],
    sums: *mut f32,
}

impl Loop for Inner<'_> {
    /// # Safety
    /// The line is a multiple of the lanes long, and as many floats are in the image from each
    /// offset on; there is a sum for each offset.
    #[inline(always)]
    unsafe fn run<L: Lanes, M: Multiply<L>>(&self) {
        // SAFETY: the caller's; `lanes` has room for a vector of any width.
        unsafe {
            let mut totals = [L::splat(0.0); INNER_BLOCK];
            for position in (0..self.line.len()).step_by(L::N) {
                let g = L::load(self.line.as_ptr().add(position));
                for (total, offset) in totals.iter_mut().zip(self.offsets) {
                    let x = L::load(self.image.add(offset + position));
                    *total = M::multiply_add(x, g, *total);
                }
            }
            for (tap, total) in totals.into_iter().enumerate() {
                let mut lanes = [0.0; 16];
                L::store(lanes.as_mut_ptr(), total);
                *self.sums.add(tap) += lanes[..L::N].iter().sum::<f32>();
            }
        }
    }
}
