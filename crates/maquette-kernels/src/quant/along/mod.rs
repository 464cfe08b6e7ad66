//! Quantised weights times one row of `x`, read along their rows (AVX512-VNNI).
//!
//! Turning sixteen rows, as [`super::weights`] does, costs more than all that follows when each level is used
//! once, and memory is read fastest from front to back. So rows are read one after the other: the products
//! of a block stay in their lanes, sixteen blocks are added up to as many integers by a tree of additions,
//! and only these are turned and scaled, block by block. They are the integers that turned rows come to, scaled in
//! the same order, so the numbers are the same.

mod small;
mod supers;

use std::arch::x86_64::*;
use std::cell::Cell;
use std::marker::PhantomData;

use super::product::{Job, Rows, Tasks, put};
use super::weights::Weights;
use super::words::Words;
use super::x86::Vnni;
use crate::simd::{AHEAD, Avx512, Lanes, ask, asks, prefetch};

/// Rows of a group.
const ROWS: usize = 16;

/// A format read so.
pub(super) trait Along: Weights<Vnni> + Sized {
    /// How.
    type By: Reading<Self>;
}

/// A way to read rows of the format `F`.
pub(super) trait Reading<F: Along> {
    /// Blocks a row must have.
    const FEWEST: usize;

    /// Bytes of a block's head, which scales its total.
    const HEAD: usize;

    /// A row of `x`, of so many records, in the order and form in which [`Self::read`] uses it.
    ///
    /// # Safety
    /// The machine has the instructions; the records are whole.
    unsafe fn prepare(x: *const u32, blocks: usize, to: &mut Vec<__m512i>);

    /// Reads sixteen rows of so many blocks that follow each other, from the first byte to the last; if
    /// `ASK`, with what follows asked for ahead. Scales on the way what was read before, so that memory
    /// need not wait for that.
    ///
    /// # Safety
    /// The machine has the instructions; the blocks are there, `x` is prepared for as many, and `to` has
    /// room for them.
    unsafe fn read<const ASK: bool>(
        from: *const u8,
        blocks: usize,
        x: &[__m512i],
        to: Read,
        before: &mut Scaling<F>,
    );

    /// Adds what a block's totals of all rows come to, given its heads.
    ///
    /// # Safety
    /// The machine has the instructions; there are sixteen heads, and the record is whole.
    unsafe fn add(sum: __m512, totals: __m512i, heads: *const u8, record: *const u32) -> __m512;
}

/// What is left of rows once they are read.
#[derive(Clone, Copy)]
pub(super) struct Read {
    /// The integers that the products of each block come to: `[16 rows][blocks]`.
    totals: *mut i32,
    /// `[blocks][16 rows][HEAD]`
    heads: *mut u8,
}

/// Rows that are read and being scaled, block by block.
pub(super) struct Scaling<F> {
    read: Read,
    /// None if nothing was read.
    blocks: usize,
    record: *const u32,
    sum: __m512,
    _format: PhantomData<F>,
}

impl<F: Along> Scaling<F> {
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    unsafe fn of(read: Read, blocks: usize, record: *const u32) -> Self {
        Self {
            read,
            blocks,
            record,
            // SAFETY: the caller's.
            sum: unsafe { Avx512::splat(0.0) },
            _format: PhantomData,
        }
    }

    /// Blocks `first` to `first + 3`, as far as there are; each has its turn once, in their order.
    ///
    /// # Safety
    /// The machine has the instructions; what was read, and the records, are whole.
    #[inline(always)]
    unsafe fn four(&mut self, first: usize) {
        if first >= self.blocks {
            return;
        }
        // SAFETY: the caller's; after the last totals there is room for three more.
        unsafe {
            let four = self.read.totals.add(first).cast_const().cast();
            let four = Vnni::columns(four, size_of::<i32>() * self.blocks);
            for (b, totals) in (first..self.blocks).zip(four) {
                let heads = self.read.heads.add(b * ROWS * F::By::HEAD);
                self.sum = F::By::add(self.sum, totals, heads, self.record.add(b * F::RECORD));
            }
        }
    }
}

/// Room of a thread, kept from task to task.
#[derive(Default)]
struct Room {
    x: Vec<__m512i>,
    totals: Vec<i32>,
    heads: Vec<u8>,
}

thread_local! {
    static ROOM: Cell<Room> = Cell::default();
}

/// The outputs of groups of rows, of one row of `x`.
///
/// # Safety
/// As [`super::product::Kernel::run`]; rows have [`Reading::FEWEST`] blocks.
#[inline(always)]
pub(super) unsafe fn run<F: Along>(job: &Job, tasks: Tasks) {
    job.check::<Vnni, F>();
    let (blocks, asks) = (job.columns.div_ceil(F::NUMBERS), asks());
    let mut room = ROOM.take();
    // Of two groups; totals are turned four blocks at a time.
    let (totals, heads) = (ROWS * blocks + 4, ROWS * blocks * F::By::HEAD);
    room.totals.reserve(2 * totals);
    room.heads.reserve(2 * heads);
    let mut reads = [0, 1].map(|i| Read {
        totals: room.totals.as_mut_ptr().wrapping_add(i * totals),
        heads: room.heads.as_mut_ptr().wrapping_add(i * heads),
    });
    let record = job.x.as_ptr();
    let mut groups = tasks.flatten().peekable();
    if let Some(first) = groups.peek()
        && asks
    {
        // Nobody asked for these.
        prefetch(job.weights[first * ROWS * job.stride()..].as_ptr(), AHEAD);
    }
    // SAFETY: the caller's; there is room as reserved, of which what is scaled was written.
    unsafe {
        F::By::prepare(record, blocks, &mut room.x);
        let mut before = Scaling::<F>::of(reads[1], 0, record);
        let mut last = None;
        for group in groups {
            let rows = Rows::of::<Vnni>(job, group);
            let [read, _] = reads;
            match asks {
                true => F::By::read::<true>(rows.from, blocks, &room.x, read, &mut before),
                false => F::By::read::<false>(rows.from, blocks, &room.x, read, &mut before),
            }
            if let Some(last) = last.replace(group) {
                put::<Vnni, 1, 1>(job, last, 0, &[[before.sum]]);
            }
            before = Scaling::of(read, blocks, record);
            reads.swap(0, 1);
        }
        for first in (0..before.blocks).step_by(4) {
            before.four(first);
        }
        if let Some(last) = last {
            put::<Vnni, 1, 1>(job, last, 0, &[[before.sum]]);
        }
    }
    ROOM.set(room);
}

/// If `ASK`, asks for part `I` of four of what follows: from `from` on as many bytes. What is asked for at
/// once keeps what is needed now waiting.
#[inline(always)]
fn ask_part<const ASK: bool, const I: usize>(from: *const u8, bytes: usize) {
    if ASK {
        let lines = bytes.div_ceil(64);
        ask(from, I * lines / 4..(I + 1) * lines / 4);
    }
}

/// Of four vectors the sums of each quarter, side by side.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn added([a, b, c, d]: [__m512i; 4]) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let high = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        _mm512_add_epi32(
            _mm512_unpacklo_epi64(low, high),
            _mm512_unpackhi_epi64(low, high),
        )
    }
}

/// Of four vectors the sums of their quarters, vector by vector.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn together([a, b, c, d]: [__m512i; 4]) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let [low, high] = [halves(a, b), halves(c, d)];
        halves(low, high)
    }
}

/// Of two vectors the sums of quarters 0 and 1, and of 2 and 3.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn halves(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        _mm512_add_epi32(
            _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b),
            _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b),
        )
    }
}
