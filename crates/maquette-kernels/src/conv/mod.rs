//! 2-D convolution and its two gradients on flat slices, and the operators made of them.
//!
//! A transposed convolution is the input gradient of a convolution, so three functions serve both.
//! Each picks its method by the sizes alone: a matrix product where the convolution is one
//! ([`dense`]), minimal filtering where that saves work ([`winograd`]), sums over taps otherwise
//! ([`direct`], and [`depthwise`] for small kernels on single channels). The sums over taps know groups; for the others each group is a convolution of its
//! own, and the channels of wide groups are gathered first.

mod correlate;
mod dense;
mod depthwise;
mod direct;
mod geometry;
mod operator;
mod winograd;

use rayon::prelude::*;

pub use self::geometry::ConvOptions;
use self::geometry::Geometry;
pub use self::operator::{conv_transpose2d, conv2d};
use crate::elementwise::total;
use crate::simd::Isa;

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Pointwise,
    WholeImage,
    Winograd,
    Depthwise,
    Direct,
}

impl Method {
    fn of(geometry: &Geometry) -> Self {
        let group = geometry.of_group();
        if depthwise::suits(geometry) {
            Self::Depthwise
        } else if geometry.groups > 1 && geometry.is_narrow() {
            Self::Direct
        } else if geometry.kernel == geometry.input
            && geometry.padding == [0, 0]
            && geometry.dilation == [1, 1]
        {
            Self::WholeImage
        } else if geometry.kernel == [1, 1]
            && geometry.stride == [1, 1]
            && geometry.padding == [0, 0]
        {
            Self::Pointwise
        } else if winograd::suits(&group) {
            Self::Winograd
        } else {
            Self::Direct
        }
    }
}

/// The convolution of `x`, with a bias per output channel if given.
fn forward(geometry: &Geometry, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let isa = Isa::detect();
    let [_, _, rows, cols] = geometry.output_shape();
    match Method::of(geometry) {
        Method::Depthwise => depthwise::forward(isa, geometry, x, weight, bias),
        Method::Direct => direct::forward(isa, geometry, x, weight, bias),
        _ if geometry.groups > 1 => by_group(geometry, |group, index| {
            let x = gathered(x, geometry, index);
            let bias = bias.map(|bias| part(bias, geometry, index));
            forward(group, &x, part(weight, geometry, index), bias)
        }),
        Method::Pointwise => with_bias(dense::pointwise(geometry, x, weight), bias, rows * cols),
        Method::WholeImage => with_bias(dense::whole_image(geometry, x, weight), bias, 1),
        Method::Winograd => winograd::forward(isa, geometry, x, weight, bias),
    }
}

/// The gradient of the input, or the transposed convolution of `grad`, to which a bias per channel
/// of the input is added if given.
fn input_gradient(
    geometry: &Geometry,
    weight: &[f32],
    grad: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let isa = Isa::detect();
    let out = match Method::of(geometry) {
        Method::Depthwise => depthwise::input_gradient(isa, geometry, weight, grad),
        Method::Direct => direct::input_gradient(isa, geometry, weight, grad),
        _ if geometry.groups > 1 => {
            return by_group(geometry, |group, index| {
                let grad = gathered(grad, geometry, index);
                let bias = bias.map(|bias| part(bias, geometry, index));
                input_gradient(group, part(weight, geometry, index), &grad, bias)
            });
        }
        Method::Winograd => return winograd::input_gradient(isa, geometry, weight, grad, bias),
        Method::Pointwise => dense::pointwise_input_gradient(geometry, weight, grad),
        Method::WholeImage => dense::whole_image_input_gradient(geometry, weight, grad),
    };
    with_bias(out, bias, geometry.input[0] * geometry.input[1])
}

/// The gradient of the weight.
fn weight_gradient(geometry: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let isa = Isa::detect();
    match Method::of(geometry) {
        Method::Depthwise => depthwise::weight_gradient(isa, geometry, x, grad),
        Method::Direct => direct::weight_gradient(isa, geometry, x, grad),
        _ if geometry.groups > 1 => {
            let group = geometry.of_group();
            let gradient = |index| {
                let [x, grad] = [x, grad].map(|values| gathered(values, geometry, index));
                weight_gradient(&group, &x, &grad)
            };
            (0..geometry.groups).flat_map(gradient).collect()
        }
        Method::Pointwise => dense::pointwise_weight_gradient(geometry, x, grad),
        Method::WholeImage => dense::whole_image_weight_gradient(geometry, x, grad),
        Method::Winograd => winograd::weight_gradient(isa, geometry, x, grad),
    }
}

