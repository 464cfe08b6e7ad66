//! Filling the gaps of a text with a masked language model (Devlin et al. 2018).

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData, activation::softmax};
use maquette_data::Tokenizer;
use maquette_data::masking::Vocabulary;
use maquette_models::{Bert, BertInput};

use crate::GenerateError;

/// What may stand in a gap.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// As the vocabulary spells it.
    pub token: String,
    /// By the model's own distribution.
    pub probability: f64,
}

/// A text with its gaps filled.
#[derive(Debug, Clone, PartialEq)]
pub struct Filled {
    /// With the likeliest token in each gap.
    pub text: String,
    /// Its tokens, those that the tokenizer's template adds included.
    pub ids: Vec<u32>,
    /// For each gap the likeliest tokens, best first.
    pub gaps: Vec<Vec<Candidate>>,
}

/// The `top_k` likeliest tokens for every `[MASK]` (or `<mask>`) of `text`, each gap on its own.
///
/// # Errors
/// A tokenizer without a mask token, a text without a gap or longer than the model reads.
pub fn fill(
    model: &Bert,
    tokenizer: &Tokenizer,
    text: &str,
    top_k: usize,
) -> Result<Filled, GenerateError> {
    let wrong = |what: String| GenerateError::Encode(what);
    let vocabulary = Vocabulary::of(tokenizer)
        .ok_or_else(|| wrong("the tokenizer knows no [MASK] or <mask>".into()))?;
    let mut ids = tokenizer
        .encode_with_template(text)
        .map_err(|e| wrong(e.to_string()))?;
    let mask = vocabulary.mask();
    let named = tokenizer.id_to_token(mask).unwrap_or_default();
    let places: Vec<usize> = (0..ids.len()).filter(|at| ids[*at] == mask).collect();
    if places.is_empty() {
        return Err(wrong(format!(
            "it has no gap to fill; write {named} for one"
        )));
    }
    if ids.len() > model.seq_len() {
        return Err(wrong(format!(
            "it has {} tokens, {} more than the model reads",
            ids.len(),
            ids.len() - model.seq_len()
        )));
    }
    let vocab_size = model.vocab_size();
    if let Some(token) = ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(GenerateError::UnknownToken {
            token: *token,
            vocab_size,
        });
    }
    let device = model.devices()[0].clone();
    let numbers = |values: Vec<i32>| {
        let n = values.len();
        Tensor::<1, Int>::from_data(TensorData::new(values, [n]), &device)
    };
    let tokens = numbers(ids.iter().map(|id| *id as i32).collect()).unsqueeze::<2>();
    let features = model.forward(BertInput::new(tokens));
    let at = numbers(places.iter().map(|at| *at as i32).collect());
    let probabilities = softmax(model.masked_logits(features, at), 1).into_data();
    let probabilities: Vec<f32> = probabilities.iter::<f32>().collect();
    let gaps: Vec<Vec<Candidate>> = probabilities
        .chunks(vocab_size)
        .map(|row| likeliest(row, tokenizer, top_k))
        .collect();
    for (place, gap) in places.iter().zip(&gaps) {
        ids[*place] = gap.first().map_or(mask, |best| best.id);
    }
    Ok(Filled {
        text: tokenizer
            .decode_visible(&ids)
            .map_err(|e| GenerateError::Decode(e.to_string()))?,
        ids,
        gaps,
    })
}

/// The `top_k` tokens with most probability; of equals the first.
fn likeliest(row: &[f32], tokenizer: &Tokenizer, top_k: usize) -> Vec<Candidate> {
    let mut order: Vec<usize> = (0..row.len().min(tokenizer.vocab_size())).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    let candidate = |id: &usize| Candidate {
        id: *id as u32,
        token: tokenizer.id_to_token(*id as u32).unwrap_or_default(),
        probability: f64::from(row[*id]),
    };
    order.iter().take(top_k.max(1)).map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use maquette_data::tokenizer::TokenizerConfig;
    use maquette_data::tokenizer::TokenizerKind;
    use maquette_models::BertConfig;
    use maquette_rng::{Stream, rng};

    #[test]
    fn gaps_get_a_distribution_and_bad_texts_are_refused() {
        let config = TokenizerConfig {
            kind: TokenizerKind::WordPiece,
            vocab_size: 60,
            special_tokens: ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
                .map(str::to_owned)
                .to_vec(),
            ..TokenizerConfig::default()
        };
        let text = "the cat sat on the mat ".repeat(9);
        let tokenizer = config.train(std::iter::once(Ok(text))).unwrap();
        let config = BertConfig {
            vocab_size: tokenizer.vocab_size(),
            seq_len: 8,
            n_layers: 1,
            d_model: 16,
            ..BertConfig::default()
        };
        let model = config.init(&Device::flex(), &mut rng(1, Stream::Init, 0));
        let filled = fill(&model, &tokenizer, "the [MASK] sat on [MASK]", 500).unwrap();
        assert_eq!(filled.gaps.len(), 2);
        for gap in &filled.gaps {
            assert_eq!(gap.len(), tokenizer.vocab_size());
            let sum: f64 = gap.iter().map(|candidate| candidate.probability).sum();
            assert!((sum - 1.0).abs() < 1e-4, "{sum}");
            assert!(gap.is_sorted_by(|a, b| a.probability >= b.probability));
        }
        // [CLS] the cat sat on [MASK] [SEP]: the gaps hold the likeliest tokens.
        assert_eq!(filled.ids[2], filled.gaps[0][0].id);
        assert!(!filled.text.contains("[MASK]"));
        let refused = |text: &str| fill(&model, &tokenizer, text, 5).unwrap_err().to_string();
        assert!(refused("the cat").contains("write [MASK]"));
        assert!(
            refused("[MASK] the cat sat on the mat the cat").contains("more than the model reads")
        );
    }
}
