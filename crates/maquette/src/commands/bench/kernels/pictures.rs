//! What image models are made of.

use maquette::kernels::{
    Activation, ConvOptions, GroupNormOptions, Windows, avg_pool2d, batch_norm, conv_transpose2d,
    conv2d, group_norm, max_pool2d, upsample_nearest2d,
};

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
            true => Work::Both(flops, 3 * inputs + 4 * outputs),
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
    // The transposed convolutions of dcgan32's generator.
    for [batch, c_in, size, c_out] in [[64, 256, 4, 128], [64, 128, 8, 64], [64, 64, 16, 3]] {
        let x = random([batch, c_in, size, size]);
        let weight = random([c_in, c_out, 4, 4]);
        let options = ConvOptions::new([2; 2], [1; 2]);
        cases.push(Case::new(
            format!(
                "transposed conv [{batch}, {c_in}, {size}, {size}] to {c_out}, 4x4/2, both ways"
            ),
            Work::Flops(3 * 2 * batch * c_in * size * size * c_out * 16),
            move || train(conv_transpose2d(x.clone(), weight.clone(), None, options)),
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
            Work::Floats((2 + 1 + 3) * count),
            move || train(group_norm(x.clone(), gain.clone(), offset.clone(), options)),
        ));
        let x = random(shape);
        let (gain, offset) = (random([channels]), random([channels]));
        cases.push(Case::new(
            format!("batch norm and ReLU {shape:?}, both ways"),
            Work::Floats((2 + 1 + 3) * count),
            move || {
                let (gain, offset) = (gain.clone(), offset.clone());
                train(batch_norm(x.clone(), gain, offset, 1e-5, Activation::Relu).output)
            },
        ));
        let (x1, x2, x3) = (random(shape), random(shape), random(shape));
        let windows = Windows::tiles(2);
        // A quarter as many outputs; only a maximum reads its input again.
        cases.push(Case::new(
            format!("maximum of 2x2 {shape:?}, both ways"),
            Work::Floats(3 * count + 3 * count / 4),
            move || train(max_pool2d(x1.clone(), windows)),
        ));
        cases.push(Case::new(
            format!("mean of 2x2 {shape:?}, both ways"),
            Work::Floats(2 * count + 3 * count / 4),
            move || train(avg_pool2d(x2.clone(), windows)),
        ));
        cases.push(Case::new(
            format!("repetition to 2x2 {shape:?}, both ways"),
            Work::Floats((1 + 4 + 4 + 4 + 1) * count),
            move || train(upsample_nearest2d(x3.clone(), 2)),
        ));
    }
    cases
}
