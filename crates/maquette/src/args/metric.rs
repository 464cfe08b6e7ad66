//! `maquette metric`, as typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `maquette metric`.
#[derive(Debug, Subcommand)]
pub(crate) enum MetricCommand {
    #[command(flatten)]
    Texts(TextMetric),
    #[command(flatten)]
    Images(ImageMetric),
}

/// Metrics of texts.
#[derive(Debug, Subcommand)]
pub(crate) enum TextMetric {
    /// BLEU as sacreBLEU 2.6 computes it, from 0 to 100.
    #[command(
        after_help = "Examples:\n  maquette metric bleu out.txt -r reference.txt\n  maquette metric bleu out.txt -r a.txt -r b.txt --baseline old.txt --json"
    )]
    Bleu {
        #[command(flatten)]
        segments: SegmentArgs,
        /// How lines are cut into words.
        #[arg(long, value_enum, default_value = "13a")]
        tokenize: BleuTokenization,
        /// What an order of n-grams without a match counts.
        #[arg(long, value_enum, default_value = "exp")]
        smooth: BleuSmoothing,
        /// The number of --smooth floor (0.1) or --smooth add-k (1).
        #[arg(long, value_name = "X")]
        smooth_value: Option<f64>,
        /// Ignore case.
        #[arg(long)]
        lowercase: bool,
    },
    /// chrF, or chrF++ with --word-order 2, as sacreBLEU 2.6 computes it, from 0 to 100.
    #[command(
        after_help = "Example:\n  maquette metric chrf out.txt -r reference.txt --word-order 2"
    )]
    Chrf {
        #[command(flatten)]
        segments: SegmentArgs,
        /// The longest n-grams of words; 2 is chrF++.
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = small)]
        word_order: usize,
        /// Ignore case.
        #[arg(long)]
        lowercase: bool,
    },
    /// Translation edit rate as sacreBLEU 2.6 computes it, in percent; lower is better.
    #[command(after_help = "Example:\n  maquette metric ter out.txt -r reference.txt")]
    Ter {
        #[command(flatten)]
        segments: SegmentArgs,
        /// Split punctuation from words.
        #[arg(long)]
        normalized: bool,
        /// Leave punctuation out.
        #[arg(long)]
        no_punct: bool,
        /// Ideographs one by one.
        #[arg(long)]
        asian_support: bool,
        /// Let case count.
        #[arg(long)]
        case_sensitive: bool,
    },
    /// ROUGE-1, -2, -L and -Lsum as rouge-score 0.1.2 computes them: F1, from 0 to 1. In a line, `\n`
    /// written out separates sentences.
    #[command(after_help = "Example:\n  maquette metric rouge out.txt -r reference.txt --stem")]
    Rouge {
        #[command(flatten)]
        segments: SegmentArgs,
        /// Reduce words to their stems (Porter).
        #[arg(long)]
        stem: bool,
    },
    /// Exact match and F1 of short answers, normalised as SQuAD does, from 0 to 1.
    #[command(after_help = "Example:\n  maquette metric answers out.txt -r answers.txt")]
    Answers {
        #[command(flatten)]
        segments: SegmentArgs,
    },
    /// How varied texts are: share of distinct n-grams, and BLEU of each text against the others.
    #[command(after_help = "Example:\n  maquette metric diversity samples.txt")]
    Diversity {
        /// One text per line.
        #[arg(value_name = "FILE")]
        texts: PathBuf,
        /// The longest n-grams of words.
        #[arg(long, value_name = "N", default_value_t = 4, value_parser = one_to_nine)]
        max_n: usize,
    },
}

