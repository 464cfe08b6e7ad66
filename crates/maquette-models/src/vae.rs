//! Variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114), with the beta of Higgins et
//! al. 2017 and the importance-weighted bound of Burda et al. 2016 (arXiv:1509.00519).

use std::f64::consts::PI;

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData, activation::sigmoid},
};
use maquette_nn::{
    Activation, Conv2d, Conv2dConfig, InitScheme, Linear, LinearConfig, binary_cross_entropy,
    conv::upsample, gaussian_kl, gaussian_sample, init::initialise, relu,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};

/// Distribution of a pixel given the latent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Likelihood {
    /// A coin whose mean the decoder gives; pixels on `[0, 1]`.
    Bernoulli,
    /// Normal around the decoder's mean.
    Gaussian {
        /// Standard deviation, in units of a pixel.
        sigma: f64,
    },
}

/// Encoder and, mirrored, decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum VaeNetwork {
    /// Fully connected.
    Mlp {
        /// Widths of the encoder's hidden layers.
        hidden: Vec<usize>,
    },
    /// Convolutions, each of which halves the size.
    Conv {
        /// Channels after each convolution of the encoder.
        channels: Vec<usize>,
    },
}

/// Configuration of a [`Vae`]. The default is PyTorch's example: 784-400-20, Bernoulli pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaeConfig {
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Encoder and decoder.
    pub network: VaeNetwork,
    /// Number of latent dimensions.
    pub d_latent: usize,
    /// Weight of the KL term; 1 is the evidence bound.
    pub beta: f64,
    /// Distribution of a pixel.
    pub likelihood: Likelihood,
    /// How weights are drawn.
    pub init: InitScheme,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            image: [1, 28, 28],
            network: VaeNetwork::Mlp { hidden: vec![400] },
            d_latent: 20,
            beta: 1.0,
            likelihood: Likelihood::Bernoulli,
            init: InitScheme::FanIn,
        }
    }
}

impl VaeConfig {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), ModelError> {
        let [_, height, width] = self.image;
        let positive = self.image.iter().all(|side| *side > 0);
        require(positive, "image", || "sides must be at least 1".into())?;
        require(self.d_latent > 0, "d_latent", || {
            "must be at least 1".into()
        })?;
        require(self.beta >= 0.0 && self.beta.is_finite(), "beta", || {
            "must not be negative".into()
        })?;
        if let Likelihood::Gaussian { sigma } = self.likelihood {
            let positive = sigma > 0.0 && sigma.is_finite();
            require(positive, "likelihood.gaussian.sigma", || {
                "must be positive".into()
            })?;
        }
        match &self.network {
            VaeNetwork::Mlp { hidden: widths } | VaeNetwork::Conv { channels: widths } => {
                require(
                    !widths.is_empty() && !widths.contains(&0),
                    "network",
                    || "needs one width or more, each at least 1".into(),
                )?;
            }
        }
        if let VaeNetwork::Conv { channels } = &self.network {
            let scale = 1usize
                .checked_shl(channels.len() as u32)
                .unwrap_or(usize::MAX);
            let fits = height.is_multiple_of(scale) && width.is_multiple_of(scale);
            require(fits, "network.conv.channels", || {
                format!("{} halvings do not fit {height}x{width}", channels.len())
            })?;
        }
        Ok(())
    }

    /// A model with weights drawn from `rng`.
    ///
    /// # Panics
    /// If [`VaeConfig::validate`] fails.
    pub fn init(&self, device: &Device, rng: &mut Rng) -> Vae {
        if let Err(error) = self.validate() {
            panic!("invalid VaeConfig: {error}");
        }
        let linear = |d_in, d_out| LinearConfig::new(d_in, d_out).init(device);
        let (encoder, decoder, d_encoded) = match &self.network {
            VaeNetwork::Mlp { hidden } => {
                let pixels = self.image.iter().product();
                let up = [&[pixels][..], hidden].concat();
                let down: Vec<_> = [self.d_latent]
                    .into_iter()
                    .chain(up.iter().rev().copied())
                    .collect();
                let stack = |widths: &[usize]| -> Vec<Linear> {
                    widths
                        .windows(2)
                        .map(|pair| linear(pair[0], pair[1]))
                        .collect()
                };
                let encoder = Encoder {
                    convs: vec![],
                    linears: stack(&up),
                };
                let decoder = Decoder {
                    linears: stack(&down),
                    convs: vec![],
                };
                (encoder, decoder, up[up.len() - 1])
            }
            VaeNetwork::Conv { channels } => {
                let [colours, height, width] = self.image;
                let up = [&[colours][..], channels].concat();
                let convs = up
                    .windows(2)
                    .map(|pair| Conv2dConfig::halve(pair[0], pair[1]).init(device));
                let encoder = Encoder {
                    convs: convs.collect(),
                    linears: vec![],
                };
                let scale = 1 << channels.len();
                let top = up[up.len() - 1];
                let d_encoded = top * (height / scale) * (width / scale);
                let convs = up
                    .windows(2)
                    .rev()
                    .map(|p| Conv2dConfig::same(p[1], p[0], 3).init(device));
                let decoder = Decoder {
                    linears: vec![linear(self.d_latent, d_encoded)],
                    convs: convs.collect(),
                };
                (encoder, decoder, d_encoded)
            }
        };
        let model = Vae {
            encoder,
            posterior: linear(d_encoded, 2 * self.d_latent),
            decoder,
            config: self.clone(),
        };
        initialise(model, rng, |slot| self.init.fill(slot))
    }
}

