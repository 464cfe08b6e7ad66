//! The weight gradient.

use rayon::prelude::*;

use super::cut::{Cut, Task};
use super::grid::Grid;
use super::product::Products;
use super::tiles::{Read, Tiles};
use super::transform::{self, OUTPUTS};
use super::weights::back_to_taps;
use super::{Geometry, input_grid, taps};
use crate::shared::Shared;
use crate::simd::Isa;

/// Parts of the batch whose sums are kept apart, each by a thread that keeps its tiles in its own
/// cache, and then added in order; done where the sums are small.
const GROUPS: usize = 8;

/// Floats of sums that are small: they stay in a second cache.
const SMALL_SUMS: usize = 320 << 10;

/// Floats of transformed tiles that all threads together keep where the sums are large.
const ROUND: usize = 2 << 20;

/// Inner channels, and tiles, that are multiplied at a time: their operands stay in the first
/// cache.
const SQUARE: usize = 64;

/// # Panics
/// If minimal filtering does not suit.
pub(in crate::conv) fn weight_gradient(
    isa: Isa,
    geometry: &Geometry,
    x: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let taps = taps(geometry).expect("minimal filtering suits");
    let grid = input_grid(geometry);
    let grad_grid = Grid {
        channels: geometry.channels_out,
        size: geometry.output,
        step: [1, 1],
        before: [0, 0],
    };
    let (inner, outer) = (grid.depth(), grad_grid.depth());
    let cut = Cut::new(isa, taps, geometry.batch, geometry.output, inner + outer);
    let tasks = cut.tasks();
    let small = cut.entries() * inner * outer <= SMALL_SUMS;
    let per_round = if small {
        1
    } else {
        (ROUND / (cut.entries() * (inner + outer) * cut.block())).clamp(1, tasks.len())
    };
    let outer_sum = OuterSum {
        cut,
        grids: [grid, grad_grid],
        images: [x, grad],
        per_round,
    };
    let group = if small {
        tasks.len().div_ceil(GROUPS)
    } else {
        tasks.len()
    };
    let sums: Vec<Vec<f32>> = tasks
        .par_chunks(group)
        .map(|tasks| outer_sum.of(tasks))
        .collect();
    back_to_taps(isa, geometry, &grid, &sums)
}

/// The sum over tiles of the products of every transformed input and gradient channel.
struct OuterSum<'a> {
    cut: Cut,
    /// Of the input and of the gradient.
    grids: [Grid; 2],
    images: [&'a [f32]; 2],
    /// Tasks whose tiles are kept before they are multiplied.
    per_round: usize,
}

impl OuterSum<'_> {
    /// `[entry][inner][outer]`
    fn of(&self, tasks: &[Task]) -> Vec<f32> {
        let depths = self.grids.map(|grid| grid.depth());
        let kept = self.per_round * self.cut.block();
        let mut tiles = depths.map(|depth| Tiles::new(&self.cut, kept, depth));
        let mut sums = vec![0.0; self.cut.entries() * depths[0] * depths[1]];
        for (round, tasks) in tasks.chunks(self.per_round).enumerate() {
            let shared = tiles.each_mut().map(Tiles::shared);
            let count = self.transform(tasks, shared);
            self.multiply(shared, count, Shared::new(&mut sums), round > 0);
        }
        sums
    }

    /// Writes the tiles of the tasks, and tells how many.
    fn transform(&self, tasks: &[Task], tiled: [(Shared, usize); 2]) -> usize {
        let cut = &self.cut;
        let mut count = 0;
        let placed: Vec<(&Task, usize)> = tasks
            .iter()
            .map(|task| {
                let first = count;
                count += cut.count(task);
                (task, first)
            })
            .collect();
        let cols = cut.tiles[1] * OUTPUTS;
        // Cells beyond the tiles' own that they read.
        let halos = [cut.taps - 1, 0];
        let buffer = |which: usize| {
            let rows = cut.rows * OUTPUTS + halos[which];
            vec![0.0; rows * (cols + halos[which]) * self.grids[which].depth()]
        };
        placed.par_iter().for_each_init(
            || [buffer(0), buffer(1)],
            |cells, (task, first)| {
                let tiles = [task.rows.len(), cut.tiles[1]];
                let row = task.rows.start * OUTPUTS;
                for (i, n) in task.images.clone().enumerate() {
                    for (which, cells) in cells.iter_mut().enumerate() {
                        let (grid, halo) = (self.grids[which], halos[which]);
                        let rows = row..row + tiles[0] * OUTPUTS + halo;
                        grid.fill(cut.isa, n, self.images[which], rows, cols + halo, cells);
                        let (to, next) = tiled[which];
                        let read = Read {
                            grid: cells,
                            strides: [(cols + halo) * grid.depth(), grid.depth()],
                            shift: [0, 0],
                            tiles,
                            first: first + i * tiles[0] * tiles[1],
                            to: to.at(0),
                            len: to.len(),
                            next,
                            gradient: which == 1,
                        };
                        // SAFETY: these tiles are this task's own; the rest is checked.
                        unsafe { transform::run(cut.isa, cut.taps, &read) };
                    }
                }
            },
        );
        count
    }

    /// Adds the products of `count` tiles to the sums, or begins them.
    fn multiply(&self, tiled: [(Shared, usize); 2], count: usize, sums: Shared, add: bool) {
        let cut = &self.cut;
        let [inner, outer] = self.grids.map(|grid| grid.depth());
        let blocks = inner.div_ceil(SQUARE);
        let [(inputs, inputs_next), (grads, grads_next)] = tiled;
        (0..cut.entries() * blocks)
            .into_par_iter()
            .for_each(|part| {
                let (entry, k) = (part / blocks, part % blocks * SQUARE);
                for tile in (0..count).step_by(SQUARE) {
                    let products = Products {
                        count: 1,
                        rows: (inner - k).min(SQUARE),
                        inner: (count - tile).min(SQUARE),
                        cols: outer,
                        a: inputs.at(entry * inputs_next + tile * inner + k),
                        a_row: 1,
                        a_inner: inner,
                        a_next: 0,
                        b: grads.at(entry * grads_next + tile * outer),
                        b_inner: outer,
                        b_next: 0,
                        c: sums.at((entry * inner + k) * outer),
                        c_row: outer,
                        c_next: 0,
                        panels: false,
                        add: add || tile > 0,
                    };
                    // SAFETY: `count` tiles were written; these rows of this entry's sums are this
                    // task's own.
                    unsafe { transform::run(cut.isa, cut.taps, &products) };
                }
            });
    }
}
