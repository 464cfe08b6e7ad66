//! Games whose equilibrium is known: what each way of taking turns makes of them, and a small adversarial
//! network that gets there.

use std::f64::consts::LN_2;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

use crate::labs::duel::{Duel, Moment, draw};
use crate::labs::training::{Training, noise};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::models::GanConfig;
use crate::models::gan::{AdversarialLoss, Critic, Generator, PenaltyConfig, PenaltyKind};
use crate::rng::{Stream, normal, rng};
use crate::train::spec::OptimizerKind;
use crate::train::{Batch, OptimizerSpec, Task};

const MINIMAX: AdversarialLoss = AdversarialLoss::Minimax;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    lab.say("two games of one number each");
    let (paths, mut claims) = bilinear();
    let (spirals, of_dirac) = dirac(&lab.device.clone().autodiff());
    claims.extend(of_dirac);
    let (gaps, accuracies, of_network) = network(lab)?;
    claims.extend(of_network);
    Ok(Outcome {
        claims,
        plot: panels(&[paths, spirals, gaps, accuracies]),
        notes: vec![],
    })
}

/// How two players take their steps.
#[derive(Clone, Copy)]
enum Turns {
    /// Both at once.
    Simultaneous,
    /// The second sees what the first has done.
    Alternating,
    /// Both step by the gradient at where a first try would lead (Korpelevich 1976).
    Extragradient,
}

/// Gradient descent of both players, each on its own loss; `slopes` gives the two gradients.
fn play(
    slopes: impl Fn([f64; 2]) -> [f64; 2],
    turns: Turns,
    (start, lr, steps): ([f64; 2], f64, usize),
) -> Vec<[f64; 2]> {
    let mut path = vec![start];
    let mut at = start;
    let stepped = |from: [f64; 2], slope: [f64; 2]| [0, 1].map(|i| from[i] - lr * slope[i]);
    for _ in 0..steps {
        at = match turns {
            Turns::Simultaneous => stepped(at, slopes(at)),
            Turns::Alternating => {
                let first = [at[0], stepped(at, slopes(at))[1]];
                [stepped(first, slopes(first))[0], first[1]]
            }
            Turns::Extragradient => stepped(at, slopes(stepped(at, slopes(at)))),
        };
        path.push(at);
    }
    path
}

fn radius([x, y]: [f64; 2]) -> f64 {
    x.hypot(y)
}

/// By what factor the distance from the equilibrium changes in a step, from the first to the last.
fn rate(path: &[[f64; 2]]) -> f64 {
    let steps = (path.len() - 1) as f64;
    (radius(path[path.len() - 1]) / radius(path[0])).powf(1.0 / steps)
}

/// One player minimises `x y`, the other maximises it; both end at zero or never. On a square of side two
/// the duality gap is `|x| + |y|`.
fn bilinear() -> (Chart, Vec<Claim>) {
    const LR: f64 = 0.1;
    let played = |turns| play(|[x, y]| [y, -x], turns, ([0.5, 0.5], LR, 400));
    let simultaneous = played(Turns::Simultaneous);
    let alternating = played(Turns::Alternating);
    let extragradient = played(Turns::Extragradient);
    let average: Vec<[f64; 2]> = alternating
        .iter()
        .scan(([0.0; 2], 0.0), |(sum, n), point| {
            *sum = [sum[0] + point[0], sum[1] + point[1]];
            *n += 1.0;
            Some(sum.map(|s| s / *n))
        })
        .collect();
    let gap = |path: &[[f64; 2]]| -> Vec<(f64, f64)> {
        let gaps = path.iter().enumerate();
        gaps.map(|(i, [x, y])| (i as f64, x.abs() + y.abs()))
            .collect()
    };
    let widest = alternating.iter().map(|&at| radius(at)).fold(0.0, f64::max);
    let claims = vec![
        Claim::within(
            "x y, simultaneous steps: growth of the distance per step",
            rate(&simultaneous),
            (1.0 + LR * LR).sqrt(),
            1e-9,
        ),
        Claim::at_most(
            "alternating: the largest distance over the first",
            widest / radius(alternating[0]),
            1.1,
        ),
        Claim::within(
            "extragradient: shrinkage per step",
            rate(&extragradient),
            (1.0 - LR * LR + LR.powi(4)).sqrt(),
            1e-9,
        ),
        Claim::at_most(
            "alternating, all points averaged: the duality gap over the first",
            gap(&average)[400].1 / gap(&average)[0].1,
            0.05,
        ),
    ];
    let chart = Chart::new("The game x y", "step", "duality gap")
        .line("simultaneous", gap(&simultaneous))
        .line("alternating", gap(&alternating))
        .line("their average", gap(&average))
        .line("extragradient", gap(&extragradient))
        .log_y();
    (chart, claims)
}

