//! Loops over flat slices compiled once per instruction set.

use std::mem::MaybeUninit;

use crate::simd::Lanes;
use crate::vector::{Machine, Vector};

/// Numbers of one parallel task of an element-wise pass: 64 KiB, a few microseconds of work.
pub(crate) const GRAIN: usize = 1 << 14;

/// Rows worth a task of their own where each number takes an exponential, which costs a few times what a
/// plain pass does.
pub(crate) fn rows_of_exponentials(width: usize) -> usize {
    (GRAIN / 4).div_ceil(width)
}

/// Defines a function that takes the instruction set first and is compiled for each of them.
///
/// With `<L>` and the name of a [`Machine`] before the arguments it is written over vectors; without, it
/// is plain code without branches that the compiler makes vectors of.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$lanes:ident>($machine:ident, $($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::simd::Isa, $($arg: $type),*) $(-> $ret)? {
            use $crate::simd::{Isa, Lanes, Portable};
            use $crate::vector::Machine;
            #[inline(always)]
            fn body<$lanes: Lanes>($machine: Machine<$lanes>, $($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $ret)? {
                // SAFETY: called where the instructions were detected.
                body(unsafe { Machine::<$crate::simd::Avx512>::assume() }, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $ret)? {
                // SAFETY: as above.
                body(unsafe { Machine::<$crate::simd::Avx2>::assume() }, $($arg),*)
            }
            match isa {
                // SAFETY: these values of `Isa` exist only where the instructions were detected.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: it needs no instruction of its own.
                Isa::Portable => body(unsafe { Machine::<Portable>::assume() }, $($arg),*),
            }
        }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::simd::Isa, $($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
            match isa {
                // SAFETY: these values of `Isa` exist only where the instructions were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                $crate::simd::Isa::Portable => body($($arg),*),
            }
        }
    };
}
pub(crate) use vectorized;

/// Vectors of a sum that do not wait for each other: an addition's latency.
const STREAMS: usize = 4;

/// Sums of vectors that are being added up.
pub(crate) struct Sums<L: Lanes, const S: usize>([[Vector<L>; S]; STREAMS]);

impl<L: Lanes, const S: usize> Sums<L, S> {
    #[inline(always)]
    pub(crate) fn new(machine: Machine<L>) -> Self {
        Self([[machine.splat(0.0); S]; STREAMS])
    }

    /// The vectors, of which the lanes are still to be added up.
    #[inline(always)]
    fn vectors(self) -> [Vector<L>; S] {
        let [mut a, b, c, d] = self.0;
        for (i, sum) in a.iter_mut().enumerate() {
            *sum = (*sum + b[i]) + (c[i] + d[i]);
        }
        a
    }

    #[inline(always)]
    pub(crate) fn totals(self) -> [f32; S] {
        let mut totals = [0.0; S];
        for (total, sum) in totals.iter_mut().zip(self.vectors()) {
            *total = sum.total();
        }
        totals
    }
}

/// Calls `f` with a vector of each input, writes what it gives to the outputs and adds the terms to
/// `sums`, from the first number to the last. What is left at the end is a vector filled up with zeros,
/// of whose results only the lanes that stand for numbers count.
///
/// `f` is called at one place only, so that it is compiled into the loop.
///
/// # Safety
/// `len` floats are readable at each input and writable at each output. An output is an input, or
/// overlaps with none.
#[inline(always)]
pub(crate) unsafe fn walk_on<L: Lanes, const I: usize, const O: usize, const S: usize>(
    machine: Machine<L>,
    len: usize,
    (inputs, outputs): ([*const f32; I], [*mut f32; O]),
    sums: &mut Sums<L, S>,
    mut f: impl FnMut([Vector<L>; I]) -> ([Vector<L>; O], [Vector<L>; S]),
) {
    let mut at = 0;
    while at < len {
        for sums in &mut sums.0 {
            if at >= len {
                break;
            }
            let count = len - at;
            let mut x = [machine.splat(0.0); I];
            for (x, from) in x.iter_mut().zip(inputs) {
                // SAFETY: the numbers from `at` on are inside.
                *x = unsafe { machine.load_some(from.add(at), count) };
            }
            let (y, terms) = f(x);
            for (y, to) in y.into_iter().zip(outputs) {
                // SAFETY: as above.
                unsafe { y.store_some(to.add(at), count) };
            }
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum = *sum
                    + if count < L::N {
                        term.first(count)
                    } else {
                        term
                    };
            }
            at += L::N;
        }
    }
}

/// [`walk_on`] from sums of nothing, which gives their totals.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn walk<L: Lanes, const I: usize, const O: usize, const S: usize>(
    machine: Machine<L>,
    len: usize,
    places: ([*const f32; I], [*mut f32; O]),
    f: impl FnMut([Vector<L>; I]) -> ([Vector<L>; O], [Vector<L>; S]),
) -> [f32; S] {
    let mut sums = Sums::new(machine);
    // SAFETY: the caller's.
    unsafe { walk_on(machine, len, places, &mut sums, f) };
    sums.totals()
}

/// The addresses of slices of one length.
///
/// # Panics
/// If a length is another.
#[inline(always)]
fn addresses<const I: usize>(inputs: [&[f32]; I], len: usize) -> [*const f32; I] {
    inputs.map(|input| {
        assert_eq!(input.len(), len, "slices of one length");
        input.as_ptr()
    })
}

