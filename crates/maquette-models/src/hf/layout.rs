//! `model.safetensors`: which tensors our parameters stand as.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::TensorData;

use super::config::Family;
use crate::{
    error::ModelError,
    gpt::GptConfig,
    store::{self, Tensors},
};

/// One of our parameters and the tensors it stands as in the folder.
pub(super) struct Entry {
    /// Its path in the module.
    ours: String,
    /// Names and widths; our columns are theirs, side by side.
    theirs: Vec<(String, usize)>,
    /// Rows of our matrix; `None` for a vector.
    rows: Option<usize>,
    /// Whether theirs are `[d_out, d_in]`.
    transposed: bool,
}

/// The name without what differs between versions of `transformers`; `None` for buffers that old
/// versions saved.
pub(super) fn plain_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("transformer.").unwrap_or(name);
    let buffer = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
    (!buffer.iter().any(|end| name.ends_with(end))).then(|| name.to_owned())
}

/// The inverse of [`plain_name`] for a GPT-2.
pub(super) fn full_name(name: String) -> String {
    if name.starts_with("lm_head.") {
        name
    } else {
        format!("transformer.{name}")
    }
}

pub(super) fn layout(config: &GptConfig, family: Family) -> Vec<Entry> {
    match family {
        Family::Gpt2 => gpt2_layout(config),
        Family::Llama | Family::Mistral | Family::Mixtral | Family::Qwen2 | Family::Qwen3 => {
            llama_layout(config)
        }
    }
}

/// Plain names, see [`plain_name`].
fn gpt2_layout(config: &GptConfig) -> Vec<Entry> {
    let (d, d_ff) = (config.d_model, config.mlp_width());
    let mut entries = vec![
        Entry::matrix(
            "tokens.weight",
            config.vocab_size,
            [("wte.weight", d)],
            false,
        ),
        Entry::matrix(
            "positions.weight",
            config.seq_len,
            [("wpe.weight", d)],
            false,
        ),
    ];
    let mut affine = |ours: &str, theirs: &str, d_in: Option<usize>, width: usize| {
        for name in ["weight", "bias"] {
            entries.push(Entry {
                ours: format!("{ours}.{name}"),
                theirs: vec![(format!("{theirs}.{name}"), width)],
                rows: d_in.filter(|_| name == "weight"),
                transposed: false,
            });
        }
    };
    for i in 0..config.n_layers {
        let (ours, theirs) = (format!("blocks.{i}"), format!("h.{i}"));
        let mut part = |a: &str, b: &str, d_in, width| {
            affine(
                &format!("{ours}.{a}"),
                &format!("{theirs}.{b}"),
                d_in,
                width,
            );
        };
        part("attention_norm", "ln_1", None, d);
        part("attention.qkv", "attn.c_attn", Some(d), 3 * d);
        part("attention.proj", "attn.c_proj", Some(d), d);
        part("mlp_norm", "ln_2", None, d);
        part("mlp.up", "mlp.c_fc", Some(d), d_ff);
        part("mlp.down", "mlp.c_proj", Some(d_ff), d);
    }
    affine("norm", "ln_f", None, d);
    if !config.tied_head {
        entries.push(head(config));
    }
    entries
}

