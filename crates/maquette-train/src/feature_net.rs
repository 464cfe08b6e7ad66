//! Networks by whose features images are compared, and the name a metric's signature gives them.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::{ImageSet, Normalization};
use maquette_eval::{EvalError, Points};
use maquette_models::Classifier;
use maquette_models::features::{Inception, Seen, SqueezeNet};

use crate::recipes::{classifier, images};
use crate::{TrainError, hash};

/// Images that are seen at a time, small and large.
const BATCH: usize = 256;
const LARGE_BATCH: usize = 16;
/// Images between two words of progress.
const SAY_EVERY: usize = 1000;

/// Which network, and where its weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeatureSource {
    /// The network of published FIDs: a safetensors file with torch-fidelity's names.
    Inception(PathBuf),
    /// SqueezeNet in Deep Compression's format.
    SqueezeNet(PathBuf),
    /// A run of a classifier.
    Run(PathBuf),
}

/// A network by whose features images are compared.
pub struct FeatureNet {
    net: Network,
    name: String,
    device: Device,
}

enum Network {
    Inception(Box<Inception>),
    SqueezeNet(Box<SqueezeNet>),
    Classifier {
        model: Box<Classifier>,
        image: [usize; 3],
        class_names: Vec<String>,
    },
}

/// Images as a network sees them.
#[derive(Debug, Clone, Default)]
pub struct Embedding {
    /// `[n, dims]`.
    pub features: Vec<f32>,
    /// Numbers per image.
    pub dims: usize,
    /// `[n, n_classes]`.
    pub logits: Vec<f32>,
    /// Classes of the network.
    pub n_classes: usize,
}

impl Embedding {
    /// The features, for a metric.
    ///
    /// # Errors
    /// No images, or features that are not finite.
    pub fn points(&self) -> Result<Points<'_>, EvalError> {
        Points::new(&self.features, self.dims)
    }
}

impl FeatureNet {
    /// Opens a network. Its name ends with the beginning of its weights' SHA-256.
    ///
    /// # Errors
    /// Weights that are missing, damaged or another network's.
    pub fn open(source: &FeatureSource, device: &Device) -> Result<Self, TrainError> {
        let (net, kind, weights) = match source {
            FeatureSource::Inception(path) => {
                let net = Inception::load(path, device).map_err(TrainError::other)?;
                (
                    Network::Inception(Box::new(net)),
                    "inception-v3".into(),
                    path.clone(),
                )
            }
            FeatureSource::SqueezeNet(path) => {
                let net = SqueezeNet::load(path, device).map_err(TrainError::other)?;
                (
                    Network::SqueezeNet(Box::new(net)),
                    "squeezenet".into(),
                    path.clone(),
                )
            }
            FeatureSource::Run(dir) => {
                let opened = classifier::open(dir, device)?;
                let net = Network::Classifier {
                    model: Box::new(opened.model),
                    image: opened.image,
                    class_names: opened.class_names,
                };
                let name = dir.file_name().unwrap_or(dir.as_os_str());
                let name = name.to_string_lossy().into_owned();
                (net, name, dir.join("model.safetensors"))
            }
        };
        let sha256 = hash::sha256_file(&weights)?;
        Ok(Self {
            net,
            name: format!("{kind}@{}", &sha256[..8]),
            device: device.clone(),
        })
    }

    /// A classifier of `image`s (channels, height, width) at hand.
    pub fn of_classifier(
        model: Classifier,
        image: [usize; 3],
        class_names: Vec<String>,
        name: String,
        device: &Device,
    ) -> Self {
        Self {
            net: Network::Classifier {
                model: Box::new(model),
                image,
                class_names,
            },
            name,
            device: device.clone(),
        }
    }

    /// What stands in a signature.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it brings images to its own size, for a signature.
    pub fn resize(&self) -> String {
        match &self.net {
            Network::Inception(_) => format!("tf1-bilinear-{}", Inception::SIZE),
            Network::SqueezeNet(_) => format!("triangle-{}", SqueezeNet::SIZE),
            Network::Classifier { .. } => "none".into(),
        }
    }

    /// The names of a classifier's classes.
    pub fn class_names(&self) -> &[String] {
        match &self.net {
            Network::Classifier { class_names, .. } => class_names,
            _ => &[],
        }
    }

    /// Looks at images; `say` is told how many were seen.
    ///
    /// # Errors
    /// Images that a classifier cannot read: of another size, or in colour where it knows grey.
    pub fn embed(
        &self,
        set: &ImageSet,
        say: &mut dyn FnMut(&str),
    ) -> Result<Embedding, TrainError> {
        self.check(set)?;
        let batch = match self.net {
            Network::Classifier { .. } => BATCH,
            _ => LARGE_BATCH,
        };
        let mut all = Embedding::default();
        for indices in images::chunks(set.len(), batch) {
            let seen = self.batch(set, &indices)?;
            [all.dims, all.n_classes] = [seen.features.dims()[1], seen.logits.dims()[1]];
            all.features.extend(numbers(seen.features)?);
            all.logits.extend(numbers(seen.logits)?);
            let done = indices.last().map_or(0, |last| last + 1);
            if done / SAY_EVERY > (done - indices.len()) / SAY_EVERY {
                say(&format!("{}: {done} of {} images", self.name, set.len()));
            }
        }
        Ok(all)
    }

