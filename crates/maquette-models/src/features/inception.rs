//! Inception-v3 (Szegedy et al. 2016, arXiv 1512.00567) as TensorFlow's graph of December 2015 has
//! it: the network behind every published FID, KID and Inception Score.
//!
//! It differs from the later one in three places: means at a border count only what lies inside,
//! the last block takes a maximum where the others take a mean, and there are 1008 classes.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use maquette_nn::{Windows, max_pool2d};

use super::{Filters, Seen, average, blur, halve, tensor};
use crate::ModelError;
use crate::store::{self, Tensors};

/// Added to variances before their root.
const EPS: f32 = 1e-3;

/// A trained Inception-v3.
#[derive(Debug, Clone)]
pub struct Inception {
    filters: Filters,
    /// `[1008, 2048]`.
    classes: Tensor<2>,
}

impl Inception {
    /// Sides of the images it reads.
    pub const SIZE: usize = 299;
    /// Numbers per image.
    pub const D_FEATURES: usize = 2048;
    /// Classes, of which eight are never meant.
    pub const N_CLASSES: usize = 1008;

    /// Reads a safetensors file with the names of torch-fidelity and pytorch-fid
    /// (`Conv2d_1a_3x3.conv.weight`, ..., `fc.bias`). The norms, at rest, are folded into the
    /// convolutions.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Corrupt`], [`ModelError::Unsupported`],
    /// [`ModelError::Names`] or [`ModelError::Shape`].
    pub fn load(path: &Path, device: &Device) -> Result<Self, ModelError> {
        // How many batches a norm has seen is an integer, and of no use here.
        let unused = |name: &str| name.ends_with(".num_batches_tracked");
        let rename = |name: &str| (!unused(name)).then(|| name.to_owned());
        let (mut tensors, _) = store::read_as(path, rename)?;
        store::check(&shapes(), &tensors, path)?;
        let mut filters = Filters::default();
        for (name, shape) in layers() {
            let mut part = |part: &str| values(&mut tensors, &format!("{name}.{part}"));
            let [gain, offset] = ["bn.weight", "bn.bias"].map(&mut part);
            let [mean, variance] = ["bn.running_mean", "bn.running_var"].map(&mut part);
            let mut weight = part("conv.weight");
            let taps = weight.len() / shape[0];
            let mut bias = Vec::with_capacity(shape[0]);
            for (channel, weights) in weight.chunks_exact_mut(taps).enumerate() {
                let scale = gain[channel] / (variance[channel] + EPS).sqrt();
                weights.iter_mut().for_each(|w| *w *= scale);
                bias.push(offset[channel] - mean[channel] * scale);
            }
            let bias = tensor(bias, [shape[0]], device);
            filters.insert(&name, tensor(weight, shape, device), bias);
        }
        let classes = values(&mut tensors, "fc.weight");
        let shape = [Self::N_CLASSES, Self::D_FEATURES];
        Ok(Self {
            filters,
            classes: tensor(classes, shape, device),
        })
    }

    /// The logits are without the offsets of the classes, as Inception Scores have it.
    ///
    /// # Shapes
    /// - x: `[batch, 3, 299, 299]`, made by [`Inception::resized`]; other sizes from 75 on pass
    pub fn forward(&self, x: Tensor<4>) -> Seen {
        let cut = |name: &str, x, stride| self.filters.apply(name, x, stride, [0; 2]);
        let x = cut("Conv2d_1a_3x3", x, 2);
        let x = cut("Conv2d_2a_3x3", x, 1);
        let x = halve(self.filters.apply("Conv2d_2b_3x3", x, 1, [1; 2]));
        let x = cut("Conv2d_3b_1x1", x, 1);
        let mut x = halve(cut("Conv2d_4a_3x3", x, 1));
        for (block, kind) in BLOCKS {
            x = Block { net: self, block }.forward(kind, x);
        }
        let features = average(x);
        Seen {
            logits: features.clone().matmul(self.classes.clone().transpose()),
            features,
        }
    }

