//! Attention against its formula, written out in plain loops; what length costs; maps to look at.

use std::time::Instant;

use burn::tensor::{Tensor, TensorData};

use crate::labs::training::numbers;
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome, beside, heat};
use crate::nn::attention::AttentionContext;
use crate::nn::init::initialise;
use crate::nn::{Attention, AttentionConfig, AttentionMaps, InitScheme};
use crate::rng::{Stream, normal, rng};

const D_MODEL: usize = 16;
const HEADS: usize = 4;
const SEQ: usize = 12;
const WINDOW: usize = 4;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    lab.say("against the formula");
    let full = AttentionConfig::new(D_MODEL, HEADS);
    let grouped = AttentionConfig {
        n_kv_heads: 2,
        ..full
    };
    let windowed = AttentionConfig {
        window: Some(WINDOW),
        ..full
    };
    let mut claims = Vec::new();
    let kinds = [
        ("both sides", full, false),
        ("causal", full, true),
        ("causal with grouped queries", grouped, true),
        ("sliding window", windowed, true),
    ];
    for (name, config, causal) in kinds {
        let gap = against_formula(lab, &config, causal)?;
        let claim = format!("{name}: largest difference from the formula");
        claims.push(Claim::at_most(claim, gap, 1e-5));
    }
    claims.push(Claim::at_most(
        "cross: largest difference from the formula",
        cross(lab, &full)?,
        1e-5,
    ));

    lab.say("what length costs");
    let lengths: &[usize] = if lab.full() {
        &[128, 256, 512, 1024, 2048]
    } else {
        &[128, 512, 1024]
    };
    let narrow = AttentionConfig {
        window: Some(64),
        ..AttentionConfig::new(64, 4)
    };
    let wide = AttentionConfig {
        window: None,
        ..narrow
    };
    let mut curves: [Vec<(f64, f64)>; 2] = Default::default();
    for &n in lengths {
        for (curve, seconds) in curves.iter_mut().zip(seconds(lab, [&wide, &narrow], n)) {
            curve.push((n as f64, seconds * 1e3));
        }
    }
    let longest = |curve: &[(f64, f64)]| curve.last().map_or(f64::NAN, |(_, y)| *y);
    claims.push(Claim::at_most(
        "longest text: time with a window of 64 over that without",
        longest(&curves[1]) / longest(&curves[0]),
        0.8,
    ));

    let [wide_curve, narrow_curve] = curves;
    let cost = Chart::new("Cost", "tokens", "milliseconds")
        .line("all before", wide_curve)
        .line("window of 64", narrow_curve)
        .log_y();
    let (causal_map, window_map) = (map(lab, &full)?, map(lab, &windowed)?);
    Ok(Outcome {
        claims,
        plot: beside(&[causal_map, window_map, cost.svg()]),
        notes: vec![],
    })
}

fn layer(lab: &LabContext<'_>, config: &AttentionConfig) -> Attention {
    let random = &mut rng(lab.seed, Stream::Init, 0);
    initialise(config.init(&lab.device), random, |slot| {
        InitScheme::He.fill(slot)
    })
}

fn text(lab: &LabContext<'_>, n: usize, width: usize, step: u64) -> Tensor<3> {
    let values = normal(&mut rng(lab.seed, Stream::Data, step), n * width);
    Tensor::from_data(TensorData::new(values, [1, n, width]), &lab.device)
}

