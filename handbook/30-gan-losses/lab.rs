//! The gradient that reaches a generator whose critic is perfect, loss by loss; and digits under each.

use std::cell::RefCell;
use std::f64::consts::LN_2;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use crate::data::Split;
use crate::data::images::open;
use crate::generate::image::Picture;
use crate::labs::training::{Training, all, glyph_set, noise, order, pictures, recipe};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, beside, number, strips};
use crate::models::GanConfig;
use crate::models::gan::{
    AdversarialLoss, Critic, Generator, ObjectiveConfig, PenaltyConfig, PenaltyKind, Turn,
};
use crate::rng::{Stream, rng};
use crate::train::recipes::generate::draw;
use crate::train::recipes::judge::Judge;
use crate::train::recipes::pictures::{ImageRequest, as_set};
use crate::train::recipes::sections::{ImageSource, Images};
use crate::train::spec::OptimizerKind;
use crate::train::{Batch, Evaluation, OptimizerSpec, Task, clip};

const BATCH: usize = 64;
const LATENT: usize = 32;

const LOSSES: [(&str, AdversarialLoss); 6] = [
    ("minimax", AdversarialLoss::Minimax),
    ("non-saturating", AdversarialLoss::NonSaturating),
    ("least squares", AdversarialLoss::LeastSquares),
    ("hinge", AdversarialLoss::Hinge),
    ("Wasserstein", AdversarialLoss::Wasserstein),
    ("relativistic", AdversarialLoss::Relativistic),
];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let (by_score, mut claims) = slopes(&lab.device.clone().autodiff());
    let mut chart = Chart::new(
        "While a critic is trained to perfection",
        "updates of the critic",
        "gradient at the generator",
    );
    let mut others = f64::NEG_INFINITY;
    for (name, loss) in LOSSES {
        lab.say(&format!("a perfect critic under the {name} loss"));
        let (curve, accuracy) = against_perfection(lab, loss)?;
        let (first, last) = (curve[0].1, curve[curve.len() - 1].1);
        let lost = (first / last).log10();
        claims.push(match loss {
            AdversarialLoss::Minimax => Claim::at_least(
                "minimax: powers of ten that the gradient at the generator loses",
                lost,
                if lab.quick { 3.0 } else { 5.0 },
            )
            .published(
                5.0,
                "Arjovsky and Bottou, a DCGAN after 4,000 updates of its critic, arXiv 1701.04862 fig. 2",
            ),
            _ => {
                others = others.max(lost);
                Claim::at_most(format!("{name}: the same"), lost, 1.5)
            }
        });
        if loss == AdversarialLoss::Minimax {
            claims.push(Claim::at_least(
                "its critic: share judged right at the end",
                accuracy,
                0.999,
            ));
        }
        chart = chart.line(name, curve);
    }
    let mut panels = vec![by_score.svg(), chart.log_y().svg()];
    let mut notes = vec![
        "The Wasserstein critic is held to slope 1 by its gradient penalty; the others are free."
            .into(),
    ];
    match lab.real("mnist") {
        Some(path) => {
            let digits = digits(lab, &path)?;
            claims.extend(digits.claims);
            panels.extend(digits.panels);
            notes.push(digits.table);
        }
        None if lab.full() => notes.push(
            "Left out: digits under every loss. The full form draws them where `mnist` is among the data."
                .into(),
        ),
        None => {}
    }
    Ok(Outcome {
        claims,
        plot: beside(&panels),
        notes,
    })
}