#[derive(Module, Debug)]
struct Encoder {
    convs: Vec<Conv2d>,
    linears: Vec<Linear>,
}

#[derive(Module, Debug)]
struct Decoder {
    linears: Vec<Linear>,
    convs: Vec<Conv2d>,
}

/// A variational autoencoder.
#[derive(Module, Debug)]
pub struct Vae {
    encoder: Encoder,
    posterior: Linear,
    decoder: Decoder,
    #[module(skip)]
    config: VaeConfig,
}

/// The normal distribution of the latent given an image.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Means, and beside them the logarithms of the variances, `[batch, 2 d_latent]`.
    normal: Tensor<2>,
}

impl Posterior {
    /// Of means and logarithms of variances, each `[batch, d_latent]`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn new(mean: Tensor<2>, log_variance: Tensor<2>) -> Self {
        assert_eq!(mean.dims(), log_variance.dims(), "a variance for each mean");
        let normal = Tensor::cat(vec![mean, log_variance], 1);
        Self { normal }
    }

    /// Means, `[batch, d_latent]`.
    pub fn mean(&self) -> Tensor<2> {
        let [_, both] = self.normal.dims();
        self.normal.clone().narrow(1, 0, both / 2)
    }

    /// Logarithms of the variances, `[batch, d_latent]`.
    pub fn log_variance(&self) -> Tensor<2> {
        let [_, both] = self.normal.dims();
        self.normal.clone().narrow(1, both / 2, both / 2)
    }

    /// `mean + exp(log_variance / 2) * noise`, the reparameterisation trick.
    ///
    /// # Shapes
    /// - noise and output: `[batch, d_latent]`
    pub fn sample(&self, noise: Tensor<2>) -> Tensor<2> {
        gaussian_sample(self.normal.clone(), noise)
    }

    /// Divergence from the standard normal, `[batch, 1]`, in nats: Kingma & Welling, appendix B.
    pub fn kl(&self) -> Tensor<2> {
        gaussian_kl(self.normal.clone())
    }
}

/// The negative evidence bound, in nats per image, each of shape `[1]`.
#[derive(Debug, Clone)]
pub struct VaeLoss {
    /// `-log p(x | z)`.
    pub reconstruction: Tensor<1>,
    /// Divergence of the posterior from the prior.
    pub kl: Tensor<1>,
    /// `reconstruction + beta kl`, to be minimised.
    pub total: Tensor<1>,
}

