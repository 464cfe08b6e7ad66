//! What layers are put together to: residual blocks, and sums over an image's places.
//!
//! Each stage has its pullback, as layers have, so that critics of any make are differentiated twice.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use maquette_nn::{Windows, avg_pool2d, conv::upsample};

use super::layer::{Finish, FinishTrace, Layer, LayerConfig, Trace};

/// A part of a generator or critic, image to image.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a network has a handful, and a module cannot be boxed"
)]
pub(super) enum Stage {
    Layer(Layer),
    Residual(Residual),
    /// A norm and an activation alone.
    Finish(Finish),
    /// A norm and an activation, then the sum over all places: `[batch, channels, 1, 1]`.
    Sum(Finish),
}

/// What the pullback of a [`Stage`] needs of its forward pass.
pub(super) enum StageTrace {
    Layer(Trace),
    Residual(Box<ResidualTrace>),
    Finish(FinishTrace),
    Sum(FinishTrace, [usize; 4]),
}

impl Stage {
    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Layer(layer) => layer.forward(x),
            Self::Residual(block) => block.forward(x),
            Self::Finish(finish) => finish.forward(x),
            Self::Sum(finish) => over_places(finish.forward(x)),
        }
    }

    /// [`Stage::forward`] in plain operators, with what [`Stage::pullback`] needs of it.
    pub(super) fn traced(&self, x: Tensor<4>) -> (Tensor<4>, StageTrace) {
        match self {
            Self::Layer(layer) => {
                let (x, trace) = layer.traced(x);
                (x, StageTrace::Layer(trace))
            }
            Self::Residual(block) => {
                let (x, trace) = block.traced(x);
                (x, StageTrace::Residual(Box::new(trace)))
            }
            Self::Finish(finish) => {
                let (x, trace) = finish.traced(x);
                (x, StageTrace::Finish(trace))
            }
            Self::Sum(finish) => {
                let shape = x.dims();
                let (x, trace) = finish.traced(x);
                (over_places(x), StageTrace::Sum(trace, shape))
            }
        }
    }

    /// From the gradient of a score with respect to the stage's output, that with respect to its input.
    pub(super) fn pullback(&self, trace: StageTrace, grad: Tensor<4>) -> Tensor<4> {
        match (self, trace) {
            (Self::Layer(layer), StageTrace::Layer(trace)) => layer.pullback(trace, grad),
            (Self::Residual(block), StageTrace::Residual(trace)) => block.pullback(*trace, grad),
            (Self::Finish(finish), StageTrace::Finish(trace)) => finish.pullback(trace, grad),
            (Self::Sum(finish), StageTrace::Sum(trace, shape)) => {
                finish.pullback(trace, grad.expand(shape))
            }
            _ => unreachable!("a trace is pulled back by the stage that left it"),
        }
    }

    /// One more round of the power iterations inside.
    pub(super) fn renew(&self) {
        match self {
            Self::Layer(layer) => layer.renew(),
            Self::Residual(block) => block.layers().for_each(Layer::renew),
            Self::Finish(_) | Self::Sum(_) => {}
        }
    }
}

/// How a block changes the size of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resize {
    Keep,
    /// Doubled, each pixel repeated.
    Up,
    /// Halved, by means of 2x2.
    Down,
}

/// Two convolutions beside a way around them, activation before convolution (He et al. 2016,
/// arXiv:1603.05027), as in the networks of Miyato et al. 2018 (appendix B, arXiv:1802.05957).
#[derive(Module, Debug)]
pub(super) struct Residual {
    /// None where the input is an image.
    entry: Option<Finish>,
    first: Layer,
    second: Layer,
    /// A 1x1 convolution where the channels change, or the size does.
    around: Option<Layer>,
    #[module(skip)]
    resize: Resize,
}

/// What the pullback of a [`Residual`] needs of its forward pass.
pub(super) struct ResidualTrace {
    entry: Option<FinishTrace>,
    first: Trace,
    second: Trace,
    around: Option<Trace>,
}

impl Residual {
    /// A block of `[d_in, d_out]` channels. `at_image` leaves the activation before it out.
    pub(super) fn new(
        config: LayerConfig,
        [d_in, d_out]: [usize; 2],
        resize: Resize,
        at_image: bool,
        device: &Device,
    ) -> Self {
        let bare = LayerConfig {
            spectral: config.spectral,
            ..LayerConfig::default()
        };
        Self {
            entry: (!at_image).then(|| config.finish(d_in, device)),
            first: config.same([d_in, d_out], 3, device),
            second: bare.same([d_out, d_out], 3, device),
            around: (d_in != d_out || resize != Resize::Keep)
                .then(|| bare.same([d_in, d_out], 1, device)),
            resize,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = match &self.entry {
            Some(entry) => entry.forward(x.clone()),
            None => x.clone(),
        };
        let [h, x] = self.enlarged([h, x]);
        let h = self.second.forward(self.first.forward(h));
        // Means and 1x1 convolutions may be swapped; the fewer pixels are convolved.
        let x = self.reduced(x);
        let x = self
            .around
            .as_ref()
            .map_or(x.clone(), |layer| layer.forward(x));
        self.reduced(h) + x
    }

    fn traced(&self, x: Tensor<4>) -> (Tensor<4>, ResidualTrace) {
        let (h, entry) = match &self.entry {
            Some(entry) => {
                let (h, trace) = entry.traced(x.clone());
                (h, Some(trace))
            }
            None => (x.clone(), None),
        };
        let [h, x] = self.enlarged([h, x]);
        let (h, first) = self.first.traced(h);
        let (h, second) = self.second.traced(h);
        let x = self.reduced(x);
        let (x, around) = match &self.around {
            Some(layer) => {
                let (x, trace) = layer.traced(x);
                (x, Some(trace))
            }
            None => (x, None),
        };
        let trace = ResidualTrace {
            entry,
            first,
            second,
            around,
        };
        (self.reduced(h) + x, trace)
    }

    fn pullback(&self, trace: ResidualTrace, grad: Tensor<4>) -> Tensor<4> {
        let around = match (&self.around, trace.around) {
            (Some(layer), Some(trace)) => layer.pullback(trace, grad.clone()),
            _ => grad.clone(),
        };
        let h = self.second.pullback(trace.second, self.spread(grad));
        let h = self.first.pullback(trace.first, h);
        let h = match (&self.entry, trace.entry) {
            (Some(entry), Some(trace)) => entry.pullback(trace, h),
            _ => h,
        };
        h + self.spread(around)
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        [&self.first, &self.second].into_iter().chain(&self.around)
    }

    fn enlarged(&self, images: [Tensor<4>; 2]) -> [Tensor<4>; 2] {
        match self.resize {
            Resize::Up => images.map(upsample),
            Resize::Keep | Resize::Down => images,
        }
    }

    fn reduced(&self, x: Tensor<4>) -> Tensor<4> {
        match self.resize {
            Resize::Down => avg_pool2d(x, Windows::tiles(2)),
            Resize::Keep | Resize::Up => x,
        }
    }

    /// The pullback of [`Residual::reduced`].
    fn spread(&self, grad: Tensor<4>) -> Tensor<4> {
        match self.resize {
            Resize::Down => upsample(grad) * 0.25,
            Resize::Keep => grad,
            Resize::Up => panic!("a critic makes nothing larger"),
        }
    }
}

fn over_places(x: Tensor<4>) -> Tensor<4> {
    x.sum_dim(3).sum_dim(2)
}
