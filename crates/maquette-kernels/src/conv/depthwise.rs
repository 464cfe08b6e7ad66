//! Depthwise convolution and its gradients: a small kernel for each channel alone, so that memory is
//! what takes time.
//!
//! Planes are read where they are. A copy among zeros would be read, shifted by a column, before it has
//! left the processor's store buffer, and a load that straddles two stores waits for both; so the zeros
//! around a plane are lanes that are not loaded ([`Window`]). A row is read once per shift for all the
//! outputs of a block that it counts for.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::Geometry;
use crate::dispatch::written;
use crate::elementwise::{GRAIN, vectorized};
use crate::simd::{Isa, Lanes, prefetch};
use crate::vector::{Machine, Vector, Window};

/// Whether this is one, of a size that loops are compiled for: a square kernel of side 3 or 5 on
/// neighbouring pixels, at every output or every second one, padded by less than its side.
pub(super) fn suits(geometry: &Geometry) -> bool {
    let [height, width] = geometry.kernel;
    geometry.groups > 1
        && [geometry.channels_in, geometry.channels_out] == [geometry.groups; 2]
        && height == width
        && matches!(width, 3 | 5)
        && matches!(geometry.stride, [1, 1] | [2, 2])
        && geometry.dilation == [1, 1]
        && geometry.padding.iter().all(|padding| *padding < width)
}

/// Rows of the output at a time: sums that do not wait for each other.
const ROWS: usize = 4;

/// How a kernel reads planes.
#[derive(Clone, Copy)]
struct Reading {
    side: usize,
    stride: usize,
    /// Zeros around a plane, per axis.
    padding: [usize; 2],
    /// Rows and columns of what is read, and of what is written.
    from: [usize; 2],
    to: [usize; 2],
}

impl Reading {
    fn new(geometry: &Geometry) -> Self {
        Self {
            side: geometry.kernel[0],
            stride: geometry.stride[0],
            padding: geometry.padding,
            from: geometry.input,
            to: geometry.output,
        }
    }

    /// Every plane through `plane`, which gets the number of its channel.
    ///
    /// # Safety
    /// `plane` writes all of its output.
    unsafe fn planes(
        &self,
        from: &[f32],
        channels: usize,
        plane: impl Fn(usize, &[f32], &mut [MaybeUninit<f32>]) + Sync,
    ) -> Vec<f32> {
        let [read, len] = [self.from, self.to].map(|[rows, cols]| rows * cols);
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_exact_mut(len)
                .zip(from.par_chunks_exact(read))
                .enumerate()
                .with_min_len(GRAIN.div_ceil(len.max(read)))
                .for_each(|(index, (out, from))| plane(index % channels, from, out));
        };
        // SAFETY: of every plane, by the contract.
        unsafe { written(from.len() / read * len, write) }
    }
}

pub(super) fn forward(
    isa: Isa,
    geometry: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let reading = Reading::new(geometry);
    let taps = reading.side * reading.side;
    let plane = |channel: usize, x: &[f32], out: &mut [MaybeUninit<f32>]| {
        let bias = bias.map_or(0.0, |bias| bias[channel]);
        correlate(
            isa,
            &reading,
            x,
            &weight[channel * taps..][..taps],
            bias,
            out,
        );
    };
    // SAFETY: a correlation writes all that it gives.
    unsafe { reading.planes(x, geometry.groups, plane) }
}