/// Metrics of images: of folders, data sets and runs, or of features that were computed before.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageMetric {
    /// Fréchet distance of features, FID where they are Inception-v3's; 0 for equal sets.
    #[command(
        after_help = "Examples:\n  maquette metric fid drawn/ mnist/ --features runs/mnist-classifier-20260101-120000\n  maquette metric fid runs/glyphs-20260101-120000 letters/ --features squeezenet --weights compressed_SqueezeNet.net\n  maquette metric fid drawn/ real/ --features inception-v3 --weights inception.safetensors --resize 64x64\n  maquette metric fid generated.npy real.npy --features inception-v3"
    )]
    Fid {
        #[command(flatten)]
        sets: SetArgs,
        /// Bootstrap resamples for the 95 % interval, at least 100 or 0 for none (default: 100; none
        /// for features wider than 512, where each takes as long as the distance).
        #[arg(long, value_name = "N")]
        resamples: Option<usize>,
    },
    /// Kernel distance of features, KID where they are Inception-v3's; about 0 for one distribution.
    #[command(
        after_help = "Examples:\n  maquette metric kid drawn/ mnist/ --features runs/mnist-classifier-20260101-120000\n  maquette metric kid generated.npy real.npy --subset-size 500"
    )]
    Kid {
        #[command(flatten)]
        sets: SetArgs,
        /// How many subsets the distance is averaged over.
        #[arg(long, value_name = "N", default_value_t = 100)]
        subsets: usize,
        /// How many images of each side a subset has.
        #[arg(long, value_name = "N", default_value_t = 1000)]
        subset_size: usize,
    },
    /// Inception Score: are images of clear classes, and of all of them? From 1 to the number of
    /// classes.
    #[command(
        after_help = "Examples:\n  maquette metric is drawn/ --features runs/mnist-classifier-20260101-120000\n  maquette metric is logits.npy --features inception-v3"
    )]
    Is {
        /// Generated images: a folder, an archive or a run; or their logits, `[images, classes]`
        /// (.npy or .safetensors).
        generated: PathBuf,
        /// How many parts the score is averaged over.
        #[arg(long, value_name = "N", default_value_t = 10)]
        splits: usize,
        /// Bootstrap resamples for the 95 % interval, at least 100; 0 leaves it out.
        #[arg(long, value_name = "N", default_value_t = 200)]
        resamples: usize,
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Precision and recall, density and coverage of features: fidelity apart from diversity.
    #[command(
        after_help = "Examples:\n  maquette metric pr drawn/ mnist/ --features runs/mnist-classifier-20260101-120000\n  maquette metric pr generated.npy real.npy --neighbours 5"
    )]
    Pr {
        #[command(flatten)]
        sets: SetArgs,
        /// A ball reaches to its centre's neighbour of this number: 3 is usual for precision and
        /// recall, 5 for density and coverage.
        #[arg(long, value_name = "K", default_value_t = 3)]
        neighbours: usize,
    },
    /// Which classes images are of, as a classifier reads them: how many there are, and KL divergence
    /// of their shares from the real ones, in nats.
    #[command(
        after_help = "Example:\n  maquette metric classes drawn/ mnist/ --features runs/mnist-classifier-20260101-120000"
    )]
    Classes {
        /// Generated images: a folder, an archive or a run.
        generated: PathBuf,
        /// Labelled real images to compare the shares with (default: all classes alike).
        real: Option<PathBuf>,
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Are images copies of training images? Distance to the nearest, beside that of unseen images.
    #[command(after_help = "Example:\n  maquette metric copies drawn/ mnist/")]
    Copies {
        /// Generated images: a folder, an archive or a run.
        generated: PathBuf,
        /// The data: what was trained on, and a test part that was not.
        data: PathBuf,
        /// Unseen images, where the data has no test part.
        #[arg(long, value_name = "PATH")]
        held_out: Option<PathBuf>,
        #[command(flatten)]
        images: ImageSetArgs,
    },
    /// Sliced Wasserstein distance and MMD (Gaussian kernel) of points in the plane, or of any
    /// features; 0 for equal distributions.
    #[command(after_help = "Example:\n  maquette metric points generated.npy real.npy")]
    Points {
        #[command(flatten)]
        sets: SetArgs,
        /// Random lines that points are projected on.
        #[arg(long, value_name = "N", default_value_t = 500)]
        directions: usize,
        /// The kernel's width (default: the median distance of two points).
        #[arg(long, value_name = "X")]
        bandwidth: Option<f64>,
    },
}

