//! Between resolutions without weights: pooling, and repetition of pixels.

use std::mem::MaybeUninit;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::{GRAIN, vectorized};
use crate::simd::{Isa, Lanes};
use crate::vector::{Machine, Vector};

/// The square windows of a pooling.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Side of a window.
    pub side: usize,
    /// Step between windows.
    pub stride: usize,
    /// Pixels added on each side, at most half a window: zeros for a mean, never chosen by a
    /// maximum.
    pub padding: usize,
}

impl Windows {
    /// Windows side by side.
    pub fn tiles(side: usize) -> Self {
        Self {
            side,
            stride: side,
            padding: 0,
        }
    }

    /// Windows along an axis of `size` pixels.
    fn count(&self, size: usize) -> usize {
        let padded = size + 2 * self.padding;
        assert!(
            self.stride > 0 && self.padding <= self.side / 2 && (1..=padded).contains(&self.side),
            "pooling: {self:?} do not fit {size} pixels"
        );
        (padded - self.side) / self.stride + 1
    }

    /// Whether they lie side by side and cover an image of this size.
    fn tile(&self, size: &[usize]) -> bool {
        let whole = size.iter().all(|size| size.is_multiple_of(self.side));
        (self.stride, self.padding) == (self.side, 0) && whole
    }

    /// What a pixel counts in a mean.
    fn share(&self) -> f32 {
        1.0 / (self.side * self.side) as f32
    }

    /// The pixels, of `size`, in window `index` of an axis.
    fn pixels(&self, index: usize, size: usize) -> std::ops::Range<usize> {
        let start = index * self.stride;
        let end = (start + self.side).saturating_sub(self.padding).min(size);
        start.saturating_sub(self.padding).min(end)..end
    }
}

/// The largest number of each window. Its gradient goes to the first of equals.
///
/// # Shapes
/// - input: `[batch, channels, height, width]`
/// - output: `[batch, channels, height', width']`, `height' = (height + 2 padding - side) / stride + 1`
///
/// # Panics
/// If the windows do not fit.
pub fn max_pool2d(x: Tensor<4>, windows: Windows) -> Tensor<4> {
    let geometry = Geometry::new(x.dims(), Resample::Max(windows));
    if !(is_flex_f32(&x) && geometry.is_not_empty()) {
        let Windows {
            side,
            stride,
            padding,
        } = windows;
        let options = MaxPoolOptions {
            stride: [stride; 2],
            padding: [(padding, padding); 2],
            ..MaxPoolOptions::new([side; 2])
        };
        return burn::tensor::module::max_pool2d(x, options);
    }
    Tensor::from_dispatch(Dispatch::fused_resample(x.into_dispatch(), geometry))
}

/// The mean of each window, zeros of the padding included.
///
/// # Shapes
/// As [`max_pool2d`].
///
/// # Panics
/// If the windows do not fit.
pub fn avg_pool2d(x: Tensor<4>, windows: Windows) -> Tensor<4> {
    let geometry = Geometry::new(x.dims(), Resample::Mean(windows));
    if !(is_flex_f32(&x) && geometry.is_not_empty()) {
        let Windows {
            side,
            stride,
            padding,
        } = windows;
        let options = AvgPoolOptions {
            stride: [stride; 2],
            padding: [(padding, padding); 2],
            ..AvgPoolOptions::new([side; 2])
        };
        return burn::tensor::module::avg_pool2d(x, options);
    }
    Tensor::from_dispatch(Dispatch::fused_resample(x.into_dispatch(), geometry))
}

