//! Linear regression in closed form, the yardstick of models that learn from their context.

/// The weights of least squares for `y` given rows of `x`: where they are not determined, the
/// shortest. With `ridge` above zero, `ridge |w|^2` is added to the squares; with the variance of
/// the noise over that of the weights it is the mean of the posterior.
///
/// `x` is `[y.len(), d_x]`, row by row. Nothing to go by gives zeros.
pub fn least_squares(x: &[f32], y: &[f32], d_x: usize, ridge: f64) -> Vec<f64> {
    let n = y.len();
    let at = |row: usize, column: usize| f64::from(x[row * d_x + column]);
    if n == 0 {
        return vec![0.0; d_x];
    }
    if n >= d_x {
        // (X'X + ridge) w = X'y
        let gram = |i: usize, j: usize| (0..n).map(|r| at(r, i) * at(r, j)).sum::<f64>();
        let moment = |i: usize| (0..n).map(|r| at(r, i) * f64::from(y[r])).sum();
        return solve(d_x, gram, (0..d_x).map(moment).collect(), ridge);
    }
    // w = X' (XX' + ridge)^-1 y
    let gram = |i: usize, j: usize| (0..d_x).map(|c| at(i, c) * at(j, c)).sum::<f64>();
    let dual = solve(n, gram, y.iter().map(|y| f64::from(*y)).collect(), ridge);
    let weight = |c: usize| dual.iter().enumerate().map(|(r, a)| a * at(r, c)).sum();
    (0..d_x).map(weight).collect()
}

/// `(matrix + ridge)^-1 b` of a symmetric, positive matrix, by Cholesky's factors.
fn solve(n: usize, matrix: impl Fn(usize, usize) -> f64, mut b: Vec<f64>, ridge: f64) -> Vec<f64> {
    let mut l = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| l[i * n + k] * l[j * n + k]).sum();
            let left = matrix(i, j) + if i == j { ridge } else { 0.0 } - known;
            l[i * n + j] = match i == j {
                // A direction without any weight stays without.
                true => left.max(f64::MIN_POSITIVE).sqrt(),
                false => left / l[j * n + j],
            };
        }
    }
    for i in 0..n {
        let known: f64 = (0..i).map(|k| l[i * n + k] * b[k]).sum();
        b[i] = (b[i] - known) / l[i * n + i];
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| l[k * n + i] * b[k]).sum();
        b[i] = (b[i] - known) / l[i * n + i];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f64], expected: &[f64]) {
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-9, "{got} {expected}");
        }
        assert_eq!(got.len(), expected.len());
    }

    #[test]
    fn by_hand() {
        // y = 2 a - b, exactly; then one equation too few, whose shortest answer is (1, 1).
        let x = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        close(&least_squares(&x, &[2.0, -1.0, 1.0], 2, 0.0), &[2.0, -1.0]);
        close(&least_squares(&[1.0, 1.0], &[2.0], 2, 0.0), &[1.0, 1.0]);
        close(&least_squares(&[], &[], 2, 0.0), &[0.0, 0.0]);
        // One number: sum(x y) / (sum(x x) + ridge).
        close(&least_squares(&[1.0, 2.0], &[1.0, 1.0], 1, 1.0), &[0.5]);
        // Both forms of ridge regression meet where they may be used both.
        let (x, y) = ([0.5, -1.0, 2.0, 0.25], [1.0, 3.0]);
        let primal = least_squares(&x, &y, 2, 0.5);
        let dual = {
            let wide = [0.5, -1.0, 0.0, 2.0, 0.25, 0.0];
            least_squares(&wide, &y, 3, 0.5)
        };
        close(&primal, &dual[..2]);
    }
}
