//! A tiny regression problem, run through the whole loop.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData, activation::gelu};
use maquette_rng::{Stream, normal, rng, seed_for};
use maquette_train::run::{Record, records};
use maquette_train::spec::ScheduleKind;
use maquette_train::{
    Batch, Control, Event, Fitted, LoopSpec, Metrics, OptimizerSpec, Place, Plan, Run, RunSpec,
    ScheduleSpec, Task, TrainError, fit,
};
use serde::{Deserialize, Serialize};

/// The backend's generator is one per process; runs that draw dropout must not interleave.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[derive(Module, Debug)]
pub(crate) struct Net {
    first: Linear,
    norm: LayerNorm,
    dropout: Dropout,
    hidden: Linear,
    head: Linear,
}

impl Net {
    pub(crate) fn init(seed: u64, device: &Device) -> Self {
        device.seed(seed_for(seed, Stream::Init, 0));
        Self {
            first: LinearConfig::new(4, 8).init(device),
            norm: LayerNormConfig::new(8).init(device),
            dropout: DropoutConfig::new(0.2).init(),
            hidden: LinearConfig::new(8, 8).init(device),
            head: LinearConfig::new(8, 1).init(device),
        }
        .materialize()
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let h = self
            .dropout
            .forward(gelu(self.norm.forward(self.first.forward(x))));
        self.head.forward(gelu(self.hidden.forward(h)))
    }

    fn loss(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
        (self.forward(x) - y).square().mean()
    }
}

#[derive(Serialize, Deserialize)]
struct Recipe {
    optimizer: OptimizerSpec,
    schedule: ScheduleSpec,
    train: LoopSpec,
}

/// One run of the tiny problem, with the ways it can end early.
pub(crate) struct Job {
    pub(crate) root: PathBuf,
    pub(crate) place: Place,
    pub(crate) optimizer: OptimizerSpec,
    pub(crate) schedule: ScheduleSpec,
    pub(crate) train: LoopSpec,
    /// Fail like a kill when this batch is asked for: nothing is saved.
    pub(crate) die_at: Option<u64>,
    /// Ask the loop to stop after this step, like Ctrl-C.
    pub(crate) stop_at: Option<u64>,
    /// Put a file where the checkpoints' folder is after this step; fails the next checkpoint for
    /// every user, root included, as a full disk would.
    pub(crate) block_at: Option<u64>,
    /// Read batches from a stream with a position instead of by index.
    pub(crate) stream: bool,
    pub(crate) data: String,
}

