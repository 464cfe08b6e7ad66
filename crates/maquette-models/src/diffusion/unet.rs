//! A U-Net with attention and class conditioning.
//!
//! Ronneberger et al. 2015 (arXiv:1505.04597) in the form of Ho et al. 2020 and Dhariwal & Nichol
//! 2021 (arXiv:2105.05233): residual blocks with group norm whose second norm is scaled and shifted
//! by time and class; one skip per down block.

use burn::{
    module::Module,
    nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig, Linear, LinearConfig},
    tensor::{Device, Int, Tensor},
};
use maquette_nn::{
    Activation, Attention, AttentionConfig, Conv2d, Conv2dConfig, InitScheme, TimeEmbedding,
    attention::AttentionContext,
    conv::{depth_to_space, space_to_depth, upsample},
    init::{Fill, Slot, initialise},
    norm::GroupNorm,
    silu,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};

/// Configuration of a [`UNet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UNetConfig {
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Side of the pixel squares that enter as channels; 2 makes every convolution four times
    /// cheaper.
    pub patch: usize,
    /// Channels at the first resolution.
    pub width: usize,
    /// Channels at each resolution, as multiples of `width`; each next resolution is half.
    pub multipliers: Vec<usize>,
    /// Residual blocks per resolution, down and up.
    pub n_blocks: usize,
    /// Heights, in cells after `patch`, at which blocks are followed by self-attention. The middle
    /// always has it.
    pub attention: Vec<usize>,
    /// Number of attention heads.
    pub n_heads: usize,
    /// Number of classes; 0 for none.
    pub n_classes: usize,
    /// Dropout inside residual blocks.
    pub dropout: f64,
}

impl Default for UNetConfig {
    fn default() -> Self {
        Self {
            image: [1, 28, 28],
            patch: 2,
            width: 48,
            multipliers: vec![1, 2],
            n_blocks: 1,
            attention: vec![7],
            n_heads: 4,
            n_classes: 0,
            dropout: 0.0,
        }
    }
}

impl UNetConfig {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), ModelError> {
        let [channels, height, width] = self.image;
        for (key, value) in [
            ("image", channels * height * width),
            ("patch", self.patch),
            ("width", self.width),
            (
                "multipliers",
                self.multipliers.iter().copied().min().unwrap_or(0),
            ),
            ("n_blocks", self.n_blocks),
            ("n_heads", self.n_heads),
        ] {
            require(value > 0, key, || "must be at least 1".into())?;
        }
        let halvings = self.multipliers.len() - 1;
        let scale = self.patch << halvings;
        let fits = height.is_multiple_of(scale) && width.is_multiple_of(scale);
        require(fits, "multipliers", || {
            format!(
                "a patch of {} and {halvings} halvings do not fit {height}x{width}",
                self.patch
            )
        })?;
        require(
            self.width.is_multiple_of(2 * self.n_heads),
            "n_heads",
            || {
                format!(
                    "twice {} heads do not divide width = {}",
                    self.n_heads, self.width
                )
            },
        )?;
        require((0.0..1.0).contains(&self.dropout), "dropout", || {
            format!("{} is not in [0, 1)", self.dropout)
        })
    }

    /// A network with weights drawn from `rng`; its first answer is zero.
    ///
    /// # Panics
    /// If [`UNetConfig::validate`] fails.
    pub fn init(&self, device: &Device, rng: &mut Rng) -> UNet {
        if let Err(error) = self.validate() {
            panic!("invalid UNetConfig: {error}");
        }
        let [colours, height, _] = self.image;
        let cells = colours * self.patch * self.patch;
        let d_time = 4 * self.width;
        let widths: Vec<usize> = self.multipliers.iter().map(|m| m * self.width).collect();
        let attends = |level: usize| self.attention.contains(&((height / self.patch) >> level));
        let last = widths.len() - 1;

        let mut down = Vec::new();
        let mut now = widths[0];
        for (level, &d_out) in widths.iter().enumerate() {
            let blocks = (0..self.n_blocks).map(|_| {
                let d_in = std::mem::replace(&mut now, d_out);
                self.block(d_in, d_out, d_time, attends(level), device)
            });
            let blocks = blocks.collect();
            let resample = (level < last).then(|| Conv2dConfig::halve(d_out, d_out).init(device));
            down.push(Level { blocks, resample });
        }
        let mut up = Vec::new();
        for (level, &d_out) in widths.iter().enumerate().rev() {
            // Each block also takes the skip of its twin on the way down.
            let blocks = (0..self.n_blocks).map(|_| {
                let d_in = std::mem::replace(&mut now, d_out) + d_out;
                self.block(d_in, d_out, d_time, attends(level), device)
            });
            let blocks = blocks.collect();
            let resample = (level > 0).then(|| {
                now = widths[level - 1];
                Conv2dConfig::same(d_out, now, 3).init(device)
            });
            up.push(Level { blocks, resample });
        }
        let deepest = widths[last];
        let classes = self.n_classes + 1;
        let model = UNet {
            time: TimeEmbedding::new(self.width, d_time, device),
            labels: (self.n_classes > 0)
                .then(|| EmbeddingConfig::new(classes, d_time).init(device)),
            input: Conv2dConfig::same(cells, widths[0], 3).init(device),
            down,
            middle: self.block(deepest, deepest, d_time, true, device),
            middle_after: self.block(deepest, deepest, d_time, false, device),
            up,
            norm: GroupNorm::new(GROUPS, widths[0], device),
            output: Conv2dConfig::same(widths[0], cells, 3).init(device),
            patch: self.patch,
        };
        initialise(model, rng, fill)
    }

    fn block(
        &self,
        d_in: usize,
        d_out: usize,
        d_time: usize,
        attends: bool,
        device: &Device,
    ) -> Block {
        let attention = AttentionConfig::new(d_out, self.n_heads);
        Block {
            norm: GroupNorm::new(GROUPS, d_in, device),
            conv: Conv2dConfig::same(d_in, d_out, 3).init(device),
            time: LinearConfig::new(d_time, 2 * d_out).init(device),
            norm_out: GroupNorm::new(GROUPS, d_out, device),
            dropout: DropoutConfig::new(self.dropout).init(),
            conv_out: Conv2dConfig::same(d_out, d_out, 3).init(device),
            shortcut: (d_in != d_out).then(|| Conv2dConfig::same(d_in, d_out, 1).init(device)),
            attention: attends.then(|| SpatialAttention {
                norm: GroupNorm::new(GROUPS, d_out, device),
                attention: attention.init(device),
            }),
        }
    }
}

