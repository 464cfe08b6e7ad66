//! The command line, as typed by the user. Nothing here is resolved yet: see `commands`.

mod arena;
mod generate;
mod metric;

use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub(crate) use arena::ArenaArgs;
pub(crate) use generate::{
    AheadArgs, ChatArgs, EarlyStopping, FormArgs, GenerateArgs, ImageArgs, LatentArgs, Moving,
    SamplingArgs, SearchArgs, Way,
};
pub(crate) use metric::*;

/// Everything `maquette` understands.
#[derive(Debug, Parser)]
#[command(
    name = "maquette",
    version,
    about = "Generative AI you can train, measure and ship on your own machine",
    after_help = "Start here:\n  maquette train glyphs        train a picture model in minutes, see runs/*/report.html\n  maquette list recipes        what can be trained\n  maquette lab 4               run one of the handbook's experiments\n\nEvery flag can also be set as MAQUETTE_<FLAG>, for example MAQUETTE_DEVICE=cpu.\nExit codes: 0 done, 1 failed, 2 wrong usage.",
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print one JSON object as the last line of stdout.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress on stderr.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Worker threads (default: one per core).
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a recipe into a run folder with weights, samples and a report.
    Train(TrainArgs),
    /// Make text or images with a trained model.
    Generate(Box<GenerateArgs>),
    /// Measure a trained model again.
    Evaluate(EvaluateArgs),
    /// Measure texts (BLEU, chrF, TER, ROUGE, answers, diversity) and images (FID, KID, Inception Score,
    /// precision and recall, classes, copies of training images).
    #[command(subcommand)]
    Metric(MetricCommand),
    /// Ask people which of several models' pictures are better: a blind page, votes, scores.
    Arena(ArenaArgs),
    /// Train, inspect and use tokenizers.
    #[command(subcommand)]
    Tokenizer(TokenizerCommand),
    /// Turn a model into another format: Hugging Face folder, GGUF, llama2.c.
    Convert(ConvertArgs),
    /// Run the handbook's experiments: claims that can fail.
    Lab(LabArgs),
    /// Measure speed and memory, side by side with PyTorch where it is installed.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// List what there is.
    List(ListArgs),
    /// Show what this machine offers: cores, SIMD, memory, devices, folders, versions.
    Doctor(DoctorArgs),
    /// Print a shell completion script.
    Completions(CompletionsArgs),
}

