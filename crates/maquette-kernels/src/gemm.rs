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

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_permutexvar_epi16, _mm512_storeu_si512,
};

use rayon::prelude::*;

use crate::elementwise::vectorized;
use crate::matrix::{Into, Matrix};
use crate::precision::Precision;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Lanes, Portable};
use crate::transpose::{WIDTH, transpose};

/// Packed elements of the reduction that are summed before the product is written. With [`COLS`]
/// columns of the right matrix (768 KiB) and [`ROWS`] rows of the left one (128 KiB) they fill a
/// second cache of 1 MiB; measured, smaller blocks cost more in writing than they save in reading.
const DEPTH: usize = 512;

/// Rows of the left matrix packed together, a multiple of every tile's height.
const ROWS: usize = 64;

/// Rows of the tallest tile.
const TALL: usize = 8;

/// Columns of a task at most, a multiple of every panel width.
const COLS: usize = 384;

/// Vectors of a whole tile.
const VECTORS: usize = 3;

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
    // SAFETY: the caller's.
    unsafe { product_on(Isa::detect(), threads, out, into, a, b, precision, epilogue) }
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
    // SAFETY: the caller's.
    unsafe { product_on(Isa::detect(), false, out, into, a, b, precision, &Plain) }
}

/// As [`product`], on an instruction set of this machine.
///
/// # Safety
/// As there.
#[allow(clippy::too_many_arguments)] // the whole product in one call, for the tests
unsafe fn product_on(
    isa: Isa,
    threads: bool,
    out: Matrix,
    into: Into,
    a: Matrix,
    b: Matrix,
    precision: Precision,
    epilogue: &impl Epilogue,
) {
    let ([m, n], [_, k]) = (out.size, a.size);
    assert!(
        a.size == [m, k] && b.size == [k, n] && out.strides[1] == 1,
        "sizes of a product do not match"
    );
    let kernel = Kernel::of(isa, precision);
    // SAFETY: `Kernel::of` gives a kernel of an instruction set that was detected; the rest is the
    // caller's contract.
    unsafe { kernel.run(threads, out, into, a, b, epilogue) }
}

/// One compiled inner loop with its shape.
#[derive(Clone, Copy)]
struct Kernel {
    isa: Isa,
    precision: Precision,
    /// Numbers of a vector.
    lanes: usize,
    /// Rows of a tile; a whole one is [`VECTORS`] vectors wide.
    height: usize,
    /// The loop for tiles of one vector, of two, of three.
    loops: [Tile; VECTORS],
}

/// `depth` steps of the reduction for one tile; see [`Step`].
type Tile = unsafe fn(&Step);

impl Kernel {
    fn of(isa: Isa, precision: Precision) -> Self {
        macro_rules! kernel {
            ($lanes:ty, $rows:literal, $f32:ident, $bf16:ident) => {
                Self {
                    isa,
                    precision,
                    lanes: <$lanes>::N,
                    height: $rows,
                    loops: match precision {
                        Precision::F32 => [$f32::<1>, $f32::<2>, $f32::<VECTORS>],
                        Precision::Bf16 => [$bf16::<1>, $bf16::<2>, $bf16::<VECTORS>],
                    },
                }
            };
        }
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if precision == Precision::F32 || !Isa::has_bf16() => {
                kernel!(Avx512, 8, avx512_f32, avx512_emulated)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => kernel!(Avx512, 8, avx512_f32, avx512_bf16),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => kernel!(Avx2, 4, avx2_f32, avx2_emulated),
            Isa::Portable => kernel!(Portable, 4, portable_f32, portable_emulated),
        }
    }

    /// Columns of a whole tile.
    fn width(&self) -> usize {
        VECTORS * self.lanes
    }