    /// Brings an image to the network's size and range, bilinearly as TensorFlow 1 did: pixel
    /// `i` is taken from `i in / out`, not from the middle of what it covers. A grey image
    /// becomes three equal channels.
    ///
    /// # Shapes
    /// - pixels: `[channels, height, width]`, 1 or 3 channels
    /// - output: `[3, 299, 299]`
    pub fn resized(pixels: &[u8], [channels, height, width]: [usize; 3]) -> Vec<f32> {
        let size = Self::SIZE;
        let places = |from: usize| {
            let scale = from as f32 / size as f32;
            let place = move |i: usize| {
                let at = i as f32 * scale;
                let low = at as usize;
                (low, (low + 1).min(from - 1), at - low as f32)
            };
            (0..size).map(place).collect::<Vec<_>>()
        };
        let (rows, columns) = (places(height), places(width));
        let mut out = Vec::with_capacity(3 * size * size);
        for channel in 0..3 {
            let start = channel.min(channels - 1) * height * width;
            let plane = &pixels[start..start + height * width];
            for &(top, bottom, dy) in &rows {
                let [top, bottom] = [top, bottom].map(|y| &plane[y * width..(y + 1) * width]);
                out.extend(columns.iter().map(|&(left, right, dx)| {
                    let along = |row: &[u8]| {
                        let (left, right) = (f32::from(row[left]), f32::from(row[right]));
                        left + (right - left) * dx
                    };
                    let (above, below) = (along(top), along(bottom));
                    (above + (below - above) * dy - 128.0) / 128.0
                }));
            }
        }
        out
    }
}

/// Kinds of inception blocks, with the widths in which blocks of a kind differ.
#[derive(Clone, Copy)]
enum Kind {
    /// 35 x 35; channels after the pooling.
    A(usize),
    /// To 17 x 17.
    B,
    /// 17 x 17; channels between the 7-tap filters.
    C(usize),
    /// To 8 x 8.
    D,
    /// 8 x 8; whether its pooling takes the largest.
    E(bool),
}

const BLOCKS: [(&str, Kind); 11] = [
    ("Mixed_5b", Kind::A(32)),
    ("Mixed_5c", Kind::A(64)),
    ("Mixed_5d", Kind::A(64)),
    ("Mixed_6a", Kind::B),
    ("Mixed_6b", Kind::C(128)),
    ("Mixed_6c", Kind::C(160)),
    ("Mixed_6d", Kind::C(160)),
    ("Mixed_6e", Kind::C(192)),
    ("Mixed_7a", Kind::D),
    ("Mixed_7b", Kind::E(false)),
    ("Mixed_7c", Kind::E(true)),
];

impl Kind {
    /// Its convolutions for `d_in` channels: name, and `[d_out, d_in, height, width]`.
    fn layers(self, d_in: usize) -> Vec<(&'static str, [usize; 4])> {
        match self {
            Self::A(pooled) => vec![
                ("branch1x1", [64, d_in, 1, 1]),
                ("branch5x5_1", [48, d_in, 1, 1]),
                ("branch5x5_2", [64, 48, 5, 5]),
                ("branch3x3dbl_1", [64, d_in, 1, 1]),
                ("branch3x3dbl_2", [96, 64, 3, 3]),
                ("branch3x3dbl_3", [96, 96, 3, 3]),
                ("branch_pool", [pooled, d_in, 1, 1]),
            ],
            Self::B => vec![
                ("branch3x3", [384, d_in, 3, 3]),
                ("branch3x3dbl_1", [64, d_in, 1, 1]),
                ("branch3x3dbl_2", [96, 64, 3, 3]),
                ("branch3x3dbl_3", [96, 96, 3, 3]),
            ],
            Self::C(narrow) => vec![
                ("branch1x1", [192, d_in, 1, 1]),
                ("branch7x7_1", [narrow, d_in, 1, 1]),
                ("branch7x7_2", [narrow, narrow, 1, 7]),
                ("branch7x7_3", [192, narrow, 7, 1]),
                ("branch7x7dbl_1", [narrow, d_in, 1, 1]),
                ("branch7x7dbl_2", [narrow, narrow, 7, 1]),
                ("branch7x7dbl_3", [narrow, narrow, 1, 7]),
                ("branch7x7dbl_4", [narrow, narrow, 7, 1]),
                ("branch7x7dbl_5", [192, narrow, 1, 7]),
                ("branch_pool", [192, d_in, 1, 1]),
            ],
            Self::D => vec![
                ("branch3x3_1", [192, d_in, 1, 1]),
                ("branch3x3_2", [320, 192, 3, 3]),
                ("branch7x7x3_1", [192, d_in, 1, 1]),
                ("branch7x7x3_2", [192, 192, 1, 7]),
                ("branch7x7x3_3", [192, 192, 7, 1]),
                ("branch7x7x3_4", [192, 192, 3, 3]),
            ],
            Self::E(_) => vec![
                ("branch1x1", [320, d_in, 1, 1]),
                ("branch3x3_1", [384, d_in, 1, 1]),
                ("branch3x3_2a", [384, 384, 1, 3]),
                ("branch3x3_2b", [384, 384, 3, 1]),
                ("branch3x3dbl_1", [448, d_in, 1, 1]),
                ("branch3x3dbl_2", [384, 448, 3, 3]),
                ("branch3x3dbl_3a", [384, 384, 1, 3]),
                ("branch3x3dbl_3b", [384, 384, 3, 1]),
                ("branch_pool", [192, d_in, 1, 1]),
            ],
        }
    }

