//! The arguments of `maquette generate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use maquette::generate::sampling::{Bias, Order};
use maquette::train::recipes::latent::Code;

/// `maquette generate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  maquette generate runs/stories-20260101-120000 --prompt \"Once upon\" --max-tokens 100\n  maquette generate runs/stories-20260101-120000 --prompt \"Once upon\" --attention look.html\n  maquette generate runs/bert-20260101-120000 --prompt \"The capital of [MASK] is Paris.\" --top-k 5\n  maquette generate model.gguf --chat --system \"Be brief.\" --prompt \"Why is the sky blue?\"\n  maquette generate hf://org/name --prompt \"A person:\" --json-schema person.json\n  maquette generate model.gguf --prompt \"Yes or no?\" --choices yes,no --logprobs 5 --json\n  maquette generate model.gguf --prompt \"It was\" --draft small.gguf\n  maquette generate model.gguf --prompt \"It was\" --beams 4 --max-tokens 40\n  maquette generate runs/glyphs-20260101-120000 --label A,B,C -n 24 --out letters\n  maquette generate runs/vae-mnist-20260101-120000 --interpolate 3 7 --out walk\n  maquette generate runs/vae-mnist-20260101-120000 --latent \"bold/ - thin/ + me.png\"\n  maquette generate runs/pix2pix-glyphs-20260101-120000 --images outlines/ --out filled\n  maquette generate --replay letters/0003.png --out again"
)]
pub(crate) struct GenerateArgs {
    /// A run folder, a Hugging Face folder of a GPT-2, Llama, Mistral, Mixtral, Qwen2, Qwen3 or BERT
    /// model, a GGUF file, or hf://org/name.
    #[arg(required_unless_present = "replay")]
    pub(crate) model: Option<PathBuf>,
    /// The text to go on from, to fill (BERT, with [MASK]), or with --chat what the user says; `-`
    /// reads stdin.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// How many outputs.
    #[arg(short = 'n', long = "count", value_name = "N", default_value_t = 1)]
    pub(crate) count: usize,
    /// The seed: the same seed makes the same output.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Folder for images (default: the run's samples/), file for text.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,
    /// Where to compute: cpu, cuda[:N] or wgpu[:N].
    #[arg(long, value_name = "D", default_value = "cpu")]
    pub(crate) device: String,
    /// Make the image again that this PNG holds, byte for byte, from the recipe inside it.
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["prompt", "label"])]
    pub(crate) replay: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    #[command(flatten)]
    pub(crate) ahead: AheadArgs,
    #[command(flatten)]
    pub(crate) form: FormArgs,
    #[command(flatten)]
    pub(crate) chat: ChatArgs,
    #[command(flatten)]
    pub(crate) images: ImageArgs,
    #[command(flatten)]
    pub(crate) latent: LatentArgs,
}

/// How much text, and what is told of it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Text")]
pub(crate) struct TextArgs {
    /// How many tokens to make at most.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) max_tokens: usize,
    /// Stop before this string; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Keep the end of a prompt that is longer than the model's context, instead of refusing it.
    #[arg(long)]
    pub(crate) truncate: bool,
    /// With --json: the log-probability of every token of prompt and output, and of the K most probable.
    #[arg(long, value_name = "K")]
    pub(crate) logprobs: Option<usize>,
    /// Write a page that shows who looks at whom: heads by block, tokens on hover.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) attention: Option<PathBuf>,
}

