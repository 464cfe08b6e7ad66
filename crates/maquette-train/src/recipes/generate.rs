//! `generate`: what a trained model makes when it is asked.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::Tokenizer;
use maquette_generate::fill::{Filled, fill};
use maquette_generate::gguf as tokens;
use maquette_generate::image::Picture;
use maquette_generate::sampling::TokenLogProb;
use maquette_generate::text::{GenerateOptions, StopReason, Strategy, encode_prompt, score};
use maquette_models::nn::AttentionMaps;
use maquette_models::{
    BertHead, BertInput, CausalConvConfig, Gpt, GptConfig, LanguageConfig, LanguageModel,
    RecurrentConfig, gguf, hf,
};
use maquette_rng::{Stream, rng};

use super::gpt::{self, LanguageRecipe};
use super::latent::{self, LatentAsk};
use super::pictures::{self, Draw, ImageRequest, Stamp};
use super::{Family, diffusion, mask_predict, of_run, points, seq2seq, vae};
use crate::attention::{Attention, MAX_TOKENS};
use crate::files::write_atomic;
use crate::{Source, TrainError, hash};

/// What is asked of a model: the text part for a language model, the image part for the others.
pub struct GenerateJob<'a> {
    /// A run folder, a Hugging Face folder or a GGUF file.
    pub model: PathBuf,
    /// What to write.
    pub text: TextAsk,
    /// What to draw; its `count` and `seed` hold for text too.
    pub images: ImageRequest,
    /// Pictures of the latent space instead of draws.
    pub latent: Option<LatentAsk>,
    /// Called with pieces of text as they come.
    pub on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    /// Folder for images; the run's `samples/generated` when absent.
    pub out: Option<PathBuf>,
    /// Where to compute, without autodiff.
    pub device: Device,
    /// Told what is being done.
    pub say: &'a mut dyn FnMut(&str),
}

/// The text part of a request.
pub struct TextAsk {
    /// The text to go on from; the recipe's when absent.
    pub prompt: Option<String>,
    /// How long, when to stop, how each token is drawn.
    pub options: GenerateOptions,
    /// Where to write a page that shows the attention on the first text.
    pub attention: Option<PathBuf>,
    /// How the text is made.
    pub strategy: Strategy,
}

impl TextAsk {
    /// Searches and log-probabilities are a decoder's.
    fn without_search(&self) -> Result<(), TrainError> {
        match self.strategy == Strategy::Draw && self.options.log_probs.is_none() {
            true => Ok(()),
            false => Err(TrainError::other(
                "--best-of, --beams, --penalty-alpha and --logprobs are for models that continue a text, \
                 and this one does not",
            )),
        }
    }
}

/// The log-probability of a token, spelt.
pub struct SpeltLogProb {
    /// The token and its text.
    pub token: (u32, String),
    /// The natural logarithm of its probability.
    pub log_prob: f32,
    /// The most probable tokens, best first.
    pub top: Vec<((u32, String), f32)>,
}

/// One output.
pub enum Made {
    /// Text.
    Text {
        /// What it goes on from.
        prompt: String,
        /// The text, without the prompt.
        text: String,
        /// Its tokens.
        ids: Vec<u32>,
        /// Why it ended.
        stop: StopReason,
        /// Log-probabilities of its tokens, and of the prompt's from the second on, if asked for.
        log_probs: [Vec<SpeltLogProb>; 2],
    },
    /// A text whose gaps were filled.
    Filled(Filled),
    /// A file.
    Image {
        /// Where it was written.
        path: PathBuf,
        /// The seed of the request.
        seed: u64,
    },
}

