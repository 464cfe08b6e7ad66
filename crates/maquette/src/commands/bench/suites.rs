//! The models that `bench train` measures, each as a closure that takes one training step.
//!
//! They are the library's own models, driven as [`maquette::train::fit`] drives them: loss read
//! back, gradients, their norm, clipping where the recipe clips, optimiser. `bench/peers/train.py`
//! has the same models in PyTorch. Batches are made up beforehand.

use maquette::burn::module::{Module, ModuleVisitor, Param};
use maquette::burn::nn::{Embedding, EmbeddingConfig};
use maquette::burn::optim::{GradientsParams, ModuleOptimizer};
use maquette::burn::tensor::{Device, Int, Tensor, TensorData};
use maquette::models::{GptConfig, UNetConfig, VaeConfig};
use maquette::nn::init::initialise;
use maquette::nn::{InitScheme, Linear, LinearConfig, Lstm, LstmConfig, cross_entropy, embedding};
use maquette::rng::{Rng, Stream, normal, rng, seed_for, uniform};
use maquette::train::spec::OptimizerKind;
use maquette::train::{OptimizerSpec, clip, optimizer};

use super::dcgan;
use crate::args::{GanLoss, SuiteName};

/// Batches made beforehand and taken in turn.
pub(crate) const POOL: u64 = 8;

/// Takes the step of this number and gives its loss.
pub(crate) type Step = Box<dyn FnMut(u64) -> f64>;

/// A model ready to be trained.
pub(crate) struct Suite {
    /// Trained numbers.
    pub(crate) parameters: usize,
    /// Items in a batch.
    pub(crate) items: usize,
    /// What they are, per second.
    pub(crate) unit: &'static str,
    /// One training step.
    pub(crate) step: Step,
}

/// The model and data of a suite.
pub(crate) fn prepare(suite: SuiteName, loss: GanLoss) -> Suite {
    let device = Device::flex().autodiff();
    let baby = GptConfig {
        vocab_size: 65,
        seq_len: 256,
        d_model: 384,
        n_layers: 6,
        n_heads: 6,
        bias: false,
        dropout: 0.2,
        ..GptConfig::default()
    };
    match suite {
        SuiteName::GptTiny => {
            let tiny = GptConfig {
                vocab_size: 65,
                bias: false,
                ..GptConfig::default()
            };
            gpt(&tiny, 12, &device)
        }
        SuiteName::GptBaby => gpt(&baby, 8, &device),
        SuiteName::Gpt8k => {
            let large = GptConfig {
                vocab_size: 8192,
                ..baby
            };
            gpt(&large, 8, &device)
        }
        SuiteName::Dcgan32 => dcgan::suite(loss, &device),
        SuiteName::Unet32 => unet(&device),
        SuiteName::VaeMnist => vae(&device),
        SuiteName::Lstm => lstm(&device),
    }
}

/// A model in training.
pub(crate) struct Player<M> {
    model: Option<M>,
    optimizer: ModuleOptimizer,
    lr: f64,
}

impl<M: Module> Player<M> {
    /// A model and its optimiser.
    pub(crate) fn new(model: M, spec: &OptimizerSpec) -> Self {
        Self {
            optimizer: optimizer::build(spec, &model),
            model: Some(model),
            lr: spec.lr,
        }
    }

    /// The model as it is now.
    pub(crate) fn model(&self) -> &M {
        self.model.as_ref().expect("every step puts it back")
    }

    /// Moves the weights.
    pub(crate) fn step(&mut self, grads: GradientsParams) {
        // Taken out, so that the optimiser holds the only copy and writes in place.
        let model = self.model.take().expect("every step puts it back");
        self.model = Some(self.optimizer.step(self.lr, model, grads));
    }

    /// Changes the weights.
    pub(crate) fn change(&mut self, change: impl FnOnce(M) -> M) {
        self.model = self.model.take().map(change);
    }
}

/// How many numbers are trained; running statistics are not.
pub(crate) fn trained<M: Module>(model: &M) -> usize {
    struct Count(usize);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0 += param.lazy_shape().num_elements();
            }
        }
    }
    let mut count = Count(0);
    model.visit(&mut count);
    count.0
}

/// A step of a model with one loss.
fn one_loss<M: Module + 'static>(
    model: M,
    spec: &OptimizerSpec,
    clip: Option<f64>,
    device: &Device,
    mut loss: impl FnMut(&M, u64) -> Tensor<1> + 'static,
) -> Step {
    let mut player = Player::new(model, spec);
    let device = device.clone();
    Box::new(move |index| {
        device.seed(seed_for(0, Stream::Dropout, index));
        let loss = loss(player.model(), index);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let mut grads = GradientsParams::from_grads(loss.backward(), player.model());
        if let Some(max) = clip {
            let norm = clip::global_norm(player.model(), &grads);
            clip::by_norm(player.model(), &mut grads, norm, max);
        }
        player.step(grads);
        value
    })
}

/// Texts of `seq` tokens with the same one token on.
fn texts(
    batch: usize,
    seq: usize,
    vocab: usize,
    device: &Device,
) -> Vec<(Tensor<2, Int>, Tensor<2, Int>)> {
    let text = |index: u64| -> Tensor<2, Int> {
        let draws = uniform(&mut rng(0, Stream::Data, index), batch * (seq + 1));
        let ids: Vec<i32> = draws.iter().map(|u| (u * vocab as f32) as i32).collect();
        Tensor::from_data(TensorData::new(ids, [batch, seq + 1]), device)
    };
    (0..POOL)
        .map(text)
        .map(|text| (text.clone().narrow(1, 0, seq), text.narrow(1, 1, seq)))
        .collect()
}