    /// Channels that come out for `d_in`.
    fn d_out(self, d_in: usize) -> usize {
        match self {
            Self::A(pooled) => 224 + pooled,
            Self::B => 480 + d_in,
            Self::C(_) => 768,
            Self::D => 512 + d_in,
            Self::E(_) => 2048,
        }
    }
}

/// One block of a network at work.
struct Block<'a> {
    net: &'a Inception,
    block: &'static str,
}

impl Block<'_> {
    fn forward(&self, kind: Kind, x: Tensor<4>) -> Tensor<4> {
        // Filters one after the other, each of which keeps the size; and one that halves it.
        let chain = |x: &Tensor<4>, names: &[&str]| {
            let keep = |x, name: &&str| self.keep(name, x);
            names.iter().fold(x.clone(), keep)
        };
        let cut = |name: &str, x| self.apply(name, x, 2, [0; 2]);
        let both = |x: Tensor<4>, names: [&str; 2]| names.map(|name| self.keep(name, x.clone()));
        let parts = match kind {
            Kind::A(_) => vec![
                chain(&x, &["branch1x1"]),
                chain(&x, &["branch5x5_1", "branch5x5_2"]),
                chain(&x, &["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]),
                self.keep("branch_pool", blur(x)),
            ],
            Kind::B => vec![
                cut("branch3x3", x.clone()),
                cut(
                    "branch3x3dbl_3",
                    chain(&x, &["branch3x3dbl_1", "branch3x3dbl_2"]),
                ),
                halve(x),
            ],
            Kind::C(_) => vec![
                chain(&x, &["branch1x1"]),
                chain(&x, &["branch7x7_1", "branch7x7_2", "branch7x7_3"]),
                chain(
                    &x,
                    &[
                        "branch7x7dbl_1",
                        "branch7x7dbl_2",
                        "branch7x7dbl_3",
                        "branch7x7dbl_4",
                        "branch7x7dbl_5",
                    ],
                ),
                self.keep("branch_pool", blur(x)),
            ],
            Kind::D => vec![
                cut("branch3x3_2", chain(&x, &["branch3x3_1"])),
                cut(
                    "branch7x7x3_4",
                    chain(&x, &["branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3"]),
                ),
                halve(x),
            ],
            Kind::E(largest) => {
                let [a, b] = both(
                    chain(&x, &["branch3x3_1"]),
                    ["branch3x3_2a", "branch3x3_2b"],
                );
                let doubled = chain(&x, &["branch3x3dbl_1", "branch3x3dbl_2"]);
                let [c, d] = both(doubled, ["branch3x3dbl_3a", "branch3x3dbl_3b"]);
                let around = Windows {
                    side: 3,
                    stride: 1,
                    padding: 1,
                };
                let pooled = match largest {
                    true => max_pool2d(x.clone(), around),
                    false => blur(x.clone()),
                };
                let pooled = self.keep("branch_pool", pooled);
                vec![chain(&x, &["branch1x1"]), a, b, c, d, pooled]
            }
        };
        Tensor::cat(parts, 1)
    }

    fn apply(&self, name: &str, x: Tensor<4>, stride: usize, padding: [usize; 2]) -> Tensor<4> {
        let name = format!("{}.{name}", self.block);
        self.net.filters.apply(&name, x, stride, padding)
    }

    /// A convolution of odd sides with as many pixels out as in.
    fn keep(&self, name: &str, x: Tensor<4>) -> Tensor<4> {
        let full = format!("{}.{name}", self.block);
        let [_, _, height, width] = self.net.filters.0[&full].0.dims();
        self.apply(name, x, 1, [height / 2, width / 2])
    }
}

/// Every convolution: name, and `[d_out, d_in, height, width]`.
fn layers() -> Vec<(String, [usize; 4])> {
    let stem = [
        ("Conv2d_1a_3x3", [32, 3, 3, 3]),
        ("Conv2d_2a_3x3", [32, 32, 3, 3]),
        ("Conv2d_2b_3x3", [64, 32, 3, 3]),
        ("Conv2d_3b_1x1", [80, 64, 1, 1]),
        ("Conv2d_4a_3x3", [192, 80, 3, 3]),
    ];
    let mut layers: Vec<_> = stem.map(|(name, shape)| (name.to_owned(), shape)).into();
    let mut d_in = 192;
    for (block, kind) in BLOCKS {
        let named = |(name, shape)| (format!("{block}.{name}"), shape);
        layers.extend(kind.layers(d_in).into_iter().map(named));
        d_in = kind.d_out(d_in);
    }
    layers
}

/// Every tensor of the file.
fn shapes() -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::from([
        (
            "fc.weight".to_owned(),
            vec![Inception::N_CLASSES, Inception::D_FEATURES],
        ),
        ("fc.bias".to_owned(), vec![Inception::N_CLASSES]),
    ]);
    for (name, shape) in layers() {
        shapes.insert(format!("{name}.conv.weight"), shape.to_vec());
        for part in ["weight", "bias", "running_mean", "running_var"] {
            shapes.insert(format!("{name}.bn.{part}"), vec![shape[0]]);
        }
    }
    shapes
}