    /// # Safety
    /// The machine has the kernel's instruction set; the rest as [`product`].
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
        let pair = self.precision.pair();
        // 1. The reduction in equal blocks of whole pairs.
        let packed = k.div_ceil(pair);
        let blocks = packed.div_ceil(DEPTH);
        let depth = packed.div_ceil(blocks);
        let panels = n.div_ceil(self.width());
        let mut right = Vec::<u32>::with_capacity(panels * depth * self.width());
        let right = Shared(right.as_mut_ptr());
        let tasks = Tasks::new(m, n, self.width(), threads);
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
                for first in rows.clone().step_by(ROWS) {
                    let size = ROWS.min(rows.end - first);
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

    /// Packs columns into `[depth][width]`, filled up with zeros.
    ///
    /// # Safety
    /// `to` has room for it; `part` is alive.
    unsafe fn pack_right(&self, part: Matrix, depth: usize, to: *mut u32) {
        let [len, cols] = part.size;
        let width = self.width();
        let pair = self.precision.pair();
        // SAFETY: indices stay inside `part` and below `depth * width`.
        unsafe {
            if part.strides[1] == 1 {
                for step in 0..depth {
                    let row = |i: usize| {
                        let i = step * pair + i;
                        (i < len).then(|| part.data.add(i * part.strides[0]).cast_const())
                    };
                    let to = to.add(step * width);
                    let second = if pair == 2 { row(1) } else { None };
                    self.pack_row(row(0), second, cols, to);
                    for j in cols..width {
                        to.add(j).write(0);
                    }
                }
            } else {
                let mut pairs = [0; DEPTH];
                for step in 0..depth {
                    for j in cols..width {
                        to.add(step * width + j).write(0);
                    }
                }
                if self.precision == Precision::F32 && part.strides[0] == 1 {
                    // Sixteen columns by sixteen steps at a time.
                    for j in (0..cols).step_by(WIDTH) {
                        for step in (0..depth).step_by(WIDTH) {
                            let size = [WIDTH.min(cols - j), WIDTH.min(depth - step)];
                            let from = part.data.add(j * part.strides[1] + step).cast_const();
                            transpose(self.isa, from, part.strides[1], size, false, |i| {
                                to.add((step + i) * width + j).cast()
                            });
                        }
                    }
                    return;
                }
                for j in 0..cols {
                    let column = part.data.add(j * part.strides[1]).cast_const();
                    if self.precision == Precision::Bf16 && part.strides[0] == 1 {
                        let column = std::slice::from_raw_parts(column, len);
                        round_row(self.isa, column, &mut pairs[..depth]);
                        for (step, pair) in pairs[..depth].iter().enumerate() {
                            to.add(step * width + j).write(*pair);
                        }
                        continue;
                    }
                    let get = |i: usize| match i < len {
                        true => column.add(i * part.strides[0]).read(),
                        false => 0.0,
                    };
                    for step in 0..depth {
                        to.add(step * width + j).write(match self.precision {
                            Precision::F32 => get(step).to_bits(),
                            Precision::Bf16 => join(get(2 * step), get(2 * step + 1)),
                        });
                    }
                }
            }
        }
    }

    /// One step of the reduction of `count` neighbouring columns (or rows).
    ///
    /// # Safety
    /// Both rows and `to` hold `count` numbers.
    #[inline(always)]
    unsafe fn pack_row(
        &self,
        first: Option<*const f32>,
        second: Option<*const f32>,
        count: usize,
        to: *mut u32,
    ) {
        // SAFETY: the caller's.
        unsafe {
            match (self.precision, first, second) {
                (Precision::F32, Some(first), _) => {
                    std::ptr::copy_nonoverlapping(first.cast::<u32>(), to, count);
                }
                (Precision::Bf16, Some(first), Some(second)) => {
                    zip_rows(
                        self.isa,
                        std::slice::from_raw_parts(first, count),
                        std::slice::from_raw_parts(second, count),
                        std::slice::from_raw_parts_mut(to, count),
                    );
                }
                (Precision::Bf16, Some(first), None) => {
                    for j in 0..count {
                        to.add(j).write(join(first.add(j).read(), 0.0));
                    }
                }
                (_, None, _) => unreachable!("a step has a first row"),
            }
        }
    }

    /// Prepares rows for broadcasting: in place where 32-bit floats are next to each other along
    /// the reduction, else in `scratch`.
    ///
    /// # Safety
    /// `part` is alive.
    unsafe fn pack_left(&self, part: Matrix, depth: usize, scratch: &mut Vec<u32>) -> Left {
        let [rows, len] = part.size;
        let height = self.height;
        let whole = rows.next_multiple_of(height);
        if self.precision == Precision::F32 && part.strides[1] == 1 && whole == rows {
            return Left {
                data: part.data.cast(),
                row: part.strides[0],
                step: 1,
            };
        }
        scratch.clear();
        scratch.reserve(whole * depth);
        let to = scratch.as_mut_ptr();
        // SAFETY: indices stay below `whole * depth` and inside `part`.
        unsafe {
            if part.strides[1] == 1 {
                // `[row][step]`
                for row in 0..whole {
                    let to = to.add(row * depth);
                    if row >= rows {
                        for step in 0..depth {
                            to.add(step).write(0);
                        }
                        continue;
                    }
                    let from = part.data.add(row * part.strides[0]).cast_const();
                    match self.precision {
                        Precision::F32 => std::ptr::copy_nonoverlapping(from.cast(), to, depth),
                        Precision::Bf16 => round_row(
                            self.isa,
                            std::slice::from_raw_parts(from, len),
                            std::slice::from_raw_parts_mut(to, depth),
                        ),
                    }
                }
                return Left {
                    data: to,
                    row: depth,
                    step: 1,
                };
            }
            // `[step][row]`
            let pair = self.precision.pair();
            for step in 0..depth {
                let column = |i: usize| {
                    let i = step * pair + i;
                    (i < len).then(|| part.data.add(i * part.strides[1]).cast_const())
                };
                let to = to.add(step * whole);
                let second = if pair == 2 { column(1) } else { None };
                if part.strides[0] == 1 {
                    self.pack_row(column(0), second, rows, to);
                } else {
                    for i in 0..rows {
                        let get = |from: Option<*const f32>| {
                            from.map_or(0.0, |from| from.add(i * part.strides[0]).read())
                        };
                        to.add(i).write(match self.precision {
                            Precision::F32 => get(column(0)).to_bits(),
                            Precision::Bf16 => join(get(column(0)), get(second)),
                        });
                    }
                }
                for i in rows..whole {
                    to.add(i).write(0);
                }
            }
            Left {
                data: to,
                row: 1,
                step: whole,
            }
        }
    }
}

/// Rows ready to be broadcast: packed element `(i, step)` is at `i * row + step * step`.
#[derive(Clone, Copy)]
struct Left {
    data: *const u32,
    row: usize,
    step: usize,
}

/// The product cut into tasks.
struct Tasks {
    size: [usize; 2],
    part: [usize; 2],
}

impl Tasks {
    /// Parts of about equal size, enough for every thread to have a few, none smaller than a block.
    fn new(m: usize, n: usize, width: usize, threads: bool) -> Self {
        let part = if !threads {
            [m, n]
        } else {
            let cols = even(n, n.div_ceil(COLS / width * width), width);
            let wanted = (4 * rayon::current_num_threads()).div_ceil(n.div_ceil(cols));
            let rows = even(m, wanted.min(m.div_ceil(ROWS)), TALL);
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

/// To the nearest bf16, ties to even; the result is in the upper half.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding would carry a NaN's low bits into infinity or beyond.
    if value.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    }
}

/// Two neighbours along the reduction, the first in the lower half.
#[inline(always)]
fn join(first: f32, second: f32) -> u32 {
    round(first) >> 16 | round(second) & 0xffff_0000
}

/// Joins neighbours of two rows.
fn zip_rows(isa: Isa, first: &[f32], second: &[f32], to: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && Isa::has_bf16() {
        // SAFETY: the instructions were detected.
        return unsafe { zip_rows_native(first, second, to) };
    }
    zip_rows_plain(isa, first, second, to);
}

/// Joins neighbours of one row, the last one with zero if it is alone.
fn round_row(isa: Isa, from: &[f32], to: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && Isa::has_bf16() {
        // SAFETY: the instructions were detected.
        return unsafe { round_row_native(from, to) };
    }
    round_row_plain(isa, from, to);
}

vectorized! {
    fn zip_rows_plain(first: &[f32], second: &[f32], to: &mut [u32]) {
        for ((to, first), second) in to.iter_mut().zip(first).zip(second) {
            *to = join(*first, *second);
        }
    }
}

vectorized! {
    fn round_row_plain(from: &[f32], to: &mut [u32]) {
        let pairs = from.chunks_exact(2);
        if let [single] = pairs.remainder() {
            to[to.len() - 1] = join(*single, 0.0);
        }
        for (to, pair) in to.iter_mut().zip(pairs) {
            *to = join(pair[0], pair[1]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn zip_rows_native(first: &[f32], second: &[f32], to: &mut [u32]) {
    // Where each half of a pair stands after the conversion: the first row below, the second above.
    let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    // SAFETY: 64 bytes are read from an array of 64, and from 16 numbers of chunks of 16.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let (whole, rest) = to.as_chunks_mut::<16>();
    let (first, first_rest) = first.as_chunks::<16>();
    let (second, second_rest) = second.as_chunks::<16>();
    for ((to, first), second) in whole.iter_mut().zip(first).zip(second) {
        // SAFETY: chunks of 16 numbers, 64 bytes each; both vector types are 512 bits.
        unsafe {
            let first = _mm512_loadu_ps(first.as_ptr());
            let second = _mm512_loadu_ps(second.as_ptr());
            let halves =
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            let pairs = _mm512_permutexvar_epi16(order, halves);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }
    for ((to, first), second) in rest.iter_mut().zip(first_rest).zip(second_rest) {
        *to = join(*first, *second);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round_row_native(from: &[f32], to: &mut [u32]) {
    let (from, from_rest) = from.as_chunks::<32>();
    let (whole, rest) = to.split_at_mut(16 * from.len());
    for (to, from) in whole.as_chunks_mut::<16>().0.iter_mut().zip(from) {
        // SAFETY: 32 numbers are read and 16 pairs written; both vector types are 512 bits.
        unsafe {
            let low = _mm512_loadu_ps(from.as_ptr());
            let high = _mm512_loadu_ps(from.as_ptr().add(16));
            let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }
    for (to, pair) in rest.iter_mut().zip(from_rest.chunks(2)) {
        *to = join(pair[0], pair.get(1).copied().unwrap_or(0.0));
    }
}

/// One tile: `out[i][j] = sum over steps of left[i][step] * right[step][j]`.
struct Step {
    left: *const u32,
    /// Elements between rows and between steps of `left`.
    strides: [usize; 2],
    right: *const u32,
    right_step: usize,
    depth: usize,
    out: *mut f32,
    out_row: usize,
    add: bool,
}

/// The innermost multiplication.
trait Multiply<L: Lanes> {
    /// # Safety
    /// The machine has the instructions.
    unsafe fn multiply_add(a: L::V, b: L::V, c: L::V) -> L::V;
}

/// 32-bit floats.
struct Single;

impl<L: Lanes> Multiply<L> for Single {
    #[inline(always)]
    unsafe fn multiply_add(a: L::V, b: L::V, c: L::V) -> L::V {
        // SAFETY: the caller's.
        unsafe { L::mul_add(a, b, c) }
    }
}

/// Pairs of bf16 without an instruction for them, in the order of the one there is: second
/// product first.
struct Emulated;

impl<L: Lanes> Multiply<L> for Emulated {
    #[inline(always)]
    unsafe fn multiply_add(a: L::V, b: L::V, c: L::V) -> L::V {
        // SAFETY: the caller's.
        unsafe {
            let c = L::mul_add(L::upper(a), L::upper(b), c);
            L::mul_add(L::lower(a), L::lower(b), c)
        }
    }
}

/// # Safety
/// The machine has the instructions; `left` holds `HEIGHT` rows and `right` `WIDTH` vectors of
/// `depth` steps; `out` has `HEIGHT` rows of `WIDTH` vectors, initialised if `add`.
#[inline(always)]
unsafe fn tile<L: Lanes, M: Multiply<L>, const HEIGHT: usize, const WIDTH: usize>(step: &Step) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[L::splat(0.0); WIDTH]; HEIGHT];
        let (mut left, mut right) = (step.left.cast::<f32>(), step.right.cast::<f32>());
        let [row, next] = step.strides;
        for _ in 0..step.depth {
            let b: [L::V; WIDTH] = std::array::from_fn(|j| L::load(right.add(j * L::N)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = L::splat(left.add(i * row).read());
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = M::multiply_add(a, b, *sum);
                }
            }
            left = left.add(next);
            right = right.add(step.right_step);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                let to = step.out.add(i * step.out_row + j * L::N);
                let sum = if step.add {
                    L::sum(L::load(to), *sum)
                } else {
                    *sum
                };
                L::store(to, sum);
            }
        }
    }
}

/// Pairs of bf16 by `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
struct Native;

#[cfg(target_arch = "x86_64")]
impl Multiply<Avx512> for Native {
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the types differ in name only; the instruction is the caller's to have.
        unsafe {
            _mm512_dpbf16_ps(
                c,
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            )
        }
    }
}

macro_rules! tiles {
    ($(#[$features:meta])? $name:ident, $lanes:ty, $multiply:ty, $rows:literal) => {
        $(#[cfg(target_arch = "x86_64")] #[$features])?
        unsafe fn $name<const WIDTH: usize>(step: &Step) {
            // SAFETY: the caller's.
            unsafe { tile::<$lanes, $multiply, $rows, WIDTH>(step) }
        }
    };
}

tiles!(
    #[target_feature(enable = "avx512f")]
    avx512_f32,
    Avx512,
    Single,
    8
);
tiles!(
    #[target_feature(enable = "avx512f")]
    avx512_emulated,
    Avx512,
    Emulated,
    8
);
tiles!(
    #[target_feature(enable = "avx2,fma")]
    avx2_f32,
    Avx2,
    Single,
    4
);
tiles!(
    #[target_feature(enable = "avx2,fma")]
    avx2_emulated,
    Avx2,
    Emulated,
    4
);
tiles!(portable_f32, Portable, Single, 4);
tiles!(portable_emulated, Portable, Emulated, 4);
tiles!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    avx512_bf16,
    Avx512,
    Native,
    8
);

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
                        unsafe { product_on(isa, true, target, into, a, b, precision, &Plain) };
                        assert_eq!(out, expected, "{isa:?} {precision:?} {m} {k} {n} {flags}");
                    }
                }
            }
        }
    }

