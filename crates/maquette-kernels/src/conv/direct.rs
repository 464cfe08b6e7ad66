//! Convolution, its input gradient and its weight gradient as sums over taps, for every kernel.
//!
//! The image is copied once into a padded buffer, split into `stride x stride` phases so that
//! neighbouring outputs read neighbouring numbers whatever the stride. Then
//!
//! 1. the output correlates the image with the weights;
//! 2. the input gradient correlates the padded output gradient with the flipped weights, once per
//!    phase, which is what a transposed convolution is;
//! 3. the weight gradient sums image times output gradient per tap, over fixed parts of the batch
//!    whose partial sums are added in order.
//!
//! In memory the groups of channels of the images follow each other as images would: with `G`
//! groups, "image" `i` is group `i % G`, with weights of its own.
//!
//! In bf16 the numbers are pairs of input channels, of output channels and of images, in this order.

use rayon::prelude::*;

use super::Geometry;
use super::correlate::{
    Grid, INNER_BLOCK, SLACK, TAP_BLOCK, Taps, accumulate_inner, accumulate_outer, correlate,
    row_len,
};
use crate::elementwise::GRAIN;
use crate::gemm::{join, zip_rows};
use crate::precision::Precision;
use crate::simd::Isa;

/// Parts of the batch whose weight gradients are summed apart and then added in order. Fixed, so
/// that the result does not depend on the number of threads.
const WEIGHT_PARTS: usize = 8;

/// Output channels up to which a weight gradient is summed along positions rather than channels.
const NARROW: usize = 4;

/// An image padded with zeros and split into phases: padded position `u = stride * v + phase` of
/// an axis is at `v` in the plane of that phase. `[channel][phase][row][column]`, flat.
struct Phases {
    geometry: Geometry,
    /// Channels, or pairs of them.
    channels: usize,
    /// Rows and columns of one plane.
    plane: [usize; 2],
}

impl Phases {
    fn new(geometry: &Geometry, channels: usize) -> Self {
        let plane = [0, 1].map(|axis| {
            (geometry.input[axis] + 2 * geometry.padding[axis]).div_ceil(geometry.stride[axis])
        });
        Self {
            geometry: *geometry,
            channels,
            plane,
        }
    }

    /// A buffer of zeros, of which [`Self::fill`] leaves the border untouched.
    fn buffer(&self) -> Vec<f32> {
        let [sh, sw] = self.geometry.stride;
        vec![0.0; self.channels * sh * sw * self.plane[0] * self.plane[1] + SLACK]
    }

    /// Where each weight of an output channel reads, in the weight's own order.
    fn offsets(&self) -> Vec<usize> {
        let channels = self.channels;
        let Geometry {
            kernel: [kh, kw],
            stride: [sh, sw],
            dilation: [dh, dw],
            ..
        } = self.geometry;
        let mut offsets = Vec::with_capacity(channels * kh * kw);
        for channel in 0..channels {
            for i in 0..kh {
                for j in 0..kw {
                    let (i, j) = (i * dh, j * dw);
                    let plane = (channel * sh + i % sh) * sw + j % sw;
                    offsets.push((plane * self.plane[0] + i / sh) * self.plane[1] + j / sw);
                }
            }
        }
        offsets
    }

    /// Copies one image into the buffer.
    fn fill(&self, image: &[f32], buffer: &mut [f32]) {
        let Geometry {
            input: [height, width],
            stride: [sh, sw],
            padding: [ph, pw],
            ..
        } = self.geometry;
        for (row, from) in image.chunks_exact(width).enumerate() {
            let (channel, u) = (row / height, row % height + ph);
            let plane = (channel * sh + u % sh) * sw;
            for phase in 0..sw {
                // The first column of this phase that is not padding.
                let v = pw.saturating_sub(phase).div_ceil(sw);
                let skipped = v * sw + phase - pw;
                let to = ((plane + phase) * self.plane[0] + u / sh) * self.plane[1] + v;
                if sw == 1 {
                    buffer[to..to + width].copy_from_slice(from);
                } else if skipped < width {
                    let from = from[skipped..].iter().step_by(sw);
                    buffer[to..]
                        .iter_mut()
                        .zip(from)
                        .for_each(|(to, from)| *to = *from);
                }
            }
        }
    }

