//! Normalisation of planes of numbers with its activation in the same pass: what batch and group norm
//! have in common.

use crate::activation::Activation;
use crate::elementwise::{Sums, map, update, vectorized, walk_on};
use crate::shared::Shared;
use crate::simd::{Isa, Lanes};
use crate::vector::{Machine, Vector};

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
        let mean = (total(isa, planes.clone(), self.len, x) / self.count()) as f32;
        let squares = square_sum(isa, planes.clone(), self.len, x, mean);
        let variance = (squares / self.count()) as f32;
        let moments = Moments {
            mean,
            variance,
            scale: 1.0 / (variance + self.epsilon).sqrt(),
        };
        apply(isa, planes, self, moments, x, out);
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
        let mut means = [0.0f64; 2];
        let mut found = |index: usize, plane: Plane, found: [f32; 2]| {
            for (mean, found) in means.iter_mut().zip(found) {
                *mean += f64::from(plane.gamma * found) / self.count();
            }
            sums(index, found);
        };
        through(isa, planes.clone(), self, moments, x, grad, &mut found);
        if into_input {
            let means = means.map(|mean| mean as f32);
            input_gradient(isa, planes, self.len, moments, means, x, grad);
        }
    }
}

/// Numbers that are added up in 32 bits before their sum is in 64.
const TOGETHER: usize = 1 << 13;

/// Adds up `f` of planes: small ones in the same vectors, so that lanes are summed up once for many.
#[inline(always)]
fn add_up<L: Lanes>(
    machine: Machine<L>,
    planes: impl Iterator<Item = Plane>,
    len: usize,
    x: &[f32],
    f: impl Fn(Vector<L>) -> Vector<L>,
) -> f64 {
    let (mut total, mut sums, mut numbers) = (0.0, Sums::new(machine), 0);
    for plane in planes {
        let from = x[plane.start..][..len].as_ptr();
        // SAFETY: the plane's numbers.
        unsafe { walk_on(machine, len, ([from], []), &mut sums, |[x]| ([], [f(x)])) };
        numbers += len;
        if numbers >= TOGETHER {
            total += f64::from(std::mem::replace(&mut sums, Sums::new(machine)).totals()[0]);
            numbers = 0;
        }
    }
    total + f64::from(sums.totals()[0])
}

// All planes in one call: one of a small image takes less time than a call.

vectorized! {
    fn total<L>(machine, planes: impl Iterator<Item = Plane>, len: usize, x: &[f32]) -> f64 {
        add_up(machine, planes, len, x, |x| x)
    }
}

vectorized! {
    fn square_sum<L>(
        machine,
        planes: impl Iterator<Item = Plane>,
        len: usize,
        x: &[f32],
        mean: f32,
    ) -> f64 {
        add_up(machine, planes, len, x, |x| (x - mean) * (x - mean))
    }
}

vectorized! {
    fn apply<L>(
        machine,
        planes: impl Iterator<Item = Plane>,
        all: &Planes,
        moments: Moments,
        x: &[f32],
        out: Shared,
    ) {
        for plane in planes {
            let line = Line::new(moments, plane);
            // SAFETY: who calls forward or backward vouches for it.
            let out = unsafe { out.unwritten_part(plane.start, all.len) };
            map(machine, [&x[plane.start..][..all.len]], out, |[x]| {
                all.activation.of(x.mul_add(x.splat(line.slope), x.splat(line.offset)))
            });
        }
    }
}

vectorized! {
    /// Takes the gradient back through the activation, and gives of each plane the sums of it and of it
    /// times the normalised input.
    fn through<L>(
        machine,
        planes: impl Iterator<Item = Plane>,
        all: &Planes,
        moments: Moments,
        x: &[f32],
        grad: Shared,
        found: &mut dyn FnMut(usize, Plane, [f32; 2]),
    ) {
        let Moments { mean, scale, .. } = moments;
        for (index, plane) in planes.enumerate() {
            let line = Line::new(moments, plane);
            // SAFETY: who calls forward or backward vouches for it.
            let grad = unsafe { grad.part(plane.start, all.len) };
            let [plain, weighted] = update(machine, grad, [&x[plane.start..][..all.len]], |[grad, x]| {
                let z = x.mul_add(x.splat(line.slope), x.splat(line.offset));
                let grad = grad * all.activation.with_slope(z)[1];
                (grad, [grad, grad * (x - mean)])
            });
            found(index, plane, [plain, weighted * scale]);
        }
    }
}

vectorized! {
    /// Turns the gradient before scale and shift into the input's, in place.
    fn input_gradient<L>(
        machine,
        planes: impl Iterator<Item = Plane>,
        len: usize,
        moments: Moments,
        means: [f32; 2],
        x: &[f32],
        grad: Shared,
    ) {
        let Moments { mean, scale, .. } = moments;
        // `scale * (gamma g - means[0] - (x - mean) * scale * means[1])`
        let less = scale * scale * means[1];
        for plane in planes {
            let slope = scale * plane.gamma;
            // SAFETY: who calls forward or backward vouches for it.
            let grad = unsafe { grad.part(plane.start, len) };
            update(machine, grad, [&x[plane.start..][..len]], |[grad, x]| {
                let rest = (x - mean).neg_mul_add(x.splat(less), x.splat(-scale * means[0]));
                (grad.mul_add(x.splat(slope), rest), [])
            });
        }
    }
}
