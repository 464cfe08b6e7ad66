//! Whether metrics of texts, of images and of people's votes order better above worse.

use std::sync::Arc;

use serde_json::Value;

use super::gan_metrics::{Bench, noised, see};
use crate::data::Split;
use crate::data::stories::{names, story};
use crate::eval::rating::{Vote, bradley_terry_intervals};
use crate::eval::text::{Bleu, Chrf, Rouge, Ter, distinct_n, self_bleu};
use crate::eval::{EvalError, bootstrap::Interval};
use crate::labs::training::glyph_set;
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::rng::{Rng, Stream, rng, uniform};
use crate::train::recipes::judge::Judge;
use crate::train::recipes::sections::{ImageSource, Images};

/// What sacreBLEU 2.6 and rouge-score 0.1.2 say of the texts in this file.
const REFERENCE: &str = include_str!("../../crates/maquette-eval/fixtures/text_metrics.json");
/// Shares of the words that are replaced.
const REPLACED: [f64; 5] = [0.0, 0.1, 0.2, 0.4, 0.8];
/// Standard deviations of the images' noise, in 255ths.
const NOISE: [f32; 3] = [64.0, 96.0, 128.0];
/// Qualities of three models, in logits, that voters are made to have in mind.
const QUALITY: [f64; 3] = [0.8, 0.1, -0.9];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    lab.say("comparing with the reference implementations");
    let apart = apart().doing("measuring the reference texts")?;
    lab.say("measuring worse and worse texts");
    let texts = texts(lab).doing("measuring texts")?;
    lab.say("measuring worse and worse images");
    let images = images(lab)?;
    lab.say("counting votes");
    let ratings = ratings(lab).doing("rating")?;

    // By how much each metric tells a text from the next worse one, at least.
    let falls = |of: fn(&Texts) -> f64| {
        let pairs = texts.windows(2).map(|pair| of(&pair[0]) - of(&pair[1]));
        pairs.fold(f64::INFINITY, f64::min)
    };
    let grows = images.windows(2).map(|pair| pair[1].0 / pair[0].0);
    let sure = images.windows(2).map(|pair| pair[0].1 - pair[1].1);
    let [one, many] = diversity(lab).doing("measuring diversity")?;
    let kept = ratings.iter().zip(QUALITY);
    let kept = kept.filter(|(got, truth)| got.low <= *truth && *truth <= got.high);
    let claims = vec![
        Claim::at_most(
            "BLEU, chrF, TER, ROUGE on 64 texts: largest difference from sacreBLEU 2.6 and rouge-score 0.1.2",
            apart,
            1e-6,
        ),
        Claim::at_least(
            "more words replaced, four times: smallest fall of BLEU",
            falls(|t| t.bleu),
            1.0,
        ),
        Claim::at_least("the same: of chrF", falls(|t| t.chrf), 1.0),
        Claim::at_least(
            "the same: of ROUGE-L, in hundredths",
            falls(|t| 100.0 * t.rouge),
            1.0,
        ),
        Claim::at_least("the same: of 100 - TER", falls(|t| -t.ter), 1.0),
        Claim::at_least(
            "stories told once each: share of different word pairs, over that of one story told over and over",
            many[0] / one[0],
            3.0,
        ),
        Claim::at_least(
            "one story over and over: Self-BLEU less that of different stories",
            one[1] - many[1],
            0.1,
        ),
        Claim::at_least(
            "stronger noise on images, three times: smallest factor by which FID grows",
            grows.fold(f64::INFINITY, f64::min),
            1.1,
        ),
        Claim::at_least(
            "the same: smallest fall of precision",
            sure.fold(f64::INFINITY, f64::min),
            0.01,
        ),
        Claim::at_least(
            "blind votes on three models of known quality: lead of each over the next, smallest, in logits",
            (ratings[0].value - ratings[1].value).min(ratings[1].value - ratings[2].value),
            0.3,
        ),
        Claim::at_least(
            "intervals of 95 % that hold the known quality",
            kept.count() as f64,
            2.0,
        ),
    ];
    let by_share = |of: fn(&Texts) -> f64| {
        let points = texts.iter().zip(REPLACED);
        points
            .map(|(text, share)| (share, of(text)))
            .collect::<Vec<_>>()
    };
    let worse = Chart::new("Words replaced at random", "share of words", "score")
        .line("BLEU", by_share(|t| t.bleu))
        .line("chrF", by_share(|t| t.chrf))
        .line("ROUGE-L", by_share(|t| 100.0 * t.rouge))
        .line("100 - TER", by_share(|t| 100.0 - t.ter));
    let noise = Chart::new("Noise on glyphs", "standard deviation, in 255ths", "FID").line(
        "FID",
        images
            .iter()
            .enumerate()
            .map(|(i, seen)| (if i == 0 { 0.0 } else { f64::from(NOISE[i - 1]) }, seen.0)),
    );
    let mut votes = Chart::new("Votes on three models", "", "Bradley-Terry score");
    for (name, score) in ["best", "middle", "worst"].iter().zip(&ratings) {
        votes = votes.bar(name, score.value);
    }
    Ok(Outcome {
        claims,
        plot: panels(&[worse, noise, votes]),
        notes: vec![],
    })
}