/// Generates what `job` asks for.
///
/// # Errors
/// Not a model, or a request that does not fit it.
pub fn generate(job: GenerateJob<'_>) -> Result<Vec<Made>, TrainError> {
    let folder =
        !job.model.join("recipe.toml").is_file() && job.model.join("config.json").is_file();
    if folder && hf::model_type(&job.model).map_err(TrainError::other)? == "bert" {
        job.text.without_search()?;
        return gaps(job);
    }
    if folder || is_gguf(&job.model) {
        (job.say)("loading the model");
        let (model, tokens) = language_model(&job.model, &job.device)?;
        return text(&model, tokens, job, String::new());
    }
    let source = of_run(&job.model)?;
    let family = Family::of(&source)?;
    let writes = matches!(family, Family::Gpt | Family::Recurrent | Family::CausalConv);
    if !writes {
        job.text.without_search()?;
    }
    match family {
        Family::Gpt => of_recipe::<GptConfig>(&source, job),
        Family::Recurrent => of_recipe::<RecurrentConfig>(&source, job),
        Family::CausalConv => of_recipe::<CausalConvConfig>(&source, job),
        Family::InContext => Err(TrainError::other(
            "an in-context learner writes no text; `maquette evaluate` measures it",
        )),
        Family::Classifier => Err(TrainError::other(
            "a classifier generates nothing; `maquette evaluate` measures it",
        )),
        Family::Finetune => Err(TrainError::other(
            "a fine-tuned reader writes nothing; `maquette evaluate` measures it",
        )),
        Family::Bert => gaps(job),
        Family::Seq2seq => seq2seq::generate(&source, job),
        Family::MaskPredict => mask_predict::generate(&source, job),
        Family::Points => points::generate(&source, job),
        Family::Vae | Family::Diffusion => images(job),
    }
}

fn is_gguf(path: &Path) -> bool {
    path.is_file()
        && path
            .extension()
            .is_some_and(|extension| extension == "gguf")
}

/// A tokenizer, and how its model draws tokens and ends a text.
type Tokens = (Tokenizer, hf::GenerationConfig);

/// What a model's folder says about tokens.
fn tokens_of<M: LanguageModel>(dir: &Path, model: &M) -> Result<Tokens, TrainError> {
    let tokenizer = Tokenizer::load(dir).map_err(TrainError::other)?;
    let tokenizer = fitting(dir, model, tokenizer)?;
    let defaults = hf::load_generation_config(dir).map_err(TrainError::other)?;
    Ok((tokenizer, defaults))
}

/// A transformer with its tokens, from a folder or a GGUF file.
pub(crate) fn language_model(path: &Path, device: &Device) -> Result<(Gpt, Tokens), TrainError> {
    if !is_gguf(path) {
        let (_, model) = hf::load(path, device).map_err(TrainError::other)?;
        let tokens = tokens_of(path, &model)?;
        return Ok((model, tokens));
    }
    let file = gguf::File::open(path).map_err(TrainError::other)?;
    let (_, model) = gguf::load(&file, device).map_err(TrainError::other)?;
    let tokenizer = tokens::tokenizer(&file).map_err(TrainError::other)?;
    let tokenizer = tokenizer.ok_or_else(|| {
        TrainError::other(format!(
            "{} holds no tokenizer; convert the model again with --tokenizer",
            path.display()
        ))
    })?;
    let tokenizer = fitting(path, &model, tokenizer)?;
    Ok((model, (tokenizer, tokens::generation_config(&file))))
}

/// A tokenizer that has no more tokens than the model has rows.
fn fitting<M: LanguageModel>(
    path: &Path,
    model: &M,
    tokenizer: Tokenizer,
) -> Result<Tokenizer, TrainError> {
    let (known, rows) = (tokenizer.vocab_size(), model.vocab_size());
    match known > rows {
        true => Err(TrainError::other(format!(
            "{}: the tokenizer has {known} tokens, the model's embedding only {rows}; they do not \
             belong together",
            path.display()
        ))),
        false => Ok(tokenizer),
    }
}

/// What stands for the ids.
fn spell(tokenizer: &Tokenizer, log_probs: Vec<TokenLogProb>) -> Vec<SpeltLogProb> {
    let spelt = |id: u32| (id, tokenizer.decode(&[id]).unwrap_or_default());
    let one = |one: TokenLogProb| SpeltLogProb {
        token: spelt(one.id),
        log_prob: one.log_prob,
        top: one.top.into_iter().map(|(id, p)| (spelt(id), p)).collect(),
    };
    log_probs.into_iter().map(one).collect()
}

/// The text of a run of a language model.
fn of_recipe<C: LanguageConfig>(
    source: &Source,
    job: GenerateJob<'_>,
) -> Result<Vec<Made>, TrainError> {
    (job.say)("loading the model");
    let prompt = LanguageRecipe::<C>::parse(source)?.sample.prompt;
    let (_, model) = C::load(&job.model, &job.device).map_err(TrainError::other)?;
    let tokens = tokens_of(&job.model, &model)?;
    text(&model, tokens, job, prompt)
}

