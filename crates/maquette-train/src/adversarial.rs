//! The loop for two players: a generator and a critic, each learning from the other.

use std::sync::atomic::Ordering;
use std::time::Instant;

use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use maquette_models::nn::autocast;
use maquette_models::nn::ema::Ema;
use maquette_rng::{Stream, seed_for};

use crate::checkpoint::{self, LoopState, Snapshot};
use crate::diagnosis::{Diagnosis, Expected, Finding};
use crate::fit::{Measured, diverged, failed, sampled, validated};
use crate::progress::{Clock, Control, Event};
use crate::spec::{LoopSpec, PlayerSpec};
use crate::task::{BatchFn, SampleFn, ValidateFn};
use crate::{
    Batch, BoxError, Ending, Fitted, Loss, Metrics, Phase, Run, TrainError, clip, optimizer,
    schedule,
};

/// The sections of a recipe that the loop follows, and the device (with autodiff).
pub struct Match<'a> {
    /// `[generator]`.
    pub generator: &'a PlayerSpec,
    /// `[critic]`.
    pub critic: &'a PlayerSpec,
    /// `[train]`.
    pub train: &'a LoopSpec,
    /// Steps in all, from [`LoopSpec::total_steps`].
    pub steps: u64,
    /// Where the players live.
    pub device: &'a Device,
}

impl Match<'_> {
    /// Turns of both players in a step.
    fn turns(&self) -> u64 {
        self.critic.turns + self.generator.turns
    }
}

/// One turn, as its player's loss sees it.
pub struct Seen<'a, G, C, B> {
    /// The generator. Its weights carry gradients in its own turn alone.
    pub generator: &'a G,
    /// The critic, likewise.
    pub critic: &'a C,
    /// The batch; that of the critic's last turn, in the generator's.
    pub batch: &'a B,
    /// Steps done.
    pub step: u64,
    /// Which turn of the run this is, of both players together: what its randomness is drawn from.
    pub turn: u64,
}

type TurnFn<'a, G, C, B> = Box<dyn FnMut(Seen<'_, G, C, B>) -> Loss + 'a>;

/// What a recipe gives the loop: where batches come from, and what each player minimises.
pub struct Contest<'a, G, C, B> {
    batch: BatchFn<'a, B>,
    critic: TurnFn<'a, G, C, B>,
    generator: TurnFn<'a, G, C, B>,
    validate: Option<ValidateFn<'a, G>>,
    sample: Option<SampleFn<'a, G>>,
    unit: &'static str,
    expected: Option<Expected>,
}

