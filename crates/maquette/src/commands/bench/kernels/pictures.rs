//! What image models are made of.

use maquette::kernels::{Activation, GroupNormOptions, conv2d, group_norm};

use super::{Case, Work, random, train};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // [batch, channels in, size, channels out, kernel, stride]: unet32, dcgan32, glyphs.
    for [batch, c_in, size, c_out, kernel, stride] in [
        [32, 64, 32, 64, 3, 1],
        [32, 128, 16, 128, 3, 1],
        [32, 256, 16, 128, 3, 1],
        [32, 128, 8, 128, 3, 1],
        [32, 64, 32, 64, 3, 2],
        [32, 128, 16, 128, 1, 1],
        [32, 1, 32, 64, 3, 1],
        [64, 3, 32, 64, 4, 2],
        [64, 64, 16, 128, 4, 2],
        [64, 128, 8, 256, 4, 2],
        [64, 64, 14, 64, 3, 1],
    ] {
        let x = random([batch, c_in, size, size]);
        let weight = random([c_out, c_in, kernel, kernel]);
        let padding = if kernel == 1 { 0 } else { 1 };
        let side = (size + 2 * padding - kernel) / stride + 1;
        let flops = 3 * 2 * batch * c_out * side * side * c_in * kernel * kernel;
        cases.push(Case::new(
            format!("conv [{batch}, {c_in}, {size}, {size}] to {c_out}, {kernel}x{kernel}/{stride}, both ways"),
            Work::Flops(flops),
            move || {
                train(conv2d(
                    x.clone(),
                    weight.clone(),
                    None,
                    [stride; 2],
                    [padding; 2],
                ))
            },
        ));
    }
    for [batch, channels, size] in [[32, 64, 32], [32, 128, 16], [64, 64, 14]] {
        let shape = [batch, channels, size, size];
        let x = random(shape);
        let (gain, offset) = (random([1, channels]), random([1, channels]));
        let options = GroupNormOptions {
            groups: 8,
            epsilon: 1e-5,
            activation: Activation::Silu,
        };
        let count: usize = shape.iter().product();
        cases.push(Case::new(
            format!("group norm and SiLU {shape:?}, both ways"),
            Work::Floats((2 + 2 + 3) * count),
            move || train(group_norm(x.clone(), gain.clone(), offset.clone(), options)),
        ));
    }
    cases
}