fn text<M: LanguageModel>(
    model: &M,
    (tokenizer, defaults): Tokens,
    job: GenerateJob<'_>,
    default_prompt: String,
) -> Result<Vec<Made>, TrainError> {
    let mut options = job.text.options;
    if let Some(end) = &defaults.eos_token_id {
        options.end_tokens.extend(end.ids());
    }
    let prompt = job.text.prompt.unwrap_or(default_prompt);
    let start = gpt::opening(&tokenizer, &prompt);
    let start = encode_prompt(&tokenizer, &start).map_err(TrainError::other)?;
    let start = options.fit(&start, model.longest());
    let of_prompt = |top| score(model, start, top).map_err(TrainError::other);
    let mut made = Vec::with_capacity(job.images.count);
    for i in 0..job.images.count {
        let seed = job.images.seed.wrapping_add(i as u64);
        let _ = (job.on_text)(&prompt);
        let random = &mut rng(seed, Stream::Sample, 0);
        let strategy = job.text.strategy;
        let written = strategy
            .complete(
                model,
                &tokenizer,
                start,
                &options,
                random,
                &mut *job.on_text,
            )
            .map_err(TrainError::other)?;
        let _ = (job.on_text)("\n");
        if let (0, Some(page)) = (i, &job.text.attention) {
            let all = [start, &written.ids].concat();
            let seen = &all[..all.len().min(model.longest())];
            look(page, &job.model, seen, &tokenizer, |ids| {
                model.attention_maps(Tensor::from_data(ids, &job.device))
            })?;
        }
        let prompt_log_probs = options.log_probs.map(of_prompt).transpose()?;
        made.push(Made::Text {
            prompt: prompt.clone(),
            text: written.text,
            ids: written.ids,
            stop: written.stop,
            log_probs: [written.log_probs, prompt_log_probs.unwrap_or_default()]
                .map(|log_probs| spell(&tokenizer, log_probs)),
        });
    }
    Ok(made)
}

/// How many tokens are shown for a gap, unless `--top-k` says otherwise.
const CANDIDATES: usize = 5;

/// Fills the gaps of the prompt.
fn gaps(job: GenerateJob<'_>) -> Result<Vec<Made>, TrainError> {
    (job.say)("loading the model");
    let (config, model) = hf::load_bert(&job.model, &job.device).map_err(TrainError::other)?;
    if !matches!(config.head, BertHead::MaskedLm | BertHead::Pretraining) {
        return Err(TrainError::other(format!(
            "{}: this BERT has no head that guesses hidden words",
            job.model.display()
        )));
    }
    let tokenizer = Tokenizer::load(&job.model).map_err(TrainError::other)?;
    let prompt = job.text.prompt.unwrap_or_default();
    let top_k = job.text.options.decoding.top_k.unwrap_or(CANDIDATES);
    let filled = fill(&model, &tokenizer, &prompt, top_k).map_err(TrainError::other)?;
    if let Some(page) = &job.text.attention {
        let ids = tokenizer
            .encode_with_template(&prompt)
            .map_err(TrainError::other)?;
        look(page, &job.model, &ids, &tokenizer, |ids| {
            Some(model.attention_maps(BertInput::new(Tensor::from_data(ids, &job.device))))
        })?;
    }
    Ok(vec![Made::Filled(filled)])
}

/// Writes the page of a model's attention on `ids`.
fn look(
    page: &Path,
    model: &Path,
    ids: &[u32],
    tokenizer: &Tokenizer,
    maps: impl FnOnce(TensorData) -> Option<AttentionMaps>,
) -> Result<(), TrainError> {
    if ids.len() > MAX_TOKENS {
        return Err(TrainError::other(format!(
            "--attention shows at most {MAX_TOKENS} tokens, and there are {}; ask for fewer with --max-tokens",
            ids.len()
        )));
    }
    let row: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let maps = maps(TensorData::new(row, [1, ids.len()])).ok_or_else(|| {
        TrainError::other("this network has no attention to show; leave --attention out")
    })?;
    let spelled = |id: &u32| {
        let text = tokenizer.decode(&[*id]).map_err(TrainError::other)?;
        // A piece inside a word would look like a word of its own.
        let inside = tokenizer
            .id_to_token(*id)
            .filter(|token| token.starts_with("##"));
        Ok(inside.unwrap_or(text))
    };
    let tokens = ids
        .iter()
        .map(spelled)
        .collect::<Result<Vec<String>, TrainError>>()?;
    let name = model
        .file_name()
        .unwrap_or(model.as_os_str())
        .to_string_lossy();
    Attention::new(ids, &maps)?.write(page, &name, &tokens)
}