pub(super) fn input_gradient(
    isa: Isa,
    geometry: &Geometry,
    weight: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let reading = Reading::new(geometry);
    let taps = reading.side * reading.side;
    // The output's gradient is what is read.
    let turned = Reading {
        from: reading.to,
        to: reading.from,
        ..reading
    };
    if reading.stride == 2 {
        let plane = |channel: usize, grad: &[f32], out: &mut [MaybeUninit<f32>]| {
            spread(isa, &turned, grad, &weight[channel * taps..][..taps], out);
        };
        // SAFETY: it goes through all pixels.
        return unsafe { turned.planes(grad, geometry.groups, plane) };
    }
    let turned = Reading {
        padding: reading.padding.map(|padding| reading.side - 1 - padding),
        ..turned
    };
    let flipped = weight
        .chunks_exact(taps)
        .flat_map(|kernel| kernel.iter().rev().copied());
    let flipped: Vec<f32> = flipped.collect();
    let plane = |channel: usize, grad: &[f32], out: &mut [MaybeUninit<f32>]| {
        correlate(
            isa,
            &turned,
            grad,
            &flipped[channel * taps..][..taps],
            0.0,
            out,
        );
    };
    // SAFETY: as above.
    unsafe { turned.planes(grad, geometry.groups, plane) }
}

/// Channel by channel, over the images in order.
pub(super) fn weight_gradient(isa: Isa, geometry: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let reading = Reading::new(geometry);
    let taps = reading.side * reading.side;
    let mut out = vec![0.0; geometry.groups * taps];
    out.par_chunks_exact_mut(taps)
        .enumerate()
        .for_each(|(channel, out)| {
            channel_gradient(isa, &reading, geometry.groups, channel, [x, grad], out);
        });
    out
}

/// Calls `$run::<L, side, stride>`, with both known to the compiler.
macro_rules! sized {
    ($reading:expr, $run:ident, $lanes:ident, ($($arg:expr),*)) => {
        match ($reading.side, $reading.stride) {
            (3, 1) => $run::<$lanes, 3, 1>($reading, $($arg),*),
            (3, _) => $run::<$lanes, 3, 2>($reading, $($arg),*),
            (_, 1) => $run::<$lanes, 5, 1>($reading, $($arg),*),
            (_, _) => $run::<$lanes, 5, 2>($reading, $($arg),*),
        }
    };
}

vectorized! {
    /// The sums of one plane.
    fn correlate<L>(
        machine,
        reading: &Reading,
        from: &[f32],
        kernel: &[f32],
        bias: f32,
        out: &mut [MaybeUninit<f32>],
    ) {
        sized!(reading, correlate_plane, L, (machine, from, kernel, bias, out))
    }
}

vectorized! {
    /// The input's gradient of one plane, of a convolution of stride 2.
    fn spread<L>(
        machine,
        reading: &Reading,
        grad: &[f32],
        kernel: &[f32],
        out: &mut [MaybeUninit<f32>],
    ) {
        match (reading.side, reading.padding[1] % 2) {
            (3, 0) => spread_plane::<L, 3, 0>(machine, reading, grad, kernel, out),
            (3, _) => spread_plane::<L, 3, 1>(machine, reading, grad, kernel, out),
            (_, 0) => spread_plane::<L, 5, 0>(machine, reading, grad, kernel, out),
            (_, _) => spread_plane::<L, 5, 1>(machine, reading, grad, kernel, out),
        }
    }
}

vectorized! {
    /// Of the weights of one channel, over all images.
    fn channel_gradient<L>(
        machine,
        reading: &Reading,
        channels: usize,
        channel: usize,
        values: [&[f32]; 2],
        out: &mut [f32],
    ) {
        sized!(reading, products, L, (machine, channels, channel, values, out))
    }
}

/// A kernel with each of its numbers in all lanes.
#[inline(always)]
fn splat<L: Lanes, const K: usize>(machine: Machine<L>, kernel: &[f32]) -> [[Vector<L>; K]; K] {
    let mut all = [[machine.splat(0.0); K]; K];
    for (to, tap) in all.as_flattened_mut().iter_mut().zip(kernel) {
        *to = machine.splat(*tap);
    }
    all
}

/// Row `row` of a plane, if it has one.
#[inline(always)]
fn row_of(plane: &[f32], [rows, cols]: [usize; 2], row: isize) -> Option<&[f32]> {
    let row = usize::try_from(row).ok().filter(|row| *row < rows)?;
    Some(&plane[row * cols..][..cols])
}