/// Two sets to compare.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// Generated images: a folder, an archive or a run; or their features, `[images, numbers]` (.npy
    /// or .safetensors).
    pub(crate) generated: PathBuf,
    /// Real images: a folder, an archive or a data set; or their features by the same network.
    pub(crate) real: PathBuf,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

/// Where numbers come from.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// The network: inception-v3 or squeezenet (with --weights), or the run of a classifier. For files of
    /// features only its name, for the signature.
    #[arg(long, value_name = "NET", default_value = UNNAMED)]
    pub(crate) features: String,
    /// The weights of inception-v3 (safetensors, torch-fidelity's names) or squeezenet
    /// (compressed_SqueezeNet.net); also hf://org/name/file.
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: Option<PathBuf>,
    /// The tensor of a .safetensors file that has several.
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: Option<String>,
    #[command(flatten)]
    pub(crate) images: ImageSetArgs,
}

/// The network of features that nobody named.
pub(crate) const UNNAMED: &str = "unnamed";

/// Which images.
#[derive(Debug, Args)]
pub(crate) struct ImageSetArgs {
    /// Bring all images to this size first.
    #[arg(long, value_name = "HxW", value_parser = size)]
    pub(crate) resize: Option<[usize; 2]>,
    /// The part of the real images, where they are divided.
    #[arg(long, value_enum, default_value = "train")]
    pub(crate) split: ImageSplit,
    /// Take at most so many images of each side, chosen by the seed (of a run: draw so many; default
    /// 1000).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) images: Option<u32>,
    /// The seed of every choice: images, subsets, resamples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Where to compute: cpu, cuda[:N] or wgpu[:N].
    #[arg(long, value_name = "D", default_value = "cpu")]
    pub(crate) device: String,
}

/// Parts of a data set.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ImageSplit {
    /// What models learn from; all images where they are not divided.
    Train,
    /// What models never saw.
    Test,
}

/// `32` or `32x48`, height first.
fn size(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| text.trim().parse().ok().filter(|side| *side > 0);
    let both = match text.split_once('x') {
        Some((height, width)) => side(height).zip(side(width)),
        None => side(text).map(|side| (side, side)),
    };
    let (height, width) = both.ok_or("write a height and a width, as in 32x32")?;
    Ok([height, width])
}

/// What is judged, and by what.
#[derive(Debug, Args)]
pub(crate) struct SegmentArgs {
    /// The texts to judge, one segment per line (UTF-8).
    #[arg(value_name = "FILE")]
    pub(crate) hypotheses: PathBuf,
    /// A file of references, line by line; give it again for further references of each segment.
    #[arg(long = "reference", short = 'r', value_name = "FILE", required = true)]
    pub(crate) references: Vec<PathBuf>,
    /// Another system's texts: adds both intervals, that of the difference, and its p-value
    /// (paired bootstrap).
    #[arg(long, value_name = "FILE")]
    pub(crate) baseline: Option<PathBuf>,
    /// Bootstrap resamples for the 95 % intervals, at least 100; 0 leaves them out.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) resamples: usize,
    /// The seed of the resampling.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The score of every segment too.
    #[arg(long)]
    pub(crate) segments: bool,
}

/// Ways to cut a line into words.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BleuTokenization {
    /// WMT's mteval-v13a.
    #[value(name = "13a")]
    V13a,
    /// mteval-v14's, by Unicode classes.
    Intl,
    /// Every character is a word.
    Char,
    /// At white space, for text that is already tokenized.
    None,
}

/// What an order of n-grams without a match counts.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BleuSmoothing {
    /// Half a match for the first such order, half of that for the next.
    Exp,
    /// This much of a match.
    Floor,
    /// This many matches and n-grams more.
    AddK,
    /// Nothing.
    None,
}

fn small(text: &str) -> Result<usize, String> {
    within(text, 0..=9)
}

fn one_to_nine(text: &str) -> Result<usize, String> {
    within(text, 1..=9)
}

fn within(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "not a whole number")?;
    match range.contains(&number) {
        true => Ok(number),
        false => Err(format!("must be from {} to {}", range.start(), range.end())),
    }
}