/// What each loss makes of a made example whose score is `-confidence`, that of a real one being
/// `confidence`: by automatic differentiation, and in closed form.
fn slopes(device: &Device) -> (Chart, Vec<Claim>) {
    const SURE: f64 = 10.0;
    let score = |value: f64| Tensor::<1>::from_floats([value], device).require_grad();
    let slope = |loss: AdversarialLoss, confidence: f64| {
        let fake = score(-confidence);
        let grads = loss.generator(score(confidence), fake.clone()).backward();
        let grad = fake.grad(&grads);
        grad.map_or(0.0, |grad| f64::from(grad.into_scalar::<f32>()).abs())
    };
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    let closed = |loss, confidence: f64| match loss {
        AdversarialLoss::Minimax => logistic(-confidence),
        AdversarialLoss::NonSaturating => logistic(confidence),
        AdversarialLoss::LeastSquares => confidence + 1.0,
        AdversarialLoss::Hinge | AdversarialLoss::Wasserstein => 1.0,
        AdversarialLoss::Relativistic => logistic(2.0 * confidence),
    };
    let confidences: Vec<f64> = (0..=40).map(|i| f64::from(i) / 2.0).collect();
    let mut chart = Chart::new(
        "The loss's slope at a made example",
        "the critic's confidence: real at +x, made at -x",
        "slope",
    );
    let mut gap = 0.0f64;
    for (name, loss) in LOSSES {
        let curve: Vec<_> = confidences.iter().map(|&c| (c, slope(loss, c))).collect();
        for &(c, got) in &curve {
            gap = gap.max((got / closed(loss, c) - 1.0).abs());
        }
        chart = chart.line(name, curve);
    }
    let least = LOSSES[1..]
        .iter()
        .map(|(_, loss)| slope(*loss, SURE))
        .fold(f64::INFINITY, f64::min);
    let nothing = || Tensor::<1>::zeros([8], device);
    let even = AdversarialLoss::Minimax.critic(nothing(), nothing(), 0.0);
    let claims = vec![
        Claim::at_most(
            "six losses: largest relative distance of a slope from its closed form",
            gap,
            1e-4,
        ),
        Claim::at_most(
            "minimax: slope where the critic is sure (scores 10 and -10)",
            slope(AdversarialLoss::Minimax, SURE),
            5e-5,
        ),
        Claim::at_least("the five others: the smallest slope there", least, 0.99),
        Claim::within(
            "minimax: the critic's loss where real and made are alike, in nats",
            f64::from(even.into_scalar::<f32>()),
            2.0 * LN_2,
            1e-5,
        )
        .published(
            1.386,
            "Goodfellow et al., theorem 1: log 4, arXiv 1406.2661",
        ),
    ];
    (chart.log_y(), claims)
}

/// The norm of the gradient at the weights of a generator that stands still, over the updates of a critic
/// that learns to tell its images from glyphs; and the critic's accuracy at the end.
fn against_perfection(
    lab: &LabContext<'_>,
    loss: AdversarialLoss,
) -> Result<(Vec<(f64, f64)>, f64), LabError> {
    let (steps, measured) = if lab.quick { (200, 10) } else { (4000, 100) };
    let device = lab.device.clone().autodiff();
    let set = glyph_set(Split::Train, lab.seed, 10, 100)?;
    let images = pictures(&set, &all(&set), &lab.device) * 2.0 - 1.0;
    let order = order(&set, BATCH, lab.seed)?;
    let gan = GanConfig {
        image: [1, 28, 28],
        d_latent: LATENT,
        ..GanConfig::default()
    }
    .init(&device, &mut rng(lab.seed, Stream::Init, 0));
    let generator = gan.generator;
    let still = generator.clone().no_grad();
    let objective = ObjectiveConfig {
        loss,
        gradient_penalty: (loss == AdversarialLoss::Wasserstein).then_some(PenaltyConfig {
            kind: PenaltyKind::WganGp,
            weight: 10.0,
        }),
        ..ObjectiveConfig::default()
    }
    .init();

    let curve = RefCell::new(Vec::new());
    let right = RefCell::new(f64::NAN);
    let task = Task::new(
        |step| {
            let indices: Vec<i32> = order.indices(step).iter().map(|&i| i as i32).collect();
            let indices = Tensor::from_ints(indices.as_slice(), &lab.device);
            let real = images.clone().select(0, indices);
            Ok(Batch::from(Tensor::from_inner(real)))
        },
        |critic: &Critic, real: Tensor<4>, step| {
            let random = &mut rng(lab.seed, Stream::Augment, step);
            let made = |generator: &Generator| {
                generator.forward(noise(BATCH, LATENT, (lab.seed, step), &device))
            };
            if step % measured == 0 || step + 1 == steps {
                let frozen = critic.clone().no_grad();
                let turn = Turn {
                    real: real.clone(),
                    fake: made(&generator),
                    labels: None,
                    step,
                    rng: random,
                };
                let loss = objective.generator(&frozen, turn).total;
                let grads = GradientsParams::from_grads(loss.backward(), &generator);
                let norm = clip::global_norm(&generator, &grads);
                curve.borrow_mut().push((step as f64, norm));
            }
            let turn = Turn {
                real,
                fake: made(&still),
                labels: None,
                step,
                rng: random,
            };
            let judged = objective.critic(critic, turn);
            if step + 1 == steps {
                let accuracy = judged.parts.iter().find(|(n, _)| *n == "critic_accuracy");
                *right.borrow_mut() =
                    accuracy.map_or(f64::NAN, |(_, a)| f64::from(a.clone().into_scalar::<f32>()));
            }
            judged.total.into()
        },
    );
    let adam = OptimizerSpec {
        betas: Some([0.5, 0.999]),
        ..OptimizerSpec::new(OptimizerKind::Adam, 1e-3)
    };
    let mut training = Training::new(adam, steps, BATCH, lab.seed);
    // The Wasserstein loss falls below zero, where no ratio says anything.
    training.train.divergence = f64::INFINITY;
    training.run(gan.critic, task, &device)?;
    Ok((curve.into_inner(), right.into_inner()))
}

