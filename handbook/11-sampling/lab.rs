//! Samplers against the distributions they stand for, and the trade they make on a real model.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use crate::data::{stories, text};
use crate::eval::{divergence::total_variation, text::distinct_n};
use crate::generate::sampling::{Decoding, Dry, Mirostat, Xtc, distribution, sample};
use crate::generate::search::EarlyStopping;
use crate::generate::text::{GenerateOptions, Generated, Strategy};
use crate::labs::training::{TextModel, TextTraining, characters, small_gpt};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome};
use crate::models::GptConfig;
use crate::rng::{Stream, rng};

/// Characters that the model of the stories looks back on, and that it writes.
const CONTEXT: usize = 256;
const LENGTH: usize = 240;
const DRAWS: usize = 100_000;
const LOGITS: [f32; 8] = [2.0, 1.5, 1.0, 0.3, 0.0, -1.0, -2.0, -3.0];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let mut claims = analytic(lab)?;
    let (trade, chart) = trade(lab)?;
    claims.extend(trade);
    let mut notes = Vec::new();
    match lab.real("tinyshakespeare/input.txt") {
        Some(path) => claims.push(shakespeare(lab, &text::read(&path).doing("reading the text")?)?),
        None => notes.push("Left out: nanoGPT's loss on tiny Shakespeare. The full form measures it where the text is among the data.".into()),
    }
    Ok(Outcome {
        claims,
        plot: chart.svg(),
        notes,
    })
}

/// Frequencies of each strategy's draws against the probabilities worked out from its definition.
fn analytic(lab: &LabContext<'_>) -> Result<Vec<Claim>, LabError> {
    // `LOGITS` descend, so that "the best k" are the first k.
    let softmax = |logits: &[f64]| -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|l| l.exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights
            .into_iter()
            .chain(std::iter::repeat(0.0))
            .take(8)
            .map(|w| w / sum)
            .collect()
    };
    let logits = LOGITS.map(f64::from);
    let full = softmax(&logits);
    // Top-p: the shortest beginning whose sum reaches 0.8. Min-p: those at least 0.2 of the first.
    let sums = full.iter().scan(0.0, |sum, p| {
        *sum += p;
        Some(*sum)
    });
    let nucleus = sums.take_while(|sum| *sum < 0.8).count() + 1;
    let likely = full.iter().filter(|p| **p >= 0.2 * full[0]).count();
    // Tokens 0 and 7 seen: a positive logit is divided by the penalty, a negative one multiplied.
    let mut penalised = logits;
    (penalised[0], penalised[7]) = (2.0 / 1.5, -3.0 * 1.5);

    // Typical 0.5: those whose surprise is nearest to the entropy, until they hold half.
    let entropy: f64 = full.iter().map(|p| -p * p.ln()).sum();
    let mut nearest: Vec<usize> = (0..8).collect();
    let unusual = |i: usize| (-full[i].ln() - entropy).abs();
    nearest.sort_by(|a, b| unusual(*a).total_cmp(&unusual(*b)));
    let mut held = 0.0;
    let mut typical = [f64::NEG_INFINITY; 8];
    for i in nearest {
        if held < 0.5 {
            typical[i] = logits[i];
        }
        held += full[i];
    }
    // Top-n-sigma 1: at most one deviation of the logits below the best.
    let mean = logits.iter().sum::<f64>() / 8.0;
    let deviation = (logits.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 8.0).sqrt();
    let near = logits
        .iter()
        .filter(|l| **l >= logits[0] - deviation)
        .count();
    // Excluding top choices: half of the time only the last of those with at least a tenth, and
    // what is below, is left.
    let above = full.iter().filter(|p| **p >= 0.1).count() - 1;
    let mut below = logits;
    below[..above].fill(f64::NEG_INFINITY);
    let excluded: Vec<f64> = softmax(&below)
        .iter()
        .zip(&full)
        .map(|(a, b)| (a + b) / 2.0)
        .collect();
    // Token 0 seen twice and token 7 once, each costing one and a half per time after a half.
    let mut counted = logits;
    (counted[0], counted[7]) = (2.0 - 0.5 - 3.0, -3.0 - 0.5 - 1.5);
    // Mirostat's first bound is twice the target: one bit here, so probabilities of a half or more,
    // or the best one alone.
    let plain = Decoding::default();
    // DRY: `1 2 3` was followed by 0 and comes again, `2 3` by 5: the first costs 0.8 x 1.75.
    let mut repeated = logits;
    (repeated[0], repeated[5]) = (2.0 - 0.8 * 1.75, -1.0 - 0.8);
    let said = [1, 2, 3, 0, 6, 2, 3, 5, 1, 2, 3];
    let cases: [(&str, Decoding, &[u32], Vec<f64>); 13] = [
        ("the model's own distribution", plain, &[], full.clone()),
        (
            "temperature 0.5",
            Decoding {
                temperature: 0.5,
                ..plain
            },
            &[],
            softmax(&logits.map(|l| l / 0.5)),
        ),
        (
            "top-k 3",
            Decoding {
                top_k: Some(3),
                ..plain
            },
            &[],
            softmax(&logits[..3]),
        ),
        (
            "top-p 0.8",
            Decoding {
                top_p: Some(0.8),
                ..plain
            },
            &[],
            softmax(&logits[..nucleus]),
        ),
        (
            "min-p 0.2",
            Decoding {
                min_p: Some(0.2),
                ..plain
            },
            &[],
            softmax(&logits[..likely]),
        ),
        ("greedy", Decoding::greedy(), &[], softmax(&logits[..1])),
        (
            "repetition penalty 1.5",
            Decoding {
                repetition_penalty: 1.5,
                ..plain
            },
            &[0, 7],
            softmax(&penalised),
        ),
        (
            "typical 0.5",
            Decoding {
                typical_p: Some(0.5),
                ..plain
            },
            &[],
            softmax(&typical),
        ),
        (
            "top-n-sigma 1",
            Decoding {
                top_n_sigma: Some(1.0),
                ..plain
            },
            &[],
            softmax(&logits[..near]),
        ),
        (
            "XTC 0.1, half of the time",
            Decoding {
                xtc: Some(Xtc {
                    probability: 0.5,
                    threshold: 0.1,
                }),
                ..plain
            },
            &[],
            excluded,
        ),
        (
            "presence penalty 0.5, frequency penalty 1.5",
            Decoding {
                presence_penalty: 0.5,
                frequency_penalty: 1.5,
                ..plain
            },
            &[0, 7, 0],
            softmax(&counted),
        ),
        (
            "Mirostat at half a bit, first token",
            Decoding {
                mirostat: Some(Mirostat { tau: 0.5, eta: 0.1 }),
                ..plain
            },
            &[],
            softmax(&logits[..1]),
        ),
        (
            "DRY 0.8 x 1.75, repetitions of 2 and 3",
            Decoding {
                dry: Some(Dry::new(0.8)),
                ..plain
            },
            &said,
            softmax(&repeated),
        ),
    ];
    let mut claims = Vec::new();
    for (i, (name, decoding, history, expected)) in cases.into_iter().enumerate() {
        let probabilities =
            distribution(&LOGITS, history, &decoding).doing("computing a distribution")?;
        let mut rng = rng(lab.seed, Stream::Sample, i as u64);
        let mut counts = [0.0; 8];
        for _ in 0..DRAWS {
            counts[sample(&probabilities, &mut rng) as usize] += 1.0 / DRAWS as f64;
        }
        let sum: f64 = counts.iter().sum();
        let shares: Vec<f64> = counts.iter().map(|c| c / sum).collect();
        let apart = total_variation(&shares, &expected).doing("comparing distributions")?;
        let claim = format!("{name}: total variation of 100,000 draws from the formula");
        claims.push(Claim::at_most(claim, apart, 0.01));
    }
    Ok(claims)
}

