//! What language models are made of, at the sizes of `gpt-tiny` and `gpt-baby`.

use maquette::burn::tensor::{Device, Int, Tensor};
use maquette::kernels::quant::{Format, QuantMatrix};
use maquette::kernels::{
    Activation, AttentionOptions, Dropout, activate, attention, cross_entropy, dropout, embedding,
    gated, gelu_tanh, layer_norm, linear, rms_norm, rotary, self_attention,
};

use super::{Case, Work, plain, random, train};

/// One row times a matrix in each of a file's number formats, larger than any cache: what decoding one text
/// consists of.
fn decoding() -> impl Iterator<Item = Case> {
    const BYTES: usize = 1 << 26;
    let [columns, different] = [1 << 11, 16];
    // A few rows of numbers, again and again.
    let some: Vec<f32> = plain([different, columns]).into_data().iter().collect();
    Format::ALL.into_iter().map(move |format| {
        let rows = format.encode(&some);
        let bytes = rows.repeat(BYTES / rows.len());
        let (floats, count) = (
            bytes.len() / size_of::<f32>(),
            different * (BYTES / rows.len()),
        );
        let matrix = QuantMatrix::new(format, count, columns, bytes.into()).expect("whole rows");
        let (x, mut out) = (some[..columns].to_vec(), vec![0.0; count]);
        Case::new(
            format!("1x{columns} times {count} rows of {}", format.name()),
            Work::Floats(floats),
            move || matrix.multiply(&x, &mut out),
        )
        .alone()
    })
}

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
        let product = |name: &str| {
            let (x, weight) = (x.clone(), weight.clone());
            Case::new(
                format!("{name} {m}x{k}x{n}, both ways"),
                Work::Flops(3 * 2 * m * k * n),
                move || {
                    train(linear(
                        x.clone(),
                        weight.clone(),
                        None,
                        Activation::Identity,
                    ))
                },
            )
        };
        cases.push(product("matrix product"));
        cases.push(product("bf16 matrix product").in_bf16());
    }
    // [texts, keys, query heads, key heads, d_head]: one token more, of gpt-baby and of a Llama.
    for [batch, keys, n_heads, n_kv_heads, d_head] in [[8, 256, 6, 6, 64], [1, 2048, 32, 8, 64]] {
        let q = plain([batch, n_heads, 1, d_head]);
        let [k, v] = [0, 1].map(|_| plain([batch, n_kv_heads, keys, d_head]));
        let options = AttentionOptions::causal(n_heads, n_kv_heads);
        cases.push(Case::new(
            format!("attention of {batch}x{n_heads} queries to {keys} keys of {n_kv_heads} heads"),
            Work::Floats(2 * batch * n_kv_heads * keys * d_head),
            move || drop(attention(q.clone(), k.clone(), v.clone(), options)),
        ));
    }
    cases.extend(decoding());
    let (x, weight, offset) = (random([2048, 384]), random([384, 1536]), random([1536]));
    cases.push(Case::new(
        "linear layer with GELU 2048x384x1536, both ways".into(),
        Work::Flops(3 * 2 * 2048 * 384 * 1536),
        move || {
            let offset = Some(offset.clone());
            train(linear(
                x.clone(),
                weight.clone(),
                offset,
                Activation::GeluTanh,
            ))
        },
    ));
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
        // What it rotates is read and written, the rest stays where it is.
        let (x, angles) = (
            random([batch, seq, 3 * n_heads, d / n_heads]),
            plain([seq, d / n_heads / 2]),
        );
        let angles = angles.autodiff();
        cases.push(Case::new(
            format!("{}, both ways", name("rotary positions, 3 d wide,")),
            // All read and written, as the benchmark keeps its input; the gradient made, and rotated in
            // place.
            Work::Floats((6 + 3 + 4) * size),
            move || {
                train(rotary(
                    x.clone(),
                    angles.clone(),
                    angles.clone(),
                    2 * n_heads,
                ))
            },
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
            Work::Floats((2 + 1 + 3) * size),
            move || {
                train(layer_norm(
                    x.clone(),
                    gain.clone(),
                    Some(offset.clone()),
                    1e-5,
                ))
            },
        ));
        let (x, gain) = (random([batch, seq, d]), random([d]));
        cases.push(Case::new(
            format!("{}, both ways", name("RMS norm")),
            Work::Floats((2 + 1 + 3) * size),
            move || train(rms_norm(x.clone(), gain.clone(), 1e-5)),
        ));
        let x = plain([batch, seq, 4 * d]);
        cases.push(Case::new(
            name("GELU (tanh), 4 d wide,"),
            Work::Floats(8 * size),
            move || drop(gelu_tanh(x.clone())),
        ));
        for (what, activation) in [
            ("ReLU", Activation::Relu),
            ("leaky ReLU", Activation::LeakyRelu(0.2)),
            ("SiLU", Activation::Silu),
            ("GELU", Activation::Gelu),
            ("GELU (tanh)", Activation::GeluTanh),
        ] {
            let x = random([batch, seq, 4 * d]);
            cases.push(Case::new(
                format!("{}, both ways", name(&format!("{what}, 4 d wide,"))),
                Work::Floats((2 + 1 + 3) * 4 * size),
                move || train(activate(x.clone(), activation)),
            ));
        }
        let (gate, x) = (random([batch, seq, 4 * d]), random([batch, seq, 4 * d]));
        cases.push(Case::new(
            format!("{}, both ways", name("SwiGLU gate, 4 d wide,")),
            Work::Floats((3 + 1 + 5) * 4 * size),
            move || train(gated(gate.clone(), x.clone(), Activation::Silu)),
        ));
        let (x, residual) = (random([batch, seq, d]), random([batch, seq, d]));
        let options = Dropout {
            probability: 0.2,
            key: 1,
        };
        cases.push(Case::new(
            format!("{}, both ways", name("dropout onto a residual")),
            Work::Floats((3 + 1 + 2) * size),
            move || train(dropout(x.clone(), Some(residual.clone()), options)),
        ));
        let table = random([vocab, d]);
        let ids = Tensor::<2, Int>::zeros([batch, seq], &Device::flex().autodiff());
        cases.push(Case::new(
            format!("{}, both ways", name("embedding")),
            Work::Floats((2 + 1 + 1) * size + 2 * vocab * d),
            move || train(embedding(table.clone(), ids.clone())),
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