/// The players of digits.
const DIGITS: &str = include_str!("../../recipes/dcgan-mnist.toml");
/// The same, told which digit.
const ASKED: &str = include_str!("../../recipes/cgan-mnist.toml");

/// The lab's own judge measures, not the recipe's.
const UNJUDGED: [(&str, &str); 2] = [("evaluate.count", "4"), ("evaluate.judge_steps", "1")];
/// What the games of every loss share.
const BUDGET: [(&str, &str); 5] = [
    ("model.width", "32"),
    ("generator.optimizer.lr", "5e-4"),
    ("critic.optimizer.lr", "5e-4"),
    ("train.steps", "4000"),
    ("train.ema", "0.995"),
];
const JUDGE_STEPS: u64 = 1000;
/// Digits measured of each game, and digits shown.
const DRAWN: usize = 5000;
const SHOWN: usize = 14;

/// RMSProp at the rate of both players, as Arjovsky et al. have it for clipped critics.
const RMSPROP: &str = r#"{ kind = "rmsprop", lr = 2e-4 }"#;

/// Every loss with what it asks of the critic.
const GAMES: [(&str, &[(&str, &str)]); 9] = [
    ("minimax", &[("objective.loss", "minimax")]),
    (
        "minimax, spectral norm",
        &[
            ("objective.loss", "minimax"),
            ("model.critic.norm", "none"),
            ("model.critic.spectral_norm", "true"),
        ],
    ),
    ("non-saturating", &[]),
    ("least squares", &[("objective.loss", "least-squares")]),
    ("hinge", &[("objective.loss", "hinge")]),
    (
        "Wasserstein, weights clipped",
        &[
            ("objective.loss", "wasserstein"),
            ("critic.clip_weights", "0.03"),
            ("critic.turns", "3"),
            ("generator.optimizer", RMSPROP),
            ("critic.optimizer", RMSPROP),
        ],
    ),
    (
        "WGAN-GP",
        &[
            ("objective.loss", "wasserstein"),
            (
                "objective.gradient_penalty",
                r#"{ kind = "wgan-gp", weight = 10 }"#,
            ),
            ("model.critic.norm", "none"),
            ("critic.turns", "3"),
        ],
    ),
    (
        "non-saturating, R1",
        &[
            (
                "objective.gradient_penalty",
                r#"{ kind = "r1", weight = 1 }"#,
            ),
            ("model.critic.norm", "none"),
        ],
    ),
    ("relativistic", &[("objective.loss", "relativistic")]),
];

/// What came of digits.
struct Digits {
    claims: Vec<Claim>,
    panels: Vec<String>,
    table: String,
}