/// The largest difference of sentence scores from the reference implementations', in their units.
fn apart() -> Result<f64, EvalError> {
    let all: Value = serde_json::from_str(REFERENCE).unwrap_or_default();
    let texts = |case: &Value| -> (String, Vec<String>) {
        serde_json::from_value(case.clone()).unwrap_or_default()
    };
    let want = |metric: &str, case: usize| {
        let row = &all[metric][0];
        row["scores"][case].as_f64().unwrap_or(f64::NAN)
    };
    // Not a number, which a missing value is, must not pass for no difference.
    let mut worst = 0.0;
    let mut widen = |got: f64, want: f64| {
        let apart = (got - want).abs();
        worst = if apart.is_nan() {
            f64::INFINITY
        } else {
            f64::max(worst, apart)
        };
    };
    for (i, case) in all["cases"].as_array().into_iter().flatten().enumerate() {
        let (text, references) = texts(case);
        let references: Vec<&str> = references.iter().map(String::as_str).collect();
        let bleu = Bleu::for_sentences().sentence(&text, &references)?;
        widen(bleu.score, want("bleu", i));
        widen(
            Chrf::default().sentence(&text, &references)?,
            want("chrf", i),
        );
        widen(Ter::default().sentence(&text, &references)?, want("ter", i));
        let rouge = Rouge::default().sentence(&text, &references)?;
        let f1 = all["rouge"]["plain"][i][0][2].as_f64();
        widen(rouge.rouge1.f1, f1.unwrap_or(f64::NAN));
    }
    Ok(worst)
}

/// What the metrics say of texts of which some words were replaced.
struct Texts {
    bleu: f64,
    chrf: f64,
    rouge: f64,
    ter: f64,
}

fn texts(lab: &LabContext<'_>) -> Result<Vec<Texts>, EvalError> {
    let count = if lab.quick { 60 } else { 300 };
    let truth: Vec<String> = (0..count).map(|i| story(lab.seed, i)).collect();
    let references: Vec<Vec<&str>> = truth.iter().map(|text| vec![text.as_str()]).collect();
    let words: Vec<&str> = truth
        .iter()
        .flat_map(|text| text.split_whitespace())
        .collect();
    let measure = |share: f64| {
        let random = &mut rng(lab.seed, Stream::Noise, (100.0 * share) as u64);
        let made: Vec<String> = truth
            .iter()
            .map(|text| replaced(text, &words, share, random))
            .collect();
        let made: Vec<&str> = made.iter().map(String::as_str).collect();
        Ok(Texts {
            bleu: Bleu::default().corpus(&made, &references)?.score,
            chrf: Chrf::default().corpus(&made, &references)?,
            rouge: Rouge::default().corpus(&made, &references)?.rouge_l.f1,
            ter: Ter::default().corpus(&made, &references)?,
        })
    };
    REPLACED.into_iter().map(measure).collect()
}

fn replaced(text: &str, words: &[&str], share: f64, random: &mut Rng) -> String {
    let count = text.split_whitespace().count();
    let draws = uniform(random, 2 * count);
    let words = text
        .split_whitespace()
        .zip(draws.chunks(2))
        .map(|(word, draw)| match f64::from(draw[0]) < share {
            true => words[(draw[1] * words.len() as f32) as usize % words.len()],
            false => word,
        });
    words.collect::<Vec<_>>().join(" ")
}

/// The share of different word pairs and the Self-BLEU of one story with other names each time, and of
/// different stories.
fn diversity(lab: &LabContext<'_>) -> Result<[[f64; 2]; 2], EvalError> {
    const COUNT: u64 = 30;
    let mut known: Vec<String> = Vec::new();
    let mut ids = |text: &str| -> Vec<u32> {
        let id = |word: &str| {
            let place = known.iter().position(|other| other == word);
            place.unwrap_or_else(|| {
                known.push(word.to_owned());
                known.len() - 1
            }) as u32
        };
        text.split_whitespace().map(id).collect()
    };
    let (first, people) = (story(lab.seed, 0), names());
    let again: Vec<Vec<u32>> = (0..COUNT as usize)
        .map(|i| ids(&format!("{} . {first}", people[i % people.len()])))
        .collect();
    let different: Vec<Vec<u32>> = (0..COUNT).map(|i| ids(&story(lab.seed, i))).collect();
    let of = |texts: &[Vec<u32>]| Ok([distinct_n(texts, 2)?, self_bleu(texts, 4)?]);
    Ok([of(&again)?, of(&different)?])
}

/// FID and precision of fresh glyphs, then of noisier and noisier ones.
fn images(lab: &LabContext<'_>) -> Result<Vec<(f64, f64)>, LabError> {
    let per_class = if lab.quick { 60 } else { 300 };
    let images = Images {
        train: Arc::new(glyph_set(Split::Train, lab.seed, 10, per_class)?),
        test: glyph_set(Split::Test, lab.seed, 10, per_class)?,
        examples: 10 * per_class,
        stream: None,
    };
    let steps = if lab.quick { 60 } else { 600 };
    let judge = Judge::train(&images, ImageSource::Glyphs, steps, &lab.device).doing("training")?;
    let bench = Bench {
        judge: &judge,
        real: &images.train,
        seen: see(&judge, &images.train)?,
        seed: lab.seed,
    };
    let fresh = glyph_set(Split::Train, lab.seed + 1, 10, per_class)?;
    let noisy = NOISE.map(|sigma| noised(&fresh, sigma, lab.seed));
    let measured = std::iter::once(&fresh).chain(&noisy).map(|set| {
        let found = bench.measure(set)?;
        Ok((found.fid, found.near.precision))
    });
    measured.collect()
}

/// Scores from votes drawn as Bradley and Terry's model says.
fn ratings(lab: &LabContext<'_>) -> Result<Vec<Interval>, EvalError> {
    let random = &mut rng(lab.seed, Stream::Evaluate, 7);
    let mut votes = Vec::new();
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        let wins = 1.0 / (1.0 + (QUALITY[b] - QUALITY[a]).exp());
        votes.extend(uniform(random, 300).into_iter().map(|draw| Vote {
            a,
            b,
            share: f64::from(u8::from(f64::from(draw) < wins)),
        }));
    }
    bradley_terry_intervals(3, &votes, 0.5, (500, 0.95), random)
}
