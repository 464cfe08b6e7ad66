//! Normalisation of planes of numbers with its activation in the same pass: what batch and group norm
//! have in common.

use std::mem::MaybeUninit;

use crate::activation::Activation;
use crate::elementwise::{map, sums, total, update, vectorized};
use crate::shared::Shared;
use crate::simd::Isa;
use crate::vector::Vector;

/// One channel of one image, with its scale and shift.
#[derive(Clone, Copy)]
pub(crate) struct Plane {
    /// Its first number.
    pub(crate) start: usize,
    pub(crate) gamma: f32,
    pub(crate) beta: f32,
}

/// The constants of a normalisation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planes {
    /// Numbers of a plane.
    pub(crate) len: usize,
    /// Planes that have mean and variance in common.
    pub(crate) together: usize,
    pub(crate) epsilon: f32,
    pub(crate) activation: Activation,
}

/// Of some planes together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    pub(crate) mean: f32,
    /// Divided by the count.
    pub(crate) variance: f32,
    /// Inverse standard deviation.
    scale: f32,
}

/// `z = slope * x + offset`: normalisation, scale and shift of one plane in one.
#[derive(Clone, Copy)]
struct Line {
    slope: f32,
    offset: f32,
}

impl Line {
    fn new(moments: Moments, plane: Plane) -> Self {
        let slope = moments.scale * plane.gamma;
        Self {
            slope,
            offset: plane.beta - moments.mean * slope,
        }
    }
}

impl Planes {
    fn count(&self) -> f64 {
        (self.together * self.len) as f64
    }

    /// Normalises planes together, which stay in a near cache meanwhile.
    ///
    /// # Safety
    /// The memory of `out` is alive, and nobody else uses these planes of it.
    pub(crate) unsafe fn forward(
        &self,
        isa: Isa,
        planes: impl Iterator<Item = Plane> + Clone,
        x: &[f32],
        out: Shared,
    ) -> Moments {
        let of = |plane: Plane| &x[plane.start..][..self.len];
        let sum = |f: &dyn Fn(&[f32]) -> f32| -> f64 {
            planes.clone().map(|plane| f64::from(f(of(plane)))).sum()
        };
        let mean = (sum(&|x| total(isa, x)) / self.count()) as f32;
        let variance = (sum(&|x| square_sum(isa, mean, x)) / self.count()) as f32;
        let moments = Moments {
            mean,
            variance,
            scale: 1.0 / (variance + self.epsilon).sqrt(),
        };
        for plane in planes.clone() {
            // SAFETY: the caller's.
            let out = unsafe { out.unwritten_part(plane.start, self.len) };
            apply(
                isa,
                Line::new(moments, plane),
                self.activation,
                of(plane),
                out,
            );
        }
        moments
    }

    /// With `h = (x - mean) * scale` and `g` the gradient before the activation,
    /// `dbeta = sum g`, `dgamma = sum g h` and
    /// `dx = scale * (gamma g - mean(gamma g) - h mean(gamma g h))`, means over all planes together.
    /// Of each plane the gradients of shift and scale go to `sums`; the input's is written over `grad` if
    /// `into_input`, which is spoilt in any case.
    ///
    /// # Safety
    /// The memory of `grad` is alive, and nobody else uses these planes of it.
    pub(crate) unsafe fn backward(
        &self,
        isa: Isa,
        planes: impl Iterator<Item = Plane> + Clone,
        moments: Moments,
        x: &[f32],
        (grad, into_input): (Shared, bool),
        mut sums: impl FnMut(usize, [f32; 2]),
    ) {
        let of = |plane: Plane| &x[plane.start..][..self.len];
        let mut means = [0.0f64; 2];
        for (index, plane) in planes.clone().enumerate() {
            // SAFETY: the caller's.
            let grad = unsafe { grad.part(plane.start, self.len) };
            let line = Line::new(moments, plane);
            let found = through(isa, (line, moments), self.activation, of(plane), grad);
            for (mean, found) in means.iter_mut().zip(found) {
                *mean += f64::from(plane.gamma * found) / self.count();
            }
            sums(index, found);
        }
        for plane in planes.filter(|_| into_input) {
            // SAFETY: as above.
            let grad = unsafe { grad.part(plane.start, self.len) };
            let means = means.map(|mean| mean as f32);
            input_gradient(isa, moments, plane.gamma, means, of(plane), grad);
        }
    }
}

vectorized! {
    fn square_sum<L>(machine, mean: f32, x: &[f32]) -> f32 {
        let square = |[x]: [Vector<L>; 1]| [(x - mean) * (x - mean)];
        sums(machine, [x], square)[0]
    }
}

vectorized! {
    fn apply<L>(machine, line: Line, activation: Activation, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        map(machine, [x], out, |[x]| {
            activation.of(x.mul_add(x.splat(line.slope), x.splat(line.offset)))
        });
    }
}

vectorized! {
    /// Takes the gradient back through the activation, and gives the sums of it and of it times the
    /// normalised input.
    fn through<L>(
        machine,
        norm: (Line, Moments),
        activation: Activation,
        x: &[f32],
        grad: &mut [f32],
    ) -> [f32; 2] {
        let (line, Moments { mean, scale, .. }) = norm;
        let [plain, weighted] = update(machine, grad, [x], |[grad, x]| {
            let z = x.mul_add(x.splat(line.slope), x.splat(line.offset));
            let grad = grad * activation.with_slope(z)[1];
            (grad, [grad, grad * (x - mean)])
        });
        [plain, weighted * scale]
    }
}

vectorized! {
    /// Turns the gradient before scale and shift into the input's, in place.
    fn input_gradient<L>(
        machine,
        moments: Moments,
        gamma: f32,
        means: [f32; 2],
        x: &[f32],
        grad: &mut [f32],
    ) {
        let Moments { mean, scale, .. } = moments;
        // `scale * (gamma g - means[0] - (x - mean) * scale * means[1])`
        let (slope, less) = (scale * gamma, scale * scale * means[1]);
        update(machine, grad, [x], |[grad, x]| {
            let rest = (x - mean).neg_mul_add(x.splat(less), x.splat(-scale * means[0]));
            (grad.mul_add(x.splat(slope), rest), [])
        });
    }
}
