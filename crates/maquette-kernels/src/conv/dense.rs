//! Convolutions that are matrix products: a kernel of one pixel, and one as large as the image.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::Geometry;
use crate::dispatch::written;
use crate::gemm::product_here;
use crate::matrix::{Into, Matrix, multiply};
use crate::precision::Precision;
use crate::shared::Shared;

/// Columns of one task.
const COLUMNS: usize = 512;

/// Parts of the batch whose weight gradients are summed apart and then added in order.
const GROUPS: usize = 8;

/// `out = a b`, or that added, on the calling thread.
///
/// # Safety
/// See [`multiply`].
unsafe fn multiply_in(precision: Precision, out: Matrix, into: Into, a: Matrix, b: Matrix) {
    // SAFETY: the caller's; rows of every matrix that is written here are contiguous.
    unsafe {
        match precision {
            Precision::F32 => multiply(out, into, 1.0, a, b),
            Precision::Bf16 => product_here(out, into, a, b, Precision::Bf16),
        }
    }
}

fn pixels(geometry: &Geometry) -> usize {
    geometry.input[0] * geometry.input[1]
}

/// `out = weight x` of each image.
pub(super) fn pointwise(geometry: &Geometry, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let [c_in, c_out] = [geometry.channels_in, geometry.channels_out];
    let weight = || Matrix::of(weight, 0, [c_out, c_in], c_in);
    each_image(geometry, x, weight, [c_in, c_out], pixels(geometry))
}

pub(super) fn pointwise_input_gradient(
    geometry: &Geometry,
    weight: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let [c_in, c_out] = [geometry.channels_in, geometry.channels_out];
    let weight = || Matrix::of(weight, 0, [c_out, c_in], c_in).transposed();
    each_image(geometry, grad, weight, [c_out, c_in], pixels(geometry))
}

/// `matrix * image` for each image `[from][pixels]` of `values`.
fn each_image(
    geometry: &Geometry,
    values: &[f32],
    matrix: impl Fn() -> Matrix + Sync,
    [from, to]: [usize; 2],
    pixels: usize,
) -> Vec<f32> {
    let precision = geometry.precision;
    let images = values.len() / (from * pixels);
    let blocks = pixels.div_ceil(COLUMNS);
    let task = |shared: Shared, task: usize| {
        let (image, col) = (task / blocks, task % blocks * COLUMNS);
        let width = COLUMNS.min(pixels - col);
        let start = image * to * pixels + col;
        // SAFETY: `out` lives on; no two tasks share a column of an image.
        unsafe {
            let out = Matrix::of_raw(shared.at(0), shared.len(), start, [to, width], pixels);
            let start = image * from * pixels + col;
            let values = Matrix::of(values, start, [from, width], pixels);
            multiply_in(precision, out, Into::Replace, matrix(), values);
        }
    };
    let write = |out: &mut [MaybeUninit<f32>]| {
        let shared = Shared::unwritten(out);
        let tasks = (0..images * blocks).into_par_iter();
        tasks.for_each(|index| task(shared, index));
    };
    // SAFETY: the tasks together write every column of every image.
    unsafe { written(images * to * pixels, write) }
}

/// `sum over images of grad x^T`
pub(super) fn pointwise_weight_gradient(geometry: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let [c_in, c_out] = [geometry.channels_in, geometry.channels_out];
    let pixels = pixels(geometry);
    let group = geometry.batch.div_ceil(GROUPS);
    let parts: Vec<Vec<f32>> = x
        .par_chunks(group * c_in * pixels)
        .zip(grad.par_chunks(group * c_out * pixels))
        .map(|(x, grad)| {
            let mut sums = vec![0.0; c_out * c_in];
            let images = x
                .chunks_exact(c_in * pixels)
                .zip(grad.chunks_exact(c_out * pixels));
            for (x, grad) in images {
                let x = Matrix::of(x, 0, [c_in, pixels], pixels).transposed();
                let grad = Matrix::of(grad, 0, [c_out, pixels], pixels);
                let sums = Matrix::of_mut(&mut sums, 0, [c_out, c_in], c_in);
                // SAFETY: `sums` is ours alone.
                unsafe { multiply_in(geometry.precision, sums, Into::Add, grad, x) };
            }
            sums
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut out = parts.next().unwrap_or_default();
    for part in parts {
        out.iter_mut()
            .zip(part)
            .for_each(|(out, part)| *out += part);
    }
    out
}

/// `out = x weight^T`, an image a row.
pub(super) fn whole_image(geometry: &Geometry, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let (image, _, _) = geometry.lens();
    let (batch, c_out) = (geometry.batch, geometry.channels_out);
    let mut out = vec![0.0; batch * c_out];
    let precision = geometry.precision;
    out.par_chunks_mut(GROUPS * c_out)
        .zip(x.par_chunks(GROUPS * image))
        .for_each(|(out, x)| {
            let rows = x.len() / image;
            let out = Matrix::of_mut(out, 0, [rows, c_out], c_out);
            let x = Matrix::of(x, 0, [rows, image], image);
            let weight = Matrix::of(weight, 0, [c_out, image], image).transposed();
            // SAFETY: `out` is ours alone.
            unsafe { multiply_in(precision, out, Into::Replace, x, weight) };
        });
    out
}

/// `out = grad weight`
pub(super) fn whole_image_input_gradient(
    geometry: &Geometry,
    weight: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let (image, _, _) = geometry.lens();
    let (batch, c_out) = (geometry.batch, geometry.channels_out);
    let grad = || Matrix::of(grad, 0, [batch, c_out], c_out);
    each_image(geometry, weight, grad, [c_out, batch], image)
}

/// `out = grad^T x`
pub(super) fn whole_image_weight_gradient(
    geometry: &Geometry,
    x: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let (image, _, _) = geometry.lens();
    let (batch, c_out) = (geometry.batch, geometry.channels_out);
    let grad = || Matrix::of(grad, 0, [batch, c_out], c_out).transposed();
    each_image(geometry, x, grad, [batch, c_out], image)
}