    /// The outputs, as positions in a plane.
    fn grid(&self) -> Grid {
        let [rows, cols] = self.geometry.output;
        Grid {
            rows,
            cols,
            stride: self.plane[1],
        }
    }
}

/// Channel `index` of those that `get` gives, or that pair of channels; zero beyond `count`.
fn element(precision: Precision, index: usize, count: usize, get: impl Fn(usize) -> f32) -> f32 {
    let get = |channel| if channel < count { get(channel) } else { 0.0 };
    match precision {
        Precision::F32 => get(index),
        Precision::Bf16 => f32::from_bits(join(get(2 * index), get(2 * index + 1))),
    }
}

/// Pairs of two rows' numbers, with zeros for an absent one.
fn join_rows(isa: Isa, first: &[f32], second: Option<&[f32]>, to: &mut [f32]) {
    match second {
        Some(second) => {
            // SAFETY: floats are as large and aligned as these, and any bits are both.
            let to = unsafe { &mut *(to as *mut [f32] as *mut [u32]) };
            zip_rows(isa, first, second, to);
        }
        None => {
            for (to, first) in to.iter_mut().zip(first) {
                *to = f32::from_bits(join(*first, 0.0));
            }
        }
    }
}

/// The planes of an image, or pairs of them, which `scratch` then holds.
fn paired<'a>(
    isa: Isa,
    precision: Precision,
    image: &'a [f32],
    plane: usize,
    scratch: &'a mut Vec<f32>,
) -> &'a [f32] {
    if precision == Precision::F32 {
        return image;
    }
    scratch.resize((image.len() / plane).div_ceil(2) * plane, 0.0);
    for (to, planes) in scratch.chunks_exact_mut(plane).zip(image.chunks(2 * plane)) {
        let (first, second) = planes.split_at(plane);
        join_rows(isa, first, (!second.is_empty()).then_some(second), to);
    }
    scratch
}

/// An image, or the pairs of two images' numbers, which `scratch` then holds.
fn joined<'a>(
    isa: Isa,
    precision: Precision,
    (first, second): (&'a [f32], Option<&[f32]>),
    scratch: &'a mut Vec<f32>,
) -> &'a [f32] {
    if precision == Precision::F32 {
        return first;
    }
    scratch.resize(first.len(), 0.0);
    join_rows(isa, first, second, scratch);
    scratch
}

/// Part `index` of `len` numbers.
fn part(values: &[f32], len: usize, index: usize) -> &[f32] {
    &values[index * len..][..len]
}

/// Positions of a grid when it is walked as one line, the gaps between rows included.
fn line(grid: Grid) -> usize {
    (grid.rows - 1) * grid.stride + grid.cols
}

pub(super) fn forward(
    isa: Isa,
    geometry: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let group = geometry.of_group();
    let (image_len, out_len, weight_len) = group.lens();
    let channels_out = group.channels_out;
    let precision = geometry.precision;
    let channels_in = group.channels_in.div_ceil(precision.pair());
    let phases = Phases::new(&group, channels_in);
    let kernel = group.kernel[0] * group.kernel[1];
    let pack = |weight: &[f32]| {
        let weight = |channel: usize, tap: usize| {
            element(precision, tap / kernel, group.channels_in, |c_in| {
                weight[channel * weight_len + c_in * kernel + tap % kernel]
            })
        };
        Taps::pack(isa, precision, phases.offsets(), channels_out, weight)
    };
    let taps: Vec<Taps> = weight
        .chunks_exact(channels_out * weight_len)
        .map(pack)
        .collect();
    let grid = phases.grid();
    let stride = row_len(isa, line(grid));
    let mut out = vec![0.0; geometry.batch * geometry.groups * out_len];
    out.par_chunks_mut(out_len)
        .zip(x.par_chunks(image_len))
        .enumerate()
        .with_min_len(GRAIN.div_ceil(image_len.max(out_len)))
        .for_each_init(
            || {
                (
                    phases.buffer(),
                    vec![0.0; taps[0].rows() * stride],
                    Vec::new(),
                )
            },
            |(padded, sums, pairs), (index, (out, image))| {
                let index = index % geometry.groups;
                let plane = image_len / group.channels_in;
                phases.fill(paired(isa, precision, image, plane, pairs), padded);
                correlate(&taps[index], padded, 0, line(grid), sums);
                let channels = out
                    .chunks_exact_mut(grid.rows * grid.cols)
                    .zip(sums.chunks_exact(stride));
                for (channel, (out, sums)) in channels.enumerate() {
                    let bias = bias.map_or(0.0, |bias| bias[index * channels_out + channel]);
                    for (out, sums) in out
                        .chunks_exact_mut(grid.cols)
                        .zip(sums.chunks(grid.stride))
                    {
                        out.iter_mut()
                            .zip(sums)
                            .for_each(|(out, sum)| *out = sum + bias);
                    }
                }
            },
        );
    out
}