/// How each token is drawn.
#[derive(Debug, Args)]
#[command(next_help_heading = "Text: drawing tokens")]
pub(crate) struct SamplingArgs {
    /// 0 is greedy, 1 the model's own distribution.
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    pub(crate) temperature: f64,
    /// Keep the K most probable tokens (0: all; for [MASK] show K, 0: five).
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Keep the smallest set of tokens with this much probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f64,
    /// Drop tokens less probable than P times the best.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) min_p: f64,
    /// Keep the tokens with this much probability that surprise about as much as expected.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) typical_p: f64,
    /// Drop tokens more than N deviations of the logits below the best.
    #[arg(long, value_name = "N")]
    pub(crate) top_n_sigma: Option<f64>,
    /// How often the top choices are excluded, see --xtc-threshold.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) xtc_probability: f64,
    /// How probable a token must be to count as a top choice; the least of them stays.
    #[arg(long, value_name = "P", default_value_t = 0.1)]
    pub(crate) xtc_threshold: f64,
    /// Hold the surprise at this many bits per token (Mirostat 2) instead of dropping tokens.
    #[arg(long, value_name = "BITS")]
    pub(crate) mirostat_tau: Option<f64>,
    /// How fast Mirostat follows.
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    pub(crate) mirostat_eta: f64,
    /// Divide the logits of tokens already seen by this.
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f64,
    /// Take this from the logits of tokens already seen.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) presence_penalty: f64,
    /// Take this from the logits of tokens for each time they were seen.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) frequency_penalty: f64,
    /// How many of the last tokens count as seen (default: all).
    #[arg(long, value_name = "N")]
    pub(crate) penalty_window: Option<usize>,
    /// Take this from the logit of a token that would continue a repetition (DRY; 0.8 is usual).
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub(crate) dry_multiplier: f64,
    /// What each further repeated token multiplies it with.
    #[arg(long, value_name = "X", default_value_t = 1.75)]
    pub(crate) dry_base: f64,
    /// Repetitions shorter than this are free.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) dry_allowed_length: usize,
    /// How many of the last tokens DRY looks at (default: all).
    #[arg(long, value_name = "N")]
    pub(crate) dry_window: Option<usize>,
    /// No repetition reaches across this text; may be given several times (default: line end, `:`, `"`,
    /// `*`).
    #[arg(long, value_name = "TEXT")]
    pub(crate) dry_sequence_breaker: Vec<String>,
    /// Add to the logit of a token, by its id; may be given several times; `-inf` forbids it.
    #[arg(long, value_name = "ID=X", value_parser = bias)]
    pub(crate) logit_bias: Vec<Bias>,
    /// The order of the steps (default: llama.cpp's, penalties first, temperature last).
    #[arg(long, value_name = "A;B")]
    pub(crate) samplers: Option<Order>,
}

/// `ID=X` or `ID:X`.
fn bias(text: &str) -> Result<Bias, String> {
    let read = || {
        let (token, add) = text.split_once(['=', ':'])?;
        let add: f32 = add.trim().parse().ok()?;
        let token = token.trim().parse().ok()?;
        (!add.is_nan()).then_some(Bias { token, add })
    };
    read().ok_or_else(|| "write a token's id and a number, as in 50256=-inf".to_owned())
}

/// What only drawing reads; a search that takes it would ignore it in silence.
const DRAWING: [&str; 19] = [
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "mirostat_tau",
    "mirostat_eta",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalty_window",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_window",
    "logit_bias",
    "samplers",
];

/// Choosing among several texts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Text: choosing among several")]
pub(crate) struct SearchArgs {
    /// Draw N texts and keep the one whose tokens are the most probable on average.
    #[arg(long, value_name = "N", conflicts_with_all = ["beams", "penalty_alpha"])]
    pub(crate) best_of: Option<usize>,
    /// Search the most probable text with N beams, instead of drawing tokens.
    #[arg(long, value_name = "N", conflicts_with_all = ["penalty_alpha", "top_k"], conflicts_with_all = DRAWING)]
    pub(crate) beams: Option<usize>,
    /// With --beams: divide a text's log-probability by its length to this power.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        requires = "beams"
    )]
    pub(crate) length_penalty: f64,
    /// With --beams: when to end with as many finished texts as beams.
    #[arg(long, value_enum, default_value = "estimate", requires = "beams")]
    pub(crate) early_stopping: EarlyStopping,
    /// Contrastive search among the --top-k best (4 if 0): how much sameness costs, from 0 to 1; 0.6 is
    /// usual.
    #[arg(long, value_name = "A", conflicts_with_all = DRAWING)]
    pub(crate) penalty_alpha: Option<f64>,
}

/// Guesses of the next tokens, read in one step: faster where they are good, and the same distribution.
#[derive(Debug, Args)]
#[command(next_help_heading = "Text: guessing ahead")]
pub(crate) struct AheadArgs {
    /// Guess with this smaller model of the same vocabulary: a run folder, a Hugging Face folder, a GGUF
    /// file or hf://org/name.
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["lookup", "beams", "penalty_alpha", "attention"])]
    pub(crate) draft: Option<PathBuf>,
    /// Guess what followed the last tokens where they stood before: for texts that repeat their prompt.
    #[arg(long, conflicts_with_all = ["beams", "penalty_alpha", "attention"])]
    pub(crate) lookup: bool,
    /// How many tokens are guessed at once.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) guesses: usize,
}