impl Vae {
    /// The configuration it was made from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    pub fn encode(&self, x: Tensor<4>) -> Posterior {
        let x = self
            .encoder
            .convs
            .iter()
            .fold(x, |x, conv| relu(conv.forward(x)));
        let x: Tensor<2> = x.flatten(1, 3);
        let x = self
            .encoder
            .linears
            .iter()
            .fold(x, |x, linear| linear.forward_through(x, Activation::Relu));
        Posterior {
            normal: self.posterior.forward(x),
        }
    }

    /// Mean image of a latent.
    ///
    /// # Shapes
    /// - z: `[batch, d_latent]`
    /// - output: `[batch, channels, height, width]`
    pub fn decode(&self, z: Tensor<2>) -> Tensor<4> {
        let [batch, _] = z.dims();
        let [channels, height, width] = self.config.image;
        let out = self
            .decoder_output(z)
            .reshape([batch, channels, height, width]);
        match self.config.likelihood {
            Likelihood::Bernoulli => sigmoid(out),
            Likelihood::Gaussian { .. } => out,
        }
    }

    /// Logits (Bernoulli) or means (Gaussian), `[batch, pixels]`.
    fn decoder_output(&self, z: Tensor<2>) -> Tensor<2> {
        let (linears, convs) = (&self.decoder.linears, &self.decoder.convs);
        let mut x = z;
        for (i, linear) in linears.iter().enumerate() {
            x = match i + 1 < linears.len() {
                true => linear.forward_through(x, Activation::Relu),
                false => linear.forward(x),
            };
        }
        if convs.is_empty() {
            return x;
        }
        let [batch, features] = x.dims();
        let [_, height, width] = self.config.image;
        let area = (height >> convs.len()) * (width >> convs.len());
        let size = [
            batch,
            features / area,
            height >> convs.len(),
            width >> convs.len(),
        ];
        let image = convs
            .iter()
            .fold(x.reshape(size), |x, conv| conv.forward(upsample(relu(x))));
        image.flatten(1, 3)
    }

    /// Negative evidence bound with one latent per image.
    ///
    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    /// - noise: `[batch, d_latent]`, standard normal
    pub fn loss(&self, x: Tensor<4>, noise: Tensor<2>) -> VaeLoss {
        let posterior = self.encode(x.clone());
        let z = posterior.sample(noise);
        let pixels: Tensor<2> = x.flatten(1, 3);
        let reconstruction = self.log_p_x(self.decoder_output(z), pixels).mean().neg();
        let kl = posterior.kl().mean();
        let total = reconstruction.clone() + kl.clone() * self.config.beta;
        VaeLoss {
            reconstruction,
            kl,
            total,
        }
    }

    /// `log p(x | z)` from the decoder's output, `[rows, 1]`, in nats.
    fn log_p_x(&self, output: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        match self.config.likelihood {
            Likelihood::Bernoulli => binary_cross_entropy(output, x).neg(),
            Likelihood::Gaussian { sigma } => {
                let difference = x - output;
                let [_, pixels] = difference.dims();
                let constant = pixels as f64 * (sigma.ln() + 0.5 * (2.0 * PI).ln());
                let square = (difference.clone() * difference).sum_dim(1);
                square * (-0.5 / (sigma * sigma)) - constant
            }
        }
    }

    /// Estimate of `log p(x)` of each image, in nats: the importance-weighted bound with `k`
    /// latents, eq. (8) of Burda et al. It is the evidence bound for `k = 1` (whatever `beta`) and
    /// rises to `log p(x)` with `k`.
    ///
    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    pub fn log_likelihood(&self, x: Tensor<4>, k: usize, rng: &mut Rng) -> Vec<f64> {
        /// Decoded rows at a time: bounds the memory.
        const ROWS: usize = 4096;
        let [batch, ..] = x.dims();
        let device = x.device();
        let d_latent = self.config.d_latent;
        let posterior = self.encode(x.clone());
        let pixels: Tensor<2> = x.flatten(1, 3);
        let mut sums = vec![LogSum::default(); batch];
        let mut left = k;
        while left > 0 && batch > 0 {
            let draws = left.min((ROWS / batch).max(1));
            left -= draws;
            // Row `i * draws + j` holds draw `j` of image `i`.
            let repeat = |t: &Tensor<2>| {
                let [rows, width] = t.dims();
                t.clone()
                    .unsqueeze_dim::<3>(1)
                    .expand([rows, draws, width])
                    .reshape([rows * draws, width])
            };
            let noise = maquette_rng::normal(rng, batch * draws * d_latent);
            let noise = TensorData::new(noise, [batch * draws, d_latent]);
            let noise = Tensor::<2>::from_data(noise, &device);
            let spread = Posterior {
                normal: repeat(&posterior.normal),
            };
            let z = spread.sample(noise.clone());
            // log p(z) - log q(z | x); the normalising constants cancel.
            let log_q = (noise.clone() * noise + spread.log_variance()) * -0.5;
            let log_p = (z.clone() * z.clone()) * -0.5;
            let weights =
                self.log_p_x(self.decoder_output(z), repeat(&pixels)) + (log_p - log_q).sum_dim(1);
            let weights = weights.into_data();
            for (row, weight) in weights.iter::<f64>().enumerate() {
                sums[row / draws].add(weight);
            }
        }
        sums.iter()
            .map(|sum| sum.value() - (k as f64).ln())
            .collect()
    }
}

