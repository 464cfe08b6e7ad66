//! The loop for models with one loss.

use std::sync::atomic::Ordering;
use std::time::Instant;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use maquette_models::nn::autocast;
use maquette_models::nn::ema::Ema;
use maquette_rng::{Stream, seed_for};

use crate::checkpoint::{self, Course, Exact, LoopState, Snapshot};
use crate::penalty::Penalty;
use crate::progress::{Clock, Control, Event};
use crate::spec::{LoopSpec, OptimizerSpec, ScheduleSpec};
use crate::task::{SampleFn, Task, ValidateFn};
use crate::{BoxError, Metrics, Phase, Run, TrainError, clip, optimizer, schedule};

/// The three sections of a recipe that the loop follows, and the device (with autodiff).
pub struct Plan<'a> {
    /// `[optimizer]`.
    pub optimizer: &'a OptimizerSpec,
    /// `[schedule]`.
    pub schedule: &'a ScheduleSpec,
    /// `[train]`.
    pub train: &'a LoopSpec,
    /// Optimiser steps in all, from [`LoopSpec::total_steps`].
    pub steps: u64,
    /// Where the model lives.
    pub device: &'a Device,
}

/// Why a finished loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps were taken.
    Completed,
    /// Early stopping; the model is the best one.
    Stopped {
        /// The step of the best validation.
        best_step: u64,
    },
}

/// A trained model.
#[derive(Debug)]
pub struct Fitted<M> {
    /// The weights to use, without gradients: the best when early stopping is on, else the
    /// moving average when there is one, else the last.
    pub model: M,
    /// Steps done.
    pub step: u64,
    /// Seconds, over all sittings.
    pub seconds: f64,
    /// Why it ended.
    pub ending: Ending,
    /// The validation metrics of `model`.
    pub validation: Metrics,
}

/// Trains `model` on `task` as `plan` says, writing to `run`; continues where `run` left off.
///
/// # Errors
/// [`TrainError::Diverged`], [`TrainError::Interrupted`], [`TrainError::Task`],
/// [`TrainError::NoSuchParameters`], [`TrainError::Io`].
pub fn fit<M: Module, B>(
    model: M,
    mut task: Task<'_, M, B>,
    plan: &Plan<'_>,
    run: &mut Run,
    control: &mut Control<'_>,
) -> Result<Fitted<M>, TrainError> {
    let train = plan.train;
    let mut at = Position::start(model, plan, run)?;
    let penalties = train
        .penalties
        .iter()
        .map(|spec| Penalty::new(spec, &at.model))
        .collect::<Result<Vec<_>, _>>()?;
    let clock = Clock::start(&at.state, train, plan.steps, task.items);
    (control.on_event)(Event::Started {
        step: at.state.step,
        parameters: at.model.num_params(),
    });

    let mut ending = at.early_stop(train);
    while at.state.step < plan.steps && ending.is_none() {
        // 1. The gradient of the mean loss over the micro-batches.
        let step = at.state.step;
        let (mut values, mut grads) = gradient(&mut at, &mut task, plan)?;
        for penalty in &penalties {
            penalty.add_gradient(&at.model, &mut grads);
        }

        // 2. Clipping; a loss or gradient that is not finite ends the run here, before it can
        // reach the weights.
        let norm = clip::global_norm(&at.model, &grads);
        at.check(values["loss"], norm, train, run)?;
        if let Some(max) = train.clip_norm {
            clip::by_norm(&at.model, &mut grads, norm, max);
        }
        if let Some(max) = train.clip_value {
            clip::by_value(&at.model, &mut grads, max);
        }

        // 3. The update.
        let lr = schedule::lr(plan.schedule, plan.optimizer.lr, plan.steps, step);
        at.model = at.optimizer.step(lr, at.model, grads);
        at.ema = at.ema.map(|ema| ema.update(&at.model, step));
        at.state.step += 1;
        at.state.seconds = clock.seconds();

        // 4. Log.
        let step = at.state.step;
        let last = step == plan.steps;
        let progress = clock.progress(step, values["loss"], lr);
        (control.on_event)(Event::Step(progress));
        if step % train.log_every == 0 || last || step == 1 {
            let penalty = penalties
                .iter()
                .map(|penalty| penalty.value(&at.model))
                .sum::<f64>();
            if !penalties.is_empty() {
                values.insert("penalty".into(), penalty);
            }
            values.extend([("lr".into(), lr), ("grad_norm".into(), norm)]);
            values.insert(format!("{}_per_second", progress.unit), progress.rate);
            run.log(Phase::Train, step, &values)?;
        }

        // 5. Validate, sample, save, each at its own pace and all at the end.
        let due = |every: Option<u64>| last || every.is_some_and(|every| step % every == 0);
        if due(train.validate_every) {
            at.validate(&mut task, train, run, control)?;
            ending = at.early_stop(train);
        }
        let ended = ending.is_some();
        if due(train.sample_every) || ended {
            sampled(&mut task.sample, || at.shown(), step, run, control)?;
        }
        let interrupted = control.stop.load(Ordering::Relaxed) && !last && !ended;
        at.state.seconds = clock.seconds();
        if due(train.checkpoint_every) || ended || interrupted {
            at.save(train, run, control)?;
        }
        if interrupted {
            return Err(TrainError::Interrupted {
                step,
                run: run.dir().into(),
            });
        }
    }
    Ok(at.finish(ending.unwrap_or(Ending::Completed), train))
}