/// What belongs to a group of weights or biases.
fn part<'a>(values: &'a [f32], geometry: &Geometry, group: usize) -> &'a [f32] {
    let len = values.len() / geometry.groups;
    &values[group * len..][..len]
}

/// The channels of one group of all images.
fn gathered(values: &[f32], geometry: &Geometry, group: usize) -> Vec<f32> {
    let len = values.len() / (geometry.batch * geometry.groups);
    let parts = values.chunks_exact(len);
    let parts: Vec<&[f32]> = parts.skip(group).step_by(geometry.groups).collect();
    parts.concat()
}

/// Images whose channels `f` gives group by group.
fn by_group(geometry: &Geometry, f: impl Fn(&Geometry, usize) -> Vec<f32>) -> Vec<f32> {
    let group = geometry.of_group();
    let groups: Vec<Vec<f32>> = (0..geometry.groups).map(|index| f(&group, index)).collect();
    let len = groups[0].len() / geometry.batch;
    let images = (0..geometry.batch).flat_map(|n| groups.iter().map(move |g| &g[n * len..][..len]));
    images.collect::<Vec<_>>().concat()
}

/// Adds a bias per channel to images of planes of `plane` numbers.
fn with_bias(mut out: Vec<f32>, bias: Option<&[f32]>, plane: usize) -> Vec<f32> {
    if let Some(bias) = bias {
        out.par_chunks_mut(bias.len() * plane).for_each(|image| {
            for (plane, bias) in image.chunks_exact_mut(plane).zip(bias) {
                plane.iter_mut().for_each(|value| *value += bias);
            }
        });
    }
    out
}