/// `maquette train`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  maquette train glyphs\n  maquette train shakespeare-char --data input.txt --set train.steps=500\n  maquette train my-recipe.toml --dry-run\n  maquette train --resume runs/glyphs-20260101-120000"
)]
pub(crate) struct TrainArgs {
    /// A built-in recipe's name (`maquette list recipes`) or the path of a recipe file.
    #[arg(required_unless_present = "resume")]
    pub(crate) recipe: Option<String>,
    /// The data: a file or folder, as the recipe says.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Change one key of the recipe, for example `--set optimizer.lr=3e-4`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// Optimiser steps; short for `--set train.steps=N`.
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// The seed of everything random; short for `--set train.seed=N`.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Where to compute: cpu, cuda[:N] or wgpu[:N].
    #[arg(long, value_name = "D", default_value = "cpu")]
    pub(crate) device: String,
    /// The run folder to make (default: runs/<recipe>-<time>).
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Go on with an interrupted run from its last checkpoint.
    #[arg(long, value_name = "RUN")]
    pub(crate) resume: Option<PathBuf>,
    /// Print the resolved recipe, parameter count, memory and time estimate; train nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `maquette evaluate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  maquette evaluate runs/vae-mnist-20260101-120000 --data mnist/\n  maquette evaluate runs/glyphs-20260101-120000 --metrics readback,fid --json\n  maquette evaluate model.gguf --data text.txt --context 512 --stride 256\n  maquette evaluate runs/stories-20260101-120000 --tasks story-ending --num-fewshot 2 --out results\n\nA run is measured on its recipe's held-out data. Any language model (a run, a Hugging Face folder, a GGUF\nfile) is measured on a text with --windows, --context, --stride or `--data -`; a model that is no run, with --data."
)]
pub(crate) struct EvaluateArgs {
    /// A run folder; for texts and tasks also a Hugging Face folder or a GGUF file.
    pub(crate) model: PathBuf,
    /// The data, where the recipe needs a path (default: the one it was trained on); the text to
    /// measure a language model on, `-` for stdin.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Only these metrics, separated by commas.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) metrics: Vec<String>,
    /// Where to compute: cpu, cuda[:N] or wgpu[:N].
    #[arg(long, value_name = "D", default_value = "cpu")]
    pub(crate) device: String,
    /// Text: how it is cut into windows (default: strided).
    #[arg(long, value_enum, value_name = "W", help_heading = "Text")]
    pub(crate) windows: Option<Windows>,
    /// Text: tokens in a window (default: all that the model can read).
    #[arg(long, value_name = "N", help_heading = "Text")]
    pub(crate) context: Option<usize>,
    /// Text: tokens from one strided window's begin to the next (default: half a window).
    #[arg(long, value_name = "N", help_heading = "Text")]
    pub(crate) stride: Option<usize>,
    /// Tasks: files in lm-evaluation-harness's YAML, or names of `maquette list tasks`, separated by
    /// commas.
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        help_heading = "Tasks",
        conflicts_with_all = ["data", "metrics", "windows", "context", "stride"]
    )]
    pub(crate) tasks: Vec<String>,
    /// Tasks: examples before a question (default: as the task says).
    #[arg(long, value_name = "K", help_heading = "Tasks", requires = "tasks")]
    pub(crate) num_fewshot: Option<usize>,
    /// Tasks: only the first rows of each.
    #[arg(long, value_name = "N", help_heading = "Tasks", requires = "tasks", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// Tasks: the seed that examples are drawn by.
    #[arg(long, value_name = "N", default_value_t = maquette::eval::tasks::FEWSHOT_SEED, help_heading = "Tasks")]
    pub(crate) fewshot_seed: u32,
    /// Tasks: resamples of bootstrapped standard errors; 0 leaves standard errors out.
    #[arg(long, value_name = "N", default_value_t = maquette::eval::tasks::RESAMPLES, help_heading = "Tasks")]
    pub(crate) bootstrap_iters: usize,
    /// Tasks: the folder for results.json and samples_*.jsonl.
    #[arg(long, value_name = "DIR", help_heading = "Tasks", requires = "tasks")]
    pub(crate) out: Option<PathBuf>,
}

/// How a text is cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Windows {
    /// Overlapping windows, as transformers' page on perplexity: --stride apart.
    Strided,
    /// lm-evaluation-harness: side by side, the last reaching back.
    Harness,
    /// llama.cpp's llama-perplexity: the second halves of pieces side by side.
    Halves,
}

/// The kinds of tokenizer that can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenizerKind {
    /// One token per byte.
    Byte,
    /// One token per character of the text.
    Char,
    /// Byte-level byte pair encoding (GPT-2).
    Bpe,
    /// WordPiece (BERT).
    WordPiece,
    /// Unigram language model (SentencePiece).
    Unigram,
}

/// `maquette convert`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  maquette convert stories260K.bin stories260k --tokenizer tok512.bin\n  maquette convert runs/stories-20260101-120000 stories.gguf --quantize q8_0\n  maquette convert stories.gguf stories"
)]
pub(crate) struct ConvertArgs {
    /// A Hugging Face folder (sharded, f16 or bf16 too), a GGUF file, or a model of llama2.c (`.bin`,
    /// format 0).
    pub(crate) input: PathBuf,
    /// A folder to write (`config.json`, `model.safetensors` in f32, `tokenizer.json`), or a file
    /// named `.gguf`.
    pub(crate) output: PathBuf,
    /// The number format of a GGUF file's matrices (default: f16).
    #[arg(long, value_name = "FORMAT", value_parser = ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_0", "q4_k_m"])]
    pub(crate) quantize: Option<String>,
    /// The tokenizer: a `tokenizer.json`, its folder, or llama2.c's `.bin`; the input's own when
    /// absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
}

