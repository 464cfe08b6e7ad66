//! One set of points, two models: a class-conditional generator and a classifier.

use burn::tensor::{Int, Tensor, TensorData, activation::softmax};

use crate::data::Order;
use crate::data::points::{PointSet, moons};
use crate::eval::Points;
use crate::eval::classification::{accuracy, auroc, predictions};
use crate::eval::image::manifold;
use crate::eval::neighbours::copies;
use crate::generate::diffusion::{Spacing, TimeGrid, class_errors, ddim, noise};
use crate::labs::training::{Training, matrix, numbers};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::models::perceptron::{Perceptron, PerceptronConfig};
use crate::models::{DenoiserMlp, DenoiserMlpConfig, Diffusion, DiffusionConfig};
use crate::rng::{Rng, Stream, normal, rng, uniform};
use crate::train::spec::ScheduleKind;
use crate::train::{Batch, OptimizerSpec, ScheduleSpec, Task};

const BATCH: usize = 256;
/// Half of the classes' points are made, and as many judged, at a time.
const N: usize = 1000;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let set = moons(4000, lab.seed);
    let held_out = moons(N, lab.seed + 1);
    let foreign = foreign(&held_out, &mut rng(lab.seed, Stream::Evaluate, 0));
    let truth: Vec<usize> = held_out.labels.iter().map(|l| usize::from(*l)).collect();

    lab.say("training the classifier");
    let classifier = classifier(lab, &set)?;
    lab.say("training the generator");
    let generator = Generator::train(lab, &set)?;

    // 1. Both say which moon a point is of.
    let sure = |points: &[[f32; 2]]| confidences(lab, &classifier, points);
    let (read, held_sure) = sure(&held_out.points)?;
    let (likely, held_error) = generator.classify(lab, &held_out.points)?;
    let discriminative = accuracy(&read, &truth).doing("comparing classes")?;
    let generative = accuracy(&likely, &truth).doing("comparing classes")?;

    // 2. One of them makes new points of the moon it is asked for.
    let asked: Vec<usize> = (0..N).map(|i| i % 2).collect();
    let made = generator.sample(lab, &asked)?;
    let read_back = accuracy(&sure(&made)?.0, &asked).doing("comparing classes")?;
    let places = |points| Points::plane(points).doing("measuring points");
    let cover = manifold(places(&held_out.points)?, places(&made)?, 5).doing("covering")?;
    let copies = copies(
        &to_nearest(&made, &set.points),
        &to_nearest(&held_out.points, &set.points),
    )
    .doing("looking for copies")?;

    // 3. One of them knows what it has never seen.
    let (_, foreign_sure) = sure(&foreign)?;
    let (_, foreign_error) = generator.classify(lab, &foreign)?;
    let by_error = auroc(&foreign_error, &held_error).doing("telling points apart")?;
    let by_doubt = auroc(&negated(&foreign_sure), &negated(&held_sure)).doing("telling apart")?;
    let certain = foreign_sure.iter().filter(|p| **p >= 0.99).count() as f64 / N as f64;

    let claims = vec![
        Claim::at_least(
            "classifier: held-out points read rightly",
            discriminative,
            0.99,
        ),
        Claim::at_least(
            "generator: held-out points read rightly, by likelihood",
            generative,
            0.98,
        ),
        Claim::at_least(
            "generator: made points that the classifier reads as asked",
            read_back,
            0.98,
        ),
        Claim::at_least(
            "held-out points with a made one among their 5 nearest (coverage)",
            cover.coverage,
            0.8,
        ),
        Claim::at_most(
            "made points that are points of the training set",
            copies.exact as f64,
            0.0,
        ),
        Claim::at_least(
            "made points' median distance to the training set, over that of held-out points",
            copies.median_generated / copies.median_held_out,
            0.8,
        ),
        Claim::at_least(
            "foreign points told from held-out ones by the generator's error, AUROC",
            by_error,
            0.95,
        ),
        Claim::at_least(
            "the same less that by the classifier's doubt",
            by_error - by_doubt,
            0.2,
        ),
        Claim::at_least(
            "foreign points that the classifier is 99 % sure about",
            certain,
            0.5,
        ),
    ];
    Ok(Outcome {
        claims,
        plot: panels(&[
            moon_chart(&made, &asked),
            Chart::new("Which moon is a held-out point of?", "", "read rightly")
                .bar("classifier", discriminative)
                .bar("generator", generative),
            Chart::new("Is a point of the data at all?", "", "AUROC")
                .bar("classifier's doubt", by_doubt)
                .bar("generator's error", by_error),
        ]),
        notes: vec![],
    })
}

