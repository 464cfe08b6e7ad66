//! Correlating the grid of an image with transformed weights.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::cut::Cut;
use super::grid::Grid;
use super::product::Products;
use super::tiles::{Read, Tiles, Write};
use super::transform::{self, OUTPUTS};
use super::{SKEW, padded};
use crate::dispatch::written;
use crate::shared::Shared;
use crate::transpose::{WIDTH, transpose};

/// One correlation of the grid with its own transformed weights.
pub(super) struct Pass {
    /// Where its first tile begins, in cells.
    pub(super) shift: [usize; 2],
    /// Its outputs are pixels `step * i + residue`.
    pub(super) residue: [usize; 2],
    /// As [`transformed_weights`] gives them.
    pub(super) weights: Vec<f32>,
}

/// A correlation of `x` with the weights of each pass, `[batch][channels][rows][cols]` like `x`.
pub(super) struct Correlation<'a> {
    pub(super) cut: Cut,
    pub(super) grid: Grid,
    pub(super) passes: Vec<Pass>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) channels: usize,
    pub(super) size: [usize; 2],
    /// Pixels between outputs of a pass.
    pub(super) step: [usize; 2],
}

/// What a thread keeps between tasks of a [`Correlation`].
struct Scratch {
    grid: Vec<f32>,
    inputs: Tiles,
    sums: Tiles,
    /// Output pixels, channels last.
    cells: Vec<f32>,
}

impl Correlation<'_> {
    pub(super) fn run(&self, x: &[f32]) -> Vec<f32> {
        let Self { cut, .. } = self;
        let image = self.channels * self.size[0] * self.size[1];
        // SAFETY: the tasks together unpack every row of every channel of every image.
        unsafe { written(cut.batch * image, |out| self.run_into(x, out)) }
    }

    fn run_into(&self, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        let Self { cut, grid, .. } = self;
        let shared = Shared::unwritten(out);
        let depth = padded(self.channels);
        let mut bias = self.bias.unwrap_or_default().to_vec();
        bias.resize(depth, 0.0);
        let shift = |axis: usize| self.passes.iter().map(|p| p.shift[axis]).max().unwrap_or(0);
        let extra = [0, 1].map(|axis| cut.taps - 1 + shift(axis));
        let grid_cols = cut.tiles[1] * OUTPUTS + extra[1];
        let grid_rows = |rows: usize| rows * OUTPUTS + extra[0];
        let cols = cut.tiles[1] * OUTPUTS * self.step[1];
        cut.tasks().into_par_iter().for_each_init(
            || Scratch {
                grid: vec![0.0; cut.images * grid_rows(cut.rows) * grid_cols * grid.depth()],
                inputs: Tiles::new(cut, cut.block(), grid.depth()),
                sums: Tiles::new(cut, cut.block(), depth),
                cells: vec![0.0; cut.images * cut.rows * OUTPUTS * self.step[0] * cols * depth],
            },
            |scratch, task| {
                let Scratch {
                    grid: cells_in,
                    inputs,
                    sums,
                    cells,
                } = scratch;
                let tiles = [task.rows.len(), cut.tiles[1]];
                let per_image = tiles[0] * tiles[1];
                let pixels = tiles[0] * OUTPUTS * self.step[0] * cols * depth;
                let count = cut.count(&task);
                let grid_len = grid_rows(tiles[0]) * grid_cols * grid.depth();
                for (grid_cells, n) in cells_in.chunks_exact_mut(grid_len).zip(task.images.clone())
                {
                    let first = task.rows.start * OUTPUTS;
                    let rows = first..first + grid_rows(tiles[0]);
                    grid.fill(cut.isa, n, x, rows, grid_cols, grid_cells);
                }
                for pass in &self.passes {
                    let grids = cells_in.chunks_exact(grid_len).take(task.images.len());
                    for (i, cells_in) in grids.enumerate() {
                        let read = Read {
                            grid: cells_in,
                            strides: [grid_cols * grid.depth(), grid.depth()],
                            shift: pass.shift,
                            tiles,
                            first: i * per_image,
                            to: inputs.values.as_mut_ptr(),
                            len: inputs.values.len(),
                            next: inputs.next,
                            gradient: false,
                        };
                        // SAFETY: the tiles are this thread's own; the rest is checked.
                        unsafe { transform::run(cut.isa, cut.taps, &read) };
                    }
                    let products = Products {
                        count: cut.entries(),
                        rows: count,
                        inner: grid.depth(),
                        cols: depth,
                        a: inputs.values.as_ptr(),
                        a_row: grid.depth(),
                        a_inner: 1,
                        a_next: inputs.next,
                        b: pass.weights.as_ptr(),
                        b_inner: 0,
                        b_next: grid.depth() * depth + SKEW,
                        c: sums.values.as_mut_ptr(),
                        c_row: depth,
                        c_next: sums.next,
                        panels: true,
                        add: false,
                    };
                    // SAFETY: `count` tiles are at most those the buffers were made for, and the
                    // weights have an `inner x cols` matrix per entry.
                    unsafe { transform::run(cut.isa, cut.taps, &products) };
                    for i in 0..task.images.len() {
                        let [row, col] = pass.residue;
                        let start = i * pixels + (row * cols + col) * depth;
                        let to = &mut cells[start..(i + 1) * pixels];
                        let write = Write {
                            from: sums,
                            bias: &bias,
                            tiles,
                            first: i * per_image,
                            to: to.as_mut_ptr(),
                            len: to.len(),
                            strides: [self.step[0] * cols * depth, self.step[1] * depth],
                        };
                        // SAFETY: the cells are this thread's own; the rest is checked.
                        unsafe { transform::run(cut.isa, cut.taps, &write) };
                    }
                }
                for (cells, n) in cells.chunks_exact(pixels).zip(task.images.clone()) {
                    let first = task.rows.start * OUTPUTS * self.step[0];
                    let rows = tiles[0] * OUTPUTS * self.step[0];
                    let rows = first..(first + rows).min(self.size[0]);
                    self.unpack(shared, n, rows, cells, cols);
                }
            },
        );
    }

    /// Moves rows of pixels of one image from cells to planes.
    fn unpack(&self, out: Shared, image: usize, rows: Range<usize>, cells: &[f32], cols: usize) {
        let [height, width] = self.size;
        let depth = padded(self.channels);
        assert!(width <= cols && rows.len() * cols * depth <= cells.len() && rows.end <= height);
        for (cells, row) in cells.chunks_exact(cols * depth).zip(rows) {
            for channel in (0..self.channels).step_by(WIDTH) {
                let channels = (self.channels - channel).min(WIDTH);
                for col in (0..width).step_by(WIDTH) {
                    let plane = height * width;
                    let start = (image * self.channels + channel) * plane + row * width + col;
                    let to = out.at(start);
                    let from = &cells[col * depth + channel..];
                    let count = (width - col).min(WIDTH);
                    // SAFETY: the cells of these columns are inside the row, their channels
                    // padded to sixteen. The rows of an image belong to one task, and `count`
                    // columns of `channels` planes are inside the image.
                    unsafe {
                        transpose(
                            self.cut.isa,
                            from.as_ptr(),
                            depth,
                            [count, channels],
                            false,
                            |j| to.add(j * plane),
                        );
                    }
                }
            }
        }
    }
}
