//! Products of rows with matrices: which loop, over which rows, by which thread.

use std::mem::MaybeUninit;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::along::{self, Along, Reading};
#[cfg(target_arch = "aarch64")]
use super::arm::Dot;
#[cfg(target_arch = "x86_64")]
use super::dots::Pairs;
use super::dots::{self, Bf16, F16, F32, Numbers};
use super::format::Format;
use super::records::{Records, Start};
use super::weights::{Q4_0, Q4K, Q5K, Q6K, Q8_0, Weights};
use super::words::{Float, Words};
#[cfg(target_arch = "x86_64")]
use super::x86::{AvxVnni, Vnni};
use crate::shared::Shared;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Lanes, Portable, prefetch};

/// Rows of `x` that unpacked blocks are multiplied with at a time.
const TOGETHER: usize = 4;

/// Rows of `x` up to which quantised blocks are unpacked where they are used; more share unpacked ones.
const FEW: usize = 8;

/// Vectors of rows of weights of a tile.
const GROUPS: usize = 2;

/// Bytes of unpacked blocks that are multiplied with all of `x` before the next are unpacked: half of a
/// small second cache.
const PANEL: usize = 1 << 18;

/// Bytes of weights of a task at least.
const TASK: usize = 1 << 16;

/// An instruction set that weights are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    VnniBf16,
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    Portable,
}

impl Level {
    /// The best of this machine.
    pub(super) fn detect() -> Self {
        static BEST: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// Every one this machine can run, best first; never empty.
    pub(super) fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            // Everything that the `#[target_feature]` lists below name.
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let vnni = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            let levels = [
                (
                    Self::VnniBf16,
                    vnni && is_x86_feature_detected!("avx512bf16"),
                ),
                (Self::Vnni, vnni),
                (Self::AvxVnni, avx2 && is_x86_feature_detected!("avxvnni")),
                (Self::Avx2, avx2),
            ];
            found.extend(
                levels
                    .into_iter()
                    .filter(|(_, has)| *has)
                    .map(|(level, _)| level),
            );
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            found.push(Self::NeonDot);
        }
        found.push(Self::Portable);
        found
    }
}

/// A product to be computed.
pub(super) struct Job<'a> {
    /// Rows of weights, `stride` bytes each.
    pub(super) weights: &'a [u8],
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Prepared rows of `x`, `n` of them.
    pub(super) x: &'a [u32],
    pub(super) n: usize,
    /// `[n, rows]`
    pub(super) out: Shared,
}

impl Job<'_> {
    pub(super) fn stride(&self) -> usize {
        self.weights.len() / self.rows
    }

    /// # Panics
    /// If `x` was prepared for another format.
    pub(super) fn check<W: Words, F: Weights<W>>(&self) {
        let row = self.columns.div_ceil(F::NUMBERS) * F::RECORD;
        assert!(
            self.x.len() == self.n * row,
            "rows prepared for another format"
        );
    }

    /// Where the records of rows `first..first + N` of `x` begin, those of the last row in place of what
    /// lies after it.
    pub(super) fn records<const N: usize>(&self, first: usize) -> [*const u32; N] {
        let row = self.x.len() / self.n;
        std::array::from_fn(|n| self.x[(first + n).min(self.n - 1) * row..].as_ptr())
    }
}

/// One format's loops on one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// How `x` is prepared.
    pub(super) records: Records,
    /// Rows of a group.
    lanes: usize,
    /// Bytes of its blocks when they are read again.
    block: usize,
    /// Rows of `x` up to which they are read once.
    few: usize,
    run: Loop,
}