/// A small model of the stories, written with at several temperatures.
fn trade(lab: &LabContext<'_>) -> Result<(Vec<Claim>, Chart), LabError> {
    let corpus = stories::generate(1500, lab.seed);
    let training = TextTraining {
        corpus: &corpus,
        tokenizer: characters(&corpus)?,
        config: small_gpt(CONTEXT),
        steps: if lab.quick { 350 } else { 1500 },
        batch: 4,
        rates: (3e-3, 3e-4),
    };
    let model = training.run(lab)?;
    let known: HashSet<&str> = words(&corpus).collect();
    let measure = |strategy: Strategy, decoding: Decoding| -> Result<Point, LabError> {
        let texts = write(lab, &corpus, &model, strategy, decoding)?;
        let all: Vec<&str> = texts.iter().flat_map(|t| words(&t.text)).collect();
        let correct =
            all.iter().filter(|w| known.contains(*w)).count() as f64 / all.len().max(1) as f64;
        let mut ids = HashMap::new();
        let mut id = |w| {
            let next = ids.len() as u32;
            *ids.entry(w).or_insert(next)
        };
        let all: Vec<u32> = all.into_iter().map(&mut id).collect();
        let log_probs = texts.iter().flat_map(|t| &t.log_probs);
        let nats: f64 = log_probs.clone().map(|p| f64::from(p.log_prob)).sum();
        Ok(Point {
            diversity: distinct_n(&[all], 2).doing("counting word pairs")?,
            quality: correct,
            log_prob: nats / log_probs.count().max(1) as f64,
        })
    };
    let draw = |decoding| measure(Strategy::Draw, decoding);
    let plain = Decoding::default();
    let mut curve = Vec::new();
    for temperature in [0.2, 0.5, 0.8, 1.0, 1.3, 1.6] {
        lab.say(&format!("writing at temperature {temperature}"));
        curve.push(draw(Decoding {
            temperature,
            ..plain
        })?);
    }
    let greedy = draw(Decoding::greedy())?;
    let hot = Decoding {
        temperature: 1.6,
        ..plain
    };
    let cut = [
        draw(Decoding {
            top_k: Some(5),
            ..hot
        })?,
        draw(Decoding {
            top_p: Some(0.5),
            ..hot
        })?,
        draw(Decoding {
            min_p: Some(0.3),
            ..hot
        })?,
    ];
    lab.say("searching instead of drawing");
    let dry = draw(Decoding {
        dry: Some(Dry::new(2.0)),
        ..Decoding::greedy()
    })?;
    let beams = Strategy::Beams {
        beams: 4,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Estimate,
    };
    let beam = measure(beams, plain)?;
    let contrastive = Strategy::Contrastive {
        top_k: 5,
        penalty_alpha: 0.6,
    };
    let contrastive = measure(contrastive, plain)?;
    let best = measure(Strategy::BestOf { count: 4 }, plain)?;
    let (cool, one, warm) = (curve[0], curve[3], curve[5]);
    let claims = vec![
        Claim::at_least(
            "words of the stories' vocabulary: temperature 0.2 less 1.6",
            cool.quality - warm.quality,
            0.2,
        ),
        Claim::at_least(
            "distinct word pairs: temperature 1.6 less 0.2",
            warm.diversity - cool.diversity,
            0.1,
        ),
        Claim::at_most(
            "distinct word pairs: greedy over temperature 1",
            greedy.diversity / one.diversity,
            0.7,
        ),
        Claim::at_least(
            "known words at temperature 1.6: top-k 5 less no cut",
            cut[0].quality - warm.quality,
            0.05,
        ),
        Claim::at_least(
            "known words at temperature 1.6: top-p 0.5 less no cut",
            cut[1].quality - warm.quality,
            0.05,
        ),
        Claim::at_least(
            "known words at temperature 1.6: min-p 0.3 less no cut",
            cut[2].quality - warm.quality,
            0.05,
        ),
        Claim::at_least(
            "distinct word pairs: greedy with DRY over greedy",
            dry.diversity / greedy.diversity,
            1.5,
        ),
        Claim::at_least(
            "distinct word pairs: contrastive search over greedy",
            contrastive.diversity / greedy.diversity,
            1.1,
        ),
        Claim::at_least(
            "nats per token: four beams less greedy, up to rounding",
            beam.log_prob - greedy.log_prob,
            -1e-6,
        ),
        Claim::at_least(
            "nats per token: the best of four less one, at temperature 1",
            best.log_prob - one.log_prob,
            0.0,
        ),
    ];
    let dot = |point: &Point| (point.diversity, point.quality);
    let chart = Chart::new(
        "Quality against diversity",
        "diversity: distinct word pairs",
        "quality: known words",
    )
    .dots("temperature 0.2 to 1.6", curve.iter().map(dot))
    .dots("greedy", [dot(&greedy)])
    .dots("greedy with DRY", [dot(&dry)])
    .dots("four beams", [dot(&beam)])
    .dots("contrastive", [dot(&contrastive)])
    .dots("best of four", [dot(&best)])
    .dots("1.6, top-k 5", [dot(&cut[0])])
    .dots("1.6, top-p 0.5", [dot(&cut[1])])
    .dots("1.6, min-p 0.3", [dot(&cut[2])]);
    Ok((claims, chart))
}