    #[test]
    fn rounds_to_nearest_even() {
        let rounded = |value: f32| f32::from_bits(round(value) & 0xffff_0000);
        assert_eq!(rounded(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(rounded(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(rounded(-1.0 - 1.1 / 256.0), -1.0 - 2.0 / 256.0);
        assert_eq!(rounded(f32::MAX), f32::INFINITY);
        assert_eq!(rounded(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(rounded(f32::from_bits(0x7f80_0001)).is_nan());
        assert_eq!(join(1.0, -2.0), 0xc000_3f80);
    }

    #[test]
    fn every_instruction_set_rounds_the_same() {
        let numbers: Vec<f32> = (0..999)
            .map(|i| (i as f32 - 500.0) * 1.017 * 2f32.powi(i % 200 - 100))
            .chain([f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0])
            .collect();
        let other: Vec<f32> = numbers.iter().rev().copied().collect();
        for len in [1, 2, 15, 16, 31, 33, 64, 1003] {
            let on = |isa| {
                let mut zipped = vec![0; len];
                zip_rows(isa, &numbers[..len], &other[..len], &mut zipped);
                let mut rounded = vec![0; len.div_ceil(2)];
                round_row(isa, &other[..len], &mut rounded);
                [zipped, rounded]
            };
            for isa in Isa::available() {
                assert_eq!(on(isa), on(Isa::Portable), "{isa:?} {len}");
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
            // SAFETY: all three live, `out` is this test's.
            unsafe {
                product_on(
                    isa,
                    true,
                    target,
                    Into::Replace,
                    a,
                    b,
                    Precision::Bf16,
                    &Plain,
                )
            };
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