fn moon_chart(made: &[[f32; 2]], asked: &[usize]) -> Chart {
    let of = |moon: usize| {
        let pairs = made.iter().zip(asked).filter(move |(_, a)| **a == moon);
        pairs
            .map(|(p, _)| (f64::from(p[0]), f64::from(p[1])))
            .collect::<Vec<_>>()
    };
    Chart::new("Points made to order", "x", "y")
        .dots("asked for the upper moon", of(0))
        .dots("asked for the lower moon", of(1))
}

/// Points around the moons, none within half a unit of them.
fn foreign(known: &PointSet, rng: &mut Rng) -> Vec<[f32; 2]> {
    let mut points = Vec::new();
    while points.len() < N {
        let at = uniform(rng, 2);
        let point = [at[0] * 7.0 - 3.0, at[1] * 6.5 - 3.0];
        if to_nearest(&[point], &known.points)[0] > 0.5 {
            points.push(point);
        }
    }
    points
}

/// Distance of each point to the nearest of `others`.
fn to_nearest(points: &[[f32; 2]], others: &[[f32; 2]]) -> Vec<f64> {
    let distance = |a: &[f32; 2], b: &[f32; 2]| f64::from((a[0] - b[0]).hypot(a[1] - b[1]));
    let nearest = |p| {
        others
            .iter()
            .map(|o| distance(p, o))
            .fold(f64::INFINITY, f64::min)
    };
    points.iter().map(nearest).collect()
}

fn negated(values: &[f64]) -> Vec<f64> {
    values.iter().map(|x| -x).collect()
}

fn tensor(lab: &LabContext<'_>, points: &[[f32; 2]]) -> Tensor<2> {
    matrix(points.concat(), points.len(), &lab.device)
}

fn classes(labels: impl Iterator<Item = usize>, device: &burn::tensor::Device) -> Tensor<1, Int> {
    let labels: Vec<i32> = labels.map(|label| label as i32).collect();
    let n = labels.len();
    Tensor::from_data(TensorData::new(labels, [n]), device)
}

fn classifier(lab: &LabContext<'_>, set: &PointSet) -> Result<Perceptron, LabError> {
    let device = lab.device.clone().autodiff();
    let config = PerceptronConfig::new(2, 64, 2, 2);
    let model = config.init(&mut rng(lab.seed, Stream::Init, 0), &device);
    let order = Order::new(set.len(), BATCH, lab.seed).doing("ordering the batches")?;
    let task = Task::new(
        |step| Ok(Batch::from(batch(set, &order.indices(step), &device))),
        |model: &Perceptron, (x, labels), _| model.loss(x, labels).into(),
    );
    let training = Training::new(OptimizerSpec::adamw(3e-3), 500, BATCH, lab.seed);
    Ok(training.run(model, task, &device)?.model)
}

fn batch(
    set: &PointSet,
    indices: &[usize],
    device: &burn::tensor::Device,
) -> (Tensor<2>, Tensor<1, Int>) {
    let labels = indices.iter().map(|i| usize::from(set.labels[*i]));
    (
        matrix(set.batch(indices), indices.len(), device),
        classes(labels, device),
    )
}

/// The class of each point, and how sure the classifier is of it.
fn confidences(
    lab: &LabContext<'_>,
    classifier: &Perceptron,
    points: &[[f32; 2]],
) -> Result<(Vec<usize>, Vec<f64>), LabError> {
    let logits = classifier.forward(tensor(lab, points));
    let sure = numbers(softmax(logits.clone(), 1).max_dim(1))?;
    let read = predictions(&numbers(logits)?, 2).doing("reading classes")?;
    Ok((read, sure.into_iter().map(f64::from).collect()))
}