impl Job {
    pub(crate) fn new(steps: u64) -> Self {
        let root = tempfile::tempdir().unwrap().keep();
        Self {
            place: Place::Out(root.join("run")),
            root,
            optimizer: OptimizerSpec::adamw(0.01),
            schedule: ScheduleSpec {
                kind: ScheduleKind::Cosine,
                warmup: 3,
                ..Default::default()
            },
            train: LoopSpec {
                log_every: 1,
                ..LoopSpec::new(steps, 16, 7)
            },
            die_at: None,
            stop_at: None,
            block_at: None,
            stream: false,
            data: "data".into(),
        }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The same job in another folder.
    pub(crate) fn fresh(&self) -> Self {
        let root = tempfile::tempdir().unwrap().keep();
        Self {
            place: Place::Out(root.join("run")),
            root,
            ..self.copy()
        }
    }

    /// The same job, continued.
    pub(crate) fn resumed(&self) -> Self {
        Self {
            place: Place::Resume(self.dir()),
            die_at: None,
            stop_at: None,
            block_at: None,
            ..self.copy()
        }
    }

    fn copy(&self) -> Self {
        Self {
            root: self.root.clone(),
            place: self.place.clone(),
            optimizer: self.optimizer.clone(),
            schedule: self.schedule.clone(),
            train: self.train.clone(),
            data: self.data.clone(),
            ..*self
        }
    }

    pub(crate) fn dispose(&self) {
        std::fs::remove_dir_all(&self.root).unwrap();
    }

    pub(crate) fn open(&self) -> Result<Run, TrainError> {
        let recipe = Recipe {
            optimizer: self.optimizer.clone(),
            schedule: self.schedule.clone(),
            train: self.train.clone(),
        };
        Run::open(&RunSpec {
            place: self.place.clone(),
            recipe: &maquette_train::recipe::resolved(&recipe)?,
            data_sha256: &self.data,
            device: "cpu",
        })
    }

    pub(crate) fn run(&self) -> Result<Fitted<Net>, TrainError> {
        let (fitted, run) = self.fit()?;
        drop(run);
        Ok(fitted)
    }

    pub(crate) fn fit(&self) -> Result<(Fitted<Net>, Run), TrainError> {
        let _guard = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let device = Device::flex().autodiff();
        let mut run = self.open()?;
        let mut position = run
            .stream_state()
            .and_then(|state| state.as_u64())
            .unwrap_or(0);
        let seed = self.train.seed;
        let inner = Device::flex();
        let batch = |index: u64| {
            if self.die_at == Some(index / self.train.grad_accumulation) {
                return Err("killed".into());
            }
            let index = if self.stream { position } else { index };
            position += 3;
            Ok(Batch {
                data: examples(seed, index, &device),
                stream: self.stream.then(|| position.into()),
            })
        };
        let task = Task::new(batch, |net: &Net, (x, y), _| net.loss(x, y).into())
            .validate(|net| {
                let (x, y) = examples(seed, u64::MAX, &inner);
                let loss = net.loss(x, y).into_scalar::<f32>();
                Ok(Metrics::from([("loss".into(), loss.into())]))
            })
            .sample(|_, step, dir| {
                Ok(std::fs::write(
                    dir.join("sample.txt"),
                    format!("<sample {step}>"),
                )?)
            });
        let plan = Plan {
            optimizer: &self.optimizer,
            schedule: &self.schedule,
            train: &self.train,
            steps: self.train.total_steps(0),
            device: &device,
        };
        let stop = AtomicBool::new(false);
        let mut on_event = |event: Event<'_>| {
            if let Event::Step(progress) = event {
                if Some(progress.step) == self.block_at {
                    let checkpoints = self.dir().join("checkpoints");
                    std::fs::rename(&checkpoints, self.dir().join("kept")).unwrap();
                    std::fs::write(&checkpoints, b"").unwrap();
                }
                stop.store(Some(progress.step) == self.stop_at, Ordering::Relaxed);
            }
        };
        let mut control = Control {
            stop: &stop,
            on_event: &mut on_event,
        };
        let fitted = fit(
            Net::init(seed, &device),
            task,
            &plan,
            &mut run,
            &mut control,
        )?;
        Ok((fitted, run))
    }

    /// The log without its clock readings.
    pub(crate) fn metrics(&self) -> Vec<Record> {
        let mut records = records(&self.dir()).unwrap();
        for record in &mut records {
            record.time = 0.0;
            record.values.remove("examples_per_second");
        }
        records
    }
}

/// Noisy values of a fixed function at random points.
fn examples(seed: u64, index: u64, device: &Device) -> (Tensor<2>, Tensor<2>) {
    let mut rng = rng(seed, Stream::Data, index);
    let x = normal(&mut rng, 16 * 4);
    let y: Vec<f32> = x
        .chunks(4)
        .map(|x| x[0] * x[1] - x[2].sin() + 0.1 * x[3])
        .collect();
    (
        Tensor::from_data(TensorData::new(x, [16, 4]), device),
        Tensor::from_data(TensorData::new(y, [16, 1]), device),
    )
}

/// The bytes of the model's `model.safetensors`.
pub(crate) fn weights(net: &Net) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    maquette_models::store::save(net, &path, &Default::default()).unwrap();
    std::fs::read(path).unwrap()
}

/// Every file under a folder, for comparing before and after.
pub(crate) fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                tree(&path)
            } else {
                vec![path]
            }
        })
        .collect();
    found.sort();
    found
}
