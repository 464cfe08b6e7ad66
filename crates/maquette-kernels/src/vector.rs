//! Vectors of floats with the arithmetic and the functions that the element-wise kernels are made of.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::simd::Lanes;

/// Proof that this machine has the instructions of `L`.
pub(crate) struct Machine<L>(PhantomData<L>);

impl<L> Clone for Machine<L> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Machine<L> {}

impl<L: Lanes> Machine<L> {
    /// # Safety
    /// It has them.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(PhantomData)
    }

    /// The same number in every lane.
    #[inline(always)]
    pub(crate) fn splat(self, value: f32) -> Vector<L> {
        // SAFETY: `self` is the proof.
        Vector(unsafe { L::splat(value) })
    }

    /// # Safety
    /// `L::N` floats are readable.
    #[inline(always)]
    pub(crate) unsafe fn load(self, from: *const f32) -> Vector<L> {
        // SAFETY: the caller's.
        Vector(unsafe { L::load(from) })
    }

    /// The first of `count` floats, and zeros if they end before a vector does.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    pub(crate) unsafe fn load_some(self, from: *const f32, count: usize) -> Vector<L> {
        // SAFETY: the caller's.
        Vector(unsafe {
            match count >= L::N {
                true => L::load(from),
                false => L::load_first(from, count),
            }
        })
    }

    /// The floats from `at` on, and zeros beyond the last.
    #[inline(always)]
    pub(crate) fn of(self, values: &[f32], at: usize) -> Vector<L> {
        let from = values.get(at..).unwrap_or_default();
        // SAFETY: as many floats as the slice has.
        unsafe { self.load_some(from.as_ptr(), from.len()) }
    }

    /// What a vector at `start` sees of rows of `len` floats, which may be before the first.
    #[inline(always)]
    pub(crate) fn window(self, len: usize, start: isize) -> Window<L> {
        let first = (-start).clamp(0, L::N as isize);
        let end = (len as isize - start).clamp(first, L::N as isize);
        // SAFETY: `self` is the proof.
        let lanes = unsafe { L::between(first as usize, end as usize) };
        Window { len, start, lanes }
    }
}

/// A place in rows of one length, or beyond their ends.
pub(crate) struct Window<L: Lanes> {
    len: usize,
    start: isize,
    lanes: L::Mask,
}

impl<L: Lanes> Clone for Window<L> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<L: Lanes> Copy for Window<L> {}

impl<L: Lanes> Window<L> {
    /// The same with zeros at odd places, whatever the row has there.
    #[inline(always)]
    pub(crate) fn even(self) -> Self {
        // SAFETY: that there is a window proves that the machine has the instructions.
        let lanes = unsafe { L::even(self.lanes) };
        Self { lanes, ..self }
    }

    /// What it sees of a row, and zeros beyond its ends.
    ///
    /// # Panics
    /// If the row is of another length.
    #[inline(always)]
    pub(crate) fn of(self, row: &[f32]) -> Vector<L> {
        assert_eq!(row.len(), self.len, "a row of the length the window is for");
        let from = row.as_ptr().wrapping_offset(self.start);
        // SAFETY: that there is a window proves that the machine has the instructions, and only lanes
        // that stand for floats of the row are read.
        Vector(unsafe { L::load_lanes(from, self.lanes) })
    }
}

/// Lanes of the widest vector.
pub(crate) const MOST: usize = 16;

/// A vector of floats. That there is one proves that the machine has its instructions.
pub(crate) struct Vector<L: Lanes>(pub(crate) L::V);

impl<L: Lanes> Clone for Vector<L> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<L: Lanes> Copy for Vector<L> {}