/// `maquette tokenizer`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenizerCommand {
    /// Train a tokenizer on text files and write `tokenizer.json`.
    #[command(
        after_help = "Example:\n  maquette tokenizer train input.txt --kind bpe --vocab-size 1000 --out tokenizer.json"
    )]
    Train {
        /// Text files (UTF-8).
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The algorithm.
        #[arg(long, value_enum, default_value = "bpe")]
        kind: TokenizerKind,
        /// Entries in the vocabulary, special tokens included (byte and char set their own).
        #[arg(long, value_name = "N", default_value_t = 8192)]
        vocab_size: usize,
        /// Special tokens, separated by commas.
        #[arg(long, value_name = "A,B", value_delimiter = ',')]
        special: Vec<String>,
        /// Where to write.
        #[arg(long, value_name = "FILE", default_value = "tokenizer.json")]
        out: PathBuf,
    },
    /// Turn text into token ids.
    #[command(
        after_help = "Example:\n  maquette tokenizer encode tokenizer.json \"To be, or not to be\""
    )]
    Encode {
        /// `tokenizer.json`, or a folder that holds one.
        tokenizer: PathBuf,
        /// The text; read from stdin when absent.
        text: Option<String>,
    },
    /// Turn token ids back into text.
    #[command(after_help = "Example:\n  maquette tokenizer decode tokenizer.json 17 42 9")]
    Decode {
        /// `tokenizer.json`, or a folder that holds one.
        tokenizer: PathBuf,
        /// The ids; read from stdin when absent.
        ids: Vec<u32>,
    },
    /// Show what a tokenizer is, and how well it compresses a text.
    #[command(
        after_help = "Example:\n  maquette tokenizer inspect tokenizer.json --text input.txt"
    )]
    Inspect {
        /// `tokenizer.json`, or a folder that holds one.
        tokenizer: PathBuf,
        /// A text file to measure bytes per token on.
        #[arg(long, value_name = "FILE")]
        text: Option<PathBuf>,
    },
}

/// `maquette lab`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  maquette lab list\n  maquette lab 4\n  maquette lab kl-divergence --json\n  maquette lab all --quick"
)]
pub(crate) struct LabArgs {
    /// A number, a name, `list` or `all`.
    #[arg(default_value = "list")]
    pub(crate) lab: String,
    /// Only what runs within seconds on built-in data, as continuous integration does.
    #[arg(long)]
    pub(crate) quick: bool,
    /// The seed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Folder of real data sets (mnist/, tinyshakespeare/, ...).
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Folder for results and plots (default: labs/).
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Write result and plot beside the lab's page in the repository's handbook, and make its
    /// ledger anew.
    #[arg(long)]
    pub(crate) record: bool,
    /// Where to compute: cpu, cuda[:N] or wgpu[:N].
    #[arg(long, value_name = "D", default_value = "cpu")]
    pub(crate) device: String,
}

/// `maquette bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Whole training steps of whole models.
    #[command(
        after_help = "Examples:\n  maquette bench train\n  maquette bench train gpt-baby unet32 --peers --python venv/bin/python\n  maquette bench train gpt-8k --peers=eager --precision bf16 --json\n\nOurs and the peers' steps alternate, each side in a process of its own; a ratio is the median over the\nrounds of the peer's time divided by ours. bench/README.md says what each suite is."
    )]
    Train(BenchTrainArgs),
    /// Single operators, against what the machine could do at most.
    #[command(
        after_help = "Examples:\n  maquette bench kernels\n  maquette bench kernels pictures --json"
    )]
    Kernels(BenchKernelsArgs),
    /// A language model reading prompts and writing text, beside llama.cpp.
    #[command(
        after_help = "Examples:\n  maquette bench decode --model model.gguf\n  maquette bench decode --random tinyllama-1.1b --peer llama.cpp/build/bin/llama-bench --sequences 8 --json\n\nbench/README.md says what is measured."
    )]
    Decode(BenchDecodeArgs),
    /// How well GGUF files know a text, by llama.cpp's rule and beside it.
    #[command(
        after_help = "Example:\n  maquette bench perplexity --model stories.gguf --text valid.txt --peer llama.cpp/build/bin/llama-perplexity"
    )]
    Perplexity(BenchPerplexityArgs),
    /// Our side of `bench decode`, answering line by line.
    #[command(hide = true)]
    DecodeWorker(BenchDecodeWorkerArgs),
    /// Text to token ids on one thread.
    #[command(
        after_help = "Example:\n  maquette bench tokenize gpt2/ input.txt --peers --python venv/bin/python"
    )]
    Tokenize(BenchTokenizeArgs),
    /// One side of a suite, answering line by line; `bench train` starts it.
    #[command(hide = true)]
    Worker(BenchWorkerArgs),
}

/// Number formats of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 32-bit floats throughout.
    F32,
    /// Products of bf16 numbers summed in f32; weights, norms and losses in f32.
    Bf16,
}

