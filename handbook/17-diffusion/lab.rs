//! Eight Gaussians on a ring: quality over steps, DDIM against DDPM, targets and schedules.

use std::cell::Cell;
use std::time::Instant;

use burn::tensor::Tensor;

use crate::data::Order;
use crate::data::points::{PointSet, RING8_SIGMA, ring8, ring8_centres};
use crate::eval::modes::{ModeRule, Modes, modes};
use crate::generate::diffusion::{Spacing, TimeGrid, ddim, ddpm, noise};
use crate::labs::training::{Training, matrix, numbers};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::models::{
    DenoiserMlp, DenoiserMlpConfig, Diffusion, DiffusionConfig, NoiseSchedule, Target,
};
use crate::rng::{Stream, normal, rng};
use crate::train::spec::ScheduleKind;
use crate::train::{Batch, OptimizerSpec, ScheduleSpec, Task};

const BATCH: usize = 256;

/// A trained denoiser with its process; counts its network passes.
struct Sampler {
    network: DenoiserMlp,
    process: Diffusion,
    passes: Cell<usize>,
    /// The largest coordinate of the data, to which a guess of the clean points is clamped.
    reach: f32,
}

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let set = ring8(20_000, lab.seed);
    let main = train(
        lab,
        &set,
        DiffusionConfig::default(),
        if lab.quick { 1500 } else { 4000 },
    )?;

    lab.say("DDIM with a growing number of steps");
    let mut over_steps = Vec::new();
    for steps in [2, 5, 10, 20, 50] {
        let points = main.ddim(lab, 1000, steps)?;
        over_steps.push((steps as f64, quality(&points)?));
    }
    let at = |i: usize| over_steps[i].1.high_quality;
    let mut claims = vec![
        Claim::at_least(
            "modes covered at 50 DDIM steps, of 8",
            over_steps[4].1.covered as f64,
            8.0,
        )
        .published(
            8.0,
            "VEEGAN, 8-Gaussian ring, arXiv 1705.07761 table 1 (GAN 1, unrolled GAN 7.6), quoted at second hand",
        ),
        Claim::at_least("share of high quality at 50 DDIM steps", at(4), 0.9).published(
            0.529,
            "VEEGAN, the same table (a GAN trained with a reconstructor)",
        ),
        Claim::at_least(
            "share of high quality: 50 steps less 5 steps",
            at(4) - at(1),
            0.2,
        ),
        Claim::at_least(
            "least rise from one number of steps to the next",
            (1..5)
                .map(|i| at(i) - at(i - 1))
                .fold(f64::INFINITY, f64::min),
            -0.02,
        ),
    ];
    let (speed, ring) = against_ddpm(lab, &main)?;
    claims.extend(speed);
    let (bars, compared) = compare(lab, &set)?;
    claims.extend(compared);

    let curve: Vec<_> = over_steps
        .iter()
        .map(|(steps, q)| (*steps, q.high_quality))
        .collect();
    let plot = panels(&[
        ring,
        Chart::new(
            "Quality over DDIM steps",
            "network passes",
            "share of high quality",
        )
        .line("", curve),
        bars,
    ]);
    let notes =
        vec!["The published figures are of GANs on the same data, judged by the same rule.".into()];
    Ok(Outcome {
        claims,
        plot,
        notes,
    })
}

fn quality(points: &[[f32; 2]]) -> Result<Modes, LabError> {
    modes(
        points,
        &ring8_centres(),
        f64::from(RING8_SIGMA),
        &ModeRule::default(),
    )
    .doing("counting modes")
}

fn train(
    lab: &LabContext<'_>,
    set: &PointSet,
    config: DiffusionConfig,
    steps: u64,
) -> Result<Sampler, LabError> {
    lab.say(&format!(
        "training {:?} on the {:?} schedule",
        config.target, config.schedule
    ));
    let device = lab.device.clone().autodiff();
    let process = config.init();
    let network = DenoiserMlpConfig::default().init(&device, &mut rng(lab.seed, Stream::Init, 0));
    let order = Order::new(set.len(), BATCH, lab.seed).doing("ordering the batches")?;
    let mut training = Training::new(OptimizerSpec::adamw(3e-3), steps, BATCH, lab.seed);
    training.schedule = ScheduleSpec {
        kind: ScheduleKind::Cosine,
        warmup: 50,
        ..ScheduleSpec::default()
    };
    training.train.ema = Some(0.99);
    training.train.clip_norm = Some(1.0);
    let task = Task::new(
        |step| {
            Ok(Batch::from(matrix(
                set.batch(&order.indices(step)),
                BATCH,
                &device,
            )))
        },
        |network: &DenoiserMlp, x0: Tensor<2>, step| {
            let mut rng = rng(lab.seed, Stream::Noise, step);
            let times = process.draw_steps(BATCH, &mut rng);
            let noise = matrix(normal(&mut rng, 2 * BATCH), BATCH, &device);
            process
                .loss(|x, t| network.forward(x, t, None), x0, &times, noise)
                .into()
        },
    );
    let network = training.run(network, task, &device)?.model;
    Ok(Sampler {
        network,
        process,
        passes: Cell::new(0),
        reach: set.reach(),
    })
}

impl Sampler {
    /// The guess of the clean points that the samplers ask for.
    fn denoise(&self, x: Tensor<2>, t: usize) -> Tensor<2> {
        self.passes.set(self.passes.get() + 1);
        let times = self.process.times(&vec![t; x.dims()[0]], &x.device());
        let output = self.network.forward(x.clone(), times, None);
        self.process
            .predict(output, x, self.process.alpha_bar(t))
            .x0
            .clamp(-self.reach, self.reach)
    }

