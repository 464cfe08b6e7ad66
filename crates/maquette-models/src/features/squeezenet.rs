//! SqueezeNet 1.0 on ImageNet (Iandola et al. 2016, arXiv 1602.07360): AlexNet's accuracy from
//! 1.2 million weights, here from the 0.7 MB file of Deep Compression (Han et al. 2016, arXiv
//! 1510.00149), pruned and with 256 different weights per layer.

use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor};

use super::{Filters, Seen, average, corrupt, halve, tensor};
use crate::ModelError;

const FORMAT: &str = "Deep Compression (compressed_SqueezeNet.net)";
/// Different weights of a layer.
const CODES: usize = 256;
/// Squeezed and expanded channels of fire2 to fire9.
const FIRES: [[usize; 2]; 8] = [
    [16, 64],
    [16, 64],
    [32, 128],
    [32, 128],
    [48, 192],
    [48, 192],
    [64, 256],
    [64, 256],
];

/// A trained SqueezeNet.
#[derive(Debug, Clone)]
pub struct SqueezeNet {
    filters: Filters,
}

impl SqueezeNet {
    /// Sides of the images it was trained on.
    pub const SIZE: usize = 227;
    /// Mean red, green and blue of its training images, from 0 to 255.
    pub const MEAN: [f32; 3] = [123.0, 117.0, 104.0];
    /// Numbers per image.
    pub const D_FEATURES: usize = 512;
    /// ImageNet's classes.
    pub const N_CLASSES: usize = 1000;

    /// Reads `compressed_SqueezeNet.net` of songhan/SqueezeNet-Deep-Compression.
    ///
    /// # Errors
    /// [`ModelError::Io`], or [`ModelError::Corrupt`] when it is not that file.
    pub fn load(path: &Path, device: &Device) -> Result<Self, ModelError> {
        let bytes = fs::read(path).map_err(ModelError::io(path))?;
        let filters = decode(&bytes, device).map_err(|reason| corrupt(path, FORMAT, reason))?;
        Ok(Self { filters })
    }

    /// # Shapes
    /// - x: `[batch, 3, height, width]`, red, green, blue, each less its [mean](Self::MEAN); 227 x 227
    ///   as in training, or any other size from 35 on
    pub fn forward(&self, x: Tensor<4>) -> Seen {
        // Its first layer was trained on blue, green, red.
        let mut x = halve(self.filters.apply("conv1", x.flip([1]), 2, [0; 2]));
        for fire in 2..=9 {
            let apply = |layer: &str, x, padding| {
                let name = format!("fire{fire}/{layer}");
                self.filters.apply(&name, x, 1, [padding; 2])
            };
            let squeezed = apply("squeeze1x1", x, 0);
            let small = apply("expand1x1", squeezed.clone(), 0);
            x = Tensor::cat(vec![small, apply("expand3x3", squeezed, 1)], 1);
            if matches!(fire, 4 | 8) {
                x = halve(x);
            }
        }
        let classes = self.filters.apply("conv10", x.clone(), 1, [1; 2]);
        Seen {
            features: average(x),
            logits: average(classes),
        }
    }
}

/// Every convolution in the order of the file: name, and `[d_out, d_in, kernel]`.
fn layers() -> Vec<(String, [usize; 3])> {
    let mut layers = vec![("conv1".to_owned(), [96, 3, 7])];
    let mut d_in = 96;
    for (i, [squeezed, expanded]) in FIRES.into_iter().enumerate() {
        let mut layer = |name: &str, shape| layers.push((format!("fire{}/{name}", i + 2), shape));
        layer("squeeze1x1", [squeezed, d_in, 1]);
        layer("expand1x1", [expanded, squeezed, 1]);
        layer("expand3x3", [expanded, squeezed, 3]);
        d_in = 2 * expanded;
    }
    layers.push(("conv10".to_owned(), [SqueezeNet::N_CLASSES, d_in, 1]));
    layers
}