fn llama_layout(config: &GptConfig) -> Vec<Entry> {
    let (d, d_ff) = (config.d_model, config.mlp_width());
    let d_q = config.head_width() * config.n_heads;
    let d_kv = config.head_width() * config.kv_heads();
    let embedding = [("model.embed_tokens.weight", d)];
    let mut entries = vec![Entry::matrix(
        "tokens.weight",
        config.vocab_size,
        embedding,
        false,
    )];
    for i in 0..config.n_layers {
        let prefix = format!("model.layers.{i}");
        // Matrices have inputs, and an offset where `bias` says so; norms have neither.
        let mut part = |ours: &str, theirs: &[(&str, usize)], d_in: Option<usize>, bias: bool| {
            let names: &[&str] = if bias {
                &["weight", "bias"]
            } else {
                &["weight"]
            };
            for name in names {
                let full = |(t, width): &(&str, usize)| (format!("{prefix}.{t}.{name}"), *width);
                entries.push(Entry {
                    ours: format!("blocks.{i}.{ours}.{name}"),
                    theirs: theirs.iter().map(full).collect(),
                    rows: d_in.filter(|_| *name == "weight"),
                    transposed: true,
                });
            }
        };
        let qkv = [
            ("self_attn.q_proj", d_q),
            ("self_attn.k_proj", d_kv),
            ("self_attn.v_proj", d_kv),
        ];
        let (qkv_bias, proj_bias) = (config.qkv_bias(), config.proj_bias());
        part("attention_norm", &[("input_layernorm", d)], None, false);
        part("attention.qkv", &qkv, Some(d), qkv_bias);
        if config.qk_norm {
            let width = config.head_width();
            part(
                "attention.q_norm",
                &[("self_attn.q_norm", width)],
                None,
                false,
            );
            part(
                "attention.k_norm",
                &[("self_attn.k_norm", width)],
                None,
                false,
            );
        }
        part(
            "attention.proj",
            &[("self_attn.o_proj", d)],
            Some(d_q),
            proj_bias,
        );
        part("mlp_norm", &[("post_attention_layernorm", d)], None, false);
        let bias = config.mlp_bias();
        let Some(experts) = &config.experts else {
            part("mlp.gate", &[("mlp.gate_proj", d_ff)], Some(d), bias);
            part("mlp.up", &[("mlp.up_proj", d_ff)], Some(d), bias);
            part("mlp.down", &[("mlp.down_proj", d)], Some(d_ff), bias);
            continue;
        };
        let router = ("block_sparse_moe.gate", experts.count);
        part("moe.router", &[router], Some(d), false);
        for e in 0..experts.count {
            let mut expert = |a: &str, b: &str, d_in, d_out| {
                let (ours, theirs) = (
                    format!("moe.experts.{e}.{a}"),
                    format!("block_sparse_moe.experts.{e}.{b}"),
                );
                part(&ours, &[(theirs.as_str(), d_out)], Some(d_in), bias);
            };
            expert("gate", "w1", d, d_ff);
            expert("up", "w3", d, d_ff);
            expert("down", "w2", d_ff, d);
        }
    }
    entries.push(Entry {
        ours: "norm.weight".into(),
        theirs: vec![("model.norm.weight".into(), d)],
        rows: None,
        transposed: false,
    });
    if !config.tied_head {
        entries.push(head(config));
    }
    entries
}

fn head(config: &GptConfig) -> Entry {
    let theirs = [("lm_head.weight", config.vocab_size)];
    Entry::matrix("head.weight", config.d_model, theirs, true)
}

/// Our parameters out of a folder's tensors, which must be exactly those of the layout.
pub(super) fn assemble(
    layout: &[Entry],
    mut theirs: Tensors,
    path: &Path,
) -> Result<Tensors, ModelError> {
    store::check(&expected(layout), &theirs, path)?;
    let ours = layout
        .iter()
        .map(|entry| (entry.ours.clone(), entry.join(&mut theirs)));
    Ok(ours.collect())
}

/// One tensor of a folder and the parameter that it is, or is the next part of.
pub(crate) struct Part {
    pub(crate) ours: String,
    pub(crate) theirs: String,
    /// In the folder.
    pub(crate) shape: Vec<usize>,
    /// Whether the folder has this projection `[d_in, d_out]`.
    pub(crate) turned: bool,
}

/// The tensors of a layout, parts of a parameter in their order.
pub(super) fn parts(layout: &[Entry]) -> Vec<Part> {
    let part = |entry: &Entry, (name, width): &(String, usize)| {
        let embedding = ["tokens.weight", "positions.weight"].contains(&entry.ours.as_str());
        Part {
            ours: entry.ours.clone(),
            theirs: name.clone(),
            shape: entry.shape(*width),
            turned: entry.rows.is_some() && !entry.transposed && !embedding,
        }
    };
    let all = layout.iter();
    all.flat_map(|entry| entry.theirs.iter().map(move |theirs| part(entry, theirs)))
        .collect()
}

/// The inverse of [`assemble`].
pub(super) fn disassemble(layout: &[Entry], ours: &Tensors) -> Tensors {
    let mut theirs = Tensors::new();
    for entry in layout {
        entry.split(ours.get(&entry.ours), &mut theirs);
    }
    theirs
}

