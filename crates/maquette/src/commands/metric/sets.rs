//! Sets of images or features, as `maquette metric` is given them.

use std::path::Path;

use maquette::burn::tensor::Device;
use maquette::data::hub::Want;
use maquette::data::images::{self, Sizes};
use maquette::data::{DataError, Features, ImageSet, Split};
use maquette::eval::{Points, Signature};
use maquette::rng::{Stream, permutation, rng};
use maquette::train::feature_net::{Embedding, FeatureNet, FeatureSource, classifier_run};
use maquette::train::recipes::generate;
use maquette::train::recipes::pictures::{ImageRequest, as_set};

use super::super::progress::Status;
use super::super::{device, hub};
use crate::args::{ImageSetArgs, ImageSplit, SourceArgs, UNNAMED};
use crate::errors::{Usage, failed, report};
use crate::output::Output;

/// Images that are drawn of a run unless the user says how many.
const DRAWN: usize = 1000;

/// Reads sets, and opens the network when the first of them needs it.
pub(super) struct Reader<'a> {
    args: &'a SourceArgs,
    device: Device,
    net: Option<FeatureNet>,
    status: Status,
    output: Output,
}

/// The features of a set, and its classes as its network reads them.
pub(super) struct Set {
    seen: Embedding,
    path: String,
}

impl Set {
    pub(super) fn points(&self) -> miette::Result<Points<'_>> {
        self.seen.points().map_err(failed)
    }

    pub(super) fn len(&self) -> usize {
        self.seen.features.len() / self.seen.dims
    }

    pub(super) fn dims(&self) -> usize {
        self.seen.dims
    }

    /// `[images, classes]`, row by row; of a file, what stands in it.
    pub(super) fn logits(&self) -> (&[f32], usize) {
        match self.seen.n_classes {
            0 => (&self.seen.features, self.seen.dims),
            n_classes => (&self.seen.logits, n_classes),
        }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(args: &'a SourceArgs, output: Output) -> miette::Result<Self> {
        Ok(Self {
            args,
            device: device::parse(&args.images.device)?,
            net: None,
            status: Status::new(output.quiet),
            output,
        })
    }

    /// Both sides of a comparison.
    pub(super) fn pair(&mut self, generated: &Path, real: &Path) -> miette::Result<(Set, Set)> {
        let real_split = self.args.images.split;
        let (a, b) = (
            self.set(generated, ImageSplit::Train)?,
            self.set(real, real_split)?,
        );
        if a.dims() != b.dims() {
            return Err(miette::miette!(
                help = "both must come from the same layer of the same network",
                "{} has {} numbers per image, {} has {}",
                a.path,
                a.dims(),
                b.path,
                b.dims()
            ));
        }
        Ok((a, b))
    }

    /// Features from a file, or of images.
    pub(super) fn set(&mut self, path: &Path, split: ImageSplit) -> miette::Result<Set> {
        let named = path.display().to_string();
        if is_features(path) {
            let Features { values, dims } =
                Features::read(path, self.args.tensor.as_deref()).map_err(failed)?;
            let seen = Embedding {
                features: values,
                dims,
                ..Embedding::default()
            };
            return Ok(Set { seen, path: named });
        }
        let images = self.images(path, split)?;
        Ok(Set {
            seen: self.embed(&images)?,
            path: named,
        })
    }

    /// The images of a folder, an archive or a data set, or drawn of a run.
    pub(super) fn images(&self, path: &Path, split: ImageSplit) -> miette::Result<ImageSet> {
        self.status.say(&format!("reading {}", path.display()));
        let images = image_set(path, split, &self.args.images, &self.device);
        self.status.clear();
        images
    }

    pub(super) fn embed(&mut self, images: &ImageSet) -> miette::Result<Embedding> {
        if self.net.is_none() {
            self.status.say("opening the network");
            self.net = Some(open(self.args, &self.device, self.output)?);
        }
        let net = self.net.as_ref().expect("it was just opened");
        let seen = net.embed(images, &mut |what| self.status.say(what));
        self.status.clear();
        seen.map_err(report)
    }

    /// The names of the classes that the network knows.
    pub(super) fn class_names(&self) -> &[String] {
        self.net.as_ref().map_or(&[], |net| net.class_names())
    }

    /// The settings that every figure depends on.
    pub(super) fn signature(&self, metric: &str, dims: usize, n: usize) -> Signature {
        let net = self.net.as_ref();
        let features = net.map_or(self.args.features.as_str(), |net| net.name());
        let signature = Signature::new(metric)
            .with("features", features)
            .with("dims", dims)
            .with("n", n);
        let Some(net) = net else {
            return signature;
        };
        let first = self.args.images.resize;
        let first = first.map_or(String::new(), |[height, width]| {
            format!("triangle-{height}x{width},")
        });
        signature.with("resize", format!("{first}{}", net.resize()))
    }

    /// The part of the real images, where they are images.
    pub(super) fn split(&self, real: &Path) -> Option<&'static str> {
        (!is_features(real)).then_some(match self.args.images.split {
            ImageSplit::Train => "train",
            ImageSplit::Test => "test",
        })
    }
}