/// What a step costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Parameters of the model.
    pub parameters: usize,
    /// Seconds of one optimiser step.
    pub seconds_per_step: f64,
    /// Over how many steps that was measured.
    pub steps: u64,
}

/// Takes a few steps, writes nothing, and says what one costs.
///
/// # Errors
/// [`TrainError::Task`].
pub fn measure<M: Module, B>(
    model: M,
    mut task: Task<'_, M, B>,
    plan: &Plan<'_>,
) -> Result<Measured, TrainError> {
    /// The first step pays for start-up and is not counted.
    const STEPS: u64 = 5;
    let parameters = model.num_params();
    let mut at = Position {
        optimizer: optimizer::build(plan.optimizer, &model),
        ema: plan.train.ema.map(|decay| Ema::new(&model, decay)),
        best: None,
        state: LoopState::default(),
        model,
    };
    let mut began = Instant::now();
    for step in 0..=STEPS {
        if step == 1 {
            began = Instant::now();
        }
        let (_, grads) = gradient(&mut at, &mut task, plan)?;
        at.model = at.optimizer.step(plan.optimizer.lr, at.model, grads);
        at.ema = at.ema.map(|ema| ema.update(&at.model, step));
        at.state.step += 1;
    }
    let seconds_per_step = began.elapsed().as_secs_f64() / STEPS as f64;
    Ok(Measured {
        parameters,
        seconds_per_step,
        steps: STEPS,
    })
}

/// The mean gradient and the mean loss of one step.
fn gradient<M: Module, B>(
    at: &mut Position<M>,
    task: &mut Task<'_, M, B>,
    plan: &Plan<'_>,
) -> Result<(Metrics, GradientsParams), TrainError> {
    let train = plan.train;
    let share = 1.0 / train.grad_accumulation as f64;
    let mut sum = GradientsAccumulator::new();
    let mut values = Metrics::new();
    for micro in 0..train.grad_accumulation {
        let index = at.state.step * train.grad_accumulation + micro;
        let batch = (task.batch)(index).map_err(failed("reading a batch", at.state.step))?;
        at.state.stream = batch.stream.or(at.state.stream.take());
        plan.device
            .seed(seed_for(train.seed, Stream::Dropout, index));
        let precision = autocast(train.precision.into());
        let loss = (task.loss)(&at.model, batch.data, index);
        drop(precision);
        let parts = loss.parts.into_iter().chain([("loss", loss.total.clone())]);
        for (name, value) in parts {
            let value = f64::from(value.into_scalar::<f32>());
            *values.entry(name.into()).or_insert(0.0) += value * share;
        }
        let total = match train.grad_accumulation {
            1 => loss.total,
            _ => loss.total.mul_scalar(share),
        };
        let grads = GradientsParams::from_grads(total.backward(), &at.model);
        sum.accumulate(&at.model, grads);
    }
    Ok((values, sum.grads()))
}

/// Where the loop stands: everything that changes from step to step.
struct Position<M> {
    model: M,
    optimizer: ModuleOptimizer,
    ema: Option<Ema<M>>,
    /// Weights of the best validation, kept when early stopping may return them.
    best: Option<M>,
    state: LoopState,
}

impl<M: Module> Position<M> {
    fn start(model: M, plan: &Plan<'_>, run: &Run) -> Result<Self, TrainError> {
        let decay = plan.train.ema;
        let Some(checkpoint) = run.checkpoint() else {
            return Ok(Self {
                optimizer: optimizer::build(plan.optimizer, &model),
                ema: decay.map(|decay| Ema::new(&model, decay)),
                best: None,
                state: LoopState::of(run),
                model,
            });
        };
        let model = checkpoint.model(model)?;
        let optimizer = checkpoint.optimizer(optimizer::build(plan.optimizer, &model))?;
        let average = checkpoint.ema(&model)?;
        Ok(Self {
            ema: decay
                .zip(average)
                .map(|(decay, average)| Ema::resume(average, decay)),
            best: checkpoint.best(&model)?,
            state: checkpoint.state.clone(),
            optimizer,
            model,
        })
    }

    /// The weights that are validated, sampled from and saved.
    fn shown(&self) -> M {
        match &self.ema {
            Some(ema) => ema.model().clone(),
            None => self.model.valid(),
        }
    }