/// What a strategy comes to.
#[derive(Clone, Copy)]
struct Point {
    /// Distinct word pairs, as a share of all.
    diversity: f64,
    /// The share of words that the stories know.
    quality: f64,
    /// Mean log-probability of a token under the model.
    log_prob: f64,
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphabetic())
        .filter(|w| !w.is_empty())
}

/// How four stories begin, written on, each from its own seed.
fn write(
    lab: &LabContext<'_>,
    corpus: &str,
    TextModel {
        model, tokenizer, ..
    }: &TextModel,
    strategy: Strategy,
    decoding: Decoding,
) -> Result<Vec<Generated>, LabError> {
    let options = GenerateOptions {
        max_tokens: LENGTH,
        decoding,
        log_probs: Some(0),
        ..GenerateOptions::default()
    };
    let beginnings = corpus.split("\n\n").filter(|story| story.len() > 10);
    let text = |(text, story): (u64, &str)| {
        let beginning: String = story.chars().take(10).collect();
        let prompt = tokenizer.encode(&beginning).doing("encoding a beginning")?;
        let mut rng = rng(lab.seed, Stream::Sample, 100 + text);
        let go_on = |_: &str| ControlFlow::Continue(());
        let made = strategy.complete(model, tokenizer, &prompt, &options, &mut rng, go_on);
        made.doing("writing")
    };
    (0..4).zip(beginnings).map(text).collect()
}

/// nanoGPT's setting for a laptop's processor with the learning rate of the recipe
/// `shakespeare-char`: three times nanoGPT's, with which the loss ends at 1.91.
fn shakespeare(lab: &LabContext<'_>, corpus: &str) -> Result<Claim, LabError> {
    let training = TextTraining {
        corpus,
        tokenizer: characters(corpus)?,
        config: GptConfig::default(),
        steps: 2000,
        batch: 12,
        rates: (3e-3, 1e-4),
    };
    let loss = training.run(lab)?.held_out_loss(lab)?;
    Ok(Claim::at_most(
        "tiny Shakespeare, nanoGPT's CPU setting at rate 3e-3: validation loss, nats per character",
        loss,
        1.88,
    )
    .published(1.88, "karpathy/nanoGPT README"))
}
