//! Models of llama2.c (<https://github.com/karpathy/llama2.c>, MIT): a header of seven numbers, then
//! all weights in 32-bit floats, one after the other.

use std::{fs, path::Path};

use burn::tensor::{Device, TensorData};

use crate::{
    error::ModelError,
    gpt::{Gpt, GptConfig},
    hf,
    store::Tensors,
};

/// The header: seven 32-bit integers.
const HEADER: usize = 28;
/// What newer exports begin with.
const MAGIC: u32 = 0x616b_3432;

/// Loads a file of llama2.c's first format (`export.py --version 0`).
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::Config`], [`ModelError::Unsupported`] (a newer format) or
/// [`ModelError::Corrupt`] (not as long as its header says).
pub fn load(path: &Path, device: &Device) -> Result<(GptConfig, Gpt), ModelError> {
    let bytes = fs::read(path).map_err(ModelError::io(path))?;
    let corrupt = |reason: String| ModelError::Corrupt {
        path: path.to_owned(),
        format: "llama2.c",
        reason,
    };
    let Some((header, weights)) = bytes.split_at_checked(HEADER) else {
        return Err(corrupt("shorter than a header".into()));
    };
    let mut numbers = header
        .chunks_exact(4)
        .map(|word| i32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let mut number = || numbers.next().unwrap_or(0);
    let first = number();
    if first as u32 == MAGIC {
        return Err(ModelError::Unsupported {
            path: path.to_owned(),
            what: "a newer format of llama2.c".into(),
            supported: "format 0; export the model again with --version 0",
        });
    }
    // 1. The header; a negative vocabulary means that the head is not the embedding.
    let size = |number: i32| usize::try_from(number).unwrap_or(0);
    let d_model = size(first);
    let d_ff = size(number());
    let n_layers = size(number());
    let n_heads = size(number());
    let n_kv_heads = size(number());
    let vocab = number();
    let config = GptConfig {
        vocab_size: vocab.unsigned_abs() as usize,
        seq_len: size(number()),
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: Some(n_kv_heads),
        d_ff: Some(d_ff),
        tied_head: vocab > 0,
        ..GptConfig::llama()
    };
    config.validate()?;
    // 2. What the file must hold. The two tables of rotary positions are made anew.
    let parts = Parts::of(&config);
    let floats = parts
        .floats()
        .ok_or_else(|| corrupt("absurd sizes".into()))?;
    if weights.len() as u128 != 4 * floats {
        return Err(corrupt(format!(
            "the header announces {} bytes of weights, there are {}",
            4 * floats,
            weights.len()
        )));
    }
    // 3. Cut.
    let mut weights = weights
        .chunks_exact(4)
        .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let mut tensors = Tensors::new();
    for part in parts.0 {
        for layer in 0..part.layers.unwrap_or(1) {
            let n = part.rows.unwrap_or(1) * part.columns;
            let mut values: Vec<f32> = weights.by_ref().take(n).collect();
            if let Some(heads) = part.heads {
                values = halves(&values, heads, part.columns);
            }
            let shape = match part.rows {
                Some(rows) => vec![rows, part.columns],
                None => vec![part.columns],
            };
            if let Some(name) = part.name {
                let name = match part.layers {
                    Some(_) => format!("model.layers.{layer}.{name}.weight"),
                    None => format!("{name}.weight"),
                };
                tensors.insert(name, TensorData::new(values, shape));
            }
        }
    }
    let model = hf::from_tensors(&config, hf::Family::Llama, tensors, path, device)?;
    Ok((config, model))
}

/// Rows of a head from neighbours that turn together to halves that do, as Hugging Face has them.
fn halves(matrix: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let width = matrix.len() / (heads * columns);
    let row = |head, at: usize| {
        let pair = at % (width / 2);
        let row = head * width + 2 * pair + at / (width / 2);
        &matrix[row * columns..(row + 1) * columns]
    };
    (0..heads)
        .flat_map(|head| (0..width).map(move |at| (head, at)))
        .flat_map(|(head, at)| row(head, at))
        .copied()
        .collect()
}

/// One kind of weight in the file.
struct Part {
    /// Hugging Face's name of it; none for what is not a weight.
    name: Option<&'static str>,
    /// Its copies, if every layer has one.
    layers: Option<usize>,
    /// `None` for a vector.
    rows: Option<usize>,
    columns: usize,
    /// Heads whose rows turn.
    heads: Option<usize>,
}

/// The weights in the file's order.
struct Parts(Vec<Part>);

impl Parts {
    fn of(config: &GptConfig) -> Self {
        let (d, d_ff) = (config.d_model, config.mlp_width());
        let (heads, kv_heads) = (config.n_heads, config.kv_heads());
        let d_kv = kv_heads * config.head_width();
        let part = |name, rows, columns| Part {
            name: Some(name),
            layers: Some(config.n_layers),
            rows,
            columns,
            heads: None,
        };
        let turning = |part: Part, heads| Part {
            heads: Some(heads),
            ..part
        };
        let once = |part: Part| Part {
            layers: None,
            ..part
        };
        let mut parts = vec![
            once(part("model.embed_tokens", Some(config.vocab_size), d)),
            part("input_layernorm", None, d),
            turning(part("self_attn.q_proj", Some(d), d), heads),
            turning(part("self_attn.k_proj", Some(d_kv), d), kv_heads),
            part("self_attn.v_proj", Some(d_kv), d),
            part("self_attn.o_proj", Some(d), d),
            part("post_attention_layernorm", None, d),
            part("mlp.gate_proj", Some(d_ff), d),
            part("mlp.down_proj", Some(d), d_ff),
            part("mlp.up_proj", Some(d_ff), d),
            once(part("model.norm", None, d)),
            Part {
                name: None,
                ..once(part("", Some(config.seq_len), config.head_width()))
            },
        ];
        if !config.tied_head {
            parts.push(once(part("lm_head", Some(config.vocab_size), d)));
        }
        Self(parts)
    }

    /// Numbers in all; `None` if that is beyond counting.
    fn floats(&self) -> Option<u128> {
        let mut total = 0u128;
        for part in &self.0 {
            let sizes = [
                part.layers.unwrap_or(1),
                part.rows.unwrap_or(1),
                part.columns,
            ];
            let product = sizes
                .iter()
                .try_fold(1u128, |product, size| product.checked_mul(*size as u128));
            total = total.checked_add(product?)?;
        }
        Some(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_halves() {
        // One head of four rows, one column.
        assert_eq!(halves(&[0.0, 1.0, 2.0, 3.0], 1, 1), [0.0, 2.0, 1.0, 3.0]);
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.bin");
        let message = |numbers: &[i32], floats: usize| {
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            bytes.extend(vec![0; 4 * floats]);
            fs::write(&path, bytes).unwrap();
            match load(&path, &Device::flex()) {
                Ok((config, _)) => format!("{} tokens", config.vocab_size),
                Err(error) => error.to_string(),
            }
        };
        // Embedding 5x4, two norms, 4x4 of q, k, v and o, three of 6x4, the last norm, tables 3x2.
        let floats = 5 * 4 + 2 * 4 + 4 * 16 + 3 * 24 + 4 + 3 * 2;
        let whole = [4, 6, 1, 2, 2, 5, 3];
        assert_eq!(message(&whole, floats), "5 tokens");
        assert_eq!(message(&[4, 6, 1, 2, 2, -5, 3], floats + 20), "5 tokens");
        assert!(message(&whole, floats - 1).contains("the header announces"));
        assert!(message(&whole[..3], 0).contains("shorter than a header"));
        assert!(message(&[4, 6, 1, 2, 2, 5, 0], floats).contains("seq_len"));
        let huge = [i32::MAX; 7];
        assert!(!message(&huge, 1).contains("tokens"));
        let newer = [MAGIC as i32, 2, 0, 0, 0, 0, 0];
        assert!(message(&newer, 0).contains("--version 0"));
    }
}
