//! Into transformed tiles and back.

use super::SKEW;
use super::cut::Cut;
use super::transform::{MAX_SIDE, OUTPUTS, Stage, Tiling, entry};
use crate::shared::Shared;
use crate::simd::Lanes;
use crate::transpose::WIDTH;

/// Transformed tiles, `[entry][tile][depth]`.
pub(super) struct Tiles {
    pub(super) values: Vec<f32>,
    pub(super) depth: usize,
    /// Distance between entries.
    pub(super) next: usize,
}

impl Tiles {
    pub(super) fn new(cut: &Cut, tiles: usize, depth: usize) -> Self {
        let next = tiles * depth + SKEW;
        Self {
            values: vec![0.0; cut.entries() * next],
            depth,
            next,
        }
    }

    /// The tiles, to be written by several tasks, and the distance between entries.
    pub(super) fn shared(&mut self) -> (Shared, usize) {
        (Shared::new(&mut self.values), self.next)
    }
}

/// Tiles read from a grid and transformed, by `B^T d B` or, for gradients, `A y A^T`.
pub(super) struct Read<'a> {
    pub(super) grid: &'a [f32],
    /// Floats between rows and between columns of the grid; the latter is the depth.
    pub(super) strides: [usize; 2],
    /// Where the first tile begins, in cells.
    pub(super) shift: [usize; 2],
    /// Tiles down and across.
    pub(super) tiles: [usize; 2],
    /// Number of the first.
    pub(super) first: usize,
    pub(super) to: *mut f32,
    pub(super) len: usize,
    pub(super) next: usize,
    pub(super) gradient: bool,
}

impl Stage for Read<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes, T: Tiling>(&self) {
        let [row, depth] = self.strides;
        let side = if self.gradient { OUTPUTS } else { T::SIDE };
        let reach = |axis: usize| (self.tiles[axis] - 1) * OUTPUTS + side - 1 + self.shift[axis];
        assert!(reach(0) * row + (reach(1) + 1) * depth <= self.grid.len());
        let last = self.first + self.tiles[0] * self.tiles[1];
        assert!((T::SIDE * T::SIDE - 1) * self.next + last * depth <= self.len);
        assert!(depth.is_multiple_of(WIDTH));
        let tiles = (0..self.tiles[0]).flat_map(|i| (0..self.tiles[1]).map(move |j| [i, j]));
        for (tile, [i, j]) in tiles.enumerate() {
            let cell = (i * OUTPUTS + self.shift[0]) * row + (j * OUTPUTS + self.shift[1]) * depth;
            for channel in (0..depth).step_by(L::N) {
                // SAFETY: cells of the grid and entries of the tiles as just checked; the lanes
                // divide the depth.
                unsafe {
                    let from = self.grid.as_ptr().add(cell + channel);
                    let to = self.to.add((self.first + tile) * depth + channel);
                    let zero = L::splat(0.0);
                    let mut half = [[zero; MAX_SIDE]; MAX_SIDE];
                    for (j, half) in half.iter_mut().enumerate().take(side) {
                        let from = from.add(j * depth);
                        *half = if self.gradient {
                            T::output_adjoint::<L>(std::array::from_fn(|i| {
                                L::load(from.add(i * row))
                            }))
                        } else {
                            let mut d = [zero; MAX_SIDE];
                            for (i, d) in d.iter_mut().enumerate().take(T::SIDE) {
                                *d = L::load(from.add(i * row));
                            }
                            T::input::<L>(d)
                        };
                    }
                    for i in 0..T::SIDE {
                        let line = if self.gradient {
                            T::output_adjoint::<L>(entry(&half, i))
                        } else {
                            T::input::<L>(entry(&half, i))
                        };
                        for (j, value) in line.iter().enumerate().take(T::SIDE) {
                            L::store(to.add((i * T::SIDE + j) * self.next), *value);
                        }
                    }
                }
            }
        }
    }
}

/// Sums transformed back, `A^T m A`, and written to an image of cells.
pub(super) struct Write<'a> {
    pub(super) from: &'a Tiles,
    /// Added to every output, one per channel of `from`.
    pub(super) bias: &'a [f32],
    pub(super) tiles: [usize; 2],
    pub(super) first: usize,
    pub(super) to: *mut f32,
    pub(super) len: usize,
    /// Floats from one output to the next, down and across.
    pub(super) strides: [usize; 2],
}

impl Stage for Write<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes, T: Tiling>(&self) {
        let Tiles {
            values,
            depth,
            next,
        } = self.from;
        let (depth, next) = (*depth, *next);
        let [row, col] = self.strides;
        let reach = |axis: usize| self.tiles[axis] * OUTPUTS - 1;
        assert!(reach(0) * row + reach(1) * col + depth <= self.len);
        let last = self.first + self.tiles[0] * self.tiles[1];
        assert!((T::SIDE * T::SIDE - 1) * next + last * depth <= values.len());
        assert!(depth.is_multiple_of(WIDTH) && self.bias.len() == depth);
        let tiles = (0..self.tiles[0]).flat_map(|i| (0..self.tiles[1]).map(move |j| [i, j]));
        for (tile, [i, j]) in tiles.enumerate() {
            for channel in (0..depth).step_by(L::N) {
                // SAFETY: entries of the tiles and cells of the image as just checked; the lanes
                // divide the depth.
                unsafe {
                    let from = values.as_ptr().add((self.first + tile) * depth + channel);
                    let cell = i * OUTPUTS * row + j * OUTPUTS * col;
                    let to = self.to.add(cell + channel);
                    let zero = L::splat(0.0);
                    let bias = L::load(self.bias.as_ptr().add(channel));
                    let mut half = [[zero; OUTPUTS]; MAX_SIDE];
                    for (j, half) in half.iter_mut().enumerate().take(T::SIDE) {
                        let mut m = [zero; MAX_SIDE];
                        for (i, m) in m.iter_mut().enumerate().take(T::SIDE) {
                            *m = L::load(from.add((i * T::SIDE + j) * next));
                        }
                        *half = T::output::<L>(m);
                    }
                    for i in 0..OUTPUTS {
                        let line = T::output::<L>(entry(&half, i));
                        for (j, value) in line.into_iter().enumerate() {
                            L::store(to.add(i * row + j * col), L::add(value, bias));
                        }
                    }
                }
            }
        }
    }
}