/// The kernel of a quantised format in words of `$words`, compiled by the function `$loop`.
macro_rules! quantised {
    ($format:expr, $words:ty, $loop:ident) => {{
        type W = $words;
        let start = |shift| Start {
            shift,
            of: W::start,
        };
        let small = |shift| Records::Small(start(shift));
        match $format {
            Format::Q4_0 => Self::with::<W, Q4_0>(small(8), $loop::<Q4_0>),
            Format::Q8_0 => Self::with::<W, Q8_0>(small(W::BYTE_SHIFT), $loop::<Q8_0>),
            Format::Q4K => Self::with::<W, Q4K>(Records::Affine, $loop::<Q4K>),
            Format::Q5K => Self::with::<W, Q5K>(Records::Affine, $loop::<Q5K>),
            Format::Q6K => Self::with::<W, Q6K>(Records::Signed(start(32)), $loop::<Q6K>),
            Format::F32 | Format::F16 | Format::Bf16 => unreachable!("a float"),
        }
    }};
}
/// The same of a format of floats, in vectors of `$lanes`.
macro_rules! floats {
    ($format:expr, $lanes:ty, $loop:ident) => {
        match $format {
            Format::F32 => Self::of_floats::<$lanes, F32>($loop::<F32>),
            Format::F16 => Self::of_floats::<$lanes, F16>($loop::<F16>),
            _ => Self::of_floats::<$lanes, Bf16>($loop::<Bf16>),
        }
    };
}

impl Kernel {
    /// For matrices of `format`, on a machine that has `level`.
    pub(super) fn of(format: Format, level: Level) -> Self {
        let bf16 = format == Format::Bf16;
        let float = bf16 || matches!(format, Format::F32 | Format::F16);
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::VnniBf16 if bf16 => Self::of_floats::<Avx512, Pairs>(dots_bf16),
            #[cfg(target_arch = "x86_64")]
            Level::VnniBf16 | Level::Vnni if float => floats!(format, Avx512, dots_avx512),
            #[cfg(target_arch = "x86_64")]
            Level::VnniBf16 | Level::Vnni => {
                quantised!(format, Vnni, vnni)
            }
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni | Level::Avx2 if float => floats!(format, Avx2, dots_avx2),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => quantised!(format, AvxVnni, avx_vnni),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => quantised!(format, Avx2, avx2),
            // The compiler makes NEON of the portable loops.
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot if float => floats!(format, Portable, dots_portable),
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => quantised!(format, Dot, neon_dot),
            Level::Portable if float => floats!(format, Portable, dots_portable),
            Level::Portable => quantised!(format, Portable, portable),
        }
    }

    fn with<W: Words, F: Weights<W>>(records: Records, run: Loop) -> Self {
        Self {
            records,
            lanes: W::Floats::N,
            block: size_of::<F::Block>(),
            few: FEW,
            run,
        }
    }

    /// Of floats.
    fn of_floats<L: Lanes, F: Numbers<L>>(run: Loop) -> Self {
        Self {
            records: F::RECORDS,
            lanes: dots::ROWS,
            block: dots::ROWS * F::COUNT * F::BYTES,
            few: L::N / dots::ROWS,
            run,
        }
    }

    /// Groups of rows of one task.
    fn groups(&self, job: &Job) -> usize {
        if job.n <= self.few {
            return TASK.div_ceil(self.lanes * job.stride());
        }
        let blocks = job.columns.div_ceil(self.records.block().0);
        (PANEL / (GROUPS * blocks * self.block)).clamp(1, 4) * GROUPS
    }

    /// Parts of the job that may be computed at the same time.
    pub(super) fn tasks(&self, job: &Job) -> usize {
        job.rows.div_ceil(self.lanes).div_ceil(self.groups(job))
    }

    /// Computes some of them.
    ///
    /// # Safety
    /// The machine has the kernel's instructions; the weights are whole blocks of the kernel's format,
    /// `x` is prepared for it, and `out` is alive and holds `[n, rows]`, of which nobody else uses the
    /// rows of these tasks meanwhile.
    pub(super) unsafe fn run(&self, job: &Job, tasks: &mut dyn Iterator<Item = usize>) {
        let (groups, all) = (self.groups(job), job.rows.div_ceil(self.lanes));
        let of = |task| task * groups..all.min((task + 1) * groups);
        // SAFETY: the caller's; the groups are those of these tasks.
        unsafe { (self.run)(job, &mut tasks.map(of)) }
    }
}

/// Computes the outputs of groups of as many rows as there are lanes; see [`Kernel::run`].
type Loop = unsafe fn(&Job, Tasks);