    fn check(&self, set: &ImageSet) -> Result<(), TrainError> {
        let Network::Classifier { image, .. } = &self.net else {
            return Ok(());
        };
        let is = images::shape(set);
        if is == *image {
            return Ok(());
        }
        let say = |[channels, height, width]: [usize; 3]| {
            let colours = if channels == 1 { "grey" } else { "colour" };
            format!("{colours}, {height} x {width}")
        };
        let help = match is[0] == image[0] {
            true => format!(
                "bring them to its size with --resize {}x{}",
                image[1], image[2]
            ),
            false => "take a classifier of such images, or --features squeezenet".to_owned(),
        };
        Err(TrainError::other(format!(
            "the images are {}, but {} reads {}; {help}",
            say(is),
            self.name,
            say(*image)
        )))
    }

    fn batch(&self, set: &ImageSet, indices: &[usize]) -> Result<Seen, TrainError> {
        match &self.net {
            Network::Classifier { model, .. } => {
                let batch = images::Batch::new(set, indices, &Normalization::MinMax, None);
                let features = model.features(batch.tensor(&self.device));
                Ok(Seen {
                    logits: model.classify(features.clone()),
                    features,
                })
            }
            Network::Inception(net) => {
                let shape = images::shape(set);
                let pixels = indices
                    .iter()
                    .map(|&i| Inception::resized(set.image(i), shape));
                let pixels = pixels.collect::<Vec<_>>().concat();
                Ok(net.forward(self.colour(pixels, indices.len(), Inception::SIZE)))
            }
            Network::SqueezeNet(net) => {
                let size = SqueezeNet::SIZE;
                let resized = set.subset(indices).resized(size, size);
                let resized = resized.map_err(TrainError::other)?;
                let plane = size * size;
                let mut pixels = Vec::with_capacity(indices.len() * 3 * plane);
                for i in 0..resized.len() {
                    for (channel, mean) in SqueezeNet::MEAN.into_iter().enumerate() {
                        let start = channel.min(resized.channels - 1) * plane;
                        let channel = &resized.image(i)[start..start + plane];
                        pixels.extend(channel.iter().map(|&p| f32::from(p) - mean));
                    }
                }
                Ok(net.forward(self.colour(pixels, indices.len(), size)))
            }
        }
    }

    fn colour(&self, pixels: Vec<f32>, n: usize, size: usize) -> Tensor<4> {
        Tensor::from_data(TensorData::new(pixels, [n, 3, size, size]), &self.device)
    }
}

/// A run folder that holds a classifier, or the error that says how to get one.
///
/// # Errors
/// No run, or a run of another family.
pub fn classifier_run(dir: &Path) -> Result<FeatureSource, TrainError> {
    match dir.join("recipe.toml").is_file() {
        true => Ok(FeatureSource::Run(dir.to_owned())),
        false => Err(TrainError::other(format!(
            "{} is no network that features come from: there are inception-v3, squeezenet and the run \
             of a classifier (`maquette train mnist-classifier`, `fashion-classifier`, \
             `glyphs-classifier`)",
            dir.display()
        ))),
    }
}

fn numbers(tensor: Tensor<2>) -> Result<Vec<f32>, TrainError> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|error| TrainError::other(format!("{error:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_data::Split;
    use maquette_data::images::{Sizes, open_with};

    /// By PyTorch from the same weights: `fixtures/squeezenet.py`. Pillow rounds a resized image a
    /// little otherwise.
    #[test]
    fn squeezenet_knows_a_cat_and_an_espresso() {
        let root = std::env::var_os("MAQUETTE_TEST_DATA").map(PathBuf::from);
        let root = root.unwrap_or_else(|| PathBuf::from("../../../shared/data"));
        let weights = root.join("squeezenet-dc/compressed_SqueezeNet.net");
        if !weights.is_file() {
            println!("skipped: no {}", weights.display());
            return;
        }
        let net = FeatureNet::open(&FeatureSource::SqueezeNet(weights), &Device::flex()).unwrap();
        assert_eq!(net.name(), "squeezenet@e4ab6960");
        let sizes = Sizes::Resize {
            height: 227,
            width: 227,
        };
        let photos = open_with(root.join("photos-skimage"), Split::Train, sizes).unwrap();
        // chelsea.png and coffee.png in the order of names.
        let seen = net.embed(&photos.subset(&[3, 4]), &mut |_| {}).unwrap();
        let probability = |image: usize, class: usize| {
            let logits = &seen.logits[image * 1000..][..1000];
            let all: f32 = logits.iter().map(|x| x.exp()).sum();
            logits[class].exp() / all
        };
        let (cat, espresso) = (probability(0, 285), probability(1, 967));
        for (got, want) in [(cat, 0.8151), (espresso, 0.9843)] {
            assert!((got - want).abs() < 0.005, "{got} is not {want}");
        }
    }
}