/// Groups of the group norms.
const GROUPS: usize = 8;

/// Every branch that ends in a sum starts at zero, and so does the output.
fn fill(slot: &Slot) -> Fill {
    let zero = [
        "conv_out.weight",
        "conv_out.bias",
        "attention.proj.weight",
        "attention.proj.bias",
    ];
    let is_zero = zero.iter().any(|name| slot.path.ends_with(name));
    match slot.path {
        "output.weight" | "output.bias" => Fill::Constant(0.0),
        "labels.weight" => Fill::Normal { std: 0.5 },
        _ if is_zero => Fill::Constant(0.0),
        _ => InitScheme::FanIn.fill(slot),
    }
}

/// A residual block, optionally followed by attention.
#[derive(Module, Debug)]
struct Block {
    norm: GroupNorm,
    conv: Conv2d,
    time: Linear,
    norm_out: GroupNorm,
    dropout: Dropout,
    conv_out: Conv2d,
    shortcut: Option<Conv2d>,
    attention: Option<SpatialAttention>,
}

impl Block {
    /// `x`: `[batch, d_in, height, width]`, `time`: `[batch, d_time]`.
    fn forward(&self, x: Tensor<4>, time: &Tensor<2>) -> Tensor<4> {
        let h = self
            .conv
            .forward(self.norm.forward(x.clone(), Activation::Silu));
        let [_, channels, ..] = h.dims();
        let film = self.time.forward(time.clone());
        let scale = film.clone().narrow(1, 0, channels);
        let shift = film.narrow(1, channels, channels);
        let h = self
            .norm_out
            .forward_film(h, scale, shift, Activation::Silu);
        let h = self.conv_out.forward(self.dropout.forward(h));
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        let x = x + h;
        match &self.attention {
            Some(attention) => attention.forward(x),
            None => x,
        }
    }
}

/// Self-attention between all cells of an image.
#[derive(Module, Debug)]
struct SpatialAttention {
    norm: GroupNorm,
    attention: Attention,
}

impl SpatialAttention {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let cells = self.norm.forward(x.clone(), Activation::Identity).reshape([
            batch,
            channels,
            height * width,
        ]);
        let context = AttentionContext::default();
        let mixed = self.attention.forward(cells.swap_dims(1, 2), context);
        x + mixed
            .swap_dims(1, 2)
            .reshape([batch, channels, height, width])
    }
}

/// The blocks of one resolution, and the convolution on the way to the next.
#[derive(Module, Debug)]
struct Level {
    blocks: Vec<Block>,
    resample: Option<Conv2d>,
}

/// A U-Net that answers for a noisy image, its time and its class.
#[derive(Module, Debug)]
pub struct UNet {
    time: TimeEmbedding,
    labels: Option<Embedding>,
    input: Conv2d,
    down: Vec<Level>,
    middle: Block,
    middle_after: Block,
    up: Vec<Level>,
    norm: GroupNorm,
    output: Conv2d,
    patch: usize,
}

