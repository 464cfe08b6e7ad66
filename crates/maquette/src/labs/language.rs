//! What the labs on language models have in common: training one on a text, on texts that repeat
//! themselves and on needles in haystacks, and measuring what it remembers.

use burn::tensor::{Device, Int, Tensor};

use super::training::{Trained, Training, token_rows};
use super::{LabContext, LabError};
use crate::data::recall::{Haystack, Needles, Repeats};
use crate::data::{TokenSet, Windows};
use crate::models::nn::cross_entropy;
use crate::models::{LanguageConfig, LanguageModel};
use crate::rng::{Stream, rng};
use crate::train::{BoxError, LoopSpec, Metrics, Task};

/// A language model trained on windows of `tokens`, measured on `held_out` every `every` steps.
pub(crate) fn language<C: LanguageConfig>(
    lab: &LabContext<'_>,
    config: &C,
    (tokens, held_out): (&TokenSet, &TokenSet),
    training: &Training,
) -> Result<Trained<C::Model>, LabError> {
    let device = lab.device.clone().autodiff();
    let LoopSpec { batch, seed, .. } = training.train;
    let model = config.init(&device, &mut rng(seed, Stream::Init, 0));
    let task = Task::new(
        |step| Ok(tokens.windows(batch, config.seq_len(), seed, step)?.into()),
        |model: &C::Model, windows: Windows, _| {
            let (inputs, targets) = windows_on(&windows, &device);
            model.training_loss(inputs, targets).total.into()
        },
    )
    .validate(|model: &C::Model| {
        let loss = text_loss(model, held_out, config.seq_len(), &lab.device)?;
        Ok(Metrics::from([("loss".to_owned(), loss)]))
    });
    Ok(training.run(model, task, &device)?)
}

/// Inputs and targets as tensors.
fn windows_on(windows: &Windows, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
    let rows = |ids| token_rows(ids, windows.batch, device);
    (rows(&windows.inputs), rows(&windows.targets))
}

/// Nats per token over windows side by side.
pub(crate) fn text_loss<M: LanguageModel>(
    model: &M,
    tokens: &TokenSet,
    seq_len: usize,
    device: &Device,
) -> Result<f64, BoxError> {
    let (mut nats, mut count) = (0.0, 0);
    for windows in tokens.coverage(32, seq_len)? {
        let (inputs, targets) = windows_on(&windows, device);
        let loss = model.training_loss(inputs, targets).text;
        nats += f64::from(loss.into_scalar::<f32>()) * windows.inputs.len() as f64;
        count += windows.inputs.len();
    }
    Ok(nats / f64::from(u32::try_from(count)?))
}

/// How many tokens of a repeating text are certain.
const CERTAIN: usize = 16;

/// A language model trained to go on with texts that repeat themselves.
pub(crate) fn repeater<C: LanguageConfig>(
    config: &C,
    repeats: &Repeats,
    training: &Training,
    lab: &LabContext<'_>,
) -> Result<C::Model, LabError> {
    let device = lab.device.clone().autodiff();
    let LoopSpec { batch, seed, .. } = training.train;
    let model = config.init(&device, &mut rng(seed, Stream::Init, 0));
    let length = repeats.distances.end() + CERTAIN;
    let task = Task::new(
        |step| {
            let random = &mut rng(seed, Stream::Data, step);
            Ok(repeats.draw(batch, length, random).into())
        },
        |model: &C::Model, tokens: Vec<u32>, _| {
            let (logits, answers) = certain(model, &tokens, length, &device);
            cross_entropy(logits, answers).into()
        },
    );
    Ok(training.run(model, task, &device)?.model)
}

/// The share of the last tokens of such texts which a model names, after as many as it was trained on.
pub(crate) fn named<M: LanguageModel>(model: &M, repeats: &Repeats, lab: &LabContext<'_>) -> f64 {
    named_in(model, repeats, repeats.distances.end() + CERTAIN, lab)
}

/// The same in texts of `length` tokens.
pub(crate) fn named_in<M: LanguageModel>(
    model: &M,
    repeats: &Repeats,
    length: usize,
    lab: &LabContext<'_>,
) -> f64 {
    let tokens = repeats.draw(100, length, &mut rng(lab.seed, Stream::Evaluate, 0));
    let (logits, answers) = certain(model, &tokens, length, &lab.device);
    let right = logits.argmax(1).squeeze_dim::<1>(1).equal(answers).float();
    right.mean().into_scalar::<f32>().into()
}

/// Logits and targets of the tokens that come again, `[texts * CERTAIN, vocab_size]`.
fn certain<M: LanguageModel>(
    model: &M,
    tokens: &[u32],
    length: usize,
    device: &Device,
) -> (Tensor<2>, Tensor<1, Int>) {
    let texts = tokens.len() / length;
    let tokens = token_rows(tokens, texts, device);
    let logits = model.forward(tokens.clone().narrow(1, 0, length - 1));
    let vocab = logits.dims()[2];
    let logits = logits.narrow(1, length - 1 - CERTAIN, CERTAIN);
    let answers = tokens.narrow(1, length - CERTAIN, CERTAIN);
    (
        logits.reshape([texts * CERTAIN, vocab]),
        answers.reshape([texts * CERTAIN]),
    )
}

/// A language model trained to name the needle of texts of `length` tokens, wherever it lies.
pub(crate) fn needle_finder<C: LanguageConfig>(
    config: &C,
    (haystack, length): (Haystack, usize),
    training: &Training,
    lab: &LabContext<'_>,
) -> Result<C::Model, LabError> {
    let device = lab.device.clone().autodiff();
    let LoopSpec { batch, seed, .. } = training.train;
    let model = config.init(&device, &mut rng(seed, Stream::Init, 0));
    let task = Task::new(
        |step| {
            let random = &mut rng(seed, Stream::Data, step);
            Ok(haystack.draw(batch, length, 1..=length - 1, random).into())
        },
        |model: &C::Model, needles: Needles, _| {
            let answers: Vec<i32> = needles.answers.iter().map(|id| *id as i32).collect();
            let answers = Tensor::<1, Int>::from_ints(answers.as_slice(), &device);
            cross_entropy(last_logits(model, &needles, &device), answers).into()
        },
    );
    Ok(training.run(model, task, &device)?.model)
}

/// The share of 200 texts whose needle, `distance` before the question, is named.
pub(crate) fn found<M: LanguageModel>(
    model: &M,
    haystack: Haystack,
    (length, distance): (usize, usize),
    lab: &LabContext<'_>,
) -> f64 {
    const TEXTS: usize = 200;
    let random = &mut rng(lab.seed, Stream::Evaluate, distance as u64);
    let needles = haystack.draw(TEXTS, length, distance..=distance, random);
    let said = last_logits(model, &needles, &lab.device)
        .argmax(1)
        .into_data();
    let right = |(said, answer): &(i64, &u32)| *said == i64::from(**answer);
    let right = said.iter::<i64>().zip(&needles.answers).filter(right);
    right.count() as f64 / TEXTS as f64
}

/// Logits at the question, `[texts, vocab_size]`.
fn last_logits<M: LanguageModel>(model: &M, needles: &Needles, device: &Device) -> Tensor<2> {
    let tokens = token_rows(&needles.tokens, needles.answers.len(), device);
    let [_, length] = tokens.dims();
    model
        .forward(tokens)
        .narrow(1, length - 1, 1)
        .squeeze_dim(1)
}