/// The brightness range of a family's output, and the function that draws a batch.
type Drawing = ((f32, f32), Box<Draw<'static>>);

fn drawing(model: &Path, device: &Device) -> Result<Drawing, TrainError> {
    let source = of_run(model)?;
    match Family::of(&source)? {
        Family::Vae => vae::drawing(&source, model, device),
        Family::Diffusion => diffusion::drawing(&source, model, device),
        family => Err(TrainError::other(format!(
            "a {family:?} model draws no images"
        ))),
    }
}

/// The images that the run `model` draws for a request.
///
/// # Errors
/// No run of an image model, or a request that does not fit it.
pub fn draw(
    model: &Path,
    request: &ImageRequest,
    device: &Device,
) -> Result<Vec<Picture>, TrainError> {
    let (range, mut draw) = drawing(model, device)?;
    pictures::draw_all(request, range, &mut *draw)
}

fn images(job: GenerateJob<'_>) -> Result<Vec<Made>, TrainError> {
    (job.say)("loading the model");
    if let Some(ask) = &job.latent {
        let source = of_run(&job.model)?;
        let model = match Family::of(&source)? {
            Family::Vae => vae::latent(&source, &job.model, &job.device)?,
            family => {
                return Err(TrainError::other(format!(
                    "a {family:?} model has no latent space to walk in; a vae has"
                )));
            }
        };
        let folder = job
            .out
            .unwrap_or_else(|| job.model.join("samples").join("latent"));
        let seed = job.images.seed;
        let paths = latent::make(&model, ask, (&job.model, seed), &folder, job.say)?;
        let image = |path| Made::Image { path, seed };
        return Ok(paths.into_iter().map(image).collect());
    }
    let (range, mut draw) = drawing(&job.model, &job.device)?;
    let stamp = Stamp::of_run(&job.model, &job.images)?;
    (job.say)("drawing");
    let all = pictures::draw_all(&job.images, range, &mut *draw)?;
    let folder = job
        .out
        .unwrap_or_else(|| job.model.join("samples").join("generated"));
    let paths = pictures::save(&folder, &all, &stamp)?;
    Ok(paths
        .into_iter()
        .map(|path| Made::Image {
            path,
            seed: job.images.seed,
        })
        .collect())
}

/// Makes the picture at `image` again from the recipe it carries, and writes it to `out` (a file, or a
/// folder that exists). `model` stands for the run folder that the picture names.
///
/// # Errors
/// No recipe in the picture, no such run, or other weights than those the picture was made with.
pub fn replay(
    image: &Path,
    model: Option<&Path>,
    out: &Path,
    device: &Device,
) -> Result<PathBuf, TrainError> {
    let stamp = Stamp::read(image)?;
    let run = model.unwrap_or(&stamp.run);
    let weights = run.join("model.safetensors");
    if !weights.is_file() {
        return Err(TrainError::other(format!(
            "the picture was made by the run {}, which is not there; name its folder: maquette generate RUN --replay {}",
            run.display(),
            image.display()
        )));
    }
    let now = hash::sha256_file(&weights)?;
    if now != stamp.model_sha256 {
        return Err(TrainError::other(format!(
            "the weights in {} are not those the picture was made with (sha256 {now}, the picture says {})",
            run.display(),
            stamp.model_sha256
        )));
    }
    let (range, mut draw) = drawing(run, device)?;
    let bytes = pictures::replay(&stamp, range, &mut *draw)?;
    let name = image
        .file_name()
        .map_or("replayed.png".into(), |name| name.to_owned());
    let path = if out.is_dir() {
        out.join(name)
    } else {
        out.to_owned()
    };
    write_atomic(&path, &bytes)?;
    Ok(path)
}
