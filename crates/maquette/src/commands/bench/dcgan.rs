//! DCGAN (Radford et al. 2016, arXiv:1511.06434) for 32x32 images, with the widths of PyTorch's
//! example, to be timed.

use maquette::burn::module::Module;
use maquette::burn::optim::GradientsParams;
use maquette::burn::tensor::{Device, Tensor, TensorData};
use maquette::nn::Activation;
use maquette::nn::init::{Fill, Slot, initialise};
use maquette::nn::{
    BatchNorm, Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig, binary_cross_entropy,
    leaky_relu,
};
use maquette::rng::{Stream, normal, rng, uniform};
use maquette::train::OptimizerSpec;
use maquette::train::spec::OptimizerKind;

use super::suites::{POOL, Player, Suite, trained};

const BATCH: usize = 64;
const LATENT: usize = 100;
/// Channels from the widest map to the image.
const WIDTHS: [usize; 4] = [256, 128, 64, 3];

/// Latents to images: the first layer makes 4x4 maps, each further one doubles their side.
#[derive(Module, Debug)]
struct Generator {
    convs: Vec<ConvTranspose2d>,
    norms: Vec<BatchNorm>,
}

impl Generator {
    fn new(device: &Device) -> Self {
        let doubles = WIDTHS.windows(2).map(|pair| ConvTranspose2dConfig {
            bias: false,
            ..ConvTranspose2dConfig::double(pair[0], pair[1])
        });
        let first = ConvTranspose2dConfig {
            stride: 1,
            padding: 0,
            bias: false,
            ..ConvTranspose2dConfig::double(LATENT, WIDTHS[0])
        };
        let convs = std::iter::once(first).chain(doubles);
        Self {
            convs: convs.map(|conv| conv.init(device)).collect(),
            norms: norms(&WIDTHS[..3], device),
        }
    }

    /// `[batch, LATENT, 1, 1]` to `[batch, 3, 32, 32]` on `[-1, 1]`.
    fn forward(&self, z: Tensor<4>) -> Tensor<4> {
        let mut x = z;
        for (i, conv) in self.convs.iter().enumerate() {
            x = conv.forward(x);
            x = match self.norms.get(i) {
                Some(norm) => norm.forward(x, Activation::Relu),
                None => x.tanh(),
            };
        }
        x
    }
}

/// Images to logits, the generator backwards.
#[derive(Module, Debug)]
struct Discriminator {
    convs: Vec<Conv2d>,
    norms: Vec<BatchNorm>,
}

impl Discriminator {
    fn new(device: &Device) -> Self {
        let conv = |[d_in, d_out]: [usize; 2], stride, padding| {
            let config = Conv2dConfig {
                stride,
                padding,
                bias: false,
                ..Conv2dConfig::same(d_in, d_out, 4)
            };
            config.init(device)
        };
        let halves = WIDTHS.windows(2).rev();
        let mut convs: Vec<_> = halves.map(|pair| conv([pair[1], pair[0]], 2, 1)).collect();
        convs.push(conv([WIDTHS[0], 1], 1, 0));
        Self {
            convs,
            norms: norms(&[WIDTHS[1], WIDTHS[0]], device),
        }
    }

    /// `[batch, 3, 32, 32]` to `[batch]`.
    fn forward(&self, x: Tensor<4>) -> Tensor<1> {
        let last = self.convs.len() - 1;
        let mut x = x;
        for (i, conv) in self.convs.iter().enumerate() {
            x = conv.forward(x);
            // No norm on the first layer, nothing on the last.
            if i == 0 {
                x = leaky_relu(x, 0.2);
            } else if i < last {
                x = self.norms[i - 1].forward(x, Activation::LeakyRelu(0.2));
            }
        }
        x.flatten(0, 3)
    }
}

fn norms(channels: &[usize], device: &Device) -> Vec<BatchNorm> {
    let norm = |channels: &usize| BatchNorm::new(*channels, device);
    channels.iter().map(norm).collect()
}

/// Normal weights of deviation 0.02, section 4 of the paper.
fn fill(slot: &Slot) -> Fill {
    match slot.path.rsplit('.').next() {
        Some("gamma") => Fill::Constant(1.0),
        Some("beta") => Fill::Constant(0.0),
        _ => Fill::Normal { std: 0.02 },
    }
}

/// Mean of `-log sigmoid(logits)`: the cost of logits that should be large.
fn should_be_large(logits: Tensor<1>) -> Tensor<1> {
    let logits: Tensor<2> = logits.unsqueeze_dim(1);
    let large = logits.ones_like();
    binary_cross_entropy(logits, large).mean()
}

/// One step of the discriminator, then one of the generator.
pub(crate) fn suite(device: &Device) -> Suite {
    let mut draws = rng(0, Stream::Init, 0);
    let makes = initialise(Generator::new(device), &mut draws, fill);
    let judges = initialise(Discriminator::new(device), &mut draws, fill);
    let spec = OptimizerSpec {
        betas: Some([0.5, 0.999]),
        ..OptimizerSpec::new(OptimizerKind::Adam, 2e-4)
    };
    let images = |index: u64| -> Tensor<4> {
        let pixels = uniform(&mut rng(0, Stream::Data, index), BATCH * 3 * 32 * 32);
        let pixels = TensorData::new(pixels, [BATCH, 3, 32, 32]);
        Tensor::from_data(pixels, device) * 2.0 - 1.0
    };
    let pool: Vec<_> = (0..POOL).map(images).collect();
    let device = device.clone();
    let parameters = trained(&makes) + trained(&judges);
    let (mut makes, mut judges) = (Player::new(makes, &spec), Player::new(judges, &spec));
    let step = move |index: u64| {
        // 1. The discriminator on real images and on made ones.
        let z = normal(&mut rng(0, Stream::Noise, index), BATCH * LATENT);
        let z = TensorData::new(z, [BATCH, LATENT, 1, 1]);
        let made = makes.model().forward(Tensor::from_data(z, &device));
        let real = judges
            .model()
            .forward(pool[(index % POOL) as usize].clone());
        let fake = judges.model().forward(made.clone().detach());
        let loss = should_be_large(real) + should_be_large(fake.neg());
        let judged = f64::from(loss.clone().into_scalar::<f32>());
        let grads = GradientsParams::from_grads(loss.backward(), judges.model());
        judges.step(grads);
        // 2. The generator, through a discriminator whose weights need no gradient.
        let fooled = should_be_large(judges.model().clone().no_grad().forward(made));
        let fools = f64::from(fooled.clone().into_scalar::<f32>());
        let grads = GradientsParams::from_grads(fooled.backward(), makes.model());
        makes.step(grads);
        judged + fools
    };
    Suite {
        parameters,
        items: BATCH,
        unit: "images/s",
        step: Box::new(step),
    }
}
