//! The DCGAN of the recipes (Radford et al. 2016, arXiv:1511.06434) for 32x32 images, with the widths of
//! PyTorch's example, to be timed under each loss.

use maquette::burn::module::Module;
use maquette::burn::optim::GradientsParams;
use maquette::burn::tensor::{Device, Tensor, TensorData};
use maquette::models::gan::{
    AdversarialLoss, GanConfig, Network, NormChoice, ObjectiveConfig, PenaltyConfig, PenaltyKind,
    Turn,
};
use maquette::rng::{Rng, Stream, normal, rng, uniform};
use maquette::train::spec::OptimizerKind;
use maquette::train::{OptimizerSpec, clip};

use super::suites::{POOL, Player, Suite, trained};
use crate::args::GanLoss;

const BATCH: usize = 64;
const LATENT: usize = 100;
const IMAGE: [usize; 3] = [3, 32, 32];
/// How far the weights of a Wasserstein critic may go (Arjovsky et al. 2017, arXiv:1701.07875).
const CLIP: f64 = 0.01;

/// One step of the critic, then one of the generator.
pub(crate) fn suite(loss: GanLoss, device: &Device) -> Suite {
    let penalty = loss.penalty();
    let mut config = GanConfig {
        image: IMAGE,
        network: Network::Dcgan,
        width: 64,
        d_latent: LATENT,
        ..GanConfig::default()
    };
    config.generator.norm = NormChoice::Batch;
    // A penalty is of each example alone, and batch norm mixes them.
    if penalty.is_none() {
        config.critic.norm = NormChoice::Batch;
    }
    let objective = ObjectiveConfig {
        loss: loss.of_scores(),
        gradient_penalty: penalty,
        ..ObjectiveConfig::default()
    };
    let objective = objective.init();
    let clipped = matches!(loss, GanLoss::WassersteinClip);
    let spec = match clipped {
        true => OptimizerSpec::new(OptimizerKind::RmsProp, 5e-5),
        false => OptimizerSpec {
            betas: Some([0.5, 0.999]),
            ..OptimizerSpec::new(OptimizerKind::Adam, 2e-4)
        },
    };
    let images = |index: u64| -> Tensor<4> {
        let pixels = uniform(
            &mut rng(0, Stream::Data, index),
            BATCH * IMAGE.iter().product::<usize>(),
        );
        let [channels, height, width] = IMAGE;
        let pixels = TensorData::new(pixels, [BATCH, channels, height, width]);
        Tensor::from_data(pixels, device) * 2.0 - 1.0
    };
    let pool: Vec<_> = (0..POOL).map(images).collect();
    let players = config.init(device, &mut rng(0, Stream::Init, 0));
    let parameters = trained(&players.generator) + trained(&players.critic);
    let mut generator = Player::new(players.generator, &spec);
    let mut critic = Player::new(players.critic, &spec);
    let device = device.clone();
    let step = move |index: u64| {
        let random = &mut rng(0, Stream::Noise, index);
        let z = TensorData::new(normal(random, BATCH * LATENT), [BATCH, LATENT]);
        let made = generator.model().forward(Tensor::from_data(z, &device));
        let real = &pool[(index % POOL) as usize];
        // 1. The critic on real images and on made ones.
        let judged = objective.critic(
            critic.model(),
            turn([real, &made.clone().detach()], index, random),
        );
        let judges = f64::from(judged.total.clone().into_scalar::<f32>());
        let grads = GradientsParams::from_grads(judged.total.backward(), critic.model());
        critic.step(grads);
        if clipped {
            critic.change(|model| clip::weights(model, CLIP));
        }
        // 2. The generator, through a critic whose weights need no gradient.
        let still = critic.model().clone().no_grad();
        let fooled = objective.generator(&still, turn([real, &made], index, random));
        let fools = f64::from(fooled.total.clone().into_scalar::<f32>());
        let grads = GradientsParams::from_grads(fooled.total.backward(), generator.model());
        generator.step(grads);
        judges + fools
    };
    Suite {
        parameters,
        items: BATCH,
        unit: "images/s",
        step: Box::new(step),
    }
}

fn turn<'a>([real, fake]: [&Tensor<4>; 2], step: u64, rng: &'a mut Rng) -> Turn<'a> {
    Turn {
        real: real.clone(),
        fake: fake.clone(),
        labels: None,
        step,
        rng,
    }
}

impl GanLoss {
    fn of_scores(self) -> AdversarialLoss {
        match self {
            Self::NonSaturating | Self::R1 => AdversarialLoss::NonSaturating,
            Self::Minimax => AdversarialLoss::Minimax,
            Self::LeastSquares => AdversarialLoss::LeastSquares,
            Self::Hinge => AdversarialLoss::Hinge,
            Self::Relativistic => AdversarialLoss::Relativistic,
            Self::WassersteinClip | Self::WganGp => AdversarialLoss::Wasserstein,
        }
    }

    fn penalty(self) -> Option<PenaltyConfig> {
        let (kind, weight) = match self {
            Self::WganGp => (PenaltyKind::WganGp, 10.0),
            Self::R1 => (PenaltyKind::R1, 10.0),
            _ => return None,
        };
        Some(PenaltyConfig { kind, weight })
    }
}