    fn grid(&self, steps: usize) -> Result<TimeGrid, LabError> {
        let alpha_bar: Vec<f64> = (0..self.process.steps())
            .map(|t| self.process.alpha_bar(t))
            .collect();
        TimeGrid::new(&alpha_bar, steps, Spacing::default()).doing("choosing the steps")
    }

    fn ddim(
        &self,
        lab: &LabContext<'_>,
        n: usize,
        steps: usize,
    ) -> Result<Vec<[f32; 2]>, LabError> {
        let mut rngs = [rng(lab.seed, Stream::Sample, 0)];
        let x = noise([n, 2], &mut rngs, &lab.device);
        points(ddim(
            |x, t| self.denoise(x, t),
            x,
            &self.grid(steps)?,
            0.0,
            &mut rngs,
            |_| (),
        ))
    }

    fn ddpm(&self, lab: &LabContext<'_>, n: usize) -> Result<Vec<[f32; 2]>, LabError> {
        let mut rngs = [rng(lab.seed, Stream::Sample, 0)];
        let x = noise([n, 2], &mut rngs, &lab.device);
        points(ddpm(
            |x, t| self.denoise(x, t),
            x,
            &self.grid(1000)?,
            &mut rngs,
            |_| (),
        ))
    }
}

fn points(x: Tensor<2>) -> Result<Vec<[f32; 2]>, LabError> {
    Ok(numbers(x)?.chunks(2).map(|p| [p[0], p[1]]).collect())
}

/// Passes, seconds and samples of DDIM with 50 steps and DDPM with all 1,000.
fn against_ddpm(lab: &LabContext<'_>, main: &Sampler) -> Result<(Vec<Claim>, Chart), LabError> {
    const N: usize = 500;
    lab.say("DDPM with 1,000 steps");
    let timed = |sample: &dyn Fn() -> Result<Vec<[f32; 2]>, LabError>| {
        main.passes.set(0);
        let start = Instant::now();
        let points = sample()?;
        Ok::<_, LabError>((
            points,
            main.passes.get() as f64,
            start.elapsed().as_secs_f64(),
        ))
    };
    let (fast, fast_passes, fast_seconds) = timed(&|| main.ddim(lab, N, 50))?;
    let (slow, slow_passes, slow_seconds) = timed(&|| main.ddpm(lab, N))?;
    let again = main.ddim(lab, N, 50)?;
    let differing = fast.iter().zip(&again).filter(|(a, b)| a != b).count();
    let claims = vec![
        Claim::at_most(
            "DDIM twice from the same noise: points that differ",
            differing as f64,
            0.0,
        ),
        Claim::within(
            "network passes of DDPM over those of DDIM",
            slow_passes / fast_passes,
            20.0,
            0.0,
        ),
        Claim::at_least(
            "seconds of DDPM over those of DDIM",
            slow_seconds / fast_seconds,
            8.0,
        ),
        Claim::at_least(
            "share of high quality: DDIM with 50 steps less DDPM with 1,000",
            quality(&fast)?.high_quality - quality(&slow)?.high_quality,
            -0.05,
        ),
    ];
    let place = |points: Vec<[f32; 2]>| {
        points
            .into_iter()
            .map(|p| (f64::from(p[0]), f64::from(p[1])))
    };
    let chart = Chart::new("500 samples each", "x", "y")
        .dots("DDPM, 1,000 passes", place(slow))
        .dots("DDIM, 50 passes", place(fast));
    Ok((claims, chart))
}

/// Targets and schedules on the same budget; in the quick form on the cosine schedule only.
fn compare(lab: &LabContext<'_>, set: &PointSet) -> Result<(Chart, Vec<Claim>), LabError> {
    use NoiseSchedule::{Cosine, Linear};
    let (budget, schedules): (u64, &[_]) = match lab.quick {
        true => (600, &[(Cosine, "cos")]),
        false => (2000, &[(Linear, "lin"), (Cosine, "cos")]),
    };
    let title = format!("Target and schedule, {budget} training steps");
    let mut chart = Chart::new(&title, "", "share of high quality");
    let (mut fewest, mut worst, mut eps, mut v) = (8.0, 1.0f64, 0.0, 0.0);
    let mut gained = f64::NAN;
    for &(schedule, short) in schedules {
        for (target, name) in [(Target::Eps, "eps"), (Target::X0, "x0"), (Target::V, "v")] {
            let config = DiffusionConfig {
                schedule,
                target,
                steps: 1000,
            };
            let mut sampler = train(lab, set, config, budget)?;
            let found = quality(&sampler.ddim(lab, 1000, 50)?)?;
            chart = chart.bar(&format!("{name} {short}"), found.high_quality);
            fewest = f64::min(fewest, found.covered as f64);
            worst = worst.min(found.high_quality);
            let share = found.high_quality / schedules.len() as f64;
            match target {
                Target::Eps => eps += share,
                Target::V => v += share,
                Target::X0 => {}
            }
            if (target, schedule) == (Target::Eps, Cosine) {
                sampler.reach = f32::INFINITY;
                let free = quality(&sampler.ddim(lab, 1000, 50)?)?.high_quality;
                chart = chart.bar("unclamped", free);
                gained = found.high_quality - free;
            }
        }
    }
    let pairs = 3 * schedules.len();
    let claims = vec![
        Claim::at_least(
            format!("{pairs} pairs of target and schedule: fewest modes covered"),
            fewest,
            8.0,
        ),
        Claim::at_least(
            format!("{pairs} pairs: lowest share of high quality"),
            worst,
            0.3,
        ),
        Claim::at_least(
            "v over eps at this budget, difference of the shares",
            v - eps,
            0.0,
        ),
        Claim::at_least(
            "eps, cosine: what clamping the guess to the data's range adds to the share",
            gained,
            0.3,
        ),
    ];
    Ok((chart, claims))
}