/// Running `log sum exp`, stable for any range.
#[derive(Debug, Clone)]
struct LogSum {
    largest: f64,
    scaled: f64,
}

impl Default for LogSum {
    fn default() -> Self {
        Self {
            largest: f64::NEG_INFINITY,
            scaled: 0.0,
        }
    }
}

impl LogSum {
    fn add(&mut self, log_weight: f64) {
        if log_weight > self.largest {
            self.scaled *= (self.largest - log_weight).exp();
            self.largest = log_weight;
        }
        self.scaled += (log_weight - self.largest).exp();
    }

    fn value(&self) -> f64 {
        self.largest + self.scaled.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, normal, rng, uniform};

    fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn config(network: VaeNetwork, likelihood: Likelihood) -> VaeConfig {
        VaeConfig {
            image: [1, 4, 4],
            network,
            d_latent: 3,
            likelihood,
            ..VaeConfig::default()
        }
    }

    fn networks() -> [VaeNetwork; 2] {
        [
            VaeNetwork::Mlp { hidden: vec![8] },
            VaeNetwork::Conv {
                channels: vec![3, 5],
            },
        ]
    }

    fn images(n: usize) -> Tensor<4> {
        let values = uniform(&mut rng(1, Stream::Data, 0), n * 16);
        tensor(values, [n, 1, 4, 4], &Device::flex())
    }

    fn noise(n: usize, seed: u64) -> Tensor<2> {
        tensor(
            normal(&mut rng(seed, Stream::Noise, 0), n * 3),
            [n, 3],
            &Device::flex(),
        )
    }

    #[test]
    fn kl_by_hand() {
        // mean 1, variance e: (1 + e - 1 - 1) / 2; standard normal: 0.
        let device = Device::flex();
        let column = || tensor(vec![1.0, 0.0], [2, 1], &device);
        let posterior = Posterior::new(column(), column());
        let kl = posterior.kl().into_data().try_to_vec::<f32>().unwrap();
        assert!(
            (kl[0] - (1f32.exp() - 1.0) / 2.0).abs() < 1e-6 && kl[1].abs() < 1e-6,
            "{kl:?}"
        );
    }

    #[test]
    fn pixel_likelihoods_by_hand() {
        let device = Device::flex();
        let pixel = |likelihood, output: f32, x: f32| {
            let config = VaeConfig {
                image: [1, 1, 1],
                ..config(networks()[0].clone(), likelihood)
            };
            let vae = config.init(&device, &mut rng(0, Stream::Init, 0));
            let row = |v| tensor(vec![v], [1, 1], &device);
            vae.log_p_x(row(output), row(x)).into_scalar::<f32>()
        };
        // s(ln 3) = 3/4
        let expected = 0.25 * 0.75f32.ln() + 0.75 * 0.25f32.ln();
        assert!((pixel(Likelihood::Bernoulli, 3f32.ln(), 0.25) - expected).abs() < 1e-6);
        assert!((pixel(Likelihood::Bernoulli, -200.0, 1.0) + 200.0).abs() < 1e-4);
        let expected = -0.5 * 4.0 - 0.5f32.ln() - 0.5 * (2.0 * std::f32::consts::PI).ln();
        let got = pixel(Likelihood::Gaussian { sigma: 0.5 }, 1.0, 2.0);
        assert!((got - expected).abs() < 1e-6, "{got}, {expected}");
    }

