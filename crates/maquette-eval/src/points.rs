use crate::EvalError;
use crate::error::{at_least, same, within};

/// Points of one size, row by row: places in the plane, or the features of images.
#[derive(Debug, Clone, Copy)]
pub struct Points<'a> {
    values: &'a [f32],
    dims: usize,
}

impl<'a> Points<'a> {
    /// `values` as rows of `dims` numbers.
    ///
    /// # Errors
    /// No points, no dimensions, an incomplete point, or a number that is not finite.
    pub fn new(values: &'a [f32], dims: usize) -> Result<Self, EvalError> {
        at_least("dimensions", 1, dims)?;
        same("numbers in the last point", values.len() % dims, 0)?;
        at_least("points", 1, values.len() / dims)?;
        for &v in values {
            within("a coordinate", f64::from(v), v.is_finite(), "finite")?;
        }
        Ok(Self { values, dims })
    }

    /// Points in the plane.
    ///
    /// # Errors
    /// As [`Points::new`].
    pub fn plane(points: &'a [[f32; 2]]) -> Result<Self, EvalError> {
        Self::new(points.as_flattened(), 2)
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty)] // there is always one
    pub fn len(&self) -> usize {
        self.values.len() / self.dims
    }

    /// How many numbers each has.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Each point in turn.
    pub fn rows(&self) -> std::slice::ChunksExact<'a, f32> {
        self.values.chunks_exact(self.dims)
    }

    /// All numbers, point after point.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input_is_refused() {
        assert!(Points::new(&[], 2).is_err());
        assert!(Points::new(&[1.0], 2).is_err());
        assert!(Points::new(&[1.0], 0).is_err());
        assert!(Points::new(&[f32::NAN], 1).is_err());
    }
}