/// Repeats each pixel `factor` times in both directions.
///
/// # Shapes
/// - input: `[batch, channels, height, width]`
/// - output: `[batch, channels, factor height, factor width]`
///
/// # Panics
/// If `factor` is zero.
pub fn upsample_nearest2d(x: Tensor<4>, factor: usize) -> Tensor<4> {
    assert!(factor > 0, "upsample_nearest2d: a factor of zero");
    let [batch, channels, height, width] = x.dims();
    let geometry = Geometry::new(x.dims(), Resample::Repeat(factor));
    if !(is_flex_f32(&x) && geometry.is_not_empty()) {
        return x
            .reshape([batch, channels, height, 1, width, 1])
            .expand([batch, channels, height, factor, width, factor])
            .reshape([batch, channels, factor * height, factor * width]);
    }
    Tensor::from_dispatch(Dispatch::fused_resample(x.into_dispatch(), geometry))
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Resample {
    Max(Windows),
    Mean(Windows),
    Repeat(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    shape: [usize; 4],
    /// Height and width of the output.
    output: [usize; 2],
    resample: Resample,
}

impl Geometry {
    fn new(shape: [usize; 4], resample: Resample) -> Self {
        let [_, _, height, width] = shape;
        let output = [height, width].map(|size| match resample {
            Resample::Max(windows) | Resample::Mean(windows) => windows.count(size),
            Resample::Repeat(factor) => factor * size,
        });
        Self {
            shape,
            output,
            resample,
        }
    }

    fn is_not_empty(&self) -> bool {
        self.shape.iter().product::<usize>() > 0
    }

    /// Numbers of a plane of the input and of the output, and planes of one task.
    fn lens(&self) -> (usize, usize, usize) {
        let input = self.shape[2] * self.shape[3];
        let output = self.output[0] * self.output[1];
        (input, output, GRAIN.div_ceil(input.max(output)))
    }

    /// Planes to be taken as one: under tiles the next plane is but more rows.
    fn at_once(&self, planes: usize) -> usize {
        let seamless = match self.resample {
            Resample::Max(windows) => windows.side == 2 && windows.tile(&self.shape[2..]),
            Resample::Mean(windows) => windows.tile(&self.shape[2..]),
            Resample::Repeat(_) => true,
        };
        if seamless { planes } else { 1 }
    }

    fn output_shape(&self) -> [usize; 4] {
        let [batch, channels, ..] = self.shape;
        [batch, channels, self.output[0], self.output[1]]
    }
}

impl Geometry {
    /// One plane or as many as may be taken as one, all of whose output is written.
    fn forward(&self, isa: Isa, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        let size = &self.shape[2..];
        let width = size[1];
        match self.resample {
            Resample::Max(windows) if windows.side == 2 && windows.tile(size) => {
                max_quads(isa, x, width, out);
            }
            Resample::Max(windows) => each_window(self, windows, |i, rows, cols| {
                out[i].write(x[largest(x, width, rows, cols)]);
            }),
            Resample::Mean(windows) if windows.tile(size) => {
                sum_tiles(isa, x, width, windows.side, windows.share(), out);
            }
            Resample::Mean(windows) => each_window(self, windows, |i, rows, cols| {
                let rows = rows.map(|row| &x[row * width..][cols.clone()]);
                let total: f32 = rows.flatten().sum();
                out[i].write(total * windows.share());
            }),
            Resample::Repeat(factor) => spread_tiles(isa, x, width, factor, 1.0, out),
        }
    }

    /// The gradient of as many, all of which is written. Only a maximum needs the input `x`.
    fn backward(&self, isa: Isa, x: &[f32], grad: &[f32], out: &mut [MaybeUninit<f32>]) {
        let size = &self.shape[2..];
        let width = size[1];
        match self.resample {
            Resample::Max(windows) if windows.side == 2 && windows.tile(size) => {
                max_quads_gradient(isa, x, width, grad, out);
            }
            Resample::Max(windows) => {
                let out = cleared(out);
                each_window(self, windows, |i, rows, cols| {
                    out[largest(x, width, rows, cols)] += grad[i];
                });
            }
            Resample::Mean(windows) if windows.tile(size) => {
                let side = windows.side;
                spread_tiles(isa, grad, width / side, side, windows.share(), out);
            }
            Resample::Mean(windows) => {
                let out = cleared(out);
                each_window(self, windows, |i, rows, cols| {
                    for row in rows {
                        let pixels = &mut out[row * width..][cols.clone()];
                        pixels
                            .iter_mut()
                            .for_each(|pixel| *pixel += grad[i] * windows.share());
                    }
                });
            }
            Resample::Repeat(factor) => sum_tiles(isa, grad, width * factor, factor, 1.0, out),
        }
    }
}

/// Filled with zeros.
fn cleared(out: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    out.fill(MaybeUninit::new(0.0));
    // SAFETY: all of it has just been written.
    unsafe { &mut *(out as *mut [MaybeUninit<f32>] as *mut [f32]) }
}

/// Resampling as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedResample: Backend {
    /// See [`max_pool2d`], [`avg_pool2d`] and [`upsample_nearest2d`].
    fn fused_resample(x: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self>;
}

impl FusedResample for Flex {
    fn fused_resample(x: FlexTensor, geometry: Geometry) -> FlexTensor {
        let x = contiguous(x);
        let x: &[f32] = x.storage();
        let (from, to, planes) = geometry.lens();
        let (isa, each) = (Isa::detect(), geometry.at_once(planes));
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_mut(planes * to)
                .zip(x.par_chunks(planes * from))
                .for_each(|(out, x)| {
                    for (out, x) in out.chunks_mut(each * to).zip(x.chunks(each * from)) {
                        geometry.forward(isa, x, out);
                    }
                });
        };
        // SAFETY: every number of every plane is written.
        let out = unsafe { written(x.len() / from * to, write) };
        flex_tensor(out, &geometry.output_shape())
    }
}

impl<C: CheckpointStrategy> FusedResample for Autodiff<Flex, C> {
    fn fused_resample(x: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self> {
        match ResampleBackward
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                // Only a maximum has to be found again.
                let saved = matches!(geometry.resample, Resample::Max(_));
                let saved = saved.then(|| prep.checkpoint(&x));
                let out = Flex::fused_resample(x.into_primitive(), geometry);
                prep.finish((saved, geometry), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::fused_resample(x.into_primitive(), geometry))
            }
        }
    }
}