/// One head by the formula, `softmax(q k^T / sqrt(d)) v`, where `sees` says who may look at whom.
fn formula(
    q: &[Vec<f64>],
    k: &[Vec<f64>],
    v: &[Vec<f64>],
    sees: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<f64>> {
    let scale = (q[0].len() as f64).sqrt();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let row = |(i, q): (usize, &Vec<f64>)| {
        let seen = k.iter().enumerate().map(|(j, k)| match sees(i, j) {
            true => (dot(q, k) / scale).exp(),
            false => 0.0,
        });
        let weights: Vec<f64> = seen.collect();
        let sum: f64 = weights.iter().sum();
        let mixed = (0..v[0].len()).map(|c| {
            let parts = weights.iter().zip(v).map(|(w, v)| w / sum * v[c]);
            parts.sum()
        });
        mixed.collect()
    };
    q.iter().enumerate().map(row).collect()
}

/// Columns `[from, from + width)` of every row.
fn columns(rows: &[f32], row_width: usize, from: usize, width: usize) -> Vec<Vec<f64>> {
    let part = |row: &[f32]| {
        row[from..from + width]
            .iter()
            .map(|x| f64::from(*x))
            .collect()
    };
    rows.chunks(row_width).map(part).collect()
}

/// The largest difference between `got` and the heads' outputs, side by side, through `proj`.
fn gap(
    got: Tensor<3>,
    heads: &[Vec<Vec<f64>>],
    proj: &crate::nn::Linear,
    lab: &LabContext<'_>,
) -> f64 {
    let mut mixed: Vec<f32> = Vec::new();
    for row in 0..heads[0].len() {
        mixed.extend(heads.iter().flat_map(|head| &head[row]).map(|x| *x as f32));
    }
    let shape = [1, heads[0].len(), mixed.len() / heads[0].len()];
    let mixed = Tensor::<3>::from_data(TensorData::new(mixed, shape), &lab.device);
    let difference = (got - proj.forward(mixed)).abs().max();
    f64::from(difference.into_scalar::<f32>())
}

fn against_formula(
    lab: &LabContext<'_>,
    config: &AttentionConfig,
    causal: bool,
) -> Result<f64, LabError> {
    let layer = layer(lab, config);
    let x = text(lab, SEQ, D_MODEL, 0);
    let qkv = numbers(layer.qkv.forward(x.clone()))?;
    let d = config.d_head;
    let width = (HEADS + 2 * config.n_kv_heads) * d;
    let part = |slot: usize| columns(&qkv, width, slot * d, d);
    let sees = |i: usize, j: usize| {
        let near = config.window.is_none_or(|window| i < j + window);
        !causal || (j <= i && near)
    };
    let heads: Vec<_> = (0..HEADS)
        .map(|head| {
            let shared = head / (HEADS / config.n_kv_heads);
            let (k, v) = (
                part(HEADS + shared),
                part(HEADS + config.n_kv_heads + shared),
            );
            formula(&part(head), &k, &v, sees)
        })
        .collect();
    let context = AttentionContext {
        causal,
        ..AttentionContext::default()
    };
    Ok(gap(layer.forward(x, context), &heads, &layer.proj, lab))
}

fn cross(lab: &LabContext<'_>, config: &AttentionConfig) -> Result<f64, LabError> {
    let random = &mut rng(lab.seed, Stream::Init, 1);
    let layer = initialise(config.init_cross(&lab.device), random, |slot| {
        InitScheme::He.fill(slot)
    });
    let (x, other) = (text(lab, SEQ, D_MODEL, 1), text(lab, SEQ + 5, D_MODEL, 2));
    let q = numbers(layer.q.forward(x.clone()))?;
    let kv = numbers(layer.kv.forward(other.clone()))?;
    let d = config.d_head;
    let heads: Vec<_> = (0..HEADS)
        .map(|head| {
            let key = columns(&kv, 2 * D_MODEL, head * d, d);
            let value = columns(&kv, 2 * D_MODEL, D_MODEL + head * d, d);
            formula(&columns(&q, D_MODEL, head * d, d), &key, &value, |_, _| {
                true
            })
        })
        .collect();
    let memory = layer.remember(other, None);
    Ok(gap(
        layer.forward(x, &memory, None),
        &heads,
        &layer.proj,
        lab,
    ))
}

/// The least seconds of a few passes over `n` tokens, the two layers in turn.
fn seconds(lab: &LabContext<'_>, configs: [&AttentionConfig; 2], n: usize) -> [f64; 2] {
    const ROUNDS: usize = 7;
    let layers = configs.map(|config| layer(lab, config));
    let x = text(lab, n, configs[0].d_model, 3);
    let mut least = [f64::INFINITY; 2];
    for _ in 0..ROUNDS {
        for (layer, least) in layers.iter().zip(&mut least) {
            let context = AttentionContext {
                causal: true,
                ..AttentionContext::default()
            };
            let began = Instant::now();
            let _ = layer.forward(x.clone(), context).into_data();
            *least = least.min(began.elapsed().as_secs_f64());
        }
    }
    least
}

/// Who looks at whom in the first head, on random features.
fn map(lab: &LabContext<'_>, config: &AttentionConfig) -> Result<String, LabError> {
    let mut maps = AttentionMaps::default();
    let context = AttentionContext {
        causal: true,
        maps: Some(&mut maps),
        ..AttentionContext::default()
    };
    layer(lab, config).forward(text(lab, SEQ, D_MODEL, 0), context);
    let weights = numbers(maps.own.remove(0).narrow(1, 0, 1))?;
    let mut rows = columns(&weights, SEQ, 0, SEQ);
    // Two digits, so that a figure fits its square.
    let each = rows.iter_mut().flatten();
    each.for_each(|weight| *weight = (*weight * 100.0).round() / 100.0);
    let names: Vec<String> = (1..=SEQ).map(|i| i.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let title = match config.window {
        Some(_) => "Sliding window of 4",
        None => "Causal",
    };
    Ok(heat(title, (&names, &names), &rows))
}