impl<'a, G, C, B> Contest<'a, G, C, B> {
    /// `batch(i)` gives the batch of the critic's `i`-th turn; `critic` and `generator` are the losses.
    pub fn new(
        batch: impl FnMut(u64) -> Result<Batch<B>, BoxError> + 'a,
        critic: impl FnMut(Seen<'_, G, C, B>) -> Loss + 'a,
        generator: impl FnMut(Seen<'_, G, C, B>) -> Loss + 'a,
    ) -> Self {
        Self {
            batch: Box::new(batch),
            critic: Box::new(critic),
            generator: Box::new(generator),
            validate: None,
            sample: None,
            unit: "examples",
            expected: None,
        }
    }

    /// Names faults of the game while it is played. The generator's loss then has the parts that
    /// [`crate::diagnosis`] looks at.
    pub fn diagnosed(mut self, expected: Expected) -> Self {
        self.expected = Some(expected);
        self
    }

    /// Metrics of the generator (without gradients; its moving average if there is one).
    pub fn validate(mut self, validate: impl FnMut(&G) -> Result<Metrics, BoxError> + 'a) -> Self {
        self.validate = Some(Box::new(validate));
        self
    }

    /// Writes samples of the generator after a step into a folder. Fixed noise makes them comparable.
    pub fn sample(
        mut self,
        sample: impl FnMut(&G, u64, &std::path::Path) -> Result<(), BoxError> + 'a,
    ) -> Self {
        self.sample = Some(Box::new(sample));
        self
    }

    /// What the examples are called.
    pub fn counting(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }
}

/// Trains both players as `plan` says, writing to `run`; continues where `run` left off.
///
/// # Errors
/// [`TrainError::Diverged`], [`TrainError::Interrupted`], [`TrainError::Task`], [`TrainError::Io`].
pub fn adversarial<G: Module, C: Module, B>(
    players: (G, C),
    mut contest: Contest<'_, G, C, B>,
    plan: &Match<'_>,
    run: &mut Run,
    control: &mut Control<'_>,
) -> Result<Fitted<(G, C)>, TrainError> {
    let train = plan.train;
    let mut at = Position::start(players, plan, run)?;
    let items = train.batch as f64 * plan.critic.turns as f64;
    let mut diagnosis = contest
        .expected
        .map(|expected| Ok::<_, TrainError>(Diagnosis::new(expected).knowing(&run.findings()?)))
        .transpose()?;
    let clock = Clock::start(&at.state, train, plan.steps, (items, contest.unit));
    (control.on_event)(Event::Started {
        step: at.state.step,
        parameters: at.generator.model.num_params() + at.critic.model.num_params(),
    });

    while at.state.step < plan.steps {
        // 1. The critic's turns, then the generator's; a loss or gradient that is not finite ends
        // the run before it can reach the weights.
        let step = at.state.step;
        let mut values = take_turns(&mut at, &mut contest, plan)
            .map_err(|stumble| stumble.into_error(step, run))?;
        at.ema = at.ema.map(|ema| ema.update(&at.generator.model, step));
        at.state.step += 1;
        at.state.seconds = clock.seconds();

        // 2. Log.
        let step = at.state.step;
        let last = step == plan.steps;
        let mut progress = clock.progress(step, values["generator_loss"], values["generator_lr"]);
        progress.critic = Some(values["critic_loss"]);
        (control.on_event)(Event::Step(progress));
        if step % train.log_every == 0 || last || step == 1 {
            values.insert(format!("{}_per_second", progress.unit), progress.rate);
            run.log(Phase::Train, step, &values)?;
        }
        if let Some(diagnosis) = &mut diagnosis {
            tell(diagnosis.see(step, &values), run, control)?;
        }

        // 3. Validate, sample, save, each at its own pace and all at the end.
        let due = |every: Option<u64>| last || every.is_some_and(|every| step % every == 0);
        if let Some(validate) = contest
            .validate
            .as_mut()
            .filter(|_| due(train.validate_every))
        {
            let metrics = validated(validate, &at.shown(), step, run, control)?;
            if let Some(diagnosis) = &mut diagnosis {
                tell(
                    diagnosis.see_validation(step, plan.steps, &metrics),
                    run,
                    control,
                )?;
            }
            at.state.validated(metrics);
        }
        if due(train.sample_every) {
            sampled(&mut contest.sample, || at.shown(), step, run, control)?;
        }
        let interrupted = control.stop.load(Ordering::Relaxed) && !last;
        at.state.seconds = clock.seconds();
        if due(train.checkpoint_every) || interrupted {
            at.save(train, run, control)?;
        }
        if interrupted {
            return Err(TrainError::Interrupted {
                step,
                run: run.dir().into(),
            });
        }
    }
    Ok(Fitted {
        step: at.state.step,
        seconds: at.state.seconds,
        ending: Ending::Completed,
        validation: at.state.validation(),
        model: (at.shown(), at.critic.model.valid()),
    })
}

/// Keeps what was found in the run, and says it.
fn tell(found: Vec<Finding>, run: &Run, control: &mut Control<'_>) -> Result<(), TrainError> {
    for finding in found {
        run.keep_finding(&finding)?;
        (control.on_event)(Event::Found(&finding));
    }
    Ok(())
}

/// Takes a few steps, writes nothing, and says what one costs.
///
/// # Errors
/// [`TrainError::Task`].
pub fn measure<G: Module, C: Module, B>(
    players: (G, C),
    mut contest: Contest<'_, G, C, B>,
    plan: &Match<'_>,
) -> Result<Measured, TrainError> {
    /// The first step pays for start-up and is not counted.
    const STEPS: u64 = 5;
    let parameters = players.0.num_params() + players.1.num_params();
    let mut at = Position::new(players, plan, LoopState::default());
    let mut began = Instant::now();
    for step in 0..=STEPS {
        if step == 1 {
            began = Instant::now();
        }
        take_turns(&mut at, &mut contest, plan).map_err(|stumble| match stumble {
            Stumble::Failed(error) => error,
            Stumble::Diverged(cause) => TrainError::other(cause),
        })?;
        at.ema = at.ema.map(|ema| ema.update(&at.generator.model, step));
        at.state.step += 1;
    }
    Ok(Measured {
        parameters,
        seconds_per_step: began.elapsed().as_secs_f64() / STEPS as f64,
        steps: STEPS,
    })
}

/// Why a step could not be taken.
enum Stumble {
    Failed(TrainError),
    Diverged(String),
}

impl Stumble {
    fn into_error(self, step: u64, run: &Run) -> TrainError {
        match self {
            Self::Failed(error) => error,
            Self::Diverged(cause) => diverged(step, cause, run),
        }
    }
}

/// One step: all turns of the critic, each on a batch of its own, then those of the generator.
fn take_turns<G: Module, C: Module, B>(
    at: &mut Position<G, C>,
    contest: &mut Contest<'_, G, C, B>,
    plan: &Match<'_>,
) -> Result<Metrics, Stumble> {
    let (step, mut turn) = (at.state.step, at.state.step * plan.turns());
    let begin = |turn| {
        let seed = seed_for(plan.train.seed, Stream::Dropout, turn);
        plan.device.seed(seed);
        autocast(plan.train.precision.into())
    };
    let mut values = Metrics::new();
    let mut last = None;
    let still = at.generator.model.clone().no_grad();
    for i in 0..plan.critic.turns {
        let batch = (contest.batch)(step * plan.critic.turns + i)
            .map_err(failed("reading a batch", step))
            .map_err(Stumble::Failed)?;
        at.state.stream = batch.stream.or(at.state.stream.take());
        let precision = begin(turn);
        let loss = (contest.critic)(Seen {
            generator: &still,
            critic: &at.critic.model,
            batch: &batch.data,
            step,
            turn,
        });
        drop(precision);
        values.extend(at.critic.update(loss, plan.critic, plan.steps, step)?);
        last = Some(batch.data);
        turn += 1;
    }
    // The critic has at least one turn: a recipe with none is refused.
    let Some(batch) = &last else {
        return Ok(values);
    };
    let still = at.critic.model.clone().no_grad();
    for _ in 0..plan.generator.turns {
        let precision = begin(turn);
        let loss = (contest.generator)(Seen {
            generator: &at.generator.model,
            critic: &still,
            batch,
            step,
            turn,
        });
        drop(precision);
        values.extend(
            at.generator
                .update(loss, plan.generator, plan.steps, step)?,
        );
        turn += 1;
    }
    Ok(values)
}

/// One player: a model that learns.
struct Player<M> {
    name: &'static str,
    model: M,
    optimizer: ModuleOptimizer,
}

impl<M: Module> Player<M> {
    /// One update. Returns the loss with its parts, the gradient's norm and the learning rate.
    fn update(
        &mut self,
        loss: Loss,
        spec: &PlayerSpec,
        steps: u64,
        step: u64,
    ) -> Result<Metrics, Stumble> {
        let name = self.name;
        let value = f64::from(loss.total.clone().into_scalar::<f32>());
        let mut grads = GradientsParams::from_grads(loss.total.backward(), &self.model);
        let norm = clip::global_norm(&self.model, &grads);
        for (what, number) in [("loss", value), ("gradient's norm", norm)] {
            if !number.is_finite() {
                let cause = format!("the {name}'s {what} is {number}");
                return Err(Stumble::Diverged(cause));
            }
        }
        if let Some(max) = spec.clip_norm {
            clip::by_norm(&self.model, &mut grads, norm, max);
        }
        if let Some(max) = spec.clip_value {
            clip::by_value(&self.model, &mut grads, max);
        }
        let lr = schedule::lr(&spec.schedule, spec.optimizer.lr, steps, step);
        // Burn's optimiser takes the model by value and gives it back.
        let mut model = self.optimizer.step(lr, self.model.clone(), grads);
        if let Some(max) = spec.clip_weights {
            model = clip::weights(model, max);
        }
        self.model = model;
        let mut values = Metrics::from([
            (format!("{name}_loss"), value),
            (format!("{name}_grad_norm"), norm),
            (format!("{name}_lr"), lr),
        ]);
        for (part, value) in loss.parts {
            values.insert(part.into(), f64::from(value.into_scalar::<f32>()));
        }
        Ok(values)
    }
}

/// Where the loop stands: everything that changes from step to step.
struct Position<G, C> {
    generator: Player<G>,
    critic: Player<C>,
    ema: Option<Ema<G>>,
    state: LoopState,
}

impl<G: Module, C: Module> Position<G, C> {
    fn new((generator, critic): (G, C), plan: &Match<'_>, state: LoopState) -> Self {
        Self {
            ema: plan.train.ema.map(|decay| Ema::new(&generator, decay)),
            generator: Player {
                name: "generator",
                optimizer: optimizer::build(&plan.generator.optimizer, &generator),
                model: generator,
            },
            critic: Player {
                name: "critic",
                optimizer: optimizer::build(&plan.critic.optimizer, &critic),
                model: critic,
            },
            state,
        }
    }

    fn start(players: (G, C), plan: &Match<'_>, run: &Run) -> Result<Self, TrainError> {
        let Some(checkpoint) = run.checkpoint() else {
            return Ok(Self::new(players, plan, LoopState::of(run)));
        };
        let mut at = Self::new(checkpoint.model(players)?, plan, checkpoint.state.clone());
        at.generator.optimizer = checkpoint.optimizer(at.generator.optimizer)?;
        at.critic.optimizer = checkpoint.critic_optimizer(at.critic.optimizer)?;
        if let Some(decay) = plan.train.ema {
            let average = checkpoint.ema(&at.generator.model)?;
            at.ema = average.map(|average| Ema::resume(average, decay));
        }
        Ok(at)
    }

    /// The generator that is validated, sampled from and saved.
    fn shown(&self) -> G {
        match &self.ema {
            Some(ema) => ema.model().clone(),
            None => self.generator.model.valid(),
        }
    }

    fn save(
        &self,
        train: &LoopSpec,
        run: &Run,
        control: &mut Control<'_>,
    ) -> Result<(), TrainError> {
        run.sync_logs()?;
        let snapshot = Snapshot {
            model: &(self.generator.model.clone(), self.critic.model.clone()),
            ema: self.ema.as_ref().map(Ema::model),
            best: None,
            optimizer: &self.generator.optimizer,
            critic_optimizer: Some(&self.critic.optimizer),
            state: &self.state,
        };
        let path = checkpoint::save(&run.checkpoints(), &snapshot, train.keep_checkpoints)?;
        (control.on_event)(Event::Saved {
            step: self.state.step,
            path: &path,
        });
        Ok(())
    }
}