/// What ours is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// PyTorch as it is.
    Eager,
    /// PyTorch through `torch.compile`.
    Compile,
    /// The same model without our kernels: every operator composed of Burn's own.
    Burn,
}

/// `maquette bench train`.
#[derive(Debug, Args)]
pub(crate) struct BenchTrainArgs {
    /// The suites (default: all).
    #[arg(value_enum)]
    pub(crate) suites: Vec<SuiteName>,
    /// Measure against these as well; all of them if none is named.
    #[arg(
        long,
        value_name = "A,B",
        value_enum,
        value_delimiter = ',',
        num_args = 0..,
        require_equals = true,
        default_missing_value = "eager,compile,burn"
    )]
    pub(crate) peers: Vec<Peer>,
    /// Number format of matrix products.
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) precision: Precision,
    /// What the players of dcgan32 minimise, one after the other; every loss if none is named.
    #[arg(
        long,
        value_name = "A,B",
        value_enum,
        value_delimiter = ',',
        num_args = 0..,
        require_equals = true,
        default_value = "non-saturating",
        default_missing_value = "non-saturating,minimax,least-squares,hinge,relativistic,\
                                 wasserstein-clip,wgan-gp,r1"
    )]
    pub(crate) losses: Vec<GanLoss>,
    /// The Python that has PyTorch.
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub(crate) python: PathBuf,
    /// Rounds; in each, every side takes one block of steps.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Length of a block, in seconds; at least one step is taken.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub(crate) seconds: f64,
}

/// The name of a value as the command line spells it.
pub(crate) fn spelled(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or(String::new(), |value| value.get_name().to_owned())
}

/// `maquette bench decode`.
#[derive(Debug, Args)]
pub(crate) struct BenchDecodeArgs {
    /// The models: GGUF files, Hugging Face or run folders (the peer reads GGUF only).
    #[arg(long = "model", value_name = "FILE", num_args = 1.., conflicts_with = "random")]
    pub(crate) models: Vec<PathBuf>,
    /// Made-up weights of this shape, in a file of each of --types.
    #[arg(long, value_enum, value_name = "SHAPE")]
    pub(crate) random: Option<RandomShape>,
    /// Number formats of the made-up models.
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        default_value = "f16,bf16,q8_0,q4_0,q4_k_m",
        value_parser = ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_0", "q4_k_m"]
    )]
    pub(crate) types: Vec<String>,
    /// Where made-up models are kept; they are written once.
    #[arg(long, value_name = "DIR", default_value = "bench-models")]
    pub(crate) folder: PathBuf,
    /// llama.cpp's llama-bench, to take turns with; with --sequences the llama-batched-bench beside it.
    #[arg(long, value_name = "PATH")]
    pub(crate) peer: Option<PathBuf>,
    /// Also so many texts at once, of 100-token prompts and 64 new tokens each.
    #[arg(long, value_name = "N")]
    pub(crate) sequences: Option<usize>,
    /// Tokens of the prompt that is read.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt: usize,
    /// Tokens that are written.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) tokens: usize,
    /// Rounds; in each, ours is measured once and then the peer.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
}

/// `maquette bench perplexity`.
#[derive(Debug, Args)]
pub(crate) struct BenchPerplexityArgs {
    /// The GGUF files, with tokenizers.
    #[arg(long = "model", value_name = "FILE", num_args = 1.., required = true)]
    pub(crate) models: Vec<PathBuf>,
    /// The text (UTF-8).
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens of a piece.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(4..).map(|n| n as usize))]
    pub(crate) context: usize,
    /// Read so many pieces only.
    #[arg(long, value_name = "N")]
    pub(crate) pieces: Option<usize>,
    /// llama.cpp's llama-perplexity.
    #[arg(long, value_name = "PATH")]
    pub(crate) peer: Option<PathBuf>,
}

/// Shapes of made-up models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RandomShape {
    /// 1.1 billion weights: 22 layers, 2048 wide, 32 heads of which groups of 8 share keys.
    #[value(name = "tinyllama-1.1b")]
    Tinyllama,
    /// 110 million: 12 layers, 768 wide, 12 heads.
    #[value(name = "llama-110m")]
    Llama110m,
}

/// The hidden `maquette bench decode-worker`.
#[derive(Debug, Args)]
pub(crate) struct BenchDecodeWorkerArgs {
    /// The model.
    pub(crate) model: PathBuf,
}