/// For each column of the kernel the pixels that it reads for the outputs of a vector, in `halves` vectors,
/// the first pixel at `start`. Computed once for all rows.
#[inline(always)]
fn windows<L: Lanes, const K: usize>(
    machine: Machine<L>,
    width: usize,
    start: isize,
    halves: usize,
) -> [[Window<L>; K]; 2] {
    let mut windows = [[machine.window(width, start); K]; 2];
    for (half, windows) in windows.iter_mut().enumerate().take(halves) {
        for (j, window) in windows.iter_mut().enumerate() {
            *window = machine.window(width, start + (half * L::N + j) as isize);
        }
    }
    windows
}

/// The vectors of pixels, at most as many as the stride, that `count` outputs stand at.
#[inline(always)]
fn halves<L: Lanes, const S: usize>(count: usize) -> usize {
    if S * count > L::N { S } else { 1 }
}

/// Where a stride of `S` passes over pixels, sums are made at all of them, in `S` vectors, and the others
/// dropped: that takes fewer instructions than to sort the pixels for every shift.
#[inline(always)]
fn correlate_plane<L: Lanes, const K: usize, const S: usize>(
    reading: &Reading,
    machine: Machine<L>,
    from: &[f32],
    kernel: &[f32],
    bias: f32,
    out: &mut [MaybeUninit<f32>],
) {
    let kernel = splat::<L, K>(machine, kernel);
    let ([height, width], [above, left]) = (reading.to, reading.padding.map(|p| p as isize));
    for col in (0..width).step_by(L::N) {
        let halves = halves::<L, S>(width - col);
        let start = (col * S) as isize - left;
        let windows = windows::<L, K>(machine, reading.from[1], start, halves);
        for first in (0..height).step_by(ROWS) {
            let mut sums = [[machine.splat(bias); 2]; ROWS];
            for at in 0..(ROWS - 1) * S + K {
                let row = (first * S + at) as isize - above;
                let Some(row) = row_of(from, reading.from, row) else {
                    continue;
                };
                for (half, windows) in windows.iter().enumerate().take(halves) {
                    let mut x = [machine.splat(0.0); K];
                    for (x, window) in x.iter_mut().zip(windows) {
                        *x = window.of(row);
                    }
                    for (place, sums) in sums.iter_mut().enumerate() {
                        let i = at.checked_sub(place * S);
                        let Some(taps) = i.and_then(|i| kernel.get(i)) else {
                            continue;
                        };
                        for (x, tap) in x.iter().zip(taps) {
                            sums[half] = x.mul_add(*tap, sums[half]);
                        }
                    }
                }
            }
            for ([sum, next], row) in sums.into_iter().zip(first..height) {
                let sum = if S == 1 { sum } else { sum.unzip(next)[0] };
                sum.write(&mut out[row * width + col..(row + 1) * width]);
            }
        }
    }
}

/// Pixel `u` of an axis gets what output `(u + padding - i) / 2` says to number `i` of the kernel, where
/// that is whole: rows by rows, and of a row the even columns and the odd ones apart. `ODD` is 1 if the
/// padding left of a row is.
#[inline(always)]
fn spread_plane<L: Lanes, const K: usize, const ODD: usize>(
    machine: Machine<L>,
    reading: &Reading,
    grad: &[f32],
    kernel: &[f32],
    out: &mut [MaybeUninit<f32>],
) {
    let kernel = splat::<L, K>(machine, kernel);
    let ([height, width], [above, left]) = (reading.to, reading.padding);
    for col in (0..width).step_by(2 * L::N) {
        // Of columns `col + side, col + side + 2, ...`: the numbers of the kernel that reach them.
        let taps = |side: usize| ((side + ODD) % 2..K).step_by(2);
        let mut windows = [[machine.window(reading.from[1], 0); K]; 2];
        for (side, windows) in windows.iter_mut().enumerate() {
            for j in taps(side) {
                let start = (col + side + left) as isize - j as isize;
                windows[j] = machine.window(reading.from[1], start / 2);
            }
        }
        // Two rows of the padded image at a time, the even one and the odd one.
        for pair in (above / 2 * 2..height + above).step_by(2) {
            for first in 0..2 {
                let Some(u) = (pair + first).checked_sub(above).filter(|u| *u < height) else {
                    continue;
                };
                let mut sums = [machine.splat(0.0); 2];
                for i in (first..K).step_by(2) {
                    let row = (pair / 2) as isize - (i / 2) as isize;
                    let Some(row) = row_of(grad, reading.from, row) else {
                        continue;
                    };
                    for (side, sum) in sums.iter_mut().enumerate() {
                        for j in taps(side) {
                            *sum = windows[side][j].of(row).mul_add(kernel[i][j], *sum);
                        }
                    }
                }
                let [even, odd] = sums;
                let row = &mut out[u * width..][..width];
                let [low, high] = even.zip(odd);
                low.write(&mut row[col..]);
                if let Some(row) = row.get_mut(col + L::N..) {
                    high.write(row);
                }
            }
        }
    }
}