/// The file begins with the number of stored weights of each layer. A layer then has its 256
/// weights, its offsets, the code of each stored weight, and in half a byte each how many weights
/// are left out before it.
fn decode(bytes: &[u8], device: &Device) -> Result<Filters, String> {
    let layers = layers();
    let mut rest = bytes;
    let mut take = |count: usize| {
        let (taken, left) = rest
            .split_at_checked(count)
            .ok_or_else(|| format!("{} bytes are too few", bytes.len()))?;
        rest = left;
        Ok::<_, String>(taken)
    };
    let counts = take(4 * layers.len())?.as_chunks::<4>().0;
    let counts: Vec<usize> = counts
        .iter()
        .map(|b| u32::from_le_bytes(*b) as usize)
        .collect();
    let mut filters = Filters::default();
    for ((name, [d_out, d_in, kernel]), stored) in layers.into_iter().zip(counts) {
        let size = d_out * d_in * kernel * kernel;
        if stored > size {
            return Err(format!(
                "{name} is said to store {stored} of {size} weights"
            ));
        }
        let codebook = floats(take(4 * CODES)?);
        let bias = floats(take(4 * d_out)?);
        let codes = take(stored)?;
        let gaps = take(stored.div_ceil(2))?;
        let mut weights = vec![codebook[0]; size];
        let mut at = 0;
        for (i, &code) in codes.iter().enumerate() {
            at += usize::from(gaps[i / 2] >> (4 * (i % 2)) & 15);
            let weight = weights.get_mut(at);
            *weight.ok_or_else(|| format!("{name} has weights beyond its {size}"))? =
                codebook[usize::from(code)];
            at += 1;
        }
        filters.insert(
            &name,
            tensor(weights, [d_out, d_in, kernel, kernel], device),
            tensor(bias, [d_out], device),
        );
    }
    match rest.len() {
        0 => Ok(filters),
        n => Err(format!("{n} bytes are left over")),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let floats = bytes.as_chunks().0.iter();
    floats.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One stored weight per layer, code 1, after seven left out.
    fn file() -> Vec<u8> {
        let layers = layers();
        let mut bytes: Vec<u8> = layers.iter().flat_map(|_| 1u32.to_le_bytes()).collect();
        for (i, (_, [d_out, ..])) in layers.iter().enumerate() {
            let mut codebook = [0.0f32; CODES];
            codebook[1] = i as f32 + 1.0;
            bytes.extend(codebook.iter().flat_map(|x| x.to_le_bytes()));
            bytes.extend((0..*d_out).flat_map(|_| 0.5f32.to_le_bytes()));
            bytes.extend([1, 7]);
        }
        bytes
    }

    #[test]
    fn weights_lie_after_their_gaps() {
        let filters = decode(&file(), &Device::flex()).unwrap();
        let (weight, bias) = &filters.0["conv1"];
        let weight = weight.to_data().try_to_vec::<f32>().unwrap();
        assert_eq!(weight[7], 1.0);
        assert_eq!(weight.iter().sum::<f32>(), 1.0);
        assert_eq!(bias.to_data().try_to_vec::<f32>().unwrap()[95], 0.5);
    }

    #[test]
    fn any_size_passes() {
        let filters = decode(&file(), &Device::flex()).unwrap();
        let seen = SqueezeNet { filters }.forward(Tensor::ones([2, 3, 35, 40], &Device::flex()));
        assert_eq!(seen.features.dims(), [2, SqueezeNet::D_FEATURES]);
        assert_eq!(seen.logits.dims(), [2, SqueezeNet::N_CLASSES]);
    }

    #[test]
    fn damaged_files_are_refused() {
        let says = |bytes: &[u8], what: &str| {
            let error = decode(bytes, &Device::flex()).unwrap_err();
            assert!(error.contains(what), "{error}");
        };
        let mut bytes = file();
        says(&bytes[..50], "too few");
        says(&bytes[..bytes.len() - 1], "too few");
        bytes.push(0);
        says(&bytes, "left over");
        bytes[3] = 1;
        says(&bytes, "conv1 is said to store 16777217");
    }
}