/// Sums of each channel over images and positions: the gradient of a bias.
fn channel_sums(values: &[f32], channels: usize, plane: usize) -> Vec<f32> {
    let isa = Isa::detect();
    let per_channel = |channel: usize| {
        let images = values.chunks_exact(channels * plane);
        images
            .map(|image| total(isa, &image[channel * plane..][..plane]))
            .sum()
    };
    (0..channels).into_par_iter().map(per_channel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;

    fn numbers(shape: [usize; 4]) -> Vec<f32> {
        let len: usize = shape.iter().product();
        (0..len)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
            .collect()
    }

    /// Output, input gradient and weight gradient.
    fn all(isa: Isa, geometry: &Geometry, method: Method) -> [Vec<f32>; 3] {
        let x = numbers(geometry.input_shape());
        let weight = numbers(geometry.weight_shape());
        let grad = numbers(geometry.output_shape());
        match method {
            Method::Winograd => [
                winograd::forward(isa, geometry, &x, &weight, None),
                winograd::input_gradient(isa, geometry, &weight, &grad, None),
                winograd::weight_gradient(isa, geometry, &x, &grad),
            ],
            Method::Depthwise => [
                depthwise::forward(isa, geometry, &x, &weight, None),
                depthwise::input_gradient(isa, geometry, &weight, &grad),
                depthwise::weight_gradient(isa, geometry, &x, &grad),
            ],
            Method::Direct => [
                direct::forward(isa, geometry, &x, &weight, None),
                direct::input_gradient(isa, geometry, &weight, &grad),
                direct::weight_gradient(isa, geometry, &x, &grad),
            ],
            Method::Pointwise | Method::WholeImage => unreachable!("products on every device"),
        }
    }

    fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.len(), expected.len(), "{what}");
            let largest = expected.iter().fold(1.0f32, |top, e| top.max(e.abs()));
            for (found, expected) in found.iter().zip(expected) {
                let close = (found - expected).abs() <= 2e-5 * largest;
                assert!(close, "{what}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        for channels_out in [1, 5, 17, 40, 70] {
            for stride in [[1, 1], [2, 3]] {
                let weight = [channels_out, 3, 3, 2];
                let options = ConvOptions::new(stride, [1, 0]);
                assert_same(&Geometry::new([2, 3, 9, 13], weight, options));
            }
        }
    }

    /// Every instruction set sums over taps to the same, in both precisions.
    fn assert_same(geometry: &Geometry) {
        for precision in [Precision::F32, Precision::Bf16] {
            let geometry = Geometry {
                precision,
                ..*geometry
            };
            assert_same_in(&geometry);
        }
    }

    fn assert_same_in(geometry: &Geometry) {
        let expected = all(Isa::Portable, geometry, Method::Direct);
        for isa in Isa::available() {
            let found = all(isa, geometry, Method::Direct);
            assert_close(&found, &expected, &format!("{isa:?} {geometry:?}"));
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_with_groups() {
        for [groups, per_in, per_out] in [[5, 1, 1], [4, 1, 3], [3, 2, 5], [2, 9, 1], [2, 3, 17]] {
            for dilation in [[1, 1], [2, 3]] {
                let options = ConvOptions {
                    dilation,
                    groups,
                    ..ConvOptions::new([2, 1], [1, 3])
                };
                let weight = [groups * per_out, per_in, 3, 2];
                assert_same(&Geometry::new([9, groups * per_in, 9, 13], weight, options));
            }
        }
    }

    #[test]
    fn depthwise_loops_give_the_same() {
        // [batch, channels, height, width, kernel, stride, padding]
        for [batch, channels, height, width, kernel, stride, padding] in [
            [2, 3, 16, 16, 3, 1, 1],
            [2, 3, 16, 16, 3, 2, 1],
            [1, 2, 1, 1, 3, 1, 1],
            [1, 2, 1, 2, 3, 2, 2],
            [3, 5, 7, 33, 3, 1, 0],
            [3, 5, 9, 35, 3, 2, 0],
            [2, 4, 6, 70, 3, 2, 2],
            [2, 2, 13, 18, 5, 1, 2],
            [2, 2, 12, 37, 5, 2, 4],
            [2, 2, 11, 5, 5, 2, 1],
        ] {
            let options = ConvOptions {
                groups: channels,
                ..ConvOptions::new([stride; 2], [padding; 2])
            };
            let weight = [channels, 1, kernel, kernel];
            let geometry = Geometry::new([batch, channels, height, width], weight, options);
            assert_eq!(Method::of(&geometry), Method::Depthwise);
            let expected = all(Isa::Portable, &geometry, Method::Direct);
            for isa in Isa::available() {
                let found = all(isa, &geometry, Method::Depthwise);
                assert_close(&found, &expected, &format!("{isa:?} {geometry:?}"));
            }
        }
    }

    #[test]
    fn pixels_a_stride_passes_over_count_for_nothing() {
        let options = ConvOptions {
            groups: 2,
            ..ConvOptions::new([2; 2], [0; 2])
        };
        let geometry = Geometry::new([1, 2, 9, 35], [2, 1, 3, 3], options);
        let mut x = numbers(geometry.input_shape());
        let grad = numbers(geometry.output_shape());
        // Of each row the second column, which only the middle of the kernel reads.
        x.iter_mut()
            .skip(1)
            .step_by(35)
            .for_each(|x| *x = f32::INFINITY);
        for isa in Isa::available() {
            let found = depthwise::weight_gradient(isa, &geometry, &x, &grad);
            let finite: Vec<bool> = found.iter().map(|found| found.is_finite()).collect();
            assert_eq!(finite, [true, false, true].repeat(6), "{isa:?} {found:?}");
        }
    }

    #[test]
    fn minimal_filtering_gives_the_same() {
        // [batch, channels in, channels out, height, width, kernel, stride, padding]
        for [batch, c_in, c_out, height, width, kernel, stride, padding] in [
            [1, 1, 1, 4, 4, 3, 1, 1],
            [3, 5, 17, 7, 9, 3, 1, 1],
            [2, 33, 20, 14, 14, 3, 1, 0],
            [2, 3, 4, 5, 18, 3, 1, 2],
            [19, 8, 16, 8, 8, 4, 2, 1],
            [2, 16, 70, 33, 30, 4, 2, 1],
            [3, 7, 9, 11, 12, 3, 2, 1],
            [1, 9, 100, 21, 40, 5, 2, 2],
            [2, 4, 4, 10, 10, 2, 1, 0],
        ] {
            let geometry = Geometry::new(
                [batch, c_in, height, width],
                [c_out, c_in, kernel, kernel],
                ConvOptions::new([stride; 2], [padding; 2]),
            );
            let expected = all(Isa::Portable, &geometry, Method::Direct);
            for isa in Isa::available() {
                let found = all(isa, &geometry, Method::Winograd);
                assert_close(&found, &expected, &format!("{isa:?} {geometry:?}"));
            }
        }
    }
}
