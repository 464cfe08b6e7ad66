//! What this machine could do at most, measured: the ceilings that `maquette bench kernels` holds
//! the kernels against (Williams et al. 2009, "Roofline").

mod ones;

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::elementwise::vectorized;
#[cfg(target_arch = "x86_64")]
use crate::gemm::Native;
use crate::gemm::{Multiply, Single};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Lanes, Portable};

pub use ones::backward;

/// Attempts of which the best counts.
const ROUNDS: usize = 7;

/// 32-bit multiplications and additions per second with everything in registers, on all threads.
pub fn peak_flops() -> f64 {
    let isa = Isa::detect();
    // SAFETY: `Isa` values other than `Portable` exist only where the instructions were detected.
    rate(2 * isa.lanes(), || unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => spin_avx512(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => spin_avx2(),
            Isa::Portable => spin::<Portable, Single>(),
        }
    })
}

/// The same of bf16 multiplied in pairs and added up in 32 bits; `None` where no instruction does it.
pub fn peak_bf16_flops() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if multiplies_bf16() {
        // SAFETY: the instructions were just detected.
        return Some(rate(4 * Isa::Avx512.lanes(), || unsafe { spin_bf16() }));
    }
    None
}

/// Whether the processor has an instruction for products of bf16 that the kernels use (AVX512-BF16).
/// Without, they multiply the rounded numbers as 32-bit floats: the same results, no faster than those.
pub fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    if Isa::detect() == Isa::Avx512 {
        return Isa::has_bf16();
    }
    false
}

/// Operations per second of `spin` on all threads, of which one vector instruction does `each`.
fn rate(each: usize, spin: impl Fn() -> f32 + Sync) -> f64 {
    let all = (LOOPS * SUMS * each * rayon::current_num_threads()) as f64;
    best(|| {
        rayon::broadcast(|_| black_box(spin()));
        all
    })
}

/// Times every sum is added to.
const LOOPS: usize = 1 << 20;

/// Bytes per second, read plus written, of a copy between arrays far larger than the caches, on
/// all threads. Most machines also read what they are about to overwrite, which is not counted.
pub fn copy_bandwidth() -> f64 {
    bandwidth(2, |to, from| to.copy_from_slice(from))
}

/// Bytes per second, read plus written, of adding one such array to another in place.
pub fn update_bandwidth() -> f64 {
    bandwidth(3, |to, from| {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    })
}

/// Bytes per second of reading an array far larger than the caches, on all threads: what decoding one
/// text, which reads every weight once per token, cannot exceed.
pub fn read_bandwidth() -> f64 {
    // A gigabyte: there are third caches of a quarter of it.
    const LEN: usize = 1 << 28;
    const PART: usize = 1 << 16;
    let isa = Isa::detect();
    let from = vec![1.0f32; LEN];
    best(|| {
        let total: f32 = from.par_chunks(PART).map(|part| read(isa, part)).sum();
        black_box(total);
        (size_of::<f32>() * LEN) as f64
    })
}

vectorized! {
    fn read(part: &[f32]) -> f32 {
        sum_of_blocks(part)
    }
}

/// A sum in as many parts as loads can be on their way.
#[inline(always)]
fn sum_of_blocks(part: &[f32]) -> f32 {
    let mut sums = [0.0; 128];
    for block in part.as_chunks::<128>().0 {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum += x;
        }
    }
    sums.iter().sum()
}

fn bandwidth(streams: usize, pass: impl Fn(&mut [f32], &[f32]) + Sync) -> f64 {
    const LEN: usize = 1 << 25;
    const PART: usize = 1 << 16;
    let from = vec![1.0f32; LEN];
    let mut to = vec![0.0f32; LEN];
    best(|| {
        to.par_chunks_mut(PART)
            .zip(from.par_chunks(PART))
            .for_each(|(to, from)| pass(to, from));
        black_box(&to);
        (streams * size_of::<f32>() * LEN) as f64
    })
}

/// The highest rate of `work`, which gives its amount.
fn best(mut work: impl FnMut() -> f64) -> f64 {
    let rate = |_| {
        let began = Instant::now();
        let amount = work();
        amount / began.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(rate).fold(0.0, f64::max)
}

/// Sums that do not wait for each other: more than any machine's latency times its width.
const SUMS: usize = 12;

/// # Safety
/// The machine has the instructions of `L` and `M`.
#[inline(always)]
unsafe fn spin<L: Lanes, M: Multiply<L>>() -> f32 {
    // SAFETY: the caller's; `last` has room for a vector of any width.
    unsafe {
        let (a, b) = (L::splat(black_box(0.999_999)), L::splat(black_box(1e-9)));
        let mut sums = [L::splat(1.0); SUMS];
        for _ in 0..LOOPS {
            for sum in &mut sums {
                *sum = M::multiply_add(a, b, *sum);
            }
        }
        let mut last = [0.0f32; 16];
        let mut total = 0.0;
        for sum in sums {
            L::store(last.as_mut_ptr(), sum);
            total += last[0];
        }
        total
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn spin_avx512() -> f32 {
    // SAFETY: the caller's.
    unsafe { spin::<Avx512, Single>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn spin_bf16() -> f32 {
    // SAFETY: the caller's.
    unsafe { spin::<Avx512, Native>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn spin_avx2() -> f32 {
    // SAFETY: the caller's.
    unsafe { spin::<Avx2, Single>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_positive() {
        assert!(peak_flops() > 1e6);
    }
}
