//! How near an image is to the one it should be, pixel by pixel.

use crate::EvalError;
use crate::error::{at_least, same};

/// Mean absolute difference, as a share of the whole range from black to white.
///
/// # Errors
/// No pixels, or not as many on both sides.
pub fn mean_absolute_error(made: &[u8], truth: &[u8]) -> Result<f64, EvalError> {
    mean(made, truth, |gap| gap)
}

/// Peak signal-to-noise ratio in decibels: `10 log10(255^2 / mean squared difference)`, over the pixels of
/// all images together. Infinite when there is no difference.
///
/// # Errors
/// No pixels, or not as many on both sides.
pub fn peak_signal_to_noise(made: &[u8], truth: &[u8]) -> Result<f64, EvalError> {
    Ok(-10.0 * mean(made, truth, |gap| gap * gap)?.log10())
}

fn mean(made: &[u8], truth: &[u8], of: impl Fn(f64) -> f64) -> Result<f64, EvalError> {
    same("pixels", made.len(), truth.len())?;
    at_least("pixels", 1, made.len())?;
    let gaps = made.iter().zip(truth);
    let sum: f64 = gaps
        .map(|(a, b)| of(f64::from(a.abs_diff(*b)) / 255.0))
        .sum();
    Ok(sum / made.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let (made, truth) = ([0, 255, 51, 0], [0, 0, 0, 0]);
        assert!((mean_absolute_error(&made, &truth).unwrap() - 0.3).abs() < 1e-12);
        // (1 + 0.04) / 4 = 0.26
        let psnr = peak_signal_to_noise(&made, &truth).unwrap();
        assert!((psnr - 5.850_266).abs() < 1e-5, "{psnr}");
        assert_eq!(peak_signal_to_noise(&truth, &truth).unwrap(), f64::INFINITY);
    }

    #[test]
    fn sides_must_agree() {
        assert!(mean_absolute_error(&[1], &[1, 2]).is_err());
        assert!(peak_signal_to_noise(&[], &[]).is_err());
    }
}
