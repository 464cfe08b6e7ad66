//! What tensors are called: by Hugging Face, and by llama.cpp.

use crate::{gpt::GptConfig, hf::Family};

/// Names outside the blocks: Llama's, GPT-2's, llama.cpp's.
const WHOLE: [[&str; 3]; 4] = [
    ["model.embed_tokens", "wte", "token_embd"],
    ["", "wpe", "position_embd"],
    ["model.norm", "ln_f", "output_norm"],
    ["lm_head", "lm_head", "output"],
];

/// Names inside a block.
const BLOCK: [[&str; 3]; 13] = [
    ["input_layernorm", "ln_1", "attn_norm"],
    ["", "attn.c_attn", "attn_qkv"],
    ["self_attn.q_proj", "", "attn_q"],
    ["self_attn.k_proj", "", "attn_k"],
    ["self_attn.v_proj", "", "attn_v"],
    ["self_attn.o_proj", "attn.c_proj", "attn_output"],
    ["self_attn.q_norm", "", "attn_q_norm"],
    ["self_attn.k_norm", "", "attn_k_norm"],
    ["post_attention_layernorm", "ln_2", "ffn_norm"],
    ["block_sparse_moe.gate", "", "ffn_gate_inp"],
    ["mlp.gate_proj", "", "ffn_gate"],
    ["mlp.up_proj", "mlp.c_fc", "ffn_up"],
    ["mlp.down_proj", "mlp.c_proj", "ffn_down"],
];

/// The matrices of an expert: Mixtral's, and what llama.cpp stacks those of a block in.
const EXPERTS: [[&str; 2]; 3] = [
    ["w1", "ffn_gate_exps"],
    ["w2", "ffn_down_exps"],
    ["w3", "ffn_up_exps"],
];

/// A tensor, or one of the experts stacked in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) expert: Option<usize>,
}

/// What blocks are called before their number: by Llama, by GPT-2, by llama.cpp.
const PREFIX: [&str; 3] = ["model.layers.", "h.", "blk."];

/// Column of the tables above.
const LLAMA_CPP: usize = 2;

fn column(family: Family) -> usize {
    usize::from(family == Family::Gpt2)
}

fn rename(name: &str, from: usize, to: usize) -> Option<String> {
    let (stem, end) = name.rsplit_once('.')?;
    let find = |table: &[[&str; 3]], stem: &str| {
        let mut rows = table.iter().filter(|row| !row[from].is_empty());
        let row = rows.find(|row| row[from] == stem)?;
        Some(row[to].to_owned()).filter(|name| !name.is_empty())
    };
    match stem.strip_prefix(PREFIX[from]) {
        None => Some(format!("{}.{end}", find(&WHOLE, stem)?)),
        Some(rest) => {
            let (layer, stem) = rest.split_once('.')?;
            layer.parse::<usize>().ok()?;
            Some(format!(
                "{}{layer}.{}.{end}",
                PREFIX[to],
                find(&BLOCK, stem)?
            ))
        }
    }
}

/// What Hugging Face calls a tensor that stands alone.
pub(super) fn to_hugging_face(name: &str, family: Family) -> Option<String> {
    rename(name, LLAMA_CPP, column(family))
}

/// What Hugging Face calls the experts stacked in a tensor, first to last; nothing if it has none.
pub(super) fn experts(name: &str, count: usize) -> Option<Vec<String>> {
    let (layer, kind) = name.strip_prefix("blk.")?.split_once('.')?;
    let [theirs, _] = EXPERTS
        .iter()
        .find(|[_, ours]| format!("{ours}.weight") == kind)?;
    let named = |e| format!("model.layers.{layer}.block_sparse_moe.experts.{e}.{theirs}.weight");
    Some((0..count).map(named).collect())
}

/// Where a file has what Hugging Face calls `plain`.
pub(crate) fn place(plain: &str, family: Family) -> Option<Place> {
    let of_expert = plain.split_once(".block_sparse_moe.experts.");
    let Some((before, rest)) = of_expert else {
        return Some(Place {
            name: rename(plain, column(family), LLAMA_CPP)?,
            expert: None,
        });
    };
    let layer = before.strip_prefix("model.layers.")?;
    let (expert, kind) = rest.split_once('.')?;
    let kind = kind.strip_suffix(".weight")?;
    let [_, ours] = EXPERTS.iter().find(|[theirs, _]| *theirs == kind)?;
    Some(Place {
        name: format!("blk.{layer}.{ours}.weight"),
        expert: Some(expert.parse().ok()?),
    })
}

/// Whether this is one of GPT-2's matrices that it stores `[d_in, d_out]`.
pub(super) fn is_linear(plain: &str) -> bool {
    plain.ends_with(".weight")
        && ["attn.c_", "mlp.c_"]
            .iter()
            .any(|part| plain.contains(part))
}

/// How many heads the rows of a query or key projection belong to; none of another tensor.
pub(super) fn heads_of(plain: &str, config: &GptConfig) -> Option<usize> {
    match () {
        () if plain.contains("self_attn.q_proj") => Some(config.n_heads),
        () if plain.contains("self_attn.k_proj") => Some(config.kv_heads()),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_place() {
        let at = |plain: &str, family| place(plain, family).map(|place| (place.name, place.expert));
        let some = |name: &str, expert| Some((name.to_owned(), expert));
        assert_eq!(
            at("model.layers.3.self_attn.q_proj.weight", Family::Qwen2),
            some("blk.3.attn_q.weight", None)
        );
        assert_eq!(
            at("h.0.attn.c_attn.bias", Family::Gpt2),
            some("blk.0.attn_qkv.bias", None)
        );
        let expert = "model.layers.1.block_sparse_moe.experts.5.w2.weight";
        assert_eq!(
            at(expert, Family::Mixtral),
            some("blk.1.ffn_down_exps.weight", Some(5))
        );
        assert_eq!(experts("blk.1.ffn_down_exps.weight", 6).unwrap()[5], expert);
        assert_eq!(experts("blk.1.ffn_down.weight", 6), None);
        assert_eq!(at("model.layers.1.unheard.weight", Family::Llama), None);
    }
}
