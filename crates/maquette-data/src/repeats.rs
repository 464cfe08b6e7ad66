//! Random tokens that come again: what a model can only guess by looking back at its own text.

use maquette_rng::rand::RngExt as _;
use maquette_rng::{Stream, rng};

use crate::Windows;

/// `batch` rows of random tokens below `vocab_size`, each repeating itself after a period of its own
/// between a quarter and half of `seq_len`: after one period every token follows from the text,
/// before it none does. Also says each row's period. A pure function of `(seed, step)`.
///
/// # Panics
/// If `seq_len` is below 4 or there is no token.
pub fn repeats(
    (batch, seq_len): (usize, usize),
    vocab_size: u32,
    seed: u64,
    step: u64,
) -> (Windows, Vec<usize>) {
    assert!(seq_len >= 4 && vocab_size > 0, "nothing can come again");
    let random = &mut rng(seed, Stream::Data, step);
    let mut periods = Vec::with_capacity(batch);
    let mut rows: Vec<Vec<u32>> = Vec::with_capacity(batch);
    for _ in 0..batch {
        let period = random.random_range(seq_len / 4..=seq_len / 2);
        let once: Vec<u32> = (0..period)
            .map(|_| random.random_range(0..vocab_size))
            .collect();
        rows.push(once.iter().copied().cycle().take(seq_len + 1).collect());
        periods.push(period);
    }
    (
        Windows::cut(rows.iter().map(Vec::as_slice), seq_len),
        periods,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_again_after_a_period_that_differs() {
        let (windows, periods) = repeats((50, 16), 9, 3, 1);
        for (row, period) in windows.targets.chunks(16).zip(&periods) {
            assert!((4..=8).contains(period));
            assert!((*period..16).all(|at| row[at] == row[at - period]));
        }
        assert!(periods.iter().any(|period| *period != periods[0]));
        assert_eq!(repeats((50, 16), 9, 3, 1), (windows, periods));
    }
}
