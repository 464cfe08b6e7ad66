//! What image models are made of.

use maquette::kernels::{Activation, ConvOptions, GroupNormOptions, conv2d, group_norm};

use super::{Case, Work, random, train};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // [batch, channels in, size, channels out, kernel, stride, dilation, groups]: unet32, dcgan32,
    // glyphs; then dilated, grouped as in ResNeXt, depthwise as in ConvNeXt and MobileNet.
    for [batch, c_in, size, c_out, kernel, stride, dilation, groups] in [
        [32, 64, 32, 64, 3, 1, 1, 1],
        [32, 128, 16, 128, 3, 1, 1, 1],
        [32, 256, 16, 128, 3, 1, 1, 1],
        [32, 128, 8, 128, 3, 1, 1, 1],
        [32, 64, 32, 64, 3, 2, 1, 1],
        [32, 128, 16, 128, 1, 1, 1, 1],
        [32, 1, 32, 64, 3, 1, 1, 1],
        [64, 3, 32, 64, 4, 2, 1, 1],
        [64, 64, 16, 128, 4, 2, 1, 1],
        [64, 128, 8, 256, 4, 2, 1, 1],
        [64, 64, 14, 64, 3, 1, 1, 1],
        [32, 64, 32, 64, 3, 1, 2, 1],
        [32, 128, 16, 128, 3, 1, 1, 4],
        [32, 128, 16, 128, 3, 1, 1, 32],
        [32, 128, 16, 128, 3, 1, 1, 128],
        [32, 128, 16, 128, 3, 2, 1, 128],
        [32, 64, 32, 64, 7, 1, 1, 64],
    ] {
        let x = random([batch, c_in, size, size]);
        let weight = random([c_out, c_in / groups, kernel, kernel]);
        let padding = dilation * ((kernel - 1) / 2);
        let side = (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
        let [inputs, outputs] =
            [(c_in, size), (c_out, side)].map(|(c, side)| batch * c * side * side);
        let flops = 3 * 2 * outputs * c_in / groups * kernel * kernel;
        let work = match groups > 1 && groups == c_in {
            // Read, write; the gradient made and read twice, the input read again, its gradient written.
            true => Work::Floats(3 * inputs + 5 * outputs),
            false => Work::Flops(flops),
        };
        let mut name = format!(
            "conv [{batch}, {c_in}, {size}, {size}] to {c_out}, {kernel}x{kernel}/{stride}"
        );
        if dilation > 1 {
            name += &format!(", {dilation} apart");
        }
        if groups > 1 {
            name += &format!(", {groups} groups");
        }
        let options = ConvOptions {
            dilation: [dilation; 2],
            groups,
            ..ConvOptions::new([stride; 2], [padding; 2])
        };
        cases.push(Case::new(format!("{name}, both ways"), work, move || {
            train(conv2d(x.clone(), weight.clone(), None, options))
        }));
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