/// A denoiser that is told the class.
struct Generator {
    network: DenoiserMlp,
    process: Diffusion,
    /// The largest coordinate of the data, to which a guess of the clean points is clamped.
    reach: f32,
}

impl Generator {
    fn train(lab: &LabContext<'_>, set: &PointSet) -> Result<Self, LabError> {
        let device = lab.device.clone().autodiff();
        let process = DiffusionConfig::default().init();
        let config = DenoiserMlpConfig {
            n_classes: 2,
            ..DenoiserMlpConfig::default()
        };
        let network = config.init(&device, &mut rng(lab.seed, Stream::Init, 1));
        let order = Order::new(set.len(), BATCH, lab.seed).doing("ordering the batches")?;
        let steps = if lab.quick { 800 } else { 4000 };
        let mut training = Training::new(OptimizerSpec::adamw(3e-3), steps, BATCH, lab.seed);
        training.schedule = ScheduleSpec {
            kind: ScheduleKind::Cosine,
            warmup: 50,
            ..ScheduleSpec::default()
        };
        training.train.ema = Some(0.99);
        training.train.clip_norm = Some(1.0);
        let task = Task::new(
            |step| Ok(Batch::from(batch(set, &order.indices(step), &device))),
            |network: &DenoiserMlp, (x0, labels): (Tensor<2>, Tensor<1, Int>), step| {
                let mut rng = rng(lab.seed, Stream::Noise, step);
                let times = process.draw_steps(BATCH, &mut rng);
                let noise = matrix(normal(&mut rng, 2 * BATCH), BATCH, &device);
                process
                    .loss(
                        |x, t| network.forward(x, t, Some(labels)),
                        x0,
                        &times,
                        noise,
                    )
                    .into()
            },
        );
        Ok(Self {
            network: training.run(network, task, &device)?.model,
            process,
            reach: set.reach(),
        })
    }

    /// The class under which each point is denoised best, and the error under it.
    fn classify(
        &self,
        lab: &LabContext<'_>,
        points: &[[f32; 2]],
    ) -> Result<(Vec<usize>, Vec<f64>), LabError> {
        let errors = class_errors(
            &self.process,
            |x, t, labels| self.network.forward(x, t, Some(labels)),
            tensor(lab, points),
            [2, 50],
            &mut rng(lab.seed, Stream::Evaluate, 1),
        );
        let least = numbers(errors.clone().min_dim(1))?;
        let read = predictions(&numbers(errors.neg())?, 2).doing("reading classes")?;
        Ok((read, least.into_iter().map(f64::from).collect()))
    }

    /// A point of each class, by 50 DDIM steps.
    fn sample(&self, lab: &LabContext<'_>, asked: &[usize]) -> Result<Vec<[f32; 2]>, LabError> {
        let labels = classes(asked.iter().copied(), &lab.device);
        let denoise = |x: Tensor<2>, t: usize| {
            let times = self.process.times(&vec![t; x.dims()[0]], &x.device());
            let output = self.network.forward(x.clone(), times, Some(labels.clone()));
            let guess = self.process.predict(output, x, self.process.alpha_bar(t));
            guess.x0.clamp(-self.reach, self.reach)
        };
        let alpha_bar: Vec<f64> = (0..self.process.steps())
            .map(|t| self.process.alpha_bar(t))
            .collect();
        let grid = TimeGrid::new(&alpha_bar, 50, Spacing::default()).doing("choosing the steps")?;
        let mut rngs = [rng(lab.seed, Stream::Sample, 0)];
        let x = noise([asked.len(), 2], &mut rngs, &lab.device);
        let made = numbers(ddim(denoise, x, &grid, 0.0, &mut rngs, |_| ()))?;
        Ok(made.chunks(2).map(|p| [p[0], p[1]]).collect())
    }
}
