//! What language models are made of, at the sizes of `gpt-tiny` and `gpt-baby`.

use maquette::burn::tensor::{Device, Int, Tensor};
use maquette::kernels::{
    AttentionOptions, cross_entropy, gelu_tanh, layer_norm, rms_norm, self_attention,
};

use super::{Case, Work, plain, random, train};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // [rows, d_in, d_out]: the four products of a block, and the head of gpt-8k.
    for [m, k, n] in [
        [2048, 384, 1152],
        [2048, 384, 384],
        [2048, 384, 1536],
        [2048, 1536, 384],
        [2048, 384, 8192],
    ] {
        let (x, weight) = (random([m, k]), random([k, n]));
        cases.push(Case::new(
            format!("matrix product {m}x{k}x{n}, both ways"),
            Work::Flops(3 * 2 * m * k * n),
            move || train(x.clone().matmul(weight.clone())),
        ));
    }
    // [batch, seq, d_model, heads, vocabulary]
    for [batch, seq, d, n_heads, vocab] in [[12, 64, 128, 4, 65], [8, 256, 384, 6, 65]] {
        let size = batch * seq * d;
        let name = |what: &str| format!("{what} [{batch}, {seq}, {d}]");
        let qkv = random([batch, seq, 3 * d]);
        let options = AttentionOptions::causal(n_heads, n_heads);
        // Two products forward, five backward (the scores again), each over the seen half.
        cases.push(Case::new(
            format!("{}, both ways", name("causal attention")),
            Work::Flops(7 * 2 * size * seq / 2),
            move || train(self_attention(qkv.clone(), options)),
        ));
        let (x, gain, offset) = (plain([batch, seq, d]), plain([d]), plain([d]));
        let (x1, gain1) = (x.clone(), gain.clone());
        cases.push(Case::new(
            name("layer norm"),
            Work::Floats(2 * size),
            move || {
                drop(layer_norm(
                    x.clone(),
                    gain.clone(),
                    Some(offset.clone()),
                    1e-5,
                ))
            },
        ));
        cases.push(Case::new(
            name("RMS norm"),
            Work::Floats(2 * size),
            move || drop(rms_norm(x1.clone(), gain1.clone(), 1e-5)),
        ));
        let (x, gain, offset) = (random([batch, seq, d]), random([d]), random([d]));
        cases.push(Case::new(
            format!("{}, both ways", name("layer norm")),
            Work::Floats((2 + 2 + 3) * size),
            move || {
                train(layer_norm(
                    x.clone(),
                    gain.clone(),
                    Some(offset.clone()),
                    1e-5,
                ))
            },
        ));
        let x = plain([batch, seq, 4 * d]);
        cases.push(Case::new(
            name("GELU, 4 d wide,"),
            Work::Floats(8 * size),
            move || drop(gelu_tanh(x.clone())),
        ));
        let x = random([batch, seq, 4 * d]);
        cases.push(Case::new(
            format!("{}, both ways", name("GELU, 4 d wide,")),
            Work::Floats((2 + 2 + 3) * 4 * size),
            move || train(gelu_tanh(x.clone())),
        ));
        for vocab in [vocab, 8192]
            .into_iter()
            .filter(|vocab| seq > 64 || *vocab < 8192)
        {
            let rows = batch * seq;
            let logits = random([rows, vocab]);
            let targets = Tensor::<1, Int>::zeros([rows], &Device::flex().autodiff());
            cases.push(Case::new(
                format!("cross-entropy of [{rows}, {vocab}], both ways"),
                Work::Floats(3 * rows * vocab),
                move || train(cross_entropy(logits.clone(), targets.clone())),
            ));
        }
    }
    cases
}