#[derive(Debug)]
struct ResampleBackward;

impl Backward<Flex, 1> for ResampleBackward {
    type State = (Option<NodeId>, Geometry);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, geometry) = ops.state;
        let x = saved.map(|id| contiguous(checkpointer.retrieve_node_output::<FlexTensor>(id)));
        let x: &[f32] = x.as_ref().map_or(&[], |x| x.storage());
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let grad: &[f32] = grad.storage();
        let (from, to, planes) = geometry.lens();
        let (isa, each) = (Isa::detect(), geometry.at_once(planes));
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_mut(planes * from)
                .zip(grad.par_chunks(planes * to))
                .enumerate()
                .for_each(|(task, (out, grad))| {
                    let parts = out.chunks_mut(each * from).zip(grad.chunks(each * to));
                    for (part, (out, grad)) in parts.enumerate() {
                        let start = (task * planes + part * each) * from;
                        let x = if x.is_empty() {
                            x
                        } else {
                            &x[start..][..out.len()]
                        };
                        geometry.backward(isa, x, grad, out);
                    }
                });
        };
        // SAFETY: every number of every plane is written.
        let out = unsafe { written(grad.len() / to * from, write) };
        grads.register::<Flex>(node.id, flex_tensor(out, &geometry.shape));
    }
}

type Pixels = std::ops::Range<usize>;

/// Calls `f` with the number, rows and columns of every window.
fn each_window(geometry: &Geometry, windows: Windows, mut f: impl FnMut(usize, Pixels, Pixels)) {
    let [_, _, height, width] = geometry.shape;
    let [rows, cols] = geometry.output;
    for row in 0..rows {
        for col in 0..cols {
            let (i, pixels) = (row * cols + col, windows.pixels(row, height));
            f(i, pixels, windows.pixels(col, width));
        }
    }
}

/// Where the first of the largest numbers of a window is. A NaN counts as the largest.
fn largest(x: &[f32], width: usize, rows: Pixels, cols: Pixels) -> usize {
    let mut best = rows.start * width + cols.start;
    for row in rows {
        for at in row * width + cols.start..row * width + cols.end {
            if x[at] > x[best] || (x[at].is_nan() && !x[best].is_nan()) {
                best = at;
            }
        }
    }
    best
}

/// Of the vectors `a` and `b`: `yes` where `b` is above, else `no`. The first of equals is above, and a
/// NaN above any number.
#[inline(always)]
fn where_above<L: Lanes>([a, b]: [Vector<L>; 2], yes: Vector<L>, no: Vector<L>) -> Vector<L> {
    let above = b.greater(a, yes, no);
    a.nan(no, b.nan(yes, above))
}

/// Pixels of pairs of rows, of which [`Self::get`] gives those of as many quads as a vector has lanes.
struct Quads<'a> {
    x: &'a [f32],
    width: usize,
}

impl Quads<'_> {
    /// The pixels above and below of the quads of row `row` from `col` on, left and right.
    #[inline(always)]
    fn get<L: Lanes>(&self, machine: Machine<L>, row: usize, col: usize) -> [[Vector<L>; 2]; 2] {
        let mut quad = [[machine.splat(0.0); 2]; 2];
        for (below, pixels) in quad.iter_mut().enumerate() {
            let at = (2 * row + below) * self.width + 2 * col;
            // Of a short row nothing is in the second vector.
            let next = match 2 * col + L::N < self.width {
                true => machine.of(self.x, at + L::N),
                false => machine.splat(0.0),
            };
            *pixels = machine.of(self.x, at).unzip(next);
        }
        quad
    }
}