/// When beam search ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EarlyStopping {
    /// When no open text could win if it ended now.
    Estimate,
    /// At once.
    AtOnce,
    /// When no open text could win at any length.
    Never,
}

/// The form that text must have.
#[derive(Debug, Args)]
#[group(multiple = false)]
#[command(next_help_heading = "Text: in a form")]
pub(crate) struct FormArgs {
    /// Write JSON that this schema describes: a file, or the schema itself.
    #[arg(long, value_name = "FILE|JSON")]
    pub(crate) json_schema: Option<String>,
    /// Write text that this regular expression matches as a whole.
    #[arg(long, value_name = "REGEX")]
    pub(crate) regex: Option<String>,
    /// Write text of this grammar, in llguidance's dialect of Lark; its rule `start` is the text.
    #[arg(long, value_name = "FILE")]
    pub(crate) grammar: Option<PathBuf>,
    /// Write one of these, separated by commas.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) choices: Vec<String>,
}

/// Messages instead of a prompt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Text: chat")]
pub(crate) struct ChatArgs {
    /// Write the prompt as a user's message, with the model's chat template.
    #[arg(long)]
    pub(crate) chat: bool,
    /// The messages so far: a JSON list of {"role", "content"}, or {"messages": [...], "tools": [...]}.
    #[arg(long, value_name = "FILE")]
    pub(crate) messages: Option<PathBuf>,
    /// What the system message says.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// A Jinja file in place of the model's own template.
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
}

impl ChatArgs {
    /// Whether the model is spoken to in messages.
    pub(crate) fn asked(&self) -> bool {
        self.chat
            || self.messages.is_some()
            || self.system.is_some()
            || self.chat_template.is_some()
    }
}

/// What images show and how they are drawn.
#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct ImageArgs {
    /// Denoising steps.
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,
    /// Classifier-free guidance scale; 1 is none.
    #[arg(long, value_name = "W")]
    pub(crate) guidance: Option<f64>,
    /// Class names or numbers to draw, separated by commas, repeated in turn.
    #[arg(long, value_name = "A,B")]
    pub(crate) label: Option<String>,
    /// How to walk from noise to data.
    #[arg(long, value_name = "S")]
    pub(crate) sampler: Option<String>,
    /// Pictures to translate, all of them: a file, a folder or an archive (default: the first of the run's
    /// own that it never learnt from).
    #[arg(long, value_name = "PATH")]
    pub(crate) images: Option<PathBuf>,
    /// Draw numbers of a latent again beyond X standard deviations: fewer odd pictures, less variety.
    #[arg(long, value_name = "X")]
    pub(crate) truncation: Option<f32>,
}

/// Pictures of a latent space.
#[derive(Debug, Args)]
#[command(next_help_heading = "Images: latent space")]
pub(crate) struct LatentArgs {
    /// Walk from one code to another: a grid, and a moving picture. A code is the number of a draw, a
    /// picture, a folder of pictures (their mean), or a sum: "large/ - small/ + 7".
    #[arg(long, value_names = ["A", "B"], num_args = 2, conflicts_with_all = ["traverse", "latent"])]
    pub(crate) interpolate: Option<Vec<Code>>,
    /// Change a code along single axes, a row of pictures for each.
    #[arg(long, value_name = "CODE", conflicts_with = "latent")]
    pub(crate) traverse: Option<Code>,
    /// The picture of a code, beside the pictures it is made of and what the model makes of them.
    #[arg(long, value_name = "CODE")]
    pub(crate) latent: Option<Code>,
    /// With --interpolate: along a line, or along the arc that keeps the usual length.
    #[arg(long, value_enum, default_value = "arc")]
    pub(crate) path: Way,
    /// Pictures of a walk, its ends included.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) points: usize,
    /// With --traverse: which axes, separated by commas (default: the first eight).
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) axes: Vec<usize>,
    /// With --traverse: how far, in standard deviations.
    #[arg(long, value_name = "X", default_value_t = 3.0)]
    pub(crate) reach: f32,
    /// Steps of the search for a picture's code, after the encoder's guess.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) project_steps: usize,
    /// With --interpolate: the format of the moving picture.
    #[arg(long, value_enum, default_value = "gif")]
    pub(crate) animation: Moving,
}

/// Ways between two codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// The shortest.
    Line,
    /// A great circle.
    Arc,
}

/// Formats of moving pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Moving {
    /// Shown everywhere; 256 colours.
    Gif,
    /// Animated PNG, without loss.
    Apng,
}