fn is_features(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    matches!(extension, Some("npy" | "safetensors"))
}

/// The images of a folder, an archive or a data set, or drawn of a run; as many as asked for.
pub(super) fn image_set(
    path: &Path,
    split: ImageSplit,
    args: &ImageSetArgs,
    device: &Device,
) -> miette::Result<ImageSet> {
    let most = args.images.map(|n| n as usize);
    if path.join("recipe.toml").is_file() {
        let request = ImageRequest {
            count: most.unwrap_or(DRAWN),
            seed: args.seed,
            ..ImageRequest::default()
        };
        let drawn = as_set(
            &generate::draw(path, &request, device).map_err(report)?,
            None,
            &[],
        );
        return match args.resize {
            Some([height, width]) => drawn.resized(height, width).map_err(failed),
            None => Ok(drawn),
        };
    }
    let sizes = match args.resize {
        Some([height, width]) => Sizes::Resize { height, width },
        None => Sizes::Agree,
    };
    let split = match split {
        ImageSplit::Train => Split::Train,
        ImageSplit::Test => Split::Test,
    };
    let images = images::open_with(path, split, sizes).map_err(|error| match error {
        DataError::MixedSizes { .. } => {
            miette::miette!(help = "for example with --resize 32x32", "{error}")
        }
        error => failed(error),
    })?;
    Ok(match most.filter(|most| *most < images.len()) {
        Some(most) => {
            let order = permutation(&mut rng(args.seed, Stream::Evaluate, 1), images.len());
            images.subset(&order[..most])
        }
        None => images,
    })
}

/// The network that `--features` and `--weights` name.
fn open(args: &SourceArgs, device: &Device, output: Output) -> miette::Result<FeatureNet> {
    let weights = |where_from: &str| {
        let missing = || {
            Usage::new(
                format!("--features {} needs its weights", args.features),
                format!("give their file with --weights FILE; {where_from}"),
            )
        };
        let file = args.weights.as_ref().ok_or_else(missing)?;
        hub::local(file, Want::Data, output)
    };
    let source = match args.features.as_str() {
        UNNAMED => {
            return Err(Usage::new(
                "by whose features are the images to be compared?",
                "name the run of a classifier, inception-v3 or squeezenet with --features",
            )
            .into());
        }
        "inception-v3" => FeatureSource::Inception(weights(INCEPTION)?),
        "squeezenet" => FeatureSource::SqueezeNet(weights(SQUEEZENET)?),
        run => classifier_run(Path::new(run)).map_err(report)?,
    };
    FeatureNet::open(&source, device).map_err(report)
}

const INCEPTION: &str = "published figures use weights-inception-2015-12-05-6726825d.pth of \
    torch-fidelity's releases on GitHub; once, in Python: from safetensors.torch import save_file; \
    save_file({k: v for k, v in torch.load(PTH).items() if 'num_batches' not in k}, FILE)";
const SQUEEZENET: &str =
    "it is compressed_SqueezeNet.net of songhan/SqueezeNet-Deep-Compression on GitHub";