/// The numbers of a tensor whose shape was checked.
fn values(tensors: &mut Tensors, name: &str) -> Vec<f32> {
    let data = tensors.remove(name).expect("names and shapes were checked");
    data.try_to_vec()
        .expect("tensors are read as 32-bit floats")
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    /// Numbers in `[0, 1)` as `fixtures/inception.py` makes them.
    fn hashed(n: usize, tensor: u32) -> Vec<f32> {
        let start = tensor.wrapping_mul(0x9E37_79B9);
        let number = |i: u32| {
            let mut x = i.wrapping_add(start);
            x = (x ^ x >> 16).wrapping_mul(0x85EB_CA6B);
            x = (x ^ x >> 13).wrapping_mul(0xC2B2_AE35);
            ((x ^ x >> 16) >> 8) as f32 / (1 << 24) as f32
        };
        (0..n as u32).map(number).collect()
    }

    fn weights() -> Tensors {
        let of = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
            let mut u = hashed(shape.iter().product(), i as u32);
            if name.ends_with("conv.weight") || name == "fc.weight" {
                let fan_in: usize = shape[1..].iter().product();
                let bound = (6.0 / fan_in as f64).sqrt() as f32;
                u.iter_mut().for_each(|u| *u = (*u - 0.5) * 2.0 * bound);
            } else if name.ends_with("bn.weight") || name.ends_with("running_var") {
                u.iter_mut().for_each(|u| *u += 0.5);
            } else {
                u.iter_mut().for_each(|u| *u = (*u - 0.5) * 0.5);
            }
            (name, TensorData::new(u, shape))
        };
        shapes().into_iter().enumerate().map(of).collect()
    }

    #[test]
    fn agrees_with_torch_fidelity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inception.safetensors");
        store::write(&path, &weights(), &store::Metadata::default()).unwrap();
        let net = Inception::load(&path, &Device::flex()).unwrap();
        let want: serde_json::Value =
            serde_json::from_str(include_str!("../../fixtures/inception.json")).unwrap();
        let number = |name: &str| want[name].as_u64().unwrap() as usize;
        let (height, width) = (number("height"), number("width"));
        let pixels = hashed(3 * height * width, 1000);
        let pixels: Vec<u8> = pixels.iter().map(|u| (u * 256.0) as u8).collect();
        let x = Inception::resized(&pixels, [3, height, width]);
        let seen = net.forward(tensor(x, [1, 3, 299, 299], &Device::flex()));
        for (name, got, step) in [("features", seen.features, 32), ("logits", seen.logits, 16)] {
            let got = got.into_data().try_to_vec::<f32>().unwrap();
            let want: Vec<f64> = want[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|x| x.as_f64().unwrap())
                .collect();
            let size = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt();
            for (got, want) in got.iter().step_by(step).zip(&want) {
                let error = (f64::from(*got) - want).abs() / size;
                assert!(error < 2e-4, "{name}: {got} is not {want}");
            }
        }
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.safetensors");
        let one = ("fc.bias".to_owned(), TensorData::new(vec![0.0f32], [1]));
        store::write(&path, &Tensors::from([one]), &store::Metadata::default()).unwrap();
        let error = Inception::load(&path, &Device::flex()).unwrap_err();
        assert!(error.to_string().contains("Conv2d_1a_3x3"), "{error}");
    }
}
