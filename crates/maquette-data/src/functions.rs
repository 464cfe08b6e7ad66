//! Random linear functions and examples of them, for models that learn from their context
//! (Garg et al. 2022, arXiv:2208.01066). Seeded, no download.

use maquette_rng::{Rng, normal};
use serde::{Deserialize, Serialize};

/// `y = w x + noise`, with `w`, `x` and noise standard normal but for the noise's deviation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearFunctions {
    /// Width of `x`.
    pub d_x: usize,
    /// Standard deviation of the noise.
    pub noise: f32,
}

/// Examples of several functions.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    /// `[functions, examples, d_x]`, row by row.
    pub x: Vec<f32>,
    /// `[functions, examples]`.
    pub y: Vec<f32>,
    /// Shape of `x`.
    pub shape: [usize; 3],
}

impl LinearFunctions {
    /// `examples` of each of `functions` functions, of which only the first `active` numbers of
    /// every `x` are not zero.
    pub fn draw(&self, functions: usize, examples: usize, active: usize, rng: &mut Rng) -> Prompts {
        let (d_x, active) = (self.d_x, active.min(self.d_x));
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        for _ in 0..functions {
            let w = normal(rng, active);
            for noise in normal(rng, examples) {
                let x = normal(rng, active);
                let y: f32 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
                ys.push(y + self.noise * noise);
                xs.extend(x);
                xs.extend(vec![0.0; d_x - active]);
            }
        }
        Prompts {
            x: xs,
            y: ys,
            shape: [functions, examples, d_x],
        }
    }
}

impl Prompts {
    /// The examples of one function: rows of `x`, and `y`.
    pub fn function(&self, index: usize) -> (&[f32], &[f32]) {
        let [_, examples, d_x] = self.shape;
        let x = &self.x[index * examples * d_x..][..examples * d_x];
        (x, &self.y[index * examples..][..examples])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    #[test]
    fn without_noise_every_example_is_of_one_function() {
        let functions = LinearFunctions { d_x: 3, noise: 0.0 };
        let draw = |active| functions.draw(2, 4, active, &mut rng(1, Stream::Data, 0));
        let prompts = draw(1);
        let (x, y) = prompts.function(1);
        let w = y[0] / x[0];
        for (x, y) in x.chunks(3).zip(y) {
            assert!((x[0] * w - y).abs() < 1e-5 && x[1..] == [0.0, 0.0]);
        }
        assert_eq!(draw(3), draw(9));
        assert_eq!(draw(3).x.len(), 2 * 4 * 3);
    }

    #[test]
    fn the_noise_has_its_deviation() {
        let functions = LinearFunctions { d_x: 1, noise: 0.5 };
        let prompts = functions.draw(20_000, 1, 0, &mut rng(1, Stream::Data, 0));
        let variance = prompts.y.iter().map(|y| y * y).sum::<f32>() / 20_000.0;
        assert!((variance - 0.25).abs() < 0.01, "{variance}");
    }
}
