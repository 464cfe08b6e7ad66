//! The sizes of a convolution.

use crate::precision::Precision;

/// Channels of a group from which on it is worth gathering or rounding.
const NARROW: usize = 8;

/// How the kernel of a convolution moves over the image, per axis: rows, then columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOptions {
    /// Pixels between neighbouring outputs; for a transposed convolution, between the places where
    /// the kernel is laid down.
    pub stride: [usize; 2],
    /// Zeros added on each side; for a transposed convolution, pixels cut off on each side.
    pub padding: [usize; 2],
    /// Pixels between neighbouring taps of the kernel (Yu and Koltun 2016, arXiv:1511.07122).
    pub dilation: [usize; 2],
    /// Parts the channels fall into, in and out alike; each part of the output sees its part of the
    /// input alone. As many as channels: a depthwise convolution (Chollet 2017, arXiv:1610.02357).
    pub groups: usize,
}

impl ConvOptions {
    /// Neighbouring taps, and every output channel sees every input channel.
    pub fn new(stride: [usize; 2], padding: [usize; 2]) -> Self {
        Self {
            stride,
            padding,
            dilation: [1, 1],
            groups: 1,
        }
    }

    /// Pixels from the first to the last tap of `kernel`, both included.
    ///
    /// # Panics
    /// If a stride, a dilation or the groups are zero, or the kernel is empty; `operator` says whose.
    pub(super) fn reach(&self, operator: &str, kernel: [usize; 2]) -> [usize; 2] {
        assert!(
            self.stride[0] > 0 && self.stride[1] > 0,
            "{operator}: a stride must be at least 1"
        );
        assert!(
            self.dilation[0] > 0 && self.dilation[1] > 0 && self.groups > 0,
            "{operator}: dilation and groups must be at least 1"
        );
        assert!(
            kernel[0] > 0 && kernel[1] > 0,
            "{operator}: the kernel is empty"
        );
        [0, 1].map(|axis| self.dilation[axis] * (kernel[axis] - 1) + 1)
    }
}

/// The sizes of one convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(super) batch: usize,
    pub(super) channels_in: usize,
    pub(super) channels_out: usize,
    pub(super) input: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) padding: [usize; 2],
    pub(super) dilation: [usize; 2],
    pub(super) groups: usize,
    /// In which products are taken.
    pub(super) precision: Precision,
}

impl Geometry {
    pub(super) fn new(x: [usize; 4], weight: [usize; 4], options: ConvOptions) -> Self {
        let [batch, channels_in, height, width] = x;
        let [channels_out, weight_in, kernel_height, kernel_width] = weight;
        let (input, kernel) = ([height, width], [kernel_height, kernel_width]);
        let ConvOptions {
            stride,
            padding,
            dilation,
            groups,
        } = options;
        let reach = options.reach("conv2d", kernel);
        let expected = weight_in * groups;
        assert_eq!(
            channels_in, expected,
            "conv2d: the input has {channels_in} channels, the weight expects {expected}"
        );
        assert!(
            channels_out.is_multiple_of(groups),
            "conv2d: {groups} groups do not divide {channels_out} output channels"
        );
        let output = [0, 1].map(|axis| {
            let padded = input[axis] + 2 * padding[axis];
            assert!(
                reach[axis] <= padded,
                "conv2d: a kernel of {} does not fit the padded size {padded}; pad more",
                reach[axis],
            );
            (padded - reach[axis]) / stride[axis] + 1
        });
        Self {
            batch,
            channels_in,
            channels_out,
            input,
            kernel,
            output,
            stride,
            padding,
            // Of a single tap it says nothing.
            dilation: [0, 1].map(|axis| if kernel[axis] == 1 { 1 } else { dilation[axis] }),
            groups,
            precision: Precision::F32,
        }
        .rounded()
    }

    /// In the precision asked for. Few channels are not worth rounding: memory bounds them, or pairs
    /// of them are half empty.
    fn rounded(self) -> Self {
        let precision = match self.is_narrow() {
            true => Precision::F32,
            false => Precision::current(),
        };
        Self { precision, ..self }
    }

    /// Whether each group has few channels on either side.
    pub(super) fn is_narrow(&self) -> bool {
        self.channels_in.min(self.channels_out) < NARROW * self.groups
    }

    /// The convolution that each group is.
    pub(super) fn of_group(&self) -> Self {
        Self {
            channels_in: self.channels_in / self.groups,
            channels_out: self.channels_out / self.groups,
            groups: 1,
            ..*self
        }
    }

    pub(super) fn is_not_empty(&self) -> bool {
        self.batch * self.channels_in * self.channels_out * self.input[0] * self.input[1] > 0
    }

    pub(super) fn input_shape(&self) -> [usize; 4] {
        [self.batch, self.channels_in, self.input[0], self.input[1]]
    }

    pub(super) fn weight_shape(&self) -> [usize; 4] {
        [
            self.channels_out,
            self.channels_in / self.groups,
            self.kernel[0],
            self.kernel[1],
        ]
    }

    pub(super) fn output_shape(&self) -> [usize; 4] {
        [
            self.batch,
            self.channels_out,
            self.output[0],
            self.output[1],
        ]
    }

    /// Numbers of one image, of one output image, and of the weights of one output channel.
    pub(super) fn lens(&self) -> (usize, usize, usize) {
        (
            self.channels_in * self.input[0] * self.input[1],
            self.channels_out * self.output[0] * self.output[1],
            self.channels_in / self.groups * self.kernel[0] * self.kernel[1],
        )
    }
}
