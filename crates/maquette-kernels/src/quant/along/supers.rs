//! Super-blocks, whose levels have scales of their own.

use std::arch::x86_64::*;

use super::super::weights::{Head, Q4K, Q5K, Q6K, add_scaled, number};
use super::super::x86::Vnni;
use super::{Along, ROWS, Read, Reading, Scaling, added, ask_part, together};

/// A format of super-blocks.
pub(super) trait Super: Along {
    /// The bytes of a block that scale its total.
    type Head: Copy;

    /// Where in the block they stand.
    const HEAD_AT: usize;

    /// Vectors of `x` that a block is multiplied with.
    const VECTORS: usize;

    /// Writes them.
    ///
    /// # Safety
    /// The machine has the instructions; the record is whole, and there is room.
    unsafe fn write(record: *const u32, to: *mut __m512i);

    /// Sixteen integers that add up to the products of a block.
    ///
    /// # Safety
    /// The machine has the instructions; the block and the vectors are there.
    unsafe fn total(block: *const u8, x: *const __m512i) -> __m512i;

    /// [`Reading::add`]
    ///
    /// # Safety
    /// As there.
    unsafe fn add(sum: __m512, totals: __m512i, heads: *const u8, record: *const u32) -> __m512;
}

/// Block by block.
pub(in crate::quant) struct Blocks;

impl<F: Super> Reading<F> for Blocks {
    const FEWEST: usize = 1;
    const HEAD: usize = size_of::<F::Head>();

    #[inline(always)]
    unsafe fn prepare(x: *const u32, blocks: usize, to: &mut Vec<__m512i>) {
        to.clear();
        to.reserve(F::VECTORS * blocks);
        // SAFETY: the caller's; there is room for all vectors, and all of them are written.
        unsafe {
            for b in 0..blocks {
                F::write(x.add(F::RECORD * b), to.as_mut_ptr().add(F::VECTORS * b));
            }
            to.set_len(F::VECTORS * blocks);
        }
    }

    #[inline(always)]
    unsafe fn read<const ASK: bool>(
        from: *const u8,
        blocks: usize,
        x: &[__m512i],
        to: Read,
        before: &mut Scaling<F>,
    ) {
        let mut at = Place::<F> {
            block: from,
            x: 0,
            head: to.heads.cast(),
            row: ROWS * blocks,
        };
        for i in 0..blocks {
            // SAFETY: the caller's; of sixteen rows there are sixteen times as many.
            unsafe {
                let fours = [
                    at.four::<ASK>(x),
                    at.four::<ASK>(x),
                    at.four::<ASK>(x),
                    at.four::<ASK>(x),
                ];
                _mm512_storeu_si512(to.totals.add(ROWS * i).cast(), together(fours));
                if i % 4 == 0 {
                    before.four(i);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512, totals: __m512i, heads: *const u8, record: *const u32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { F::add(sum, totals, heads, record) }
    }
}

impl Along for Q4K {
    type By = Blocks;
}

impl Along for Q5K {
    type By = Blocks;
}

impl Along for Q6K {
    type By = Blocks;
}

/// Where rows that follow each other are read, block by block.
struct Place<F: Super> {
    block: *const u8,
    /// Of the vectors.
    x: usize,
    head: *mut F::Head,
    /// How far the heads of a row's blocks reach.
    row: usize,
}

impl<F: Super> Place<F> {
    /// Sums of quarters of the totals of the next four blocks, side by side.
    ///
    /// # Safety
    /// As [`Super::total`], and there is room for the heads.
    #[inline(always)]
    unsafe fn four<const ASK: bool>(&mut self, x: &[__m512i]) -> __m512i {
        // SAFETY: the caller's. Written out, since a loop of four would not be unrolled.
        unsafe {
            added([
                self.next::<ASK, 0>(x),
                self.next::<ASK, 1>(x),
                self.next::<ASK, 2>(x),
                self.next::<ASK, 3>(x),
            ])
        }
    }

    /// The total of the next one, number `I` of four.
    ///
    /// # Safety
    /// As [`Self::four`].
    #[inline(always)]
    unsafe fn next<const ASK: bool, const I: usize>(&mut self, x: &[__m512i]) -> __m512i {
        let four = self.block.wrapping_sub(I * F::BYTES);
        ask_part::<ASK, I>(four, 4 * F::BYTES);
        // SAFETY: the caller's; at the end of `x` the next row begins.
        unsafe {
            let total = F::total(self.block, x.as_ptr().add(self.x));
            let head = self.block.add(F::HEAD_AT).cast::<F::Head>();
            self.head.write_unaligned(head.read_unaligned());
            self.head = self.head.wrapping_add(ROWS);
            self.block = self.block.add(F::BYTES);
            self.x += F::VECTORS;
            if self.x == x.len() {
                self.x = 0;
                self.head = self.head.wrapping_sub(self.row).wrapping_add(1);
            }
            total
        }
    }
}

/// Where `pick` is set, bits of `a`, elsewhere of `b`.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn select(pick: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_ternarylogic_epi32::<0b1100_1010>(pick, a, b) }
}

/// Eight words of `low`, then as many of `high`.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn split(low: i32, high: i32) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        _mm512_inserti64x4::<1>(
            _mm512_castsi256_si512(_mm256_set1_epi32(low)),
            _mm256_set1_epi32(high),
        )
    }
}