impl UNet {
    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    /// - t: `[batch]`, on `[0, 1000)`
    /// - labels: `[batch]`, each below `n_classes`, or `n_classes` for none
    /// - output: `[batch, channels, height, width]`
    pub fn forward(&self, x: Tensor<4>, t: Tensor<1>, labels: Option<Tensor<1, Int>>) -> Tensor<4> {
        // 1. What is known: time, and class if any.
        let mut time = self.time.forward(t);
        if let (Some(table), Some(labels)) = (&self.labels, labels) {
            time = time
                + table
                    .forward(labels.unsqueeze_dim::<2>(1))
                    .squeeze_dim::<2>(1);
        }
        let time = silu(time);
        // 2. Down, remembering every block's output.
        let mut h = self.input.forward(space_to_depth(x, self.patch));
        let mut skips = Vec::new();
        for level in &self.down {
            for block in &level.blocks {
                h = block.forward(h, &time);
                skips.push(h.clone());
            }
            if let Some(halve) = &level.resample {
                h = halve.forward(h);
            }
        }
        // 3. Middle.
        h = self
            .middle_after
            .forward(self.middle.forward(h, &time), &time);
        // 4. Up, each block beside its twin's output.
        for level in &self.up {
            for block in &level.blocks {
                if let Some(skip) = skips.pop() {
                    h = block.forward(Tensor::cat(vec![h, skip], 1), &time);
                }
            }
            if let Some(conv) = &level.resample {
                h = conv.forward(upsample(h));
            }
        }
        let h = self.output.forward(self.norm.forward(h, Activation::Silu));
        depth_to_space(h, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use maquette_rng::{Stream, normal, rng};

    fn forward(config: &UNetConfig, device: &Device) -> (UNet, Tensor<4>) {
        let model = config.init(device, &mut rng(0, Stream::Init, 0));
        let [channels, height, width] = config.image;
        let values = normal(&mut rng(1, Stream::Data, 0), 2 * channels * height * width);
        let x = Tensor::from_data(
            TensorData::new(values, [2, channels, height, width]),
            device,
        );
        let t = Tensor::<1>::from_floats([3.0, 700.0], device);
        let labels = Tensor::<1, Int>::from_ints([0, config.n_classes as i32], device);
        let y = model.forward(x, t, Some(labels));
        (model, y)
    }

    #[test]
    fn starts_at_zero_and_keeps_the_shape() {
        for (patch, multipliers) in [(1, vec![1, 2, 2]), (2, vec![1, 2]), (4, vec![1])] {
            let config = UNetConfig {
                patch,
                multipliers,
                width: 16,
                n_classes: 10,
                n_blocks: 2,
                ..UNetConfig::default()
            };
            let (_, y) = forward(&config, &Device::flex());
            assert_eq!(y.dims(), [2, 1, 28, 28]);
            assert_eq!(y.abs().max().into_scalar::<f32>(), 0.0);
        }
    }

    #[test]
    fn default_size() {
        let config = UNetConfig {
            n_classes: 10,
            ..UNetConfig::default()
        };
        let model = config.init(&Device::flex(), &mut rng(0, Stream::Init, 0));
        let n = model.num_params();
        assert!((500_000..2_000_000).contains(&n), "{n}");
    }

    #[test]
    fn every_parameter_learns_once_the_output_does() {
        let config = UNetConfig {
            image: [1, 8, 8],
            width: 8,
            n_heads: 2,
            attention: vec![4],
            n_classes: 2,
            ..UNetConfig::default()
        };
        let device = Device::flex().autodiff();
        let model = config.init(&device, &mut rng(0, Stream::Init, 0));
        // Without the zeros that make a fresh network answer nothing.
        let model = initialise(model, &mut rng(0, Stream::Init, 0), |slot| {
            InitScheme::FanIn.fill(slot)
        });
        let x = Tensor::<4>::ones([2, 1, 8, 8], &device);
        let t = Tensor::<1>::from_floats([3.0, 700.0], &device);
        let labels = Tensor::<1, Int>::from_ints([0, 2], &device);
        let y = model.forward(x.clone(), t, Some(labels));
        let grads = (y - x * 0.3).powf_scalar(2.0).mean().backward();
        struct Check<'a>(&'a burn::tensor::Gradients, usize);
        impl burn::module::ModuleVisitor for Check<'_> {
            fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
                let gradient = param.val().grad(self.0);
                assert!(
                    gradient.is_some(),
                    "no gradient for a parameter of {:?}",
                    param.shape()
                );
                self.1 += 1;
            }
        }
        let mut check = Check(&grads, 0);
        model.visit(&mut check);
        assert!(check.1 > 40, "{}", check.1);
    }

    #[test]
    fn contradictions_name_their_key() {
        let config = UNetConfig {
            multipliers: vec![1, 2, 4],
            ..UNetConfig::default()
        };
        let message = config.validate().unwrap_err().to_string();
        assert!(
            message.starts_with("multipliers: a patch of 2 and 2 halvings"),
            "{message}"
        );
    }
}