/// `maquette bench kernels`.
#[derive(Debug, Args)]
pub(crate) struct BenchKernelsArgs {
    /// The families (default: all).
    #[arg(value_enum)]
    pub(crate) families: Vec<Family>,
    /// Only kernels whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Runs of each kernel, with our code and without in turn; the fastest counts.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
}

/// `maquette bench tokenize`.
#[derive(Debug, Args)]
pub(crate) struct BenchTokenizeArgs {
    /// A `tokenizer.json`, a SentencePiece `.model`, or a folder that holds one or GPT-2's two files.
    pub(crate) tokenizer: PathBuf,
    /// The text: a file or a folder.
    pub(crate) text: PathBuf,
    /// Measure tiktoken and Hugging Face's tokenizers as well.
    #[arg(long)]
    pub(crate) peers: bool,
    /// The Python that has them.
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub(crate) python: PathBuf,
    /// Rounds; in each, every side encodes the text once.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
}

/// Families of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// Matrix products, attention, norms, activations, the loss.
    Text,
    /// Convolutions, group norm.
    Pictures,
    /// Optimisers, moving averages, the recurrence.
    Training,
}

/// The hidden `maquette bench worker`.
#[derive(Debug, Args)]
pub(crate) struct BenchWorkerArgs {
    /// The suite.
    #[arg(value_enum)]
    pub(crate) suite: SuiteName,
    /// Number format of matrix products.
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) precision: Precision,
    /// What the players of dcgan32 minimise.
    #[arg(long, value_enum, default_value = "non-saturating")]
    pub(crate) loss: GanLoss,
    /// Without our kernels.
    #[arg(long)]
    pub(crate) composed: bool,
}

/// The losses of `maquette bench train dcgan32`, each with what holds its critic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GanLoss {
    /// DCGAN's own.
    NonSaturating,
    /// The game as first written.
    Minimax,
    /// Least squares.
    LeastSquares,
    /// Hinge.
    Hinge,
    /// Relativistic.
    Relativistic,
    /// Wasserstein, weights clipped, RMSProp.
    WassersteinClip,
    /// Wasserstein with gradient penalty, a critic without batch norm.
    WganGp,
    /// Non-saturating with the penalty R1, a critic without batch norm.
    R1,
}

/// The suites of `maquette bench train`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SuiteName {
    /// nanoGPT's CPU setting: 4 layers, 4 heads, 128 wide, context 64, batch 12, vocabulary 65.
    GptTiny,
    /// 6 layers, 6 heads, 384 wide, context 256, batch 8, vocabulary 65, dropout 0.2.
    GptBaby,
    /// The same with a vocabulary of 8,192.
    #[value(name = "gpt-8k")]
    Gpt8k,
    /// DCGAN of widths 64-128-256 on 32x32 images, batch 64: one step of each player.
    Dcgan32,
    /// U-Net of widths 64-128-128 on 32x32 images, batch 32.
    Unet32,
    /// PyTorch's example: 784-400-20, batch 128.
    VaeMnist,
    /// Two layers of 256 units over 64 characters, batch 32.
    Lstm,
}

/// What `maquette list` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Listing {
    /// What can be trained.
    Recipes,
    /// Data sets.
    Data,
    /// Model families.
    Models,
    /// Few-shot tasks for `maquette evaluate --tasks`.
    Tasks,
    /// Run folders here.
    Runs,
    /// The handbook's experiments.
    Labs,
}

/// `maquette list`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  maquette list recipes")]
pub(crate) struct ListArgs {
    /// What to list.
    #[arg(value_enum)]
    pub(crate) what: Listing,
    /// Where the runs are.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) runs: PathBuf,
}

/// `maquette doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  maquette doctor --json")]
pub(crate) struct DoctorArgs {}

/// `maquette completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  maquette completions bash > ~/.local/share/bash-completion/completions/maquette"
)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// The command with `MAQUETTE_<FLAG>` bound to every flag of every subcommand.
pub(crate) fn command() -> clap::Command {
    fn bind(command: clap::Command) -> clap::Command {
        let command = command.mut_args(|arg| match arg.get_long() {
            Some(long) if !matches!(long, "help" | "version") => {
                let name = format!("MAQUETTE_{}", long.replace('-', "_").to_uppercase());
                arg.env(name).hide_env(true)
            }
            _ => arg,
        });
        command.mut_subcommands(bind)
    }
    bind(Cli::command())
}