/// The products of two vectors of levels with `x`, four of them and `start` added up, times scales: in each
/// quarter four words for the first vector, then four for the second. Sums of four products fit 16 bits for
/// levels below 64.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn scaled(
    sum: __m512i,
    levels: [__m512i; 2],
    x: [__m512i; 2],
    start: [__m512i; 2],
    scales: __m512i,
) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let first = _mm512_dpbusd_epi32(start[0], levels[0], x[0]);
        let second = _mm512_dpbusd_epi32(start[1], levels[1], x[1]);
        _mm512_dpwssd_epi32(sum, _mm512_packs_epi32(first, second), scales)
    }
}

/// Levels of four vectors with a scale and an offset per 32: 32 of one part, then of the part after the next.
///
/// # Safety
/// As [`Super::total`], of a block that begins with a [`Head`].
#[inline(always)]
unsafe fn affine(block: *const u8, levels: [__m512i; 4], x: *const __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        // The scales, unpacked as `Head` does.
        let [a, c] = [
            block.add(4).cast::<u32>().read_unaligned(),
            block.add(12).cast::<u32>().read_unaligned(),
        ];
        let scales = [
            a & 0x3f3f_3f3f,
            c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4,
        ];
        // Bytes 0 and 1 four times, in the upper half 2 and 3, as words.
        let [a, b, c, d] = [0x8000_8000, 0x8001_8001, 0x8002_8002, 0x8003_8003_u32];
        let [a, b, c, d] = [a, b, c, d].map(u32::cast_signed);
        let pick = _mm512_setr_epi32(a, a, b, b, a, a, b, b, c, c, d, d, c, c, d, d);
        let none = [_mm512_setzero_si512(); 2];
        let mut sum = none[0];
        for half in 0..2 {
            let scales = _mm512_set1_epi32(scales[half].cast_signed());
            let scales = _mm512_shuffle_epi8(scales, pick);
            let two = [levels[2 * half], levels[2 * half + 1]];
            let x = [x.add(2 * half).read(), x.add(2 * half + 1).read()];
            sum = scaled(sum, two, x, none, scales);
        }
        sum
    }
}

/// `x` in the order of these levels.
///
/// # Safety
/// As [`Super::write`].
#[inline(always)]
unsafe fn write_affine(record: *const u32, to: *mut __m512i) {
    for i in 0..4 {
        // SAFETY: the caller's; a record has eight parts of eight words after five.
        unsafe {
            let part = record.add(5 + 8 * (i / 2 * 4 + i % 2));
            to.add(i).write(_mm512_inserti64x4::<1>(
                _mm512_castsi256_si512(_mm256_loadu_si256(part.cast())),
                _mm256_loadu_si256(part.add(16).cast()),
            ));
        }
    }
}

/// [`Super::add`] with heads that are a [`Head`].
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn add_affine(sum: __m512, totals: __m512i, heads: *const u8, record: *const u32) -> __m512 {
    // SAFETY: the caller's.
    unsafe { Head::<Vnni>::of(heads, 16).add(sum, totals, record) }
}

impl Super for Q4K {
    type Head = [u8; 16];
    const HEAD_AT: usize = 0;
    const VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn write(record: *const u32, to: *mut __m512i) {
        // SAFETY: the caller's.
        unsafe { write_affine(record, to) }
    }

    #[inline(always)]
    unsafe fn total(block: *const u8, x: *const __m512i) -> __m512i {
        // SAFETY: the caller's; a block is a head of 16 bytes and 128 bytes of levels.
        unsafe {
            let four = _mm512_set1_epi8(15);
            let [a, b] = [
                _mm512_loadu_si512(block.add(16).cast()),
                _mm512_loadu_si512(block.add(80).cast()),
            ];
            let levels = [
                _mm512_and_si512(a, four),
                _mm512_and_si512(_mm512_srli_epi32::<4>(a), four),
                _mm512_and_si512(b, four),
                _mm512_and_si512(_mm512_srli_epi32::<4>(b), four),
            ];
            affine(block, levels, x)
        }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512, totals: __m512i, heads: *const u8, record: *const u32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { add_affine(sum, totals, heads, record) }
    }
}

