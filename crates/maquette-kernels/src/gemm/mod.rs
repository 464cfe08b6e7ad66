//! Matrix products in 32-bit floats or bf16 on all threads: packed, blocked, with an epilogue.
//!
//! After Goto and van de Geijn (2008), "Anatomy of high-performance matrix multiplication": the
//! right matrix is packed into panels a few vectors wide, the left one into rows of numbers that
//! are broadcast, and a tile of the product stays in registers. In bf16 a packed element is a
//! *pair* of neighbours along the reduction, which is what `vdpbf16ps` multiplies; both precisions
//! then move 32-bit elements and share everything but packing and the innermost instruction.
//!
//! Every number of the product is summed over blocks of the reduction whose bounds depend on its
//! length alone, so results do not depend on the number of threads.

mod pack;
mod round;
mod tile;

pub(crate) use self::round::{join, zip_rows};
#[cfg(target_arch = "x86_64")]
pub(crate) use self::tile::Native;
pub(crate) use self::tile::{Emulated, Multiply, Single};

use rayon::prelude::*;

use self::pack::Left;
use self::tile::{Step, Tile};
use crate::matrix::{Into, Matrix};
use crate::precision::Precision;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Lanes, Portable};

/// Packed elements of the reduction that are summed before the product is written, at most. With
/// 384 columns of the right matrix ([`BLOCK`]) and [`ROWS`] rows of the left one (128 KiB) they fill
/// a second cache of 1 MiB; measured, smaller blocks cost more in writing than they save in reading.
const DEPTH: usize = 512;

/// Rows of the left matrix packed together, about: whole tiles of them are.
const ROWS: usize = 64;

/// Packed elements of the right matrix that a task goes through again and again, at most: 768 KiB.
const BLOCK: usize = 384 * DEPTH;

/// Products of fewer multiplications stay on the calling thread.
const SMALL: usize = 1 << 16;

/// What is done to finished rows of a product while they are in the cache.
pub(crate) trait Epilogue: Sync {
    /// Called once for every part of every row, from any thread: `values` are the product at
    /// `row` from column `col` on.
    fn finish(&self, row: usize, col: usize, values: &mut [f32]);
}

/// Leaves the product as it is.
pub(crate) struct Plain;

impl Epilogue for Plain {
    fn finish(&self, _: usize, _: usize, _: &mut [f32]) {}
}

/// `out = a b`, or that added to `out`.
///
/// # Safety
/// The slices the matrices were made of are still alive; `out` was made for writing, has columns
/// next to each other, and nothing else reads or writes its elements meanwhile. With
/// [`Into::Replace`] its elements need not be initialised.
///
/// # Panics
/// If the sizes do not match.
pub(crate) unsafe fn product(
    out: Matrix,
    into: Into,
    a: Matrix,
    b: Matrix,
    precision: Precision,
    epilogue: &impl Epilogue,
) {
    let threads = out.size[0] * out.size[1] * a.size[1] >= SMALL;
    let kernel = Kernel::of(Isa::detect(), precision);
    // SAFETY: the instruction set was detected; the rest is the caller's contract.
    unsafe { kernel.run(threads, out, into, a, b, epilogue) }
}

/// As [`product`], on the calling thread: for tasks that are parallel among themselves.
///
/// # Safety
/// As there.
///
/// # Panics
/// As there.
pub(crate) unsafe fn product_here(
    out: Matrix,
    into: Into,
    a: Matrix,
    b: Matrix,
    precision: Precision,
) {
    let kernel = Kernel::of(Isa::detect(), precision);
    // SAFETY: as in `product`.
    unsafe { kernel.run(false, out, into, a, b, &Plain) }
}

/// One compiled inner loop with its shape.
#[derive(Clone, Copy)]
struct Kernel {
    isa: Isa,
    rounding: Rounding,
    /// Numbers of a vector.
    lanes: usize,
    /// Rows of a tile.
    height: usize,
    /// Most packed elements of the reduction between two writes.
    depth: usize,
    /// The loop for tiles of one vector, of two, and so on.
    loops: &'static [Tile],
}

/// How factors are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    /// As they are.
    None,
    /// Each rounded to bf16, as the 32-bit float of that value. Where nothing multiplies pairs, the
    /// products are those of pairs at the speed of 32-bit floats.
    Single,
    /// Rounded, and in pairs of neighbours along the reduction.
    Pairs,
}

impl Rounding {
    /// Neighbours along the reduction in one packed element.
    fn pair(self) -> usize {
        match self {
            Self::None | Self::Single => 1,
            Self::Pairs => 2,
        }
    }
}