/// Rows of the kernel of which the sums fit the registers together.
const TAP_ROWS: usize = 3;

#[inline(always)]
fn products<L: Lanes, const K: usize, const S: usize>(
    reading: &Reading,
    machine: Machine<L>,
    channels: usize,
    channel: usize,
    [x, grad]: [&[f32]; 2],
    out: &mut [f32],
) {
    let ([height, width], [above, left]) = (reading.to, reading.padding.map(|p| p as isize));
    let sizes = [reading.from[0] * reading.from[1], height * width];
    let x = x.chunks_exact(sizes[0]);
    let planes = x.zip(grad.chunks_exact(sizes[1]));
    let mut totals = [[machine.splat(0.0); K]; K];
    for (x, grad) in planes.skip(channel).step_by(channels) {
        for (block, totals) in totals.chunks_mut(TAP_ROWS).enumerate() {
            let mut sums = [[machine.splat(0.0); K]; TAP_ROWS];
            for (to, total) in sums.iter_mut().zip(totals.iter()) {
                *to = *total;
            }
            for col in (0..width).step_by(L::N) {
                let halves = halves::<L, S>(width - col);
                let start = (col * S) as isize - left;
                let mut windows = windows::<L, K>(machine, reading.from[1], start, halves);
                if S == 2 {
                    // Pixels that are passed over count for nothing, even where they are infinite.
                    for window in windows.as_flattened_mut() {
                        *window = window.even();
                    }
                }
                for row in 0..height {
                    if block == 0 && col == 0 {
                        // The channel's next planes lie far from these; row by row, so that what is
                        // needed now does not wait for them.
                        for (plane, size, width) in
                            [(x, sizes[0], S * reading.from[1]), (grad, sizes[1], width)]
                        {
                            let next = plane.as_ptr().wrapping_add(channels * size + row * width);
                            prefetch(next.cast(), width * size_of::<f32>());
                        }
                    }
                    let grad = machine.of(&grad[..(row + 1) * width], row * width + col);
                    // With zeros where the stride passes over pixels.
                    let grad = match S {
                        1 => [grad; 2],
                        _ => grad.zip(machine.splat(0.0)),
                    };
                    for (i, sums) in sums.iter_mut().enumerate().take(totals.len()) {
                        let row = (row * S + block * TAP_ROWS + i) as isize - above;
                        let Some(row) = row_of(x, reading.from, row) else {
                            continue;
                        };
                        for (grad, windows) in grad.iter().zip(&windows).take(halves) {
                            for (sum, window) in sums.iter_mut().zip(windows) {
                                *sum = grad.mul_add(window.of(row), *sum);
                            }
                        }
                    }
                }
            }
            for (total, sums) in totals.iter_mut().zip(sums) {
                *total = sums;
            }
        }
    }
    for (out, total) in out.iter_mut().zip(totals.as_flattened()) {
        *out = total.total();
    }
}