/// Defines a method by the operation of [`Lanes`] of that name.
macro_rules! methods {
    ($($(#[$meta:meta])* $name:ident($($arg:ident),*);)*) => {
        $(
            $(#[$meta])*
            #[inline(always)]
            pub(crate) fn $name(self $(, $arg: Self)*) -> Self {
                // SAFETY: the vectors prove that the machine has the instructions.
                Self(unsafe { L::$name(self.0 $(, $arg.0)*) })
            }
        )*
    };
}

impl<L: Lanes> Vector<L> {
    methods! {
        /// `self * b + c`
        mul_add(b, c);
        /// `c - self * b`
        neg_mul_add(b, c);
        /// The smaller; `b` where either is a NaN.
        min(b);
        /// The larger; `b` where either is a NaN.
        max(b);
        abs();
        /// `2^(bits - 127)` of the lowest eight bits.
        exponent();
        /// `yes` where it is greater than `b`, else `no`, also where either is a NaN.
        greater(b, yes, no);
        /// `yes` where it is a NaN, else `no`.
        nan(yes, no);
    }

    /// The same number in every lane.
    #[inline(always)]
    pub(crate) fn splat(self, value: f32) -> Self {
        // SAFETY: the vector proves that the machine has the instructions.
        Self(unsafe { L::splat(value) })
    }

    /// To the first of `count` floats.
    ///
    /// # Safety
    /// They are writable.
    #[inline(always)]
    pub(crate) unsafe fn store_some(self, to: *mut f32, count: usize) {
        // SAFETY: the caller's.
        unsafe {
            match count >= L::N {
                true => L::store(to, self.0),
                false => L::store_first(to, self.0, count),
            }
        }
    }

    /// To the first floats of a slice.
    #[inline(always)]
    pub(crate) fn write(self, to: &mut [MaybeUninit<f32>]) {
        // SAFETY: as many floats as the slice has.
        unsafe { self.store_some(to.as_mut_ptr().cast(), to.len()) }
    }

    /// To the first floats of a slice that holds some already.
    #[inline(always)]
    pub(crate) fn put(self, to: &mut [f32]) {
        // SAFETY: as many floats as the slice has.
        unsafe { self.store_some(to.as_mut_ptr(), to.len()) }
    }

    #[inline(always)]
    pub(crate) fn lanes(self) -> [f32; MOST] {
        let mut lanes = [0.0; MOST];
        // SAFETY: the array has room for a vector of any width.
        unsafe { L::store(lanes.as_mut_ptr(), self.0) };
        lanes
    }

    /// With zeros from lane `count` on.
    #[inline(always)]
    pub(crate) fn first(self, count: usize) -> Self {
        assert!(count < L::N, "fewer than all lanes");
        // SAFETY: the vector proves that the machine has the instructions.
        Self(unsafe { L::first(self.0, count) })
    }

    /// Of sixteen numbers those whose places are the lowest four bits of each lane.
    #[inline(always)]
    pub(crate) fn choose(self, of: &[f32; MOST]) -> Self {
        // SAFETY: the vector proves that the machine has the instructions.
        Self(unsafe { L::choose(self.0, of) })
    }

    /// The sum of all lanes.
    #[inline(always)]
    pub(crate) fn total(self) -> f32 {
        let mut lanes = self.lanes();
        let mut len = L::N;
        while len > 1 {
            len /= 2;
            for i in 0..len {
                lanes[i] += lanes[i + len];
            }
        }
        lanes[0]
    }

    /// The largest lane; none may be a NaN.
    #[inline(always)]
    pub(crate) fn largest(self) -> f32 {
        let mut lanes = self.lanes();
        let mut len = L::N;
        while len > 1 {
            len /= 2;
            for i in 0..len {
                lanes[i] = if lanes[i + len] > lanes[i] {
                    lanes[i + len]
                } else {
                    lanes[i]
                };
            }
        }
        lanes[0]
    }

    /// Of this and then `other`, the numbers at even places, and those at odd ones.
    #[inline(always)]
    pub(crate) fn unzip(self, other: Self) -> [Self; 2] {
        // SAFETY: the vectors prove that the machine has the instructions.
        let [even, odd] = unsafe { L::unzip(self.0, other.0) };
        [Self(even), Self(odd)]
    }

    /// Numbers of this and of `other` in turn.
    #[inline(always)]
    pub(crate) fn zip(self, other: Self) -> [Self; 2] {
        // SAFETY: as above.
        let [low, high] = unsafe { L::zip(self.0, other.0) };
        [Self(low), Self(high)]
    }

    /// A vector of which lane `i` is `f` over all lanes of vector `i`, of the first as many as there are
    /// lanes.
    #[inline(always)]
    pub(crate) fn across(mut vectors: [Self; MOST], f: impl Fn(Self, Self) -> Self) -> Self {
        let mut len = L::N;
        while len > 1 {
            len /= 2;
            for i in 0..len {
                let [even, odd] = vectors[2 * i].unzip(vectors[2 * i + 1]);
                vectors[i] = f(even, odd);
            }
        }
        vectors[0]
    }

    /// `1 / self`
    #[inline(always)]
    pub(crate) fn recip(self) -> Self {
        self.splat(1.0) / self
    }

    /// `e^x` to about one unit in the last place: `2^n e^r` with whole `n` and `|r| <= ln(2) / 2`, and for
    /// `e^r` the polynomial of degree five that is `1 + r` at zero and else least wrong, by `1.1e-7`.
    /// Below -88 it is zero, above 88 about 1e38; a NaN stays one.
    #[inline(always)]
    pub(crate) fn exp(self) -> Self {
        self.splat(88.0).min(self).exp_of_negative()
    }

    /// [`Self::exp`] of what is known to be at most 88: logits less the largest, squares times minus one.
    #[inline(always)]
    pub(crate) fn exp_of_negative(self) -> Self {
        /// Adding it rounds to an integer, whose lowest bits then are an exponent's.
        const ROUND: f32 = 12_582_912.0 + 127.0;
        /// ln 2 in two parts, so that the product of the first with `n` is exact.
        const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
        let of = |value| self.splat(value);
        // That of the lowest is 2^-127, which has no bits: zero, where the least normal number over a sum would
        // be a denormal one, with which products take a hundred times as long on some machines.
        let x = of(-88.0).max(self);
        let rounded = x.mul_add(of(std::f32::consts::LOG2_E), of(ROUND));
        let n = rounded - ROUND;
        let r = n.neg_mul_add(of(LN_2[1]), n.neg_mul_add(of(LN_2[0]), x));
        let p = of(8.312_479e-3).mul_add(r, of(4.189_055e-2));
        let p = p.mul_add(r, of(1.666_711_6e-1));
        let p = p.mul_add(r, of(4.999_922_8e-1));
        let p = p.mul_add(r, of(1.0)).mul_add(r, of(1.0));
        p * rounded.exponent()
    }

    /// `1 / (1 + e^-x)`
    #[inline(always)]
    pub(crate) fn sigmoid(self) -> Self {
        ((-self).exp() + 1.0).recip()
    }

    #[inline(always)]
    pub(crate) fn tanh(self) -> Self {
        (self + self)
            .sigmoid()
            .mul_add(self.splat(2.0), self.splat(-1.0))
    }

    /// `log(1 + e^x)`, to a few units in the last place.
    #[inline(always)]
    pub(crate) fn softplus(self) -> Self {
        let t = (-self.abs()).exp_of_negative();
        // log(1 + t) = 2 artanh(s) with s = t / (2 + t), at most 1/3: seven terms of its series.
        let s = t / (t + 2.0);
        let square = s * s;
        let series = [11.0, 9.0, 7.0, 5.0, 3.0, 1.0f32].into_iter();
        let series = series.fold(self.splat(1.0 / 13.0), |sum, n| {
            sum.mul_add(square, self.splat(1.0 / n))
        });
        // Of a NaN `exp` is one.
        let positive = self.max(self.splat(0.0));
        (s + s).mul_add(series, positive)
    }
}

/// Implements an operator between vectors, and between a vector and a number.
macro_rules! operator {
    ($trait:ident, $method:ident, $operation:ident) => {
        impl<L: Lanes> $trait for Vector<L> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the vectors prove that the machine has the instructions.
                Self(unsafe { L::$operation(self.0, other.0) })
            }
        }

        impl<L: Lanes> $trait<f32> for Vector<L> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: f32) -> Self {
                self.$method(self.splat(other))
            }
        }
    };
}

