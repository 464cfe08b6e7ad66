//! Convolution, and the two ways between resolutions.

use burn::{
    module::{Module, Param},
    nn::Initializer,
    tensor::{Device, Tensor},
};
use maquette_kernels::{ConvOptions, conv_transpose2d, conv2d, upsample_nearest2d};

/// Configuration of a [`Conv2d`] with a square kernel.
#[derive(Debug, Clone, Copy)]
pub struct Conv2dConfig {
    /// Channels in.
    pub d_in: usize,
    /// Channels out.
    pub d_out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Zeros added on each side.
    pub padding: usize,
    /// Pixels between neighbouring taps of the kernel.
    pub dilation: usize,
    /// Parts of the channels that do not see each other; divides channels in and out.
    pub groups: usize,
    /// Whether each output channel has a number added; pointless before a norm.
    pub bias: bool,
}

impl Conv2dConfig {
    /// A convolution of an odd kernel that keeps the size: stride 1, padding `kernel / 2`.
    pub fn same(d_in: usize, d_out: usize, kernel: usize) -> Self {
        Self {
            d_in,
            d_out,
            kernel,
            stride: 1,
            padding: kernel / 2,
            dilation: 1,
            groups: 1,
            bias: true,
        }
    }

    /// A 3x3 convolution that halves the size.
    pub fn halve(d_in: usize, d_out: usize) -> Self {
        Self {
            stride: 2,
            ..Self::same(d_in, d_out, 3)
        }
    }

    /// A depthwise convolution that keeps the size: a kernel per channel (Chollet 2017,
    /// arXiv:1610.02357). A 1x1 convolution after it mixes the channels.
    pub fn depthwise(channels: usize, kernel: usize) -> Self {
        Self {
            groups: channels,
            ..Self::same(channels, channels, kernel)
        }
    }

    /// With taps `dilation` pixels apart, and padding for an odd kernel to keep its size.
    pub fn with_dilation(self, dilation: usize) -> Self {
        Self {
            dilation,
            padding: dilation * (self.kernel / 2),
            ..self
        }
    }

    /// A convolution; draw its weights with [`crate::init::initialise`].
    pub fn init(&self, device: &Device) -> Conv2d {
        let shape = [
            self.d_out,
            self.d_in / self.groups,
            self.kernel,
            self.kernel,
        ];
        Conv2d {
            weight: Initializer::Zeros.init(shape, device),
            bias: zeros(self.bias, self.d_out, device),
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
        }
    }
}

fn zeros(wanted: bool, channels: usize, device: &Device) -> Option<Param<Tensor<1>>> {
    wanted.then(|| Initializer::Zeros.init([channels], device))
}

/// A two-dimensional convolution with a square kernel.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[d_out, d_in / groups, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    stride: usize,
    padding: usize,
    dilation: usize,
    groups: usize,
}

impl Conv2d {
    /// # Shapes
    /// - input: `[batch, d_in, height, width]`
    /// - output: `[batch, d_out, height', width']`, `height' = (height + 2 padding - dilation (kernel - 1) - 1) / stride + 1`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.forward_with(x, self.weight.val())
    }

    /// The same with another weight of the same shape, such as a normalised one.
    pub fn forward_with(&self, x: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        conv2d(x, weight, bias, self.options())
    }

    fn options(&self) -> ConvOptions {
        ConvOptions {
            dilation: [self.dilation; 2],
            groups: self.groups,
            ..ConvOptions::new([self.stride; 2], [self.padding; 2])
        }
    }

    /// The gradient of a number with respect to the input, given that with respect to the output of
    /// [`Conv2d::forward_with`], as a forward operator: the transposed convolution. Sizes must divide
    /// evenly, so that no row of the input is left out.
    ///
    /// # Shapes
    /// - grad: `[batch, d_out, height', width']`
    /// - output: `[batch, d_in, height, width]`
    pub fn pullback(&self, grad: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
        conv_transpose2d(grad, weight, None, self.options())
    }
}

/// Configuration of a [`ConvTranspose2d`] with a square kernel.
#[derive(Debug, Clone, Copy)]
pub struct ConvTranspose2dConfig {
    /// Channels in.
    pub d_in: usize,
    /// Channels out.
    pub d_out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step between the places where the kernel is laid down.
    pub stride: usize,
    /// Pixels cut off on each side.
    pub padding: usize,
    /// Pixels between neighbouring taps of the kernel.
    pub dilation: usize,
    /// Parts of the channels that do not see each other; divides channels in and out.
    pub groups: usize,
    /// Whether each output channel has a number added; pointless before a norm.
    pub bias: bool,
}

impl ConvTranspose2dConfig {
    /// A 4x4 transposed convolution that doubles the size.
    pub fn double(d_in: usize, d_out: usize) -> Self {
        Self {
            d_in,
            d_out,
            kernel: 4,
            stride: 2,
            padding: 1,
            dilation: 1,
            groups: 1,
            bias: true,
        }
    }

    /// A transposed convolution; draw its weights with [`crate::init::initialise`].
    pub fn init(&self, device: &Device) -> ConvTranspose2d {
        let shape = [
            self.d_in,
            self.d_out / self.groups,
            self.kernel,
            self.kernel,
        ];
        ConvTranspose2d {
            weight: Initializer::Zeros.init(shape, device),
            bias: zeros(self.bias, self.d_out, device),
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
        }
    }
}

/// A two-dimensional transposed convolution with a square kernel.
#[derive(Module, Debug)]
pub struct ConvTranspose2d {
    /// `[d_in, d_out / groups, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    stride: usize,
    padding: usize,
    dilation: usize,
    groups: usize,
}