/// One axis of one phase of the input gradient: which inputs it is, and which taps reach them.
struct PhaseAxis {
    phase: usize,
    /// Its numbers of the kernel, and how many outputs before the input's cell each reads.
    taps: Vec<(usize, usize)>,
    /// Inputs `stride * v + phase - padding` for `v` in `first..end`.
    first: usize,
    end: usize,
}

impl PhaseAxis {
    fn new(geometry: &Geometry, axis: usize, phase: usize) -> Self {
        let (stride, padding) = (geometry.stride[axis], geometry.padding[axis]);
        let beyond = geometry.input[axis] + padding;
        let reach = |tap: usize| tap * geometry.dilation[axis];
        let taps = (0..geometry.kernel[axis]).filter(|tap| reach(*tap) % stride == phase);
        Self {
            phase,
            taps: taps.map(|tap| (tap, reach(tap) / stride)).collect(),
            first: padding.saturating_sub(phase).div_ceil(stride),
            end: beyond.saturating_sub(phase).div_ceil(stride),
        }
    }

    fn all(geometry: &Geometry, axis: usize) -> Vec<Self> {
        (0..geometry.stride[axis])
            .map(|phase| Self::new(geometry, axis, phase))
            .collect()
    }
}

/// The output gradient with a border, into which a transposed convolution reads.
struct Bordered {
    /// Zeros before the first row and column.
    before: [usize; 2],
    /// Rows and columns with the border.
    plane: [usize; 2],
}

impl Bordered {
    fn new(geometry: &Geometry, axes: &[Vec<PhaseAxis>; 2]) -> Self {
        let before = [0, 1].map(|axis| {
            let taps = axes[axis].iter().flat_map(|phase| &phase.taps);
            taps.map(|(_, before)| *before).max().unwrap_or(0)
        });
        let plane = [0, 1].map(|axis| {
            let reached = axes[axis].iter().map(|phase| phase.end).max().unwrap_or(0);
            reached.max(geometry.output[axis]) + before[axis]
        });
        Self { before, plane }
    }

    fn buffer(&self, channels: usize) -> Vec<f32> {
        vec![0.0; channels * self.plane[0] * self.plane[1] + SLACK]
    }

    fn fill(&self, geometry: &Geometry, grad: &[f32], buffer: &mut [f32]) {
        let [rows, cols] = geometry.output;
        for (row, from) in grad.chunks_exact(cols).enumerate() {
            let plane = row / rows * self.plane[0] + row % rows + self.before[0];
            let to = plane * self.plane[1] + self.before[1];
            buffer[to..to + cols].copy_from_slice(from);
        }
    }
}

/// The inputs of one phase and the taps that reach them.
struct InputPhase<'a> {
    row: &'a PhaseAxis,
    col: &'a PhaseAxis,
    taps: Taps,
    start: usize,
    grid: Grid,
}