fn gpt(config: &GptConfig, batch: usize, device: &Device) -> Suite {
    let model = config.init(device, &mut rng(0, Stream::Init, 0));
    let seq = config.seq_len;
    let pool = texts(batch, seq, config.vocab_size, device);
    let spec = OptimizerSpec {
        betas: Some([0.9, 0.99]),
        weight_decay: 0.1,
        ..OptimizerSpec::adamw(1e-3)
    };
    Suite {
        parameters: trained(&model),
        items: batch * seq,
        unit: "tokens/s",
        step: one_loss(model, &spec, Some(1.0), device, move |model, index| {
            let (inputs, targets) = pool[(index % POOL) as usize].clone();
            model.loss(inputs, targets)
        }),
    }
}

fn vae(device: &Device) -> Suite {
    const BATCH: usize = 128;
    let config = VaeConfig::default();
    let model = config.init(device, &mut rng(0, Stream::Init, 0));
    let images = |index: u64| -> Tensor<4> {
        let pixels = uniform(&mut rng(0, Stream::Data, index), BATCH * 784);
        Tensor::from_data(TensorData::new(pixels, [BATCH, 1, 28, 28]), device)
    };
    let pool: Vec<_> = (0..POOL).map(images).collect();
    let spec = OptimizerSpec::new(OptimizerKind::Adam, 1e-3);
    let at = device.clone();
    Suite {
        parameters: trained(&model),
        items: BATCH,
        unit: "images/s",
        step: one_loss(model, &spec, None, device, move |model, index| {
            let noise = normal(&mut rng(0, Stream::Noise, index), BATCH * config.d_latent);
            let noise = TensorData::new(noise, [BATCH, config.d_latent]);
            let images = pool[(index % POOL) as usize].clone();
            model.loss(images, Tensor::from_data(noise, &at)).total
        }),
    }
}

fn unet(device: &Device) -> Suite {
    const BATCH: usize = 32;
    let config = UNetConfig {
        image: [1, 32, 32],
        patch: 1,
        width: 64,
        multipliers: vec![1, 2, 2],
        n_blocks: 2,
        attention: vec![16, 8],
        n_heads: 16,
        ..UNetConfig::default()
    };
    let model = config.init(device, &mut rng(0, Stream::Init, 0));
    let images = |rng: &mut Rng| -> Tensor<4> {
        let pixels = TensorData::new(normal(rng, BATCH * 32 * 32), [BATCH, 1, 32, 32]);
        Tensor::from_data(pixels, device)
    };
    let batch = |index: u64| {
        let mut rng = rng(0, Stream::Data, index);
        let times = TensorData::new(uniform(&mut rng, BATCH), [BATCH]);
        let times = Tensor::<1>::from_data(times, device) * 1000.0;
        (images(&mut rng), times, images(&mut rng))
    };
    let pool: Vec<_> = (0..POOL).map(batch).collect();
    let spec = OptimizerSpec::adamw(1e-4);
    Suite {
        parameters: trained(&model),
        items: BATCH,
        unit: "images/s",
        step: one_loss(model, &spec, Some(1.0), device, move |model, index| {
            let (noisy, times, target) = pool[(index % POOL) as usize].clone();
            let difference = model.forward(noisy, times, None) - target;
            difference.square().mean()
        }),
    }
}

/// A language model on two recurrent layers.
#[derive(Module, Debug)]
struct LstmLm {
    tokens: Embedding,
    layers: Vec<Lstm>,
    head: Linear,
}

fn lstm(device: &Device) -> Suite {
    const BATCH: usize = 32;
    const SEQ: usize = 64;
    const VOCAB: usize = 65;
    const WIDTH: usize = 256;
    let layer = LstmConfig {
        d_input: WIDTH,
        d_hidden: WIDTH,
    };
    let model = LstmLm {
        tokens: EmbeddingConfig::new(VOCAB, WIDTH).init(device),
        layers: vec![layer.init(device), layer.init(device)],
        head: LinearConfig::new(WIDTH, VOCAB).init(device),
    };
    let scheme = InitScheme::FanIn;
    let model = initialise(model, &mut rng(0, Stream::Init, 0), |slot| {
        scheme.fill(slot)
    });
    let pool = texts(BATCH, SEQ, VOCAB, device);
    let spec = OptimizerSpec::new(OptimizerKind::Adam, 2e-3);
    Suite {
        parameters: trained(&model),
        items: BATCH * SEQ,
        unit: "tokens/s",
        step: one_loss(model, &spec, Some(1.0), device, move |model, index| {
            let (inputs, targets) = pool[(index % POOL) as usize].clone();
            let x = embedding(model.tokens.weight.val(), inputs);
            let x = model.layers.iter().fold(x, |x, layer| layer.forward(x));
            let logits = model.head.forward(x).reshape([BATCH * SEQ, VOCAB]);
            cross_entropy(logits, targets.reshape([BATCH * SEQ]))
        }),
    }
}