impl ConvTranspose2d {
    /// # Shapes
    /// - input: `[batch, d_in, height, width]`
    /// - output: `[batch, d_out, height', width']`, `height' = (height - 1) stride - 2 padding + dilation (kernel - 1) + 1`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.forward_with(x, self.weight.val())
    }

    /// The same with another weight of the same shape, such as a normalised one.
    pub fn forward_with(&self, x: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        conv_transpose2d(x, weight, bias, self.options())
    }

    fn options(&self) -> ConvOptions {
        ConvOptions {
            dilation: [self.dilation; 2],
            groups: self.groups,
            ..ConvOptions::new([self.stride; 2], [self.padding; 2])
        }
    }
}

/// Doubles height and width by repeating each pixel. Followed by a convolution it has none of the
/// chequerboard of a transposed one (Odena et al. 2016).
///
/// # Shapes
/// - input: `[batch, channels, height, width]`
/// - output: `[batch, channels, 2 height, 2 width]`
pub fn upsample(x: Tensor<4>) -> Tensor<4> {
    upsample_nearest2d(x, 2)
}

/// Moves each `patch` x `patch` square of pixels into channels.
///
/// # Shapes
/// - input: `[batch, channels, height, width]`
/// - output: `[batch, channels patch^2, height / patch, width / patch]`
pub fn space_to_depth(x: Tensor<4>, patch: usize) -> Tensor<4> {
    if patch == 1 {
        return x;
    }
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height / patch, patch, width / patch, patch])
        .permute([0, 1, 3, 5, 2, 4])
        .reshape([
            batch,
            channels * patch * patch,
            height / patch,
            width / patch,
        ])
}

/// The inverse of [`space_to_depth`].
///
/// # Shapes
/// - input: `[batch, channels patch^2, height, width]`
/// - output: `[batch, channels, height patch, width patch]`
pub fn depth_to_space(x: Tensor<4>, patch: usize) -> Tensor<4> {
    if patch == 1 {
        return x;
    }
    let [batch, deep, height, width] = x.dims();
    let channels = deep / (patch * patch);
    x.reshape([batch, channels, patch, patch, height, width])
        .permute([0, 1, 4, 2, 5, 3])
        .reshape([batch, channels, height * patch, width * patch])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(values: &[f32], shape: [usize; 4]) -> Tensor<4> {
        Tensor::<1>::from_floats(values, &Device::flex()).reshape(shape)
    }

    fn values(x: Tensor<4>) -> Vec<f32> {
        x.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn convolution_by_hand() {
        let config = Conv2dConfig::halve(1, 1);
        let mut conv = config.init(&Device::flex());
        conv.weight = Param::from_tensor(Tensor::ones([1, 1, 3, 3], &Device::flex()));
        conv.bias = Some(Param::from_tensor(Tensor::ones([1], &Device::flex())));
        // Sums of the 2x2 corner windows of 1..9, plus the bias.
        let x = image(&[1., 2., 3., 4., 5., 6., 7., 8., 9.], [1, 1, 3, 3]);
        assert_eq!(values(conv.forward(x)), [13.0, 17.0, 25.0, 29.0]);
    }

    #[test]
    fn dilated_depthwise_convolution_by_hand() {
        let config = Conv2dConfig {
            bias: false,
            ..Conv2dConfig::depthwise(2, 3).with_dilation(2)
        };
        let mut conv = config.init(&Device::flex());
        let kernels = [1.0, 10.0].map(|k| Tensor::full([1, 1, 3, 3], k, &Device::flex()));
        conv.weight = Param::from_tensor(Tensor::cat(kernels.to_vec(), 0));
        // Every other pixel of each plane, around each pixel.
        let x = image(&[1., 2., 3., 4., 5., 6.], [1, 2, 1, 3]);
        assert_eq!(values(conv.forward(x)), [4., 2., 4., 100., 50., 100.]);
    }

    #[test]
    fn transposed_convolution_by_hand() {
        let mut conv = ConvTranspose2dConfig::double(1, 1).init(&Device::flex());
        conv.weight = Param::from_tensor(Tensor::ones([1, 1, 4, 4], &Device::flex()));
        // Each pixel is laid down as a 4x4 square; the border is cut off.
        let x = image(&[1., 2.], [1, 1, 1, 2]);
        let expected = [1., 3., 3., 2., 1., 3., 3., 2.];
        assert_eq!(values(conv.forward(x)), expected);
    }

    #[test]
    fn upsample_repeats_pixels() {
        let x = image(&[1.0, 2.0], [1, 1, 1, 2]);
        assert_eq!(values(upsample(x)), [1., 1., 2., 2., 1., 1., 2., 2.]);
    }

    #[test]
    fn depth_to_space_undoes_space_to_depth() {
        let numbers: Vec<f32> = (0..2 * 3 * 4 * 6).map(|v| v as f32).collect();
        let x = image(&numbers, [2, 3, 4, 6]);
        let deep = space_to_depth(x, 2);
        assert_eq!(deep.dims(), [2, 12, 2, 3]);
        assert_eq!(
            values(
                deep.clone()
                    .narrow(0, 0, 1)
                    .narrow(1, 0, 4)
                    .narrow(2, 0, 1)
                    .narrow(3, 0, 1)
            ),
            [0., 1., 6., 7.]
        );
        assert_eq!(values(depth_to_space(deep, 2)), numbers);
    }
}