/// The Dirac-GAN (Mescheder et al. 2018): the data are the number 0, the generator makes the number
/// `theta`, the critic's score of `x` is `psi x`. Gradients are those of the library's losses.
fn dirac(device: &Device) -> (Chart, Vec<Claim>) {
    const LR: f64 = 0.2;
    const STEPS: usize = 250;
    const GAMMA: f64 = 0.3;
    let slopes = |[theta, psi]: [f64; 2], gamma: f64| {
        let number = |x: f64| Tensor::<1>::from_floats([x], device).require_grad();
        let (theta, psi) = (number(theta), number(psi));
        let real = psi.clone() * 0.0;
        let made = |psi: Tensor<1>, theta: Tensor<1>| psi * theta;
        let critic = MINIMAX.critic(real.clone(), made(psi.clone(), theta.clone().detach()), 0.0)
            + psi.clone().square() * (gamma / 2.0);
        let generator = MINIMAX.generator(real, made(psi.clone().detach(), theta.clone()));
        let of = |loss: Tensor<1>, x: &Tensor<1>| {
            let grad = x.grad(&loss.sum().backward());
            grad.map_or(0.0, |grad| f64::from(grad.into_scalar::<f32>()))
        };
        [of(generator, &theta), of(critic, &psi)]
    };
    let played = |turns, gamma, start| play(|at| slopes(at, gamma), turns, (start, LR, STEPS));
    let near = [0.02, 0.0];
    let alternating = played(Turns::Alternating, 0.0, [1.0, 0.0]);
    let radii = alternating.iter().map(|&at| radius(at));
    let widest = radii.fold(0.0, f64::max);
    // Near the equilibrium the steps are linear: the factors are the moduli of eigenvalues.
    let turning = LR / 2.0;
    let damped = (1.0 - LR * GAMMA / 2.0).powi(2) + LR * LR * (1.0 - GAMMA * GAMMA) / 4.0;
    let claims = vec![
        Claim::within(
            "Dirac-GAN, simultaneous steps: growth per step near the equilibrium",
            rate(&played(Turns::Simultaneous, 0.0, near)),
            (1.0 + turning * turning).sqrt(),
            1e-4,
        ),
        Claim::at_most(
            "alternating: the largest distance over the first",
            widest,
            1.2,
        ),
        Claim::within(
            "with R1: shrinkage per step near the equilibrium",
            rate(&played(Turns::Simultaneous, GAMMA, near)),
            damped.sqrt(),
            2e-3,
        ),
        Claim::at_most(
            "with R1, from far away: distance left",
            radius(played(Turns::Alternating, GAMMA, [1.0, 0.0])[STEPS]),
            0.01,
        ),
    ];
    let place = |turns, gamma| {
        let path = played(turns, gamma, [1.0, 0.0]);
        path.into_iter()
            .map(|[theta, psi]| (theta, psi))
            .collect::<Vec<_>>()
    };
    let chart = Chart::new("The Dirac-GAN", "generator", "critic")
        .dots("simultaneous", place(Turns::Simultaneous, 0.0))
        .dots("alternating", place(Turns::Alternating, 0.0))
        .dots("with R1", place(Turns::Alternating, GAMMA));
    (chart, claims)
}

const BATCH: usize = 128;
const MEAN: f32 = 2.0;
const DEVIATION: f32 = 0.5;

