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
use crate::simd::Isa;

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

    /// Whether they are four pixels each, and cover the image.
    fn are_quads(&self, geometry: &Geometry) -> bool {
        let even = geometry.shape[2..]
            .iter()
            .all(|size| size.is_multiple_of(2));
        (self.side, self.stride, self.padding) == (2, 2, 0) && even
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

    fn output_shape(&self) -> [usize; 4] {
        let [batch, channels, ..] = self.shape;
        [batch, channels, self.output[0], self.output[1]]
    }
}

impl Geometry {
    /// One plane, all of whose output is written.
    fn forward(&self, isa: Isa, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        let width = self.shape[3];
        match self.resample {
            Resample::Max(windows) if windows.are_quads(self) => max_quads(isa, x, width, out),
            Resample::Max(windows) => each_window(self, windows, |i, rows, cols| {
                out[i].write(x[largest(x, width, rows, cols)]);
            }),
            Resample::Mean(windows) if windows.are_quads(self) => mean_quads(isa, x, width, out),
            Resample::Mean(windows) => each_window(self, windows, |i, rows, cols| {
                let rows = rows.map(|row| &x[row * width..][cols.clone()]);
                let total: f32 = rows.flatten().sum();
                out[i].write(total / (windows.side * windows.side) as f32);
            }),
            Resample::Repeat(factor) => repeat(isa, x, width, factor, out),
        }
    }
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
        let isa = Isa::detect();
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_mut(planes * to)
                .zip(x.par_chunks(planes * from))
                .for_each(|(out, x)| {
                    for (out, x) in out.chunks_exact_mut(to).zip(x.chunks_exact(from)) {
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
        let width = geometry.shape[3];
        let isa = Isa::detect();
        let mut out = vec![0.0; grad.len() / to * from];
        out.par_chunks_mut(planes * from)
            .zip(grad.par_chunks(planes * to))
            .enumerate()
            .for_each(|(task, (out, grad))| {
                let parts = out.chunks_exact_mut(from).zip(grad.chunks_exact(to));
                for (plane, (out, grad)) in parts.enumerate() {
                    match geometry.resample {
                        Resample::Max(windows) if windows.are_quads(&geometry) => {
                            let x = &x[(task * planes + plane) * from..][..from];
                            max_quads_gradient(isa, x, width, grad, out);
                        }
                        Resample::Mean(windows) if windows.are_quads(&geometry) => {
                            mean_quads_gradient(isa, width, grad, out);
                        }
                        Resample::Max(windows) => {
                            let x = &x[(task * planes + plane) * from..][..from];
                            each_window(&geometry, windows, |i, rows, cols| {
                                out[largest(x, width, rows, cols)] += grad[i];
                            });
                        }
                        Resample::Mean(windows) => {
                            each_window(&geometry, windows, |i, rows, cols| {
                                let share = grad[i] / (windows.side * windows.side) as f32;
                                for row in rows {
                                    let pixels = &mut out[row * width..][cols.clone()];
                                    pixels.iter_mut().for_each(|pixel| *pixel += share);
                                }
                            })
                        }
                        Resample::Repeat(factor) => gather(isa, grad, width, factor, out),
                    }
                }
            });
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

/// Of four pixels the largest, and whether it is each of them: the first of equals, a NaN before
/// any number.
#[inline(always)]
fn largest_of(quad: [f32; 4]) -> (f32, [bool; 4]) {
    let above = |a: f32, b: f32| b > a || (b.is_nan() && !a.is_nan());
    let [a, b, c, d] = quad;
    let (right, below) = (above(a, b), above(c, d));
    let (top, bottom) = (if right { b } else { a }, if below { d } else { c });
    let lower = above(top, bottom);
    let best = if lower { bottom } else { top };
    let which = [
        !lower & !right,
        !lower & right,
        lower & !below,
        lower & below,
    ];
    (best, which)
}

vectorized! {
    fn max_quads(x: &[f32], width: usize, out: &mut [MaybeUninit<f32>]) {
        for (x, out) in x.chunks_exact(2 * width).zip(out.chunks_exact_mut(width / 2)) {
            let (top, bottom) = x.split_at(width);
            let pairs = top.as_chunks::<2>().0.iter().zip(bottom.as_chunks::<2>().0);
            for (out, (a, b)) in out.iter_mut().zip(pairs) {
                out.write(largest_of([a[0], a[1], b[0], b[1]]).0);
            }
        }
    }
}

vectorized! {
    fn max_quads_gradient(x: &[f32], width: usize, grad: &[f32], out: &mut [f32]) {
        let rows = x.chunks_exact(2 * width).zip(grad.chunks_exact(width / 2));
        for ((x, grad), out) in rows.zip(out.chunks_exact_mut(2 * width)) {
            let (top, bottom) = x.split_at(width);
            let (upper, lower) = out.split_at_mut(width);
            let pairs = top.as_chunks::<2>().0.iter().zip(bottom.as_chunks::<2>().0);
            let to = upper.as_chunks_mut::<2>().0.iter_mut().zip(lower.as_chunks_mut::<2>().0);
            for (((a, b), (upper, lower)), grad) in pairs.zip(to).zip(grad) {
                let which = largest_of([a[0], a[1], b[0], b[1]]).1;
                let share = which.map(|which| if which { *grad } else { 0.0 });
                (upper[0], upper[1], lower[0], lower[1]) = (share[0], share[1], share[2], share[3]);
            }
        }
    }
}

vectorized! {
    fn mean_quads(x: &[f32], width: usize, out: &mut [MaybeUninit<f32>]) {
        for (x, out) in x.chunks_exact(2 * width).zip(out.chunks_exact_mut(width / 2)) {
            let (top, bottom) = x.split_at(width);
            let pairs = top.as_chunks::<2>().0.iter().zip(bottom.as_chunks::<2>().0);
            for (out, (a, b)) in out.iter_mut().zip(pairs) {
                out.write((a[0] + a[1] + b[0] + b[1]) / 4.0);
            }
        }
    }
}

vectorized! {
    fn mean_quads_gradient(width: usize, grad: &[f32], out: &mut [f32]) {
        for (grad, out) in grad.chunks_exact(width / 2).zip(out.chunks_exact_mut(2 * width)) {
            for row in out.chunks_exact_mut(width) {
                for (out, grad) in row.as_chunks_mut::<2>().0.iter_mut().zip(grad) {
                    *out = [grad / 4.0; 2];
                }
            }
        }
    }
}

vectorized! {
    fn repeat(x: &[f32], width: usize, factor: usize, out: &mut [MaybeUninit<f32>]) {
        let wide = width * factor;
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(factor * wide)) {
            let (first, rest) = out.split_at_mut(wide);
            if factor == 2 {
                for (out, x) in first.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                    *out = [MaybeUninit::new(*x); 2];
                }
            } else {
                for (out, x) in first.chunks_exact_mut(factor).zip(x) {
                    out.fill(MaybeUninit::new(*x));
                }
            }
            rest.chunks_exact_mut(wide).for_each(|row| row.copy_from_slice(first));
        }
    }
}

vectorized! {
    /// The adjoint of [`repeat`]: sums over squares of `factor` pixels.
    fn gather(grad: &[f32], width: usize, factor: usize, out: &mut [f32]) {
        let wide = width * factor;
        for (grad, out) in grad.chunks_exact(factor * wide).zip(out.chunks_exact_mut(width)) {
            for row in grad.chunks_exact(wide) {
                if factor == 2 {
                    for (out, pair) in out.iter_mut().zip(row.chunks_exact(2)) {
                        *out += pair[0] + pair[1];
                    }
                } else {
                    for (out, part) in out.iter_mut().zip(row.chunks_exact(factor)) {
                        *out += part.iter().sum::<f32>();
                    }
                }
            }
        }
    }
}
