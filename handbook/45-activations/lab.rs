//! Six activations in either player: what passes through a stack of layers, and what they make of a game.

use burn::tensor::{Device, Tensor};

use crate::labs::ring::{PLAIN, Sets, Tried, Variant, mean, tried};
use crate::labs::training::{matrix, numbers};
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome, panels};
use crate::models::gan::Activation;
use crate::rng::{Stream, normal, rng};
use crate::train::Phase;

const DEPTH: usize = 4;
const WIDTH: usize = 128;
const BATCH: usize = 256;

/// An activation with the switches that put it into the generator and into the critic.
struct Choice {
    name: &'static str,
    activation: Activation,
    generator: Sets,
    critic: Sets,
}

macro_rules! choice {
    ($name:literal, $activation:ident, $key:literal) => {
        Choice {
            name: $name,
            activation: Activation::$activation,
            generator: &[("model.generator.activation", $key)],
            critic: &[("model.critic.activation", $key)],
        }
    };
}

const CHOICES: [Choice; 6] = [
    choice!("ReLU", Relu, "relu"),
    choice!("leaky ReLU", LeakyRelu, "leaky-relu"),
    choice!("GELU", Gelu, "gelu"),
    choice!("SiLU", Silu, "silu"),
    choice!("tanh", Tanh, "tanh"),
    choice!("sigmoid", Sigmoid, "sigmoid"),
];

/// What a stack of layers makes of standard normal numbers.
struct Passed {
    /// Largest number after the last layer.
    reach: f64,
    /// Standard deviation of a unit over the batch after the last layer, on average.
    deviation: f64,
    /// Length of the gradient at the input over that at the output.
    gradient: f64,
    /// Share of the last layer's units whose slope is below 0.01.
    silent: f64,
}

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let device = lab.device.clone().autodiff();
    let passed = CHOICES
        .iter()
        .map(|choice| pass(choice.activation, lab.seed, &device))
        .collect::<Result<Vec<_>, _>>()?;
    let mut claims = statistics(&passed);
    let (of_games, notes, game_charts) = games(lab)?;
    claims.extend(of_games);
    let chart = |title, of: fn(&Passed) -> f64| {
        let chart = Chart::new(title, "", "");
        CHOICES
            .iter()
            .zip(&passed)
            .fold(chart, |chart, (choice, passed)| {
                chart.bar(choice.name, of(passed))
            })
    };
    let mut charts = vec![
        chart("Four layers: gradient at the input over the output", |p| {
            p.gradient
        }),
        chart("Four layers: deviation of a unit", |p| p.deviation),
    ];
    charts.extend(game_charts);
    Ok(Outcome {
        claims,
        plot: panels(&charts),
        notes,
    })
}

fn pass(activation: Activation, seed: u64, device: &Device) -> Result<Passed, LabError> {
    let random = &mut rng(seed, Stream::Init, 0);
    let he = (2.0 / WIDTH as f32).sqrt();
    let input = matrix(normal(random, BATCH * WIDTH), BATCH, device).require_grad();
    let mut x = input.clone();
    let mut before = x.clone();
    for _ in 0..DEPTH {
        let weight = normal(random, WIDTH * WIDTH)
            .iter()
            .map(|w| he * w)
            .collect();
        before = x.matmul(matrix(weight, WIDTH, device));
        x = activation.forward(before.clone());
    }
    // A random direction at the output, as a loss would send it back.
    let sent = matrix(normal(random, BATCH * WIDTH), BATCH, device);
    let grads = (x.clone() * sent.clone()).sum().backward();
    let length = |x: Tensor<2>| f64::from(x.square().sum().sqrt().into_scalar::<f32>());
    let back = input.grad(&grads).map_or(0.0, &length);
    let deviation = x.clone().var(0).sqrt().mean().into_scalar::<f32>();
    let reach = x.abs().max().into_scalar::<f32>();

    let at = before.inner();
    let at = Tensor::from_inner(at).require_grad();
    let grads = activation.forward(at.clone()).sum().backward();
    let slopes = match at.grad(&grads) {
        Some(slopes) => numbers(slopes)?,
        None => vec![0.0],
    };
    let silent = slopes.iter().filter(|slope| slope.abs() < 0.01).count();
    Ok(Passed {
        reach: f64::from(reach),
        deviation: f64::from(deviation),
        gradient: back / length(sent.inner()),
        silent: silent as f64 / slopes.len() as f64,
    })
}