/// Writes `f` of the inputs.
///
/// # Panics
/// If lengths differ.
#[inline(always)]
pub(crate) fn map<L: Lanes, const I: usize>(
    machine: Machine<L>,
    inputs: [&[f32]; I],
    out: &mut [MaybeUninit<f32>],
    f: impl Fn([Vector<L>; I]) -> Vector<L>,
) {
    let places = (addresses(inputs, out.len()), [out.as_mut_ptr().cast()]);
    // SAFETY: slices of one length, of which `out` is borrowed to be written.
    unsafe { walk(machine, out.len(), places, |x| ([f(x)], [])) };
}

/// Changes numbers to `f` of them and of the inputs, and adds up what it gives beside.
///
/// # Panics
/// If lengths differ, or `f` does not take one vector more than there are inputs.
#[inline(always)]
pub(crate) fn update<L: Lanes, const I: usize, const J: usize, const S: usize>(
    machine: Machine<L>,
    values: &mut [f32],
    inputs: [&[f32]; I],
    f: impl Fn([Vector<L>; J]) -> (Vector<L>, [Vector<L>; S]),
) -> [f32; S] {
    const { assert!(J == I + 1, "the values before the inputs") };
    let (len, to) = (values.len(), values.as_mut_ptr());
    let mut from = [to.cast_const(); J];
    from[1..].copy_from_slice(&addresses(inputs, len));
    // SAFETY: slices of one length, of which `values` is borrowed to be changed.
    unsafe {
        walk(machine, len, (from, [to]), |x| {
            let (y, terms) = f(x);
            ([y], terms)
        })
    }
}

/// Adds up `f` of the inputs.
///
/// # Panics
/// If lengths differ.
#[inline(always)]
pub(crate) fn sums<L: Lanes, const I: usize, const S: usize>(
    machine: Machine<L>,
    inputs: [&[f32]; I],
    f: impl Fn([Vector<L>; I]) -> [Vector<L>; S],
) -> [f32; S] {
    let len = inputs[0].len();
    // SAFETY: slices of one length.
    unsafe { walk(machine, len, (addresses(inputs, len), []), |x| ([], f(x))) }
}

/// [`sums`] as vectors, of which the lanes are still to be added up: those of many rows at once by
/// [`Vector::across`].
///
/// # Panics
/// If lengths differ.
#[inline(always)]
pub(crate) fn partial_sums<L: Lanes, const I: usize, const S: usize>(
    machine: Machine<L>,
    inputs: [&[f32]; I],
    f: impl Fn([Vector<L>; I]) -> [Vector<L>; S],
) -> [Vector<L>; S] {
    let len = inputs[0].len();
    let mut sums = Sums::new(machine);
    // SAFETY: slices of one length.
    unsafe {
        walk_on(machine, len, (addresses(inputs, len), []), &mut sums, |x| {
            ([], f(x))
        })
    };
    sums.vectors()
}

/// The largest number; minus infinity of none. NaNs are passed over.
#[inline(always)]
pub(crate) fn max<L: Lanes>(machine: Machine<L>, values: &[f32]) -> f32 {
    let len = values.len();
    let Some(last) = len.checked_sub(L::N) else {
        let larger = |top, x: &f32| if *x > top { *x } else { top };
        return values.iter().fold(f32::NEG_INFINITY, larger);
    };
    // SAFETY: a vector from `last` on or before is inside.
    let x = |at: usize| unsafe { machine.load(values.as_ptr().add(at.min(last))) };
    let mut tops = [machine.splat(f32::NEG_INFINITY); STREAMS];
    let mut at = 0;
    while len - at >= STREAMS * L::N {
        for (i, top) in tops.iter_mut().enumerate() {
            *top = x(at + i * L::N).max(*top);
        }
        at += STREAMS * L::N;
    }
    // The last vector ends where the numbers do: some may be seen twice.
    while at < len {
        tops[0] = x(at).max(tops[0]);
        at += L::N;
    }
    let [a, b, c, d] = tops;
    a.max(b).max(c.max(d)).largest()
}

vectorized! {
    pub(crate) fn multiply_by(values: &mut [f32], factors: &[f32]) {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
    }
}

vectorized! {
    /// Adds each number of `other`.
    pub(crate) fn add(values: &mut [f32], other: &[f32]) {
        for (value, other) in values.iter_mut().zip(other) {
            *value += other;
        }
    }
}

vectorized! {
    pub(crate) fn total<L>(machine, values: &[f32]) -> f32 {
        sums(machine, [values], |[x]| [x])[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    vectorized! {
        fn doubled<L>(machine, values: &mut [f32], other: &[f32]) -> [f32; 2] {
            update(machine, values, [other], |[x, y]| (x + x, [x, x * y]))
        }
    }

    vectorized! {
        fn largest<L>(machine, values: &[f32]) -> f32 {
            max(machine, values)
        }
    }

    #[test]
    fn every_number_counts_once() {
        for isa in Isa::available() {
            for len in [0usize, 1, 3, 4, 15, 16, 17, 31, 64, 100] {
                let numbers: Vec<f32> = (0..len).map(|i| i as f32).collect();
                let expected = (len * len.saturating_sub(1) / 2) as f32;
                assert_eq!(total(isa, &numbers), expected);
                let (mut changed, twos) = (numbers.clone(), vec![2.0; len]);
                let sums = doubled(isa, &mut changed, &twos);
                assert_eq!(sums, [expected, 2.0 * expected]);
                let mut rows = changed.iter().zip(&numbers);
                assert!(rows.all(|(doubled, x)| *doubled == 2.0 * x));
                let top = numbers.last().copied().unwrap_or(f32::NEG_INFINITY);
                assert_eq!(largest(isa, &numbers), top);
            }
            assert_eq!(largest(isa, &[f32::NAN, -3.0, f32::NAN]), -3.0);
        }
    }
}