impl Super for Q5K {
    type Head = [u8; 16];
    const HEAD_AT: usize = 0;
    const VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn write(record: *const u32, to: *mut __m512i) {
        // SAFETY: the caller's.
        unsafe { write_affine(record, to) }
    }

    #[inline(always)]
    unsafe fn total(block: *const u8, x: *const __m512i) -> __m512i {
        // SAFETY: the caller's; a block is a head of 16 bytes, 32 with a fifth bit for each part, and
        // 128 with four bits.
        unsafe {
            let [four, bit] = [_mm512_set1_epi8(15), _mm512_set1_epi8(16)];
            let fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(16).cast()));
            let [a, b] = [
                _mm512_loadu_si512(block.add(48).cast()),
                _mm512_loadu_si512(block.add(112).cast()),
            ];
            let levels = [
                // Bit `part` goes to where four stands; the other bits of a word that come with it are
                // not looked at.
                (a, split(4, 2)),
                (_mm512_srli_epi32::<4>(a), split(3, 1)),
                (b, split(0, 30)),
                (_mm512_srli_epi32::<4>(b), split(31, 29)),
            ];
            let mut joined = [four; 4];
            for (joined, (low, turn)) in joined.iter_mut().zip(levels) {
                let upper = _mm512_and_si512(_mm512_rolv_epi32(fifth, turn), bit);
                *joined = select(four, low, upper);
            }
            affine(block, joined, x)
        }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512, totals: __m512i, heads: *const u8, record: *const u32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { add_affine(sum, totals, heads, record) }
    }
}

impl Super for Q6K {
    type Head = [u8; 2];
    const HEAD_AT: usize = 208;
    /// `x` as it is, and what makes levels -32 to 31.
    const VECTORS: usize = 8;

    #[inline(always)]
    unsafe fn write(record: *const u32, to: *mut __m512i) {
        for i in 0..4 {
            // SAFETY: the caller's; a record is a scale, 16 starts and 64 words.
            unsafe {
                let x = _mm512_loadu_si512(record.add(17 + 16 * i).cast());
                let none = _mm512_setzero_si512();
                let plus = _mm512_dpbusd_epi32(none, _mm512_set1_epi8(32), x);
                to.add(i).write(x);
                to.add(4 + i).write(_mm512_sub_epi32(none, plus));
            }
        }
    }

    #[inline(always)]
    unsafe fn total(block: *const u8, x: *const __m512i) -> __m512i {
        // SAFETY: the caller's; a block is 128 bytes with four bits, 64 with two more, 16 scales and a
        // half. Each 128 numbers have four quarters: the first two are the lower halves of 64 bytes, the
        // others the upper ones.
        unsafe {
            let [four, two] = [_mm512_set1_epi8(15), _mm512_set1_epi8(0x30)];
            let scales = _mm256_cvtepi8_epi16(_mm_loadu_si128(block.add(192).cast()));
            let scales = _mm512_castsi256_si512(scales);
            // In each quarter that of the first vector four times, then that of the second.
            let pick = _mm512_setr_epi32(
                0x0000_0000,
                0x0000_0000,
                0x0004_0004,
                0x0004_0004,
                0x0001_0001,
                0x0001_0001,
                0x0005_0005,
                0x0005_0005,
                0x0002_0002,
                0x0002_0002,
                0x0006_0006,
                0x0006_0006,
                0x0003_0003,
                0x0003_0003,
                0x0007_0007,
                0x0007_0007,
            );
            let mut sum = _mm512_setzero_si512();
            for half in 0..2 {
                let low = _mm512_loadu_si512(block.add(64 * half).cast());
                let upper = _mm256_loadu_si256(block.add(128 + 32 * half).cast());
                let upper = _mm512_broadcast_i64x4(upper);
                let quarters = [
                    (low, split(4, 2)),
                    (_mm512_srli_epi32::<4>(low), split(0, 30)),
                ];
                let mut levels = [low; 2];
                for (levels, (low, turn)) in levels.iter_mut().zip(quarters) {
                    let upper = _mm512_and_si512(_mm512_rolv_epi32(upper, turn), two);
                    *levels = select(four, low, upper);
                }
                let pick = _mm512_add_epi16(pick, _mm512_set1_epi16(8 * half as i16));
                let scales = _mm512_permutexvar_epi16(pick, scales);
                let starts = x.add(4 + 2 * half);
                let starts = [starts.read(), starts.add(1).read()];
                let x = [x.add(2 * half).read(), x.add(2 * half + 1).read()];
                sum = scaled(sum, levels, x, starts, scales);
            }
            sum
        }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512, totals: __m512i, heads: *const u8, record: *const u32) -> __m512 {
        // SAFETY: the caller's; heads are halves.
        unsafe {
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(heads.cast()));
            add_scaled::<Vnni>(sum, totals, d, number::<Vnni>(record, 0))
        }
    }
}