// Whole vectors are written over the ends of rows where what follows them is written later.

vectorized! {
    fn max_quads<L>(machine, x: &[f32], width: usize, out: &mut [MaybeUninit<f32>]) {
        let (quads, cols) = (Quads { x, width }, width / 2);
        for row in 0..out.len() / cols {
            for col in (0..cols).step_by(L::N) {
                let [[a, b], [c, d]] = quads.get(machine, row, col);
                let (top, bottom) = (where_above([a, b], b, a), where_above([c, d], d, c));
                where_above([top, bottom], bottom, top).write(&mut out[row * cols + col..]);
            }
        }
    }
}

vectorized! {
    /// The gradient goes to the largest pixel.
    fn max_quads_gradient<L>(
        machine,
        x: &[f32],
        width: usize,
        grad: &[f32],
        out: &mut [MaybeUninit<f32>],
    ) {
        let (quads, cols, zero) = (Quads { x, width }, width / 2, machine.splat(0.0));
        for row in 0..grad.len() / cols {
            for col in (0..cols).step_by(L::N) {
                let quad = quads.get(machine, row, col);
                let [[a, b], [c, d]] = quad;
                let (top, bottom) = (where_above([a, b], b, a), where_above([c, d], d, c));
                let grad = machine.of(grad, row * cols + col);
                let shares = [
                    where_above([top, bottom], zero, grad),
                    where_above([top, bottom], grad, zero),
                ];
                for (below, (pixels, share)) in quad.into_iter().zip(shares).enumerate() {
                    let left = where_above(pixels, zero, share);
                    let right = where_above(pixels, share, zero);
                    put(left.zip(right), [2 * row + below, 2 * col], width, out);
                }
            }
        }
    }
}

/// Writes two vectors of pixels to a row from `col` on. Past the end of the row only if nothing that
/// stands there has been written.
#[inline(always)]
fn put<L: Lanes>(
    pixels: [Vector<L>; 2],
    [row, col]: [usize; 2],
    width: usize,
    out: &mut [MaybeUninit<f32>],
) {
    for (i, pixels) in pixels.into_iter().enumerate() {
        let col = col + i * L::N;
        if col >= width {
            return;
        }
        // The row below has been begun, unless this is the first vector of the pair of rows.
        let end = if col == 0 || row % 2 == 1 {
            out.len()
        } else {
            (row + 1) * width
        };
        pixels.write(&mut out[row * width + col..end]);
    }
}

vectorized! {
    /// Sums over squares of `side` pixels, times `scale`.
    fn sum_tiles<L>(
        machine,
        x: &[f32],
        width: usize,
        side: usize,
        scale: f32,
        out: &mut [MaybeUninit<f32>],
    ) {
        let cols = width / side;
        if side == 2 {
            let quads = Quads { x, width };
            for row in 0..out.len() / cols {
                for col in (0..cols).step_by(L::N) {
                    let [[a, b], [c, d]] = quads.get(machine, row, col);
                    ((a + b + c + d) * scale).write(&mut out[row * cols + col..]);
                }
            }
            return;
        }
        for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(side * width)) {
            for (col, out) in out.iter_mut().enumerate() {
                let rows = x.chunks_exact(width).map(|row| &row[col * side..][..side]);
                out.write(rows.flatten().sum::<f32>() * scale);
            }
        }
    }
}

vectorized! {
    /// The adjoint of [`sum_tiles`]: every pixel `side x side` times, times `scale`.
    fn spread_tiles<L>(
        machine,
        x: &[f32],
        width: usize,
        side: usize,
        scale: f32,
        out: &mut [MaybeUninit<f32>],
    ) {
        let wide = width * side;
        if side == 2 {
            for row in 0..x.len() / width {
                for col in (0..width).step_by(L::N) {
                    let pixels = machine.of(x, row * width + col) * scale;
                    for below in 0..2 {
                        put(pixels.zip(pixels), [2 * row + below, 2 * col], wide, out);
                    }
                }
            }
            return;
        }
        for (row, out) in out.chunks_exact_mut(side * wide).enumerate() {
            let (first, rest) = out.split_at_mut(wide);
            let x = &x[row * width..][..width];
            for (out, x) in first.chunks_exact_mut(side).zip(x) {
                out.fill(MaybeUninit::new(x * scale));
            }
            rest.chunks_exact_mut(wide).for_each(|row| row.copy_from_slice(first));
        }
    }
}