/// Names and shapes a folder must have.
fn expected(layout: &[Entry]) -> BTreeMap<String, Vec<usize>> {
    let tensors = layout.iter().flat_map(|entry| {
        entry
            .theirs
            .iter()
            .map(|(name, width)| (name.clone(), entry.shape(*width)))
    });
    tensors.collect()
}

impl Entry {
    pub(super) fn vector(ours: &str, theirs: &str, width: usize) -> Self {
        Self {
            ours: ours.to_owned(),
            theirs: vec![(theirs.to_owned(), width)],
            rows: None,
            transposed: false,
        }
    }

    /// Gains and offsets.
    pub(super) fn norm(ours: &str, theirs: &str, width: usize) -> [Self; 2] {
        ["weight", "bias"].map(|name| {
            Self::vector(
                &format!("{ours}.{name}"),
                &format!("{theirs}.{name}"),
                width,
            )
        })
    }

    /// A `[d_out, d_in]` matrix and its offset, or several side by side.
    pub(super) fn linear(ours: &str, theirs: &[(&str, usize)], d_in: usize) -> [Self; 2] {
        ["weight", "bias"].map(|name| Self {
            ours: format!("{ours}.{name}"),
            theirs: theirs
                .iter()
                .map(|(theirs, width)| (format!("{theirs}.{name}"), *width))
                .collect(),
            rows: (name == "weight").then_some(d_in),
            transposed: true,
        })
    }

    /// `[d_out, d_in]` matrices without offsets, side by side.
    pub(super) fn matrices(ours: &str, d_in: usize, theirs: Vec<(String, usize)>) -> Self {
        Self {
            ours: ours.to_owned(),
            theirs,
            rows: Some(d_in),
            transposed: true,
        }
    }

    pub(super) fn matrix<const N: usize>(
        ours: &str,
        rows: usize,
        theirs: [(&str, usize); N],
        transposed: bool,
    ) -> Self {
        let theirs = theirs
            .map(|(name, width)| (name.to_owned(), width))
            .to_vec();
        Self {
            ours: ours.to_owned(),
            theirs,
            rows: Some(rows),
            transposed,
        }
    }

    /// Shape of one of theirs.
    fn shape(&self, width: usize) -> Vec<usize> {
        match self.rows {
            None => vec![width],
            Some(rows) if self.transposed => vec![width, rows],
            Some(rows) => vec![rows, width],
        }
    }

    /// Takes theirs, whose names and shapes were checked, and makes ours: each transposed if need
    /// be, side by side.
    fn join(&self, theirs: &mut Tensors) -> TensorData {
        let (rows, total) = (self.rows.unwrap_or(1), self.total());
        let mut ours = vec![0f32; rows * total];
        let mut first = 0;
        for (name, width) in &self.theirs {
            let data = theirs
                .remove(name)
                .unwrap_or_else(|| TensorData::zeros::<f32, _>([0]));
            for (i, value) in data.iter::<f32>().enumerate() {
                let (row, column) = self.place(i, rows, *width);
                ours[row * total + first + column] = value;
            }
            first += width;
        }
        match self.rows {
            Some(rows) => TensorData::new(ours, [rows, total]),
            None => TensorData::new(ours, [total]),
        }
    }

    /// The inverse of [`Entry::join`]; zeros for an offset that ours lacks.
    fn split(&self, ours: Option<&TensorData>, theirs: &mut Tensors) {
        let (rows, total) = (self.rows.unwrap_or(1), self.total());
        let ours: Vec<f32> = match ours {
            Some(data) => data.iter::<f32>().collect(),
            None => vec![0.0; rows * total],
        };
        let mut first = 0;
        for (name, width) in &self.theirs {
            let value = |i| {
                let (row, column) = self.place(i, rows, *width);
                ours[row * total + first + column]
            };
            let values: Vec<f32> = (0..rows * width).map(value).collect();
            theirs.insert(name.clone(), TensorData::new(values, self.shape(*width)));
            first += width;
        }
    }

    /// Width of ours.
    fn total(&self) -> usize {
        self.theirs.iter().map(|(_, width)| width).sum()
    }

    /// Row and column, in our orientation, of the `i`th number of one of theirs.
    fn place(&self, i: usize, rows: usize, width: usize) -> (usize, usize) {
        if self.transposed {
            (i % rows, i / rows)
        } else {
            (i / width, i % width)
        }
    }
}
