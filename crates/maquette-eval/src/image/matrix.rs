//! Features as matrices of 64-bit floats.

use crate::points::Points;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, get_global_parallelism};

/// `[dims, rows]`: the features of these points as columns, less `centre`.
pub(super) fn columns(
    points: Points<'_>,
    rows: impl ExactSizeIterator<Item = usize>,
    centre: Option<&[f64]>,
) -> Mat<f64> {
    let dims = points.dims();
    let mut matrix = Mat::zeros(dims, rows.len());
    for (column, row) in rows.enumerate() {
        let from = &points.values()[row * dims..][..dims];
        let to = matrix.col_as_slice_mut(column);
        for (to, from) in to.iter_mut().zip(from) {
            *to = f64::from(*from);
        }
        for (to, centre) in to.iter_mut().zip(centre.into_iter().flatten()) {
            *to -= centre;
        }
    }
    matrix
}

/// `a^T b`.
pub(super) fn inner(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(a.ncols(), b.ncols());
    let par = get_global_parallelism();
    matmul(&mut product, Accum::Replace, a.transpose(), b, 1.0, par);
    product
}