fn statistics(passed: &[Passed]) -> Vec<Claim> {
    let [relu, leaky, gelu, silu, tanh, sigmoid] = passed else {
        return Vec::new();
    };
    let smooth = gelu.gradient.min(silu.gradient);
    vec![
        Claim::within(
            "ReLU, four layers drawn by He's rule: gradient that comes back, over that sent",
            relu.gradient,
            1.0,
            0.4,
        ),
        Claim::at_most("sigmoid: the same", sigmoid.gradient, 0.05),
        Claim::at_least("GELU and SiLU: the smaller", smooth, 0.3),
        Claim::at_most(
            "sigmoid: deviation of a unit over ReLU's",
            sigmoid.deviation / relu.deviation,
            0.5,
        ),
        Claim::at_most(
            "tanh and sigmoid: the largest number they let out",
            tanh.reach.max(sigmoid.reach),
            1.0,
        ),
        Claim::at_least(
            "leaky ReLU: the same, which nothing bounds",
            leaky.reach,
            3.0,
        ),
        Claim::within("ReLU: share of units without slope", relu.silent, 0.5, 0.1),
        Claim::at_most("leaky ReLU: the same", leaky.silent, 0.0),
    ]
}

/// Claims, notes and charts.
type Found = (Vec<Claim>, Vec<String>, Vec<Chart>);

/// Games in which one player's activation is exchanged.
fn games(lab: &LabContext<'_>) -> Result<Found, LabError> {
    let (common, seeds): (&[(&str, &str)], u64) = match lab.quick {
        true => (
            &[
                ("model.critic.packing", "4"),
                ("train.steps", "300"),
                ("train.batch", "64"),
                ("model.width", "32"),
                ("train.ema", "0.99"),
            ],
            1,
        ),
        false => (&[("model.critic.packing", "4")], 3),
    };
    let tried_in = |sets: fn(&Choice) -> Sets| {
        CHOICES
            .iter()
            .map(|choice| {
                tried(
                    lab,
                    PLAIN,
                    common,
                    Variant::new(choice.name, sets(choice)),
                    seeds,
                )
            })
            .collect::<Result<Vec<Tried>, _>>()
    };
    let generators = match lab.full() {
        true => tried_in(|choice| choice.generator)?,
        false => Vec::new(),
    };
    let critics = tried_in(|choice| choice.critic)?;
    let gradient = |tried: &Tried| {
        let of_run = tried.runs.iter().map(|run| {
            let norms: Vec<f64> = run
                .curve(Phase::Train, "generator_grad_norm")
                .iter()
                .map(|(_, y)| *y)
                .collect();
            mean(&norms)
        });
        mean(&of_run.collect::<Vec<_>>())
    };
    let quality = |tried: &Tried| mean(&tried.high_quality());
    let mut claims = vec![Claim::at_most(
        "sigmoid critic: gradient at the generator over that with a leaky ReLU critic",
        gradient(&critics[5]) / gradient(&critics[1]),
        0.7,
    )];
    if lab.full() {
        claims.extend([
            Claim::at_least(
                "ReLU generator, leaky ReLU critic: modes, mean of the seeds",
                critics[1].mean_modes(),
                7.0,
            ),
            Claim::at_least(
                "its share of high quality over that with a sigmoid critic",
                quality(&critics[1]) / quality(&critics[5]).max(1e-3),
                1.2,
            ),
        ]);
    }
    let chart = |title: &str, of: &dyn Fn(&Tried) -> f64| {
        let chart = Chart::new(title, "", "");
        critics.iter().fold(chart, |chart, tried| {
            chart.bar(tried.variant.name, of(tried))
        })
    };
    let mut charts = vec![chart(
        "Gradient at the generator, by the critic's activation",
        &gradient,
    )];
    let mut notes = Vec::new();
    if lab.full() {
        charts.push(chart(
            "Share of high quality, by the critic's activation",
            &quality,
        ));
        let mut table = String::from(
            "| activation | in the generator: modes, high quality, gradient | in the critic: modes, high quality, gradient |\n|---|---|---|",
        );
        for (g, c) in generators.iter().zip(&critics) {
            let cell = |t: &Tried| {
                format!(
                    "{:.1}, {:.2}, {:.3}",
                    t.mean_modes(),
                    quality(t),
                    gradient(t)
                )
            };
            table += &format!("\n| {} | {} | {} |", g.variant.name, cell(g), cell(c));
        }
        notes.push(table);
    }
    Ok((claims, notes, charts))
}
