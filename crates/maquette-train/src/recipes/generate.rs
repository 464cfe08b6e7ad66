//! `generate`: what a trained model makes when it is asked.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::Tokenizer;
use maquette_generate::fill::{Filled, fill};
use maquette_generate::image::Picture;
use maquette_generate::text::{GenerateOptions, StopReason, Strategy};
use maquette_models::nn::AttentionMaps;
use maquette_models::{BertHead, BertInput, CausalConvConfig, GptConfig, RecurrentConfig, hf};

use super::gpt::LanguageRecipe;
use super::latent::{self, LatentAsk};
use super::opening::{Opening, is_gguf};
use super::pictures::{self, Draw, ImageRequest, Stamp};
use super::{
    Family, diffusion, gan, mask_predict, of_run, points, seq2seq, translate, vae, writing,
};
use crate::attention::{Attention, MAX_TOKENS};
use crate::files::write_atomic;
use crate::{TrainError, hash};

/// What is asked of a model: the text part for a language model, the image part for the others.
pub struct GenerateJob<'a> {
    /// A run folder, a Hugging Face folder or a GGUF file.
    pub model: PathBuf,
    /// What to write.
    pub text: TextAsk,
    /// What to draw; its `count` and `seed` hold for text too.
    pub images: ImageRequest,
    /// Pictures to translate: a file, a folder or an archive.
    pub given: Option<PathBuf>,
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
    /// What to go on from.
    pub opening: Opening,
    /// How long, when to stop, how each token is drawn.
    pub options: GenerateOptions,
    /// Where to write a page that shows the attention on the first text.
    pub attention: Option<PathBuf>,
    /// How the text is made.
    pub strategy: Strategy,
    /// Whether tokens are guessed ahead.
    pub ahead: Ahead,
}

/// Guesses of the next tokens, which a transformer on the CPU reads in one step: faster where they are
/// good, and the same distribution where they are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ahead {
    /// None.
    Nothing,
    /// So many, from what followed the last tokens where they stood before.
    Lookup(usize),
    /// So many, by this smaller model with the same vocabulary.
    Draft(PathBuf, usize),
}

impl TextAsk {
    /// Searches, log-probabilities, forms and messages are a decoder's.
    fn only_a_prompt(&self) -> Result<(), TrainError> {
        let plain = self.strategy == Strategy::Draw
            && self.options.log_probs.is_none()
            && self.options.form.is_none()
            && self.ahead == Ahead::Nothing
            && matches!(self.opening, Opening::Prompt(_));
        match plain {
            true => Ok(()),
            false => Err(TrainError::other(
                "--best-of, --beams, --penalty-alpha, --logprobs, --draft, --lookup, forms and --chat are for \
                 models that continue a text, and this one does not",
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
        /// Whether it has the form that was asked for; `true` where none was.
        in_form: bool,
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
    let text = folder || is_gguf(&job.model);
    if job.given.is_some() && text {
        return Err(no_pictures("a language"));
    }
    if folder && hf::model_type(&job.model).map_err(TrainError::other)? == "bert" {
        job.text.only_a_prompt()?;
        return gaps(job);
    }
    if text {
        return writing::transformer(job, String::new());
    }
    let source = of_run(&job.model)?;
    let family = Family::of(&source)?;
    if job.given.is_some() && family != Family::Translate {
        return Err(no_pictures(&format!("a {family:?}")));
    }
    let writes = matches!(family, Family::Gpt | Family::Recurrent | Family::CausalConv);
    if !writes {
        job.text.only_a_prompt()?;
    }
    match family {
        Family::Gpt => writing::transformer(
            job,
            LanguageRecipe::<GptConfig>::parse(&source)?.sample.prompt,
        ),
        Family::Recurrent => writing::of_run::<RecurrentConfig>(&source, job),
        Family::CausalConv => writing::of_run::<CausalConvConfig>(&source, job),
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
        Family::GanPoints => gan::points::generate(&source, job),
        Family::Translate => translate::generate(&source, job),
        Family::Vae | Family::Diffusion | Family::Gan => images(job),
    }
}

fn no_pictures(kind: &str) -> TrainError {
    TrainError::other(format!(
        "--images is for models that translate pictures, and {kind} model does not; leave it out"
    ))
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
    let prompt = job.text.opening.prompt().unwrap_or_default();
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
pub(super) fn look(
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
    // Decoded alone, a piece of SentencePiece loses the space it begins with; WordPiece has no bytes.
    let bytes = tokenizer.token_bytes().unwrap_or_default();
    let spelled = |id: &u32| {
        if let Some(Some(bytes)) = bytes.get(*id as usize) {
            return Ok(String::from_utf8_lossy(bytes).into_owned());
        }
        // A piece inside a word would look like a word of its own.
        let inside = tokenizer
            .id_to_token(*id)
            .filter(|token| token.starts_with("##"));
        inside.map_or_else(|| tokenizer.decode(&[*id]).map_err(TrainError::other), Ok)
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
        Family::Gan => gan::images::drawing(&source, model, device),
        Family::Translate => Err(TrainError::other(
            "a model that translates draws no pictures of its own; `maquette generate RUN --images PATH` translates \
             some",
        )),
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
            Family::Gan => gan::images::latent(&source, &job.model, &job.images, &job.device)?,
            family => {
                return Err(TrainError::other(format!(
                    "a {family:?} model has no latent space to walk in; a vae and a gan have"
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