/// The groups of one task after the other.
pub(super) type Tasks<'a> = &'a mut dyn Iterator<Item = Range<usize>>;

macro_rules! compiled {
    ($(#[$attribute:meta])* $name:ident, $words:ty) => {
        $(#[$attribute])*
        unsafe fn $name<F: Weights<$words>>(job: &Job, tasks: Tasks) {
            // SAFETY: the caller's.
            unsafe { run::<$words, F>(job, tasks) }
        }
    };
}

compiled!(portable, Portable);
compiled!(
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon,dotprod")]
    neon_dot,
    Dot
);
compiled!(
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    avx2,
    Avx2
);
compiled!(
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    avx_vnni,
    AvxVnni
);

/// The same with a way of its own for one row of `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn vnni<F: Along>(job: &Job, tasks: Tasks) {
    let blocks = job.columns.div_ceil(F::NUMBERS);
    // SAFETY: the caller's; rows are as long as it takes.
    unsafe {
        match job.n {
            1 if blocks >= F::By::FEWEST => along::run::<F>(job, tasks),
            _ => run::<Vnni, F>(job, tasks),
        }
    }
}

/// The same of floats.
macro_rules! compiled_dots {
    ($(#[$attribute:meta])* $name:ident, $lanes:ty) => {
        $(#[$attribute])*
        unsafe fn $name<F: Numbers<$lanes>>(job: &Job, tasks: Tasks) {
            // SAFETY: the caller's.
            unsafe { dots::run::<$lanes, F>(job, tasks) }
        }
    };
}

compiled_dots!(dots_portable, Portable);
compiled_dots!(
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    dots_avx2,
    Avx2
);
compiled_dots!(
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")]
    dots_avx512,
    Avx512
);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn dots_bf16(job: &Job, tasks: Tasks) {
    // SAFETY: the caller's.
    unsafe { dots::run::<Avx512, Pairs>(job, tasks) }
}

/// # Safety
/// As [`Kernel::run`], for these groups of rows.
#[inline(always)]
unsafe fn run<W: Words, F: Weights<W>>(job: &Job, tasks: Tasks) {
    job.check::<W, F>();
    // SAFETY: the caller's.
    unsafe {
        for groups in tasks {
            if job.n > FEW {
                many::<W, F>(job, groups);
                continue;
            }
            for group in groups {
                match job.n {
                    0 => {}
                    1 => few::<W, F, 1>(job, group),
                    2 => few::<W, F, 2>(job, group),
                    3..=4 => few::<W, F, 4>(job, group),
                    _ => few::<W, F, FEW>(job, group),
                }
            }
        }
    }
}

/// One group of rows with at most `N` rows of `x`.
///
/// # Safety
/// As [`Kernel::run`].
#[inline(always)]
unsafe fn few<W: Words, F: Weights<W>, const N: usize>(job: &Job, group: usize) {
    let blocks = job.columns.div_ceil(F::NUMBERS);
    let x = job.records::<N>(0);
    // SAFETY: the caller's; block `b` of rows and records is there.
    unsafe {
        let rows = Rows::of::<W>(job, group);
        let mut sums = [[W::Floats::splat(0.0); N]; 1];
        let mut block = MaybeUninit::uninit();
        for b in 0..blocks {
            // In two parts: what is asked for at once keeps what is needed now waiting.
            let (half, all) = (W::Floats::N / 2, W::Floats::N);
            rows.prefetch_next::<W, F>(b, 0..half);
            rows.unpack::<W, F>(b, &mut block);
            rows.prefetch_next::<W, F>(b, half..all);
            F::multiply::<1, N>(
                [block.assume_init_ref()],
                x.map(|x| x.add(b * F::RECORD)),
                &mut sums,
            );
        }
        put::<W, 1, N>(job, group, 0, &sums);
    }
}

/// Groups of rows, unpacked once, with any number of rows of `x`.
///
/// # Safety
/// As [`Kernel::run`].
#[inline(always)]
unsafe fn many<W: Words, F: Weights<W>>(job: &Job, groups: Range<usize>) {
    let blocks = job.columns.div_ceil(F::NUMBERS);
    let mut panel: Vec<F::Block> =
        Vec::with_capacity(groups.len().next_multiple_of(GROUPS) * blocks);
    let tiles = groups.len().div_ceil(GROUPS);
    // SAFETY: the caller's; the panel holds `[tiles][blocks][GROUPS]`, all written before they are read.
    unsafe {
        let room: &mut [MaybeUninit<F::Block>] = panel.spare_capacity_mut();
        for tile in 0..tiles {
            for g in 0..GROUPS {
                // An odd group out is computed twice.
                let group = (groups.start + tile * GROUPS + g).min(groups.end - 1);
                let rows = Rows::of::<W>(job, group);
                for b in 0..blocks {
                    let block = &mut room[(tile * blocks + b) * GROUPS + g];
                    rows.unpack::<W, F>(b, block);
                }
            }
        }
        panel.set_len(tiles * blocks * GROUPS);
        for first in (0..job.n).step_by(TOGETHER) {
            for (tile, panel) in panel.chunks_exact(blocks * GROUPS).enumerate() {
                let mut x = job.records::<TOGETHER>(first);
                let mut sums = [[W::Floats::splat(0.0); TOGETHER]; GROUPS];
                for blocks in panel.as_chunks::<GROUPS>().0 {
                    F::multiply(blocks.each_ref(), x, &mut sums);
                    x = x.map(|x| x.add(F::RECORD));
                }
                put::<W, GROUPS, TOGETHER>(job, groups.start + tile * GROUPS, first, &sums);
            }
        }
    }
}

/// The rows of weights of one group.
pub(super) struct Rows {
    pub(super) from: *const u8,
    pub(super) stride: usize,
    /// Of the last rows of a matrix, those and rows of zeros.
    _padded: Vec<u8>,
}

impl Rows {
    #[inline(always)]
    pub(super) fn of<W: Words>(job: &Job, group: usize) -> Self {
        let (lanes, stride) = (W::Floats::N, job.stride());
        let here = &job.weights[group * lanes * stride..];
        let mut padded = Vec::new();
        if here.len() < lanes * stride {
            padded = here.to_vec();
            padded.resize(lanes * stride, 0);
        }
        let rows = if padded.is_empty() { here } else { &padded };
        Self {
            from: rows.as_ptr(),
            stride,
            _padded: padded,
        }
    }

    /// As much of the next group as block `b` of some rows is of this one.
    #[inline(always)]
    pub(super) fn prefetch_next<W: Words, F: Weights<W>>(&self, b: usize, rows: Range<usize>) {
        let next = W::Floats::N * (self.stride + b * F::BYTES) + rows.start * F::BYTES;
        prefetch(self.from.wrapping_add(next), rows.len() * F::BYTES);
    }

    /// # Safety
    /// The machine has the instructions of `W`; the rows have block `b`.
    #[inline(always)]
    unsafe fn unpack<W: Words, F: Weights<W>>(&self, b: usize, to: &mut MaybeUninit<F::Block>) {
        // SAFETY: the caller's.
        unsafe { F::unpack(self.from.add(b * F::BYTES), self.stride, to.as_mut_ptr()) }
    }
}

/// Writes the sums of rows from `first` on.
///
/// # Safety
/// As [`Kernel::run`].
#[inline(always)]
pub(super) unsafe fn put<W: Words, const G: usize, const N: usize>(
    job: &Job,
    group: usize,
    first: usize,
    sums: &[[Float<W>; N]; G],
) {
    let lanes = W::Floats::N;
    for (g, sums) in sums.iter().enumerate() {
        let row = (group + g) * lanes;
        let count = lanes.min(job.rows.saturating_sub(row));
        if count == 0 {
            break;
        }
        for (n, sum) in sums.iter().enumerate().take(job.n - first) {
            // SAFETY: the caller's: this task's rows of `out`.
            let out = unsafe { job.out.part((first + n) * job.rows + row, count) };
            let mut numbers = [0.0; 16];
            // SAFETY: no vector has more than 16 lanes.
            unsafe { W::Floats::store(numbers.as_mut_ptr(), *sum) };
            out.copy_from_slice(&numbers[..count]);
        }
    }
}
