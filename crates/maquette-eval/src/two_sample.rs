//! Do two sets of points come from one distribution? Distances between samples, without features.

use crate::error::{at_least, same, within};
use crate::points::Points;
use crate::{Estimate, EvalError};
use maquette_rng::{Rng, normal};
use rayon::prelude::*;

/// Sliced 2-Wasserstein distance (Rabin et al. 2011; Bonneel et al. 2015): the root of the mean,
/// over `directions` random lines, of the squared distance between the two samples projected on
/// the line. In the units of the points; 0 for equal samples.
///
/// # Errors
/// Points of different dimensions, or no directions.
pub fn sliced_wasserstein(
    a: Points<'_>,
    b: Points<'_>,
    directions: usize,
    rng: &mut Rng,
) -> Result<f64, EvalError> {
    same("dimensions of the two samples", a.dims(), b.dims())?;
    at_least("directions", 1, directions)?;
    let lines: Vec<Vec<f64>> = (0..directions).map(|_| direction(a.dims(), rng)).collect();
    let squares: Vec<f64> = lines
        .par_iter()
        .map(|line| square_wasserstein(&projected(a, line), &projected(b, line)))
        .collect();
    Ok(Estimate::of(&squares)?.mean.sqrt())
}

/// The points' places along `direction`, ascending.
fn projected(points: Points<'_>, direction: &[f64]) -> Vec<f64> {
    let along = |row: &[f32]| -> f64 {
        let products = row.iter().zip(direction).map(|(x, d)| f64::from(*x) * d);
        products.sum()
    };
    let mut places: Vec<f64> = points.rows().map(along).collect();
    places.sort_unstable_by(f64::total_cmp);
    places
}

/// Uniform on the unit sphere.
fn direction(dims: usize, rng: &mut Rng) -> Vec<f64> {
    loop {
        let v: Vec<f64> = normal(rng, dims).into_iter().map(f64::from).collect();
        let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length > 0.0 {
            return v.into_iter().map(|x| x / length).collect();
        }
    }
}

/// The squared 2-Wasserstein distance of two ascending samples on a line: the mean squared
/// difference of their quantile functions, which are steps of width `1 / n` and `1 / m`.
fn square_wasserstein(a: &[f64], b: &[f64]) -> f64 {
    // Places on the quantile axis in units of 1 / (n m), so that equal places compare equal.
    let (n, m) = (a.len(), b.len());
    let (mut i, mut j, mut at) = (0, 0, 0);
    let mut sum = 0.0;
    while i < n && j < m {
        let (end_a, end_b) = ((i + 1) * m, (j + 1) * n);
        let end = end_a.min(end_b);
        sum += (end - at) as f64 * (a[i] - b[j]).powi(2);
        i += usize::from(end == end_a);
        j += usize::from(end == end_b);
        at = end;
    }
    sum / (n * m) as f64
}

/// Squared maximum mean discrepancy with the kernel `exp(-d^2 / (2 bandwidth^2))`, unbiased
/// (Gretton et al. 2012, eq. 3): about 0, also below, when both samples have one distribution.
///
/// # Errors
/// Points of different dimensions, fewer than two on a side, or a bandwidth that is not positive.
pub fn mmd(a: Points<'_>, b: Points<'_>, bandwidth: f64) -> Result<f64, EvalError> {
    same("dimensions of the two samples", a.dims(), b.dims())?;
    at_least("points", 2, a.len().min(b.len()))?;
    within("the bandwidth", bandwidth, bandwidth > 0.0, "more than 0")?;
    let kernel =
        |x: &[f32], y: &[f32]| (-square_distance(x, y) / (2.0 * bandwidth * bandwidth)).exp();
    let total = |a: Points<'_>, b: Points<'_>| -> f64 {
        let rows: Vec<&[f32]> = a.rows().collect();
        // Summed per row first, so that the result does not depend on the number of threads.
        let sums: Vec<f64> = rows
            .par_iter()
            .map(|x| b.rows().map(|y| kernel(x, y)).sum())
            .collect();
        sums.iter().sum()
    };
    let (n, m) = (a.len() as f64, b.len() as f64);
    // A point's kernel with itself is 1 and does not count.
    let within_a = (total(a, a) - n) / (n * (n - 1.0));
    let within_b = (total(b, b) - m) / (m * (m - 1.0));
    Ok(within_a + within_b - 2.0 * total(a, b) / (n * m))
}