impl<'a> InputPhase<'a> {
    /// `None` where no tap reaches the phase, so that its gradient is zero.
    fn new(
        isa: Isa,
        geometry: &Geometry,
        bordered: &Bordered,
        weight: &[f32],
        [row, col]: [&'a PhaseAxis; 2],
    ) -> Option<Self> {
        let rows = row.end.saturating_sub(row.first);
        let cols = col.end.saturating_sub(col.first);
        let per_channel = row.taps.len() * col.taps.len();
        if rows * cols * per_channel == 0 {
            return None;
        }
        let [kh, kw] = geometry.kernel;
        let split = |tap: usize| {
            let (channel, tap) = (tap / per_channel, tap % per_channel);
            let (i, j) = (tap / col.taps.len(), tap % col.taps.len());
            (channel, row.taps[i], col.taps[j])
        };
        let precision = geometry.precision;
        let channels_out = geometry.channels_out.div_ceil(precision.pair());
        let offsets = (0..channels_out * per_channel).map(|tap| {
            let (channel, (_, rows), (_, cols)) = split(tap);
            let row = channel * bordered.plane[0] + bordered.before[0] - rows;
            row * bordered.plane[1] + bordered.before[1] - cols
        });
        let weight = |channel: usize, tap: usize| {
            let (out, (i, _), (j, _)) = split(tap);
            element(precision, out, geometry.channels_out, |out| {
                weight[((out * geometry.channels_in + channel) * kh + i) * kw + j]
            })
        };
        let channels = geometry.channels_in;
        let taps = Taps::pack(isa, precision, offsets.collect(), channels, weight);
        let start = row.first * bordered.plane[1] + col.first;
        let grid = Grid {
            rows,
            cols,
            stride: bordered.plane[1],
        };
        Some(Self {
            row,
            col,
            taps,
            start,
            grid,
        })
    }

    /// Writes this phase's part of one image's gradient.
    fn run(
        &self,
        isa: Isa,
        geometry: &Geometry,
        padded: &[f32],
        sums: &mut [f32],
        out: &mut [f32],
    ) {
        let Geometry {
            input: [height, width],
            stride: [sh, sw],
            padding: [ph, pw],
            ..
        } = *geometry;
        let positions = line(self.grid);
        correlate(&self.taps, padded, self.start, positions, sums);
        let sums = sums.chunks_exact(row_len(isa, positions));
        for (out, sums) in out.chunks_exact_mut(height * width).zip(sums) {
            for (v, sums) in
                (self.row.first..).zip(sums.chunks(self.grid.stride).take(self.grid.rows))
            {
                let row = sh * v + self.row.phase - ph;
                let col = sw * self.col.first + self.col.phase - pw;
                let out = &mut out[row * width..][..width];
                if sw == 1 {
                    out[col..].copy_from_slice(&sums[..self.grid.cols]);
                } else {
                    let out = out[col..].iter_mut().step_by(sw);
                    out.zip(sums).for_each(|(out, sum)| *out = *sum);
                }
            }
        }
    }
}

pub(super) fn input_gradient(
    isa: Isa,
    geometry: &Geometry,
    weight: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let group = geometry.of_group();
    let (image_len, out_len, weight_len) = group.lens();
    let axes = [PhaseAxis::all(&group, 0), PhaseAxis::all(&group, 1)];
    let bordered = Bordered::new(&group, &axes);
    let of_group = |weight| -> Vec<InputPhase> {
        let cols = |row| axes[1].iter().map(move |col| [row, col]);
        let pairs = axes[0].iter().flat_map(cols);
        pairs
            .filter_map(|axes| InputPhase::new(isa, &group, &bordered, weight, axes))
            .collect()
    };
    let phases: Vec<_> = weight
        .chunks_exact(group.channels_out * weight_len)
        .map(of_group)
        .collect();
    let sums_len = phases[0]
        .iter()
        .map(|p| p.taps.rows() * row_len(isa, line(p.grid)))
        .max();
    let mut out = vec![0.0; geometry.batch * geometry.groups * image_len];
    out.par_chunks_mut(image_len)
        .zip(grad.par_chunks(out_len))
        .enumerate()
        .with_min_len(GRAIN.div_ceil(image_len.max(out_len)))
        .for_each_init(
            || {
                (
                    bordered.buffer(group.channels_out.div_ceil(group.precision.pair())),
                    vec![0.0; sums_len.unwrap_or(0)],
                    Vec::new(),
                )
            },
            |(padded, sums, pairs), (index, (out, grad))| {
                let plane = out_len / group.channels_out;
                let grad = paired(isa, group.precision, grad, plane, pairs);
                bordered.fill(&group, grad, padded);
                for phase in &phases[index % geometry.groups] {
                    phase.run(isa, &group, padded, sums, out);
                }
            },
        );
    out
}

pub(super) fn weight_gradient(isa: Isa, geometry: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let group = geometry.of_group();
    let (image_len, out_len, weight_len) = group.lens();
    let precision = geometry.precision;
    let phases = Phases::new(&group, group.channels_in);
    let narrow = group.channels_out <= NARROW;
    let mut offsets = phases.offsets();
    let last = offsets[weight_len - 1];
    let block = if narrow { INNER_BLOCK } else { TAP_BLOCK };
    offsets.resize(weight_len.next_multiple_of(block), last);
    let grid = phases.grid();
    let positions = grid.rows * grid.cols;
    let channels = match narrow {
        true => group.channels_out,
        false => group.channels_out.next_multiple_of(isa.lanes()),
    };
    // A number of the sums of one group: `[channel][tap]` if narrow, else `[tap][channel]`.
    let at = |channel: usize, tap: usize| match narrow {
        true => channel * offsets.len() + tap,
        false => tap * channels + channel,
    };
    let each = geometry.batch.div_ceil(WEIGHT_PARTS) * geometry.groups;
    let partial: Vec<Vec<f32>> = x
        .par_chunks(each * image_len)
        .zip(grad.par_chunks(each * out_len))
        .map(|(x, grad)| {
            let mut padded = phases.buffer();
            let mut columns = match narrow {
                true => vec![0.0; row_len(isa, line(grid))],
                false => vec![0.0; positions * channels],
            };
            let mut sums = vec![0.0; geometry.groups * offsets.len() * channels];
            let mut pairs = [Vec::new(), Vec::new()];
            let images = x.len() / (geometry.groups * image_len);
            let steps = (0..images).step_by(precision.pair());
            for (n, index) in steps.flat_map(|n| (0..geometry.groups).map(move |g| (n, g))) {
                let sums_len = offsets.len() * channels;
                let sums = &mut sums[index * sums_len..][..sums_len];
                let [pair_x, pair_grad] = &mut pairs;
                let at = |n: usize| n * geometry.groups + index;
                let of = |values, len| {
                    let image = |n: usize| part(values, len, at(n));
                    (image(n), (n + 1 < images).then(|| image(n + 1)))
                };
                let image = joined(isa, precision, of(x, image_len), pair_x);
                let grad = joined(isa, precision, of(grad, out_len), pair_grad);
                phases.fill(image, &mut padded);
                if !narrow {
                    transpose_into(grad, positions, &mut columns, channels);
                    accumulate_outer(
                        isa, precision, &offsets, &padded, grid, &columns, channels, sums,
                    );
                    continue;
                }
                let channels = grad.chunks_exact(positions);
                for (grad, sums) in channels.zip(sums.chunks_exact_mut(offsets.len())) {
                    // Between rows stay the zeros it was made of.
                    let rows = columns.chunks_mut(grid.stride);
                    for (to, from) in rows.zip(grad.chunks_exact(grid.cols)) {
                        to[..grid.cols].copy_from_slice(from);
                    }
                    accumulate_inner(isa, precision, &offsets, &padded, &columns, sums);
                }
            }
            sums
        })
        .collect();
    let mut out = vec![0.0; geometry.channels_out * weight_len];
    for (channel, out) in out.chunks_exact_mut(weight_len).enumerate() {
        let (index, channel) = (channel / group.channels_out, channel % group.channels_out);
        let start = index * offsets.len() * channels;
        for (tap, out) in out.iter_mut().enumerate() {
            let sums = partial.iter().map(|sums| sums[start + at(channel, tap)]);
            *out = sums.sum();
        }
    }
    out
}

/// `[rows][cols]` to `[cols][stride]`, eight rows at a time so that writes fill cache lines.
fn transpose_into(from: &[f32], cols: usize, to: &mut [f32], stride: usize) {
    const BLOCK: usize = 8;
    for (block, rows) in from.chunks(BLOCK * cols).enumerate() {
        let height = rows.len() / cols;
        for (col, to) in to.chunks_exact_mut(stride).enumerate() {
            for (row, to) in to[block * BLOCK..][..height].iter_mut().enumerate() {
                *to = rows[row * cols + col];
            }
        }
    }
}