/// Players of MNIST under every loss and one budget, measured by one classifier; and players that are told
/// the digit, read back.
fn digits(lab: &LabContext<'_>, path: &Path) -> Result<Digits, LabError> {
    let part = |split| open(path, split).doing("reading MNIST");
    let train = part(Split::Train)?;
    let images = Images {
        examples: train.len(),
        train: Arc::new(train),
        test: part(Split::Test)?,
        stream: None,
    };
    lab.say("training the classifier that judges digits");
    let judge = Judge::train(&images, ImageSource::Path, JUDGE_STEPS, &lab.device);
    let table = Table {
        lab,
        data: path.display().to_string(),
        judge: judge.doing("training the judge")?,
    };
    let mut games = Vec::new();
    for (name, sets) in GAMES {
        games.push(table.play(name, DIGITS, &[&BUDGET, sets].concat(), None)?);
    }
    let names = &images.test.class_names;
    let told = table.play("recipe cgan-mnist, told the digit", ASKED, &[], Some(names))?;
    // The first is there to be seen failing: its critic is soon sure, and the generator learns nothing.
    let mut claims: Vec<Claim> = games[1..]
        .iter()
        .map(|game| {
            let what = format!("MNIST, {}: Inception-style score, of 10", game.name);
            Claim::at_least(what, game.of("inception_score"), 5.0)
        })
        .collect();
    let best = games.iter().map(|game| game.of("fid"));
    claims.push(Claim::at_most(
        "MNIST: the best Fréchet distance in the classifier's features",
        best.fold(f64::INFINITY, f64::min),
        25.0,
    ));
    claims.push(Claim::at_least(
        "MNIST: asked digits that the classifier reads back",
        told.of("readback"),
        0.97,
    ));
    games.push(told);
    let panels = games.chunks(5).map(|games| {
        let shown = |game: &Game| (game.name, vec![game.drawn.clone()]);
        strips(&games.iter().map(shown).collect::<Vec<_>>())
    });
    Ok(Digits {
        claims,
        panels: panels.collect::<Result<_, _>>()?,
        table: table.of(&games),
    })
}

/// A game and what was measured of it.
struct Game {
    name: &'static str,
    seconds: f64,
    found: Evaluation,
    drawn: Vec<Picture>,
}

impl Game {
    fn of(&self, metric: &str) -> f64 {
        self.found.metrics.get(metric).copied().unwrap_or(f64::NAN)
    }

    /// A metric with its interval.
    fn between(&self, metric: &str) -> String {
        let [low, high] = ["low", "high"].map(|end| self.of(&format!("{metric}_95_{end}")));
        let [value, low, high] = [self.of(metric), low, high].map(number);
        format!("{value} ({low} to {high})")
    }
}

/// Where games are played, and who judges them.
struct Table<'a> {
    lab: &'a LabContext<'a>,
    data: String,
    judge: Judge<'a>,
}

impl Table<'_> {
    /// Trains `text`, draws and measures; `names` are those of classes that are asked for.
    fn play(
        &self,
        name: &'static str,
        text: &str,
        sets: &[(&str, &str)],
        names: Option<&Vec<String>>,
    ) -> Result<Game, LabError> {
        let lab = self.lab;
        lab.say(&format!("digits: {name}"));
        let folder = tempfile::tempdir().doing("making a folder")?;
        let out = folder.path().join("run");
        let start = Instant::now();
        let place = [("data.path", &*self.data)];
        recipe(lab, text, &[&UNJUDGED[..], &place, sets].concat(), &out)?;
        let seconds = start.elapsed().as_secs_f64();
        let request = ImageRequest {
            count: DRAWN,
            seed: lab.seed,
            ..ImageRequest::default()
        };
        let mut drawn = draw(&out, &request, &lab.device).doing("drawing")?;
        // Classes are drawn in turn.
        let labels = names.map(|names| (0..DRAWN).map(|i| (i % names.len()) as u16).collect());
        let set = as_set(&drawn, labels, names.map_or(&[], |names| names));
        let mut found = Evaluation::default();
        let how = format!("n={DRAWN}|seed={}", lab.seed);
        let measured = self.judge.measure(&set, &how, &mut found);
        measured.doing("measuring")?;
        drawn.truncate(SHOWN);
        Ok(Game {
            name,
            seconds,
            found,
            drawn,
        })
    }

    fn of(&self, games: &[Game]) -> String {
        let mut table = format!(
            "MNIST, {DRAWN} digits a game, features of our classifier ({}, {} % right); 95 % \
             intervals:\n\n\
             | game | Fréchet distance | Inception-style score, of 10 | digits drawn | precision | recall | \
             seconds a run |\n|---|---|---|---|---|---|---|",
            self.judge.name(),
            number(100.0 * self.judge.accuracy),
        );
        for game in games {
            table += &format!(
                "\n| {} | {} | {} | {} | {} | {} | {:.0} |",
                game.name,
                game.between("fid"),
                game.between("inception_score"),
                number(game.of("classes_drawn")),
                number(game.of("precision")),
                number(game.of("recall")),
                game.seconds,
            );
        }
        table
    }
}