/// The median distance of two different points of both samples together, the usual bandwidth for
/// [`mmd`] (Gretton et al. 2012, section 8). Takes the first `most` points of each side.
///
/// # Errors
/// Points of different dimensions, or all of them equal.
pub fn median_distance(a: Points<'_>, b: Points<'_>, most: usize) -> Result<f64, EvalError> {
    same("dimensions of the two samples", a.dims(), b.dims())?;
    let rows: Vec<&[f32]> = a.rows().take(most).chain(b.rows().take(most)).collect();
    at_least("points", 2, rows.len())?;
    let mut squares = Vec::with_capacity(rows.len() * (rows.len() - 1) / 2);
    for (i, x) in rows.iter().enumerate() {
        squares.extend(rows[..i].iter().map(|y| square_distance(x, y)));
    }
    let middle = squares.len() / 2;
    let median = squares
        .select_nth_unstable_by(middle, f64::total_cmp)
        .1
        .sqrt();
    within("the median distance", median, median > 0.0, "more than 0")?;
    Ok(median)
}

fn square_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum()
}

/// In how many pairs the number of `a` is above that of ascending `b`; equals count half.
pub(crate) fn mann_whitney_u(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .map(|x| {
            let below = b.partition_point(|y| y < x);
            let equal = b.partition_point(|y| y <= x) - below;
            below as f64 + 0.5 * equal as f64
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    fn draw(n: usize, seed: u64, shift: f32) -> Vec<f32> {
        let mut x = normal(&mut rng(seed, Stream::Evaluate, 0), 2 * n);
        x.iter_mut().step_by(2).for_each(|v| *v += shift);
        x
    }

    #[test]
    fn one_line_by_hand() {
        // Equal numbers: ((0 - 1)^2 + (2 - 5)^2) / 2.
        assert_eq!(square_wasserstein(&[0.0, 2.0], &[1.0, 5.0]), 5.0);
        // One point against two: both halves of it move.
        assert_eq!(square_wasserstein(&[0.0], &[1.0, 3.0]), 5.0);
        // Thirds against halves: [0,1/3) 0-0, [1/3,1/2) 3-0, [1/2,2/3) 3-6, [2/3,1) 6-6.
        let got = square_wasserstein(&[0.0, 3.0, 6.0], &[0.0, 6.0]);
        assert!((got - 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_shift_is_seen_at_its_projected_length() {
        // A shift by s has mean squared projection s^2 / 2 in the plane.
        let a = draw(500, 1, 0.0);
        let b: Vec<f32> = a.chunks(2).flat_map(|p| [p[0] + 2.0, p[1]]).collect();
        let (a, b) = (Points::new(&a, 2).unwrap(), Points::new(&b, 2).unwrap());
        let got = sliced_wasserstein(a, b, 2000, &mut rng(1, Stream::Evaluate, 1)).unwrap();
        assert!((got - 2f64.sqrt()).abs() < 0.05, "{got}");
        let same = sliced_wasserstein(a, a, 10, &mut rng(1, Stream::Evaluate, 1)).unwrap();
        assert_eq!(same, 0.0);
    }

    #[test]
    fn mmd_by_hand() {
        // a = {0, 0}, b = {1, 1}, bandwidth 1: 1 + 1 - 2 exp(-1/2).
        let a = Points::new(&[0.0, 0.0], 1).unwrap();
        let b = Points::new(&[1.0, 1.0], 1).unwrap();
        let got = mmd(a, b, 1.0).unwrap();
        assert!((got - (2.0 - 2.0 * (-0.5f64).exp())).abs() < 1e-12);
    }

    #[test]
    fn mmd_tells_same_from_shifted() {
        let (x, y, z) = (draw(500, 1, 0.0), draw(500, 2, 0.0), draw(500, 3, 1.0));
        let of = |v| Points::new(v, 2).unwrap();
        let width = median_distance(of(&x), of(&y), 100).unwrap();
        // Two standard normals in the plane: d^2 is 4 times an exponential, median sqrt(4 ln 2).
        assert!((width - (4.0 * 2f64.ln()).sqrt()).abs() < 0.1, "{width}");
        assert!(mmd(of(&x), of(&y), width).unwrap().abs() < 0.005);
        assert!(mmd(of(&x), of(&z), width).unwrap() > 0.05);
    }

    #[test]
    fn bad_input_is_refused() {
        let one = Points::new(&[1.0], 1).unwrap();
        let plane = Points::plane(&[[1.0, 2.0], [3.0, 4.0]]).unwrap();
        assert!(mmd(one, one, 1.0).is_err());
        assert!(mmd(plane, plane, 0.0).is_err());
        assert!(mmd(one, plane, 1.0).is_err());
        assert!(median_distance(one, one, 5).is_err());
        let rng = &mut rng(1, Stream::Evaluate, 1);
        assert!(sliced_wasserstein(plane, plane, 0, rng).is_err());
    }
}
