//! Python's random numbers, so that the same examples are drawn as by lm-evaluation-harness.

use rand_mt::Mt;

/// `random.Random(seed)`: the Mersenne Twister (Matsumoto and Nishimura 1998), seeded by an array.
pub(super) struct PythonRandom(Mt);

impl PythonRandom {
    pub(super) fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// `random.random()`: 53 bits.
    fn uniform(&mut self) -> f64 {
        let high = f64::from(self.0.next_u32() >> 5);
        let low = f64::from(self.0.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    /// `random._randbelow(n)` for `n` of at most 32 bits and at least 1.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.0.next_u32() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `random.sample(range(n), k)`; `k` at most `n`.
    pub(super) fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut room = 21;
        if k > 5 {
            let log = ((3 * k) as f64).ln() / 4f64.ln();
            room += 4usize.pow(log.ceil() as u32);
        }
        if n <= room {
            let mut pool: Vec<usize> = (0..n).collect();
            let mut draw = |i: usize| {
                let at = self.below(n - i);
                let drawn = pool[at];
                pool[at] = pool[n - i - 1];
                drawn
            };
            return (0..k).map(&mut draw).collect();
        }
        let mut drawn: Vec<usize> = Vec::with_capacity(k);
        while drawn.len() < k {
            let at = self.below(n);
            if !drawn.contains(&at) {
                drawn.push(at);
            }
        }
        drawn
    }

    /// `random.choices(values, k=len(values))`.
    pub(super) fn resample(&mut self, values: &[f64], out: &mut [f64]) {
        let n = values.len() as f64;
        out.fill_with(|| values[(self.uniform() * n) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `r = random.Random(1234); r.sample(range(10), 3), r.sample(range(1000), 7), r.choices(range(10), k=10)`
    #[test]
    fn draws_what_python_draws() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(10, 3), PYTHON_3);
        assert_eq!(random.sample(1000, 7), PYTHON_7);
        let values: Vec<f64> = (0..10).map(f64::from).collect();
        let mut out = vec![0.0; 10];
        random.resample(&values, &mut out);
        assert_eq!(out, PYTHON_10);
    }

    const PYTHON_3: [usize; 3] = [7, 1, 0];
    const PYTHON_7: [usize; 7] = [92, 932, 965, 961, 826, 596, 35];
    const PYTHON_10: [f64; 10] = [6.0, 0.0, 7.0, 2.0, 0.0, 7.0, 3.0, 6.0, 6.0, 1.0];
}
