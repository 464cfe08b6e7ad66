//! Logistic regression on how often each word stands in a text: what a reader of texts has to beat.

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData},
};
use maquette_nn::{
    Linear, LinearConfig, cross_entropy,
    init::{Fill, initialise},
};

use crate::error::{ModelError, require};

/// Configuration of a [`BagOfWords`].
#[derive(Debug, Clone, Copy)]
pub struct BagOfWordsConfig {
    /// Number of words, or tokens.
    pub vocab_size: usize,
    /// Number of classes.
    pub n_classes: usize,
}

impl BagOfWordsConfig {
    /// A model of zeros: every class is as likely as the others.
    ///
    /// # Errors
    /// [`ModelError::Config`] if a size is zero.
    pub fn init(&self, device: &Device) -> Result<BagOfWords, ModelError> {
        require(self.vocab_size > 0, "vocab_size", || {
            "must be at least 1".into()
        })?;
        require(self.n_classes > 0, "n_classes", || {
            "must be at least 1".into()
        })?;
        let linear = LinearConfig::new(self.vocab_size, self.n_classes).init(device);
        let mut unused = maquette_rng::rng(0, maquette_rng::Stream::Init, 0);
        Ok(BagOfWords {
            linear: initialise(linear, &mut unused, |_| Fill::Constant(0.0)),
        })
    }
}

/// Counts of words, each with a weight for every class.
#[derive(Module, Debug)]
pub struct BagOfWords {
    linear: Linear,
}

impl BagOfWords {
    /// Logits of the class of each text.
    ///
    /// # Shapes
    /// - output: `[texts, n_classes]`
    ///
    /// # Panics
    /// If a token is outside the vocabulary.
    pub fn forward(&self, texts: &[&[u32]]) -> Tensor<2> {
        let weight = self.linear.weight.val();
        let [vocab_size, _] = weight.dims();
        let mut counts = vec![0f32; texts.len() * vocab_size];
        for (row, text) in counts.chunks_mut(vocab_size).zip(texts) {
            text.iter().for_each(|token| row[*token as usize] += 1.0);
        }
        let counts = TensorData::new(counts, [texts.len(), vocab_size]);
        self.linear
            .forward(Tensor::from_data(counts, &weight.device()))
    }

    /// Mean negative log-likelihood of the classes, in nats per text, `[1]`.
    ///
    /// # Shapes
    /// - classes: `[texts]`
    ///
    /// # Panics
    /// As [`BagOfWords::forward`].
    pub fn loss(&self, texts: &[&[u32]], classes: Tensor<1, Int>) -> Tensor<1> {
        cross_entropy(self.forward(texts), classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_decide_and_order_does_not() {
        let device = Device::flex().autodiff();
        let config = BagOfWordsConfig {
            vocab_size: 5,
            n_classes: 2,
        };
        let model = config.init(&device).unwrap();
        let texts: [&[u32]; 2] = [&[0, 1, 1], &[3, 4]];
        let classes = Tensor::<1, Int>::from_ints([0, 1], &device);
        let loss = model.loss(&texts, classes);
        assert!((loss.clone().into_scalar::<f32>() - 2f32.ln()).abs() < 1e-6);
        // d loss / d weight[1, 0] = count / texts * (p - 1) = 2 / 2 * -0.5.
        let gradient = model.linear.weight.val().grad(&loss.backward()).unwrap();
        let gradient = gradient.into_data().try_to_vec::<f32>().unwrap();
        assert!((gradient[2] + 0.5).abs() < 1e-6, "{gradient:?}");
        let order = |text: &[u32]| model.forward(&[text]).into_data();
        assert_eq!(order(&[0, 1, 3]), order(&[3, 0, 1]));
    }
}
