//! Llama 3's stretched rotary frequencies: a file has no keys for the scheme, only its effect, what
//! each frequency is divided by.

use std::f64::consts::TAU;

use maquette_nn::{RopeScaling, rope::frequencies};

use crate::gpt::GptConfig;

/// The tensor's name; `[d_head / 2]`.
pub(crate) const FACTORS: &str = "rope_freqs.weight";

/// What to write for a model; nothing if its frequencies are stretched by another scheme or none.
pub(super) fn factors(config: &GptConfig) -> Option<Vec<f32>> {
    let scaling = config.rope_scaling?;
    let wanted = matches!(scaling, RopeScaling::Llama3 { .. });
    wanted.then(|| divisors(&scaling, config.head_width(), config.rope_theta))
}

fn divisors(scaling: &RopeScaling, d_head: usize, theta: f64) -> Vec<f32> {
    let (plain, _) = frequencies(d_head, theta, None);
    let (stretched, _) = frequencies(d_head, theta, Some(scaling));
    let both = plain.iter().zip(stretched);
    both.map(|(plain, stretched)| (plain / stretched) as f32)
        .collect()
}

/// The scheme that has this effect; none if none of Llama 3's kind has.
///
/// With `turns = old frequency / tau`, a frequency keeps the share `(turns - low) / (high - low)` of
/// itself, a line over the frequencies between 0 and 1. Two points of it give its ends; that `low` is
/// 1 is no loss, since only `old / low` and `high / low` have an effect.
pub(super) fn scaling(factors: &[f32], d_head: usize, theta: f64) -> Option<RopeScaling> {
    let (frequencies, _) = frequencies(d_head, theta, None);
    let sane = factors.iter().all(|factor| (1.0..1e6).contains(factor));
    if factors.len() != frequencies.len() || !sane {
        return None;
    }
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let kept = |divisor: f32| (1.0 / f64::from(divisor) - 1.0 / factor) / (1.0 - 1.0 / factor);
    let points: Vec<(f64, f64)> = frequencies
        .iter()
        .zip(factors)
        .map(|(frequency, divisor)| (*frequency, kept(*divisor)))
        .collect();
    let between = |(_, kept): &&(f64, f64)| (1e-4..1.0 - 1e-4).contains(kept);
    let mut inner = points.iter().filter(between);
    let (first, last) = (inner.next(), inner.next_back());
    // Frequencies fall: where the line is 1, and where it is 0.
    let (high, low) = match (first, last) {
        (Some((x, y)), Some((x1, y1))) => {
            let slope = (y - y1) / (x - x1);
            (x + (1.0 - y) / slope, x - y / slope)
        }
        // One point between two neighbours: any line through it that is steep enough to pass them by.
        (Some((x, y)), None) => {
            let width = 0.01 * x;
            (x + (1.0 - y) * width, x - y * width)
        }
        (None, _) => {
            let whole = points.iter().rev().find(|(_, kept)| *kept > 0.5)?.0;
            (whole * 0.999, whole * 0.998)
        }
    };
    let old = (TAU / low).round();
    if !(low > 0.0 && high > low && (1.0..1e9).contains(&old)) {
        return None;
    }
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: old * low / TAU,
        high_freq_factor: old * high / TAU,
        original_max_position_embeddings: old as usize,
    };
    let again = divisors(&scaling, d_head, theta);
    let close = |(a, b): (&f32, &f32)| (a / b - 1.0).abs() < 1e-3;
    again.iter().zip(factors).all(close).then_some(scaling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_found_in_its_effect() {
        for (factor, high, old, d_head, theta) in [
            (8.0, 4.0, 8192, 128, 500_000.0),
            (32.0, 4.0, 8192, 64, 500_000.0),
            (8.0, 4.0, 32, 8, 10_000.0),
            (2.0, 1.5, 64, 16, 10_000.0),
        ] {
            let scheme = RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: high,
                original_max_position_embeddings: old,
            };
            let factors = divisors(&scheme, d_head, theta);
            let found = scaling(&factors, d_head, theta).unwrap();
            for (got, expected) in divisors(&found, d_head, theta).iter().zip(factors) {
                assert!((got / expected - 1.0).abs() < 1e-4, "{found:?}");
            }
        }
        assert_eq!(scaling(&[1.0, 7.0, 2.0, 3.0], 8, 10_000.0), None);
        assert_eq!(scaling(&[1.0, f32::NAN], 4, 10_000.0), None);
        assert_eq!(scaling(&[1.0], 8, 10_000.0), None);
    }
}