impl Kernel {
    fn of(isa: Isa, precision: Precision) -> Self {
        let rounding = match precision {
            Precision::F32 => Rounding::None,
            Precision::Bf16 => Rounding::Single,
        };
        // As many sums as leave registers for the operands, of which AVX2 has sixteen; there a panel
        // of the right matrix is kept to half of a first cache of 32 KiB.
        let (lanes, height, depth, loops) = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => (Avx512::N, 8, DEPTH, tile::AVX512),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => (Avx2::N, 6, DEPTH / 2, tile::AVX2),
            Isa::Portable => (Portable::N, 4, DEPTH / 2, tile::PORTABLE),
        };
        let kernel = Self {
            isa,
            rounding,
            lanes,
            height,
            depth,
            loops,
        };
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Avx512 && precision == Precision::Bf16 && Isa::has_bf16() {
            return Self {
                rounding: Rounding::Pairs,
                loops: tile::AVX512_BF16,
                ..kernel
            };
        }
        kernel
    }

    /// Columns of a whole tile.
    fn width(&self) -> usize {
        self.loops.len() * self.lanes
    }

    /// # Safety
    /// The machine has the kernel's instruction set; the rest as [`product`].
    ///
    /// # Panics
    /// As there.
    unsafe fn run(
        &self,
        threads: bool,
        out: Matrix,
        into: Into,
        a: Matrix,
        b: Matrix,
        epilogue: &impl Epilogue,
    ) {
        let ([m, n], [_, k]) = (out.size, a.size);
        assert!(
            a.size == [m, k] && b.size == [k, n] && out.strides[1] == 1,
            "sizes of a product do not match"
        );
        let pair = self.rounding.pair();
        // 1. The reduction in equal blocks of whole pairs.
        let packed = k.div_ceil(pair);
        let blocks = packed.div_ceil(self.depth);
        let depth = packed.div_ceil(blocks);
        let panels = n.div_ceil(self.width());
        let mut right = Vec::<u32>::with_capacity(panels * depth * self.width());
        let right = Shared(right.as_mut_ptr());
        let tasks = Tasks::new([m, n], depth, [self.height, self.width()], threads);
        let together = ROWS / self.height * self.height;
        for block in 0..blocks {
            let from = block * depth * pair;
            let len = (depth * pair).min(k - from);
            let depth = len.div_ceil(pair);
            // 2. The right matrix, once for all.
            let pack = |panel: usize| {
                let first = panel * self.width();
                let cols = self.width().min(n - first);
                let part = b.part([from, first], [len, cols]);
                // SAFETY: each panel is written by one task, inside the capacity.
                unsafe {
                    let to = right.get().add(panel * depth * self.width());
                    self.pack_right(part, depth, to);
                }
            };
            match tasks.count() {
                1 => (0..panels).for_each(pack),
                _ => (0..panels).into_par_iter().for_each(pack),
            }
            // 3. Tiles of the product, each by one task.
            let last = block + 1 == blocks;
            let add = into == Into::Add || block > 0;
            let run = |left: &mut Vec<u32>, task: usize| {
                let [rows, cols] = tasks.get(task);
                for first in rows.clone().step_by(together) {
                    let size = together.min(rows.end - first);
                    let part = a.part([first, from], [size, len]);
                    // SAFETY: the task's part of `out` is its own.
                    unsafe {
                        let left = self.pack_left(part, depth, left);
                        self.tiles(
                            out,
                            [first, size],
                            cols.clone(),
                            left,
                            right.get(),
                            depth,
                            add,
                        );
                    }
                    for row in (first..first + size).filter(|_| last) {
                        // SAFETY: the columns of this row belong to the task, and are all written.
                        let values = unsafe {
                            let start = out.data.add(row * out.strides[0] + cols.start);
                            std::slice::from_raw_parts_mut(start, cols.len())
                        };
                        epilogue.finish(row, cols.start, values);
                    }
                }
            };
            match tasks.count() {
                1 => run(&mut Vec::new(), 0),
                count => (0..count)
                    .into_par_iter()
                    .with_max_len(1)
                    .for_each_init(Vec::new, run),
            }
        }
    }

    /// # Safety
    /// As [`Self::run`]; `right` holds the packed panels, `left` the packed rows.
    #[allow(clippy::too_many_arguments)]
    unsafe fn tiles(
        &self,
        out: Matrix,
        [first, rows]: [usize; 2],
        cols: std::ops::Range<usize>,
        left: Left,
        right: *const u32,
        depth: usize,
        add: bool,
    ) {
        let height = self.height;
        let mut spill = [0.0f32; 8 * 48];
        for col in cols.clone().step_by(self.width()) {
            let width = self.width().min(cols.end - col);
            let vectors = width.div_ceil(self.lanes);
            for row in (0..rows).step_by(height) {
                let size = height.min(rows - row);
                let whole = size == height && width == vectors * self.lanes;
                // SAFETY: the tile lies inside `out`, and where it is not whole it is computed in
                // `spill`, which holds the largest; packed operands are filled up to whole tiles.
                unsafe {
                    let target = out.data.add((first + row) * out.strides[0] + col);
                    let step = Step {
                        left: left.data.add(row * left.row),
                        strides: [left.row, left.step],
                        right: right.add(col / self.width() * depth * self.width()),
                        right_step: self.width(),
                        depth,
                        out: if whole { target } else { spill.as_mut_ptr() },
                        out_row: if whole {
                            out.strides[0]
                        } else {
                            vectors * self.lanes
                        },
                        add: add && whole,
                    };
                    self.loops[vectors - 1](&step);
                    if !whole {
                        for i in 0..size {
                            for j in 0..width {
                                let to = target.add(i * out.strides[0] + j);
                                let value = spill[i * vectors * self.lanes + j];
                                to.write(if add { to.read() + value } else { value });
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The product cut into tasks.
struct Tasks {
    size: [usize; 2],
    part: [usize; 2],
}

impl Tasks {
    /// Parts of about equal size, enough for every thread to have a few, none of fewer rows than are
    /// worth fetching the columns for.
    fn new([m, n]: [usize; 2], depth: usize, [height, width]: [usize; 2], threads: bool) -> Self {
        let part = if !threads {
            [m, n]
        } else {
            let most = (BLOCK / depth.max(1) / width).max(1) * width;
            let cols = even(n, n.div_ceil(most), width);
            let wanted = (4 * rayon::current_num_threads()).div_ceil(n.div_ceil(cols));
            let rows = even(m, wanted.min(m.div_ceil(ROWS / 2)), height);
            [rows, cols]
        };
        Self { size: [m, n], part }
    }

    fn grid(&self) -> [usize; 2] {
        [0, 1].map(|i| self.size[i].div_ceil(self.part[i]))
    }

    fn count(&self) -> usize {
        self.grid().into_iter().product()
    }

    /// Rows and columns of one task.
    fn get(&self, task: usize) -> [std::ops::Range<usize>; 2] {
        let [rows, _] = self.grid();
        let at = [task % rows, task / rows];
        [0, 1].map(|i| {
            let first = at[i] * self.part[i];
            first..(first + self.part[i]).min(self.size[i])
        })
    }
}

/// The size of one of `parts` parts of `total`, whole blocks of `block`.
fn even(total: usize, parts: usize, block: usize) -> usize {
    total.div_ceil(block).div_ceil(parts) * block
}

/// Memory tasks write disjoint parts of.
struct Shared(*mut u32);

// SAFETY: a pointer to plain numbers; the tasks that use it promise to keep to their own part.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(&self) -> *mut u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers, so that every product and sum is exact in both precisions.
    fn whole_numbers(count: usize, salt: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + salt) % 1009 % 7) as f32 - 3.0;
        (0..count).map(number).collect()
    }

    fn matrix(values: &[f32], [rows, cols]: [usize; 2], transposed: bool) -> Matrix {
        match transposed {
            true => Matrix::of(values, 0, [cols, rows], rows).transposed(),
            false => Matrix::of(values, 0, [rows, cols], cols),
        }
    }

    #[test]
    fn every_instruction_set_multiplies_exactly() {
        let sizes = [
            [1, 1, 1],
            [3, 5, 7],
            [8, 16, 48],
            [9, 17, 49],
            [64, 100, 65],
            [130, 1300, 33],
            [65, 600, 400],
            [200, 3, 130],
        ];
        for [m, k, n] in sizes {
            let (a, b) = (whole_numbers(m * k, 1), whole_numbers(k * n, 2));
            for flags in 0..8 {
                let [left, right, add] = [1, 2, 4].map(|bit| flags & bit != 0);
                let (a, b) = (matrix(&a, [m, k], left), matrix(&b, [k, n], right));
                let mut expected = vec![if add { 1.0 } else { 0.0 }; m * n];
                let out = Matrix::of_mut(&mut expected, 0, [m, n], n);
                // SAFETY: all three live, `expected` is this test's.
                unsafe { crate::matrix::multiply(out, Into::Add, 1.0, a, b) };
                for isa in Isa::available() {
                    for precision in [Precision::F32, Precision::Bf16] {
                        let mut out = vec![1.0; m * n];
                        let target = Matrix::of_mut(&mut out, 0, [m, n], n);
                        let into = if add { Into::Add } else { Into::Replace };
                        // SAFETY: all three live, `out` is this test's.
                        unsafe { Kernel::of(isa, precision).run(true, target, into, a, b, &Plain) };
                        assert_eq!(out, expected, "{isa:?} {precision:?} {m} {k} {n} {flags}");
                    }
                }
            }
        }
    }

    #[test]
    fn rounds_factors_the_same_on_every_instruction_set() {
        let wild = |count, salt| -> Vec<f32> {
            let numbers = whole_numbers(count, salt);
            let wild = numbers.iter().enumerate();
            wild.map(|(i, x)| x * (1.0 + i as f32 / 97.0)).collect()
        };
        let (a, b) = (wild(40 * 70, 1), wild(70 * 50, 2));
        let (a, b) = (matrix(&a, [40, 70], false), matrix(&b, [70, 50], false));
        let on = |isa| {
            let mut out = vec![0.0; 40 * 50];
            let target = Matrix::of_mut(&mut out, 0, [40, 50], 50);
            let kernel = Kernel::of(isa, Precision::Bf16);
            // SAFETY: all three live, `out` is this test's.
            unsafe { kernel.run(true, target, Into::Replace, a, b, &Plain) };
            out
        };
        let expected = on(Isa::Portable);
        for isa in Isa::available() {
            for (got, expected) in on(isa).iter().zip(&expected) {
                assert!(
                    (got - expected).abs() <= 1e-5 * expected.abs().max(1e3),
                    "{isa:?}"
                );
            }
        }
    }
}