operator!(Add, add, add);
operator!(Sub, sub, sub);
operator!(Mul, mul, mul);
operator!(Div, div, div);

impl<L: Lanes> Neg for Vector<L> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        self.splat(0.0) - self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elementwise::{map, vectorized};
    use crate::simd::Isa;

    vectorized! {
        fn functions<L>(machine, x: &[f32], out: &mut [MaybeUninit<f32>]) {
            let (exp, rest) = out.split_at_mut(x.len());
            let (softplus, tanh) = rest.split_at_mut(x.len());
            map(machine, [x], exp, |[x]| x.exp());
            map(machine, [x], softplus, |[x]| x.softplus());
            map(machine, [x], tanh, |[x]| x.tanh());
        }
    }

    /// `exp`, `softplus` and `tanh` of each number.
    fn all(isa: Isa, x: &[f32]) -> [Vec<f32>; 3] {
        let mut out = vec![MaybeUninit::new(0.0); 3 * x.len()];
        functions(isa, x, &mut out);
        // SAFETY: they were initialised to begin with.
        let out: Vec<f32> = out.iter().map(|x| unsafe { x.assume_init() }).collect();
        [0, 1, 2].map(|i| out[i * x.len()..][..x.len()].to_vec())
    }

    #[test]
    fn functions_are_exact_to_a_few_units_in_the_last_place() {
        let x: Vec<f32> = (-8_700..=8_800).map(|i| i as f32 / 100.0).collect();
        for isa in Isa::available() {
            let [exp, softplus, tanh] = all(isa, &x);
            for (i, x) in x.iter().enumerate() {
                let exact = f64::from(*x).exp();
                let close = |ours: f32, exact: f64, by: f64| {
                    let error = (f64::from(ours) / exact - 1.0).abs();
                    assert!(error < by, "{isa:?}, of {x}: {ours}, not {exact}");
                };
                close(exp[i], exact, 3e-7);
                close(softplus[i], exact.ln_1p(), 5e-7);
                assert!((f64::from(tanh[i]) - f64::from(*x).tanh()).abs() < 3e-7);
            }
        }
    }

    #[test]
    fn functions_have_limits() {
        let x = [0.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 1e30, -1e30];
        for isa in Isa::available() {
            let [exp, softplus, tanh] = all(isa, &x);
            assert_eq!(exp[0], 1.0);
            assert!(exp[2] == 0.0 && exp[5] == 0.0 && exp[3] > 1e38);
            assert!(softplus[4] == 1e30 && softplus[5] == 0.0);
            assert_eq!(tanh[2..], [-1.0, 1.0, 1.0, -1.0]);
            assert!(exp[1].is_nan() && softplus[1].is_nan() && tanh[1].is_nan());
        }
    }
}
