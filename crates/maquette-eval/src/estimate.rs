use crate::EvalError;
use crate::error::at_least;
use serde::Serialize;

/// A mean measured on a sample, with how far it may be off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The sample mean.
    pub mean: f64,
    /// Its standard error, `s / sqrt(n)` with `s` from `n - 1` degrees of freedom; 0 for `n = 1`.
    pub standard_error: f64,
    /// How many values it was made from.
    pub n: usize,
}

impl Estimate {
    /// The mean of `values` and its standard error.
    ///
    /// # Errors
    /// No values.
    pub fn of(values: &[f64]) -> Result<Self, EvalError> {
        at_least("values to average", 1, values.len())?;
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let variance = squares / (n.max(2) - 1) as f64;
        Ok(Self {
            mean,
            standard_error: (variance / n as f64).sqrt(),
            n,
        })
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.4} ± {:.4}", self.mean, self.standard_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // 1, 2, 3, 4: mean 2.5, squares 2.25 + 0.25 + 0.25 + 2.25 = 5, s^2 = 5/3.
        let got = Estimate::of(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(got.mean, 2.5);
        assert!((got.standard_error - (5.0f64 / 12.0).sqrt()).abs() < 1e-12);
        assert_eq!(Estimate::of(&[3.0]).unwrap().standard_error, 0.0);
        assert!(Estimate::of(&[]).is_err());
    }
}
