//! Training from a file that is larger than the memory allowed for it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use sysinfo::{Pid, ProcessesToUpdate, System};

use crate::data::stream::{TextStream, TextStreamConfig};
use crate::data::{Tokenizer, stories};
use crate::labs::training::{Training, last, token_rows};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::models::{Gpt, GptConfig};
use crate::rng::{Stream, rng};
use crate::train::{Batch, OptimizerSpec, Task};

const MIB: u64 = 1 << 20;
const STEPS: u64 = 300;
const BATCH: usize = 12;
const SEQ_LEN: usize = 64;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let size = if lab.quick { 256 } else { 1024 } * MIB;
    let folder = tempfile::tempdir().doing("making a folder")?;
    let path = folder.path().join("stories.txt");
    lab.say(&format!("writing {} MiB of stories", size / MIB));
    write(&path, size, lab.seed).doing("writing the data")?;

    let config = TextStreamConfig {
        batch: BATCH,
        seq_len: SEQ_LEN,
        seed: lab.seed,
        ..Default::default()
    };
    let tokenizer = Arc::new(Tokenizer::byte(&[]));
    let open =
        || TextStream::open(&path, tokenizer.clone(), config.clone()).doing("opening the stream");

    lab.say("training while one pass is streamed");
    let (memory, losses) = train(lab, open()?, size)?;
    // Allocators settle in the first steps; what counts is growth with the data seen.
    let settled = memory.len() / 10;
    let base = memory[settled];
    let growth = memory[settled..]
        .iter()
        .max()
        .map_or(0, |peak| peak.saturating_sub(base));
    let growth = growth as f64 / MIB as f64;

    lab.say("resuming");
    let differing = resumed(&mut open()?, &path, &tokenizer)?;
    let whole = whole_file(&path)?;

    let claims = vec![
        Claim::at_most(
            "growth of resident memory while one pass is streamed and trained on, MiB (an eighth of the data is allowed)",
            growth,
            size as f64 / MIB as f64 / 8.0,
        ),
        Claim::at_least(
            "the same file read at once: growth of resident memory over its size",
            whole / size as f64,
            0.9,
        ),
        Claim::at_most(
            "training loss at the end over that at the start",
            last(&losses) / losses[0],
            0.6,
        ),
        Claim::at_most(
            "of 200 batches after resuming, different from those of the stream never stopped",
            differing,
            0.0,
        ),
    ];
    let resident = memory.iter().enumerate();
    let pass = |i: usize| i as f64 / memory.len() as f64 * 100.0;
    let top = base as f64 / MIB as f64 + size as f64 / MIB as f64;
    let plot = panels(&[
        Chart::new("Resident memory", "share of the data seen, %", "MiB")
            .line(
                "streaming",
                resident.map(|(i, m)| (pass(i), *m as f64 / MIB as f64)),
            )
            .line("if the data were in memory", [(0.0, top), (100.0, top)]),
        Chart::new("Loss on the streamed batches", "step", "nats per byte").line(
            "",
            losses.iter().enumerate().map(|(i, l)| (i as f64 + 1.0, *l)),
        ),
    ]);
    let notes = vec![format!(
        "The file holds {} MiB, a block of generated stories over and over; every {}th batch of the pass is trained on.",
        size / MIB,
        stride(size)
    )];
    Ok(Outcome {
        claims,
        plot,
        notes,
    })
}

/// A block of stories, repeated: the stream cannot know, and the memory does not care.
fn write(path: &Path, size: u64, seed: u64) -> std::io::Result<()> {
    let block = stories::generate(2000, seed);
    let mut file = BufWriter::new(File::create(path)?);
    let mut written = 0;
    while written < size {
        file.write_all(block.as_bytes())?;
        written += block.len() as u64;
    }
    file.flush()
}

/// Batches between two that are trained on, so that the run sees about one pass.
fn stride(size: u64) -> u64 {
    (size / (BATCH * SEQ_LEN) as u64 / STEPS).max(1)
}

/// Trains while streaming; resident memory in bytes and the loss, step by step.
fn train(
    lab: &LabContext<'_>,
    mut stream: TextStream,
    size: u64,
) -> Result<(Vec<u64>, Vec<f64>), LabError> {
    let device = lab.device.clone().autodiff();
    let config = GptConfig {
        vocab_size: 256,
        seq_len: SEQ_LEN,
        d_model: 32,
        n_layers: 1,
        n_heads: 2,
        ..GptConfig::default()
    };
    let model = config.init(&device, &mut rng(lab.seed, Stream::Init, 0));
    let mut system = System::new().doing("asking for the memory in use")?;
    let mut memory = Vec::new();
    let task = Task::new(
        |_| {
            for _ in 1..stride(size) {
                stream.next_batch()?;
            }
            let batch = stream.next_batch()?;
            memory.push(resident(&mut system));
            Ok(Batch::from(batch))
        },
        |model: &Gpt, batch: crate::data::Windows, _| {
            let inputs = token_rows(&batch.inputs, batch.batch, &device);
            model
                .loss(inputs, token_rows(&batch.targets, batch.batch, &device))
                .into()
        },
    );
    let training = Training::new(OptimizerSpec::adamw(3e-3), STEPS, BATCH, lab.seed);
    let trained = training.run(model, task, &device)?;
    Ok((memory, trained.losses))
}

/// Resident memory of this process in bytes.
fn resident(system: &mut System) -> u64 {
    let pid = Pid::from_u32(std::process::id());
    system.refresh_processes(ProcessesToUpdate::Some(&[pid]), false);
    system.process(pid).map_or(0, |process| process.memory())
}

/// How many of 200 batches differ between a stream and its resumption.
fn resumed(
    stream: &mut TextStream,
    path: &Path,
    tokenizer: &Arc<Tokenizer>,
) -> Result<f64, LabError> {
    for _ in 0..777 {
        stream.next_batch().doing("reading the stream")?;
    }
    let state = serde_json::to_string(&stream.state()).doing("saving the stream")?;
    let state = serde_json::from_str(&state).doing("loading the stream")?;
    let mut again =
        TextStream::resume(path, tokenizer.clone(), state).doing("resuming the stream")?;
    let mut differing = 0.0;
    for _ in 0..200 {
        let (a, b) = (
            stream.next_batch().doing("reading")?,
            again.next_batch().doing("reading")?,
        );
        differing += f64::from(u8::from(a != b));
    }
    Ok(differing)
}

/// The control: what reading everything costs, in bytes.
fn whole_file(path: &Path) -> Result<f64, LabError> {
    let mut system = System::new().doing("asking for the memory in use")?;
    let before = resident(&mut system);
    let bytes = std::fs::read(path).doing("reading the data")?;
    let after = resident(&mut system);
    // Looked at once more, so that it is still there when the memory is measured.
    std::hint::black_box(&bytes);
    Ok(after as f64 - before as f64)
}
