//! The sizes of a convolution.

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
}

impl Geometry {
    pub(super) fn new(
        x: [usize; 4],
        weight: [usize; 4],
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> Self {
        let [batch, channels_in, height, width] = x;
        let [channels_out, weight_in, kernel_height, kernel_width] = weight;
        assert_eq!(
            channels_in, weight_in,
            "conv2d: the input has {channels_in} channels, the weight expects {weight_in}"
        );
        assert!(
            stride[0] > 0 && stride[1] > 0,
            "conv2d: a stride must be at least 1"
        );
        let input = [height, width];
        let kernel = [kernel_height, kernel_width];
        let output = [0, 1].map(|axis| {
            let padded = input[axis] + 2 * padding[axis];
            assert!(
                (1..=padded).contains(&kernel[axis]),
                "conv2d: a kernel of {} does not fit the padded size {padded}; pad more",
                kernel[axis],
            );
            (padded - kernel[axis]) / stride[axis] + 1
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
            self.channels_in,
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
            self.channels_in * self.kernel[0] * self.kernel[1],
        )
    }
}