/// A network whose equilibrium is known: the data are normal in one dimension, and the critic can say no
/// more than one half once the generator's are too.
fn network(lab: &LabContext<'_>) -> Result<(Chart, Chart, Vec<Claim>), LabError> {
    let steps: u64 = if lab.quick { 800 } else { 4000 };
    let config = GanConfig {
        image: [1, 1, 1],
        d_latent: 1,
        width: 32,
        n_layers: 2,
        ..GanConfig::default()
    };
    let device = lab.device.clone().autodiff();
    let duel = Duel::new(config, 2e-3, (steps, BATCH), lab.seed);
    let damped = duel.clone().with_penalty(PenaltyConfig {
        kind: PenaltyKind::R1,
        weight: 0.5,
    });
    let kept: Vec<u64> = match lab.quick {
        true => vec![0, steps / 4, steps / 2, steps - 1],
        false => (0..8).map(|i| i * steps / 8).chain([steps - 1]).collect(),
    };
    let mut gaps = Chart::new("A network in one dimension", "step", "duality gap, nats");
    let mut accuracies = Chart::new("Its critic", "step", "share judged right");
    let mut claims = Vec::new();
    for (name, duel) in [("plain", duel), ("with R1", damped)] {
        lab.say(&format!("a network in one dimension, {name}"));
        let played = duel
            .play(
                duel.players(&device),
                |turn| real(lab.seed, turn, &device),
                &kept,
                &device,
            )
            .doing("training")?;
        let curve = played
            .moments
            .iter()
            .map(|moment| Ok((moment.step as f64, gap(lab, moment, &device)?)))
            .collect::<Result<Vec<_>, LabError>>()?;
        let worth = curve.last().map_or(f64::NAN, |(_, gap)| gap.worth);
        let curve: Vec<_> = curve.iter().map(|(step, gap)| (*step, gap.gap)).collect();
        let tail = &played.accuracy[played.accuracy.len() * 4 / 5..];
        let accuracy = tail.iter().sum::<f64>() / tail.len() as f64;
        let made = draw(&played.generator, 1, 4000, (lab.seed, &lab.device))?;
        let mean = made.iter().sum::<f32>() / made.len() as f32;
        let variance = made.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / made.len() as f32;
        if name != "plain" {
            let (first, last) = (curve[0].1, curve[curve.len() - 1].1);
            claims.extend([
                Claim::within(
                    "network with R1: the critic's accuracy at the end",
                    accuracy,
                    0.5,
                    0.03,
                ),
                Claim::within("the game's value there, in nats", worth, -2.0 * LN_2, 0.05)
                    .published(
                        -1.386,
                        "-log 4: Goodfellow et al., theorem 1, arXiv 1406.2661",
                    ),
                Claim::at_most("duality gap at the end, in nats", last, 0.1),
                Claim::at_most("the same over that at the start", last / first, 0.05),
                Claim::within("mean of what it makes", mean, MEAN, 0.15),
                Claim::within("deviation", variance.sqrt(), DEVIATION, 0.1),
            ]);
        }
        gaps = gaps.line(name, curve);
        accuracies = accuracies.line(name, crate::labs::training::curve(&played.accuracy, 20));
    }
    Ok((gaps.log_y(), accuracies, claims))
}

/// Real numbers of the `turn`-th batch.
fn real(seed: u64, turn: u64, device: &Device) -> Tensor<4> {
    let numbers = normal(&mut rng(seed, Stream::Data, turn), BATCH);
    let numbers: Vec<f32> = numbers.iter().map(|z| MEAN + DEVIATION * z).collect();
    Tensor::from_data(TensorData::new(numbers, [BATCH, 1, 1, 1]), device)
}

struct Gap {
    gap: f64,
    /// The game's value as the players stand.
    worth: f64,
}

/// The duality gap (Grnarova et al. 2019): what the best critic would win of this generator, less what the
/// best generator would leave this critic. Both are sought from where the players stand.
fn gap(lab: &LabContext<'_>, moment: &Moment, device: &Device) -> Result<Gap, LabError> {
    let steps = if lab.quick { 150 } else { 500 };
    let adam = OptimizerSpec::new(OptimizerKind::Adam, 2e-3);
    let mut training = Training::new(adam, steps, BATCH, lab.seed + 1);
    training.train.divergence = f64::INFINITY;
    let seed = lab.seed + 1;
    let batches = |step| Ok(Batch::from(real(seed, step, device)));
    let made =
        |generator: &Generator, step| generator.forward(noise(BATCH, 1, (seed, step), device));
    let still = moment.generator.clone().no_grad();
    let task = Task::new(batches, |critic: &Critic, real: Tensor<4>, step| {
        value(critic, real, made(&still, step)).neg().into()
    });
    let critic = training.run(moment.critic.clone(), task, device)?.model;
    let still = moment.critic.clone().no_grad();
    let task = Task::new(batches, |generator: &Generator, real: Tensor<4>, step| {
        value(&still, real, made(generator, step)).into()
    });
    let generator = training.run(moment.generator.clone(), task, device)?.model;

    let (real, z) = (
        Tensor::cat((0..32).map(|i| real(seed + 1, i, &lab.device)).collect(), 0),
        noise(32 * BATCH, 1, (seed + 1, 0), &lab.device),
    );
    let worth = |critic: &Critic, generator: &Generator| {
        let worth = value(critic, real.clone(), generator.forward(z.clone()));
        f64::from(worth.into_scalar::<f32>())
    };
    let (of_critic, of_generator) = (moment.critic.valid(), moment.generator.valid());
    let gap = worth(&critic, &of_generator) - worth(&of_critic, &generator);
    Ok(Gap {
        // Of two answers found by training, the difference may fall below zero by a little.
        gap: gap.max(1e-4),
        worth: worth(&of_critic, &of_generator),
    })
}

/// What the players share: `E log s(r) + E log(1 - s(f))`, `-2 log 2` at the equilibrium.
fn value(critic: &Critic, real: Tensor<4>, made: Tensor<4>) -> Tensor<1> {
    let scores = |x| critic.judge(x).scores;
    MINIMAX.critic(scores(real), scores(made), 0.0).neg()
}