    /// Divergence: a number that is not finite, or a smoothed loss far above its lowest.
    fn check(
        &mut self,
        loss: f64,
        norm: f64,
        train: &LoopSpec,
        run: &Run,
    ) -> Result<(), TrainError> {
        let step = self.state.step;
        if !loss.is_finite() {
            return Err(diverged(step, format!("the loss is {loss}"), run));
        }
        if !norm.is_finite() {
            return Err(diverged(
                step,
                format!("the gradient's norm is {norm}"),
                run,
            ));
        }
        let course = Course::after(self.state.course, loss);
        self.state.course = Some(course);
        if course.diverged(train.divergence) {
            let (Exact(smoothed), Exact(lowest)) = (course.smoothed, course.lowest);
            let cause = format!(
                "the loss rose to {smoothed:.4}, more than {} times its lowest value {lowest:.4}",
                train.divergence
            );
            return Err(diverged(step, cause, run));
        }
        Ok(())
    }

    fn validate<B>(
        &mut self,
        task: &mut Task<'_, M, B>,
        train: &LoopSpec,
        run: &mut Run,
        control: &mut Control<'_>,
    ) -> Result<(), TrainError> {
        let Some(validate) = &mut task.validate else {
            return Ok(());
        };
        let step = self.state.step;
        let shown = self.shown();
        let metrics = validated(validate, &shown, step, run, control)?;
        if let Some(&loss) = metrics.get("loss") {
            let better = self.state.best.is_none_or(|(_, Exact(best))| loss < best);
            if better {
                self.state.best = Some((step, Exact(loss)));
                self.best = Some(shown);
            }
            self.state.bad_validations = if better {
                0
            } else {
                self.state.bad_validations + 1
            };
            if !better && train.patience.is_some() {
                return Ok(());
            }
        }
        self.state.validated(metrics);
        Ok(())
    }

    fn save(
        &self,
        train: &LoopSpec,
        run: &Run,
        control: &mut Control<'_>,
    ) -> Result<(), TrainError> {
        run.sync_logs()?;
        let snapshot = Snapshot {
            model: &self.model,
            ema: self.ema.as_ref().map(Ema::model),
            best: self.best.as_ref().filter(|_| train.patience.is_some()),
            optimizer: &self.optimizer,
            critic_optimizer: None,
            state: &self.state,
        };
        let path = checkpoint::save(&run.checkpoints(), &snapshot, train.keep_checkpoints)?;
        (control.on_event)(Event::Saved {
            step: self.state.step,
            path: &path,
        });
        Ok(())
    }

    /// Whether the validations have stopped improving.
    fn early_stop(&self, train: &LoopSpec) -> Option<Ending> {
        let (best_step, _) = self.state.best?;
        let patience = train.patience?;
        (self.state.bad_validations >= patience).then_some(Ending::Stopped { best_step })
    }

    fn finish(self, ending: Ending, train: &LoopSpec) -> Fitted<M> {
        let shown = self.shown();
        let best = self.best.filter(|_| train.patience.is_some());
        Fitted {
            model: best.unwrap_or(shown),
            step: self.state.step,
            seconds: self.state.seconds,
            ending,
            validation: self.state.validation(),
        }
    }
}

/// The end of a run at the step after `step`, with what is left of it.
pub(crate) fn diverged(step: u64, cause: String, run: &Run) -> TrainError {
    let kept = match checkpoint::list(&run.checkpoints())
        .unwrap_or_default()
        .pop()
    {
        Some(path) => format!("The last good checkpoint is {}", path.display()),
        None => "There is no checkpoint yet".into(),
    };
    TrainError::Diverged {
        step: step + 1,
        cause,
        kept: format!("{kept}. Try a lower optimizer.lr, schedule.warmup or train.clip_norm"),
    }
}

/// Validates `shown` after `step` and logs what was found.
pub(crate) fn validated<M>(
    validate: &mut ValidateFn<'_, M>,
    shown: &M,
    step: u64,
    run: &mut Run,
    control: &mut Control<'_>,
) -> Result<Metrics, TrainError> {
    let metrics = validate(shown).map_err(failed("validation", step))?;
    if let Some((name, value)) = metrics.iter().find(|(_, value)| !value.is_finite()) {
        return Err(diverged(step, format!("validation {name} is {value}"), run));
    }
    run.log(Phase::Validation, step, &metrics)?;
    (control.on_event)(Event::Validated {
        step,
        metrics: &metrics,
    });
    Ok(metrics)
}

/// Writes samples of the model after `step`, if the task has any.
pub(crate) fn sampled<M>(
    sample: &mut Option<SampleFn<'_, M>>,
    shown: impl FnOnce() -> M,
    step: u64,
    run: &Run,
    control: &mut Control<'_>,
) -> Result<(), TrainError> {
    let Some(sample) = sample else {
        return Ok(());
    };
    let path = run.samples(step)?;
    sample(&shown(), step, &path).map_err(failed("sampling", step))?;
    (control.on_event)(Event::Sampled { step, path: &path });
    Ok(())
}

pub(crate) fn failed(doing: &'static str, step: u64) -> impl FnOnce(BoxError) -> TrainError {
    move |source| TrainError::Task {
        doing,
        step,
        source,
    }
}