    #[test]
    fn shapes_and_means() {
        for network in networks() {
            let vae = config(network, Likelihood::Bernoulli)
                .init(&Device::flex(), &mut rng(0, Stream::Init, 0));
            let decoded = vae.decode(vae.encode(images(5)).mean());
            assert_eq!(decoded.dims(), [5, 1, 4, 4]);
            assert!(
                decoded
                    .into_data()
                    .iter::<f32>()
                    .all(|p| (0.0..=1.0).contains(&p))
            );
        }
    }

    #[test]
    fn one_latent_gives_the_evidence_bound() {
        for likelihood in [Likelihood::Bernoulli, Likelihood::Gaussian { sigma: 0.7 }] {
            let vae = config(networks()[0].clone(), likelihood)
                .init(&Device::flex(), &mut rng(0, Stream::Init, 0));
            let x = images(4);
            let repeats = 4000;
            let bound: f64 = (0..repeats)
                .flat_map(|i| vae.log_likelihood(x.clone(), 1, &mut rng(i, Stream::Evaluate, 0)))
                .sum::<f64>()
                / (4 * repeats) as f64;
            let loss = vae.loss(x.repeat(&[1000, 1, 1, 1]), noise(4000, 3));
            let elbo = -f64::from(loss.total.into_scalar::<f32>());
            assert!((bound - elbo).abs() < 0.05, "{bound}, {elbo}");
        }
    }

    #[test]
    fn more_latents_tighten_the_bound() {
        let vae = config(networks()[0].clone(), Likelihood::Gaussian { sigma: 0.3 })
            .init(&Device::flex(), &mut rng(0, Stream::Init, 0));
        let mean = |k| {
            let bound = vae.log_likelihood(images(64), k, &mut rng(1, Stream::Evaluate, 0));
            bound.iter().sum::<f64>() / 64.0
        };
        // 100 latents pass through in two chunks of at most 64 (4096 rows of 64 images).
        let (one, ten, hundred) = (mean(1), mean(10), mean(100));
        assert!(one < ten && ten < hundred, "{one}, {ten}, {hundred}");
    }

    #[test]
    fn log_sum_survives_extremes() {
        let mut sum = LogSum::default();
        [-2000.0, -1000.0, -1000.0]
            .into_iter()
            .for_each(|w| sum.add(w));
        assert!((sum.value() - (-1000.0 + 2f64.ln())).abs() < 1e-9);
    }

    #[test]
    fn gradient_matches_finite_differences() {
        for network in networks() {
            let config = VaeConfig {
                beta: 0.5,
                ..config(network, Likelihood::Bernoulli)
            };
            let vae = config.init(&Device::flex().autodiff(), &mut rng(0, Stream::Init, 0));
            let grads = vae.loss(images(2), noise(2, 1)).total.backward();
            let gradient = vae.posterior.weight.val().grad(&grads).unwrap();
            let gradient = gradient.into_data().try_to_vec::<f32>().unwrap();
            for index in [0, 7, 20] {
                let shifted = |by: f32| {
                    let mut vae = vae.valid();
                    vae.posterior.weight = vae.posterior.weight.map(|w| {
                        let shape = w.shape();
                        let mut values = w.into_data().try_to_vec::<f32>().unwrap();
                        values[index] += by;
                        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
                    });
                    vae.loss(images(2), noise(2, 1)).total.into_scalar::<f32>()
                };
                let numeric = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
                assert!(
                    (numeric - gradient[index]).abs() < 2e-3,
                    "{numeric}, {}",
                    gradient[index]
                );
            }
        }
    }

    #[test]
    fn contradictions_name_their_key() {
        let deep = config(
            VaeNetwork::Conv {
                channels: vec![2; 3],
            },
            Likelihood::Bernoulli,
        );
        let message = deep.validate().unwrap_err().to_string();
        assert!(
            message.starts_with("network.conv.channels: 3 halvings"),
            "{message}"
        );
    }
}
