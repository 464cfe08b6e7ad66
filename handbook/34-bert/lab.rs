//! BERT on built-in stories: hidden words against counting, gaps filled, and the encoder put to other
//! uses.

use std::path::Path;

use crate::data::Tokenizer;
use crate::generate::fill::fill;
use crate::labs::training::{Ran, recipe};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, number, panels};
use crate::models::hf;

const BERT: &str = include_str!("../../recipes/bert-wikitext.toml");
const WORD_ORDER: &str = include_str!("../../recipes/word-order.toml");
const HEROES: &str = include_str!("../../recipes/heroes.toml");
const WHEREABOUTS: &str = include_str!("../../recipes/whereabouts.toml");

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let folder = tempfile::tempdir().doing("making a folder")?;
    lab.say("guessing hidden words of stories");
    let bert = folder.path().join("bert");
    let full = [
        ("data.source", "stories"),
        ("data.count", "3000"),
        ("data.validation_windows", "300"),
        ("tokenizer.vocab_size", "1200"),
        ("masking.whole_words", "true"),
        ("model.n_layers", "3"),
        ("model.d_model", "96"),
        ("schedule.warmup", "500"),
        ("train.steps", "6000"),
    ];
    let quick = [
        ("data.source", "stories"),
        ("data.count", "400"),
        ("data.validation_windows", "60"),
        ("tokenizer.vocab_size", "600"),
        ("masking.whole_words", "true"),
        ("model.n_layers", "1"),
        ("model.d_model", "64"),
        ("model.seq_len", "32"),
        ("schedule.warmup", "20"),
        ("optimizer.lr", "4e-3"),
        ("train.steps", "500"),
        ("train.validate_every", "250"),
    ];
    let ran = recipe(lab, BERT, if lab.full() { &full } else { &quick }, &bert)?;
    let won = |what: &str| ran.metric(&format!("{what}_loss")) - ran.metric("test_loss");
    let right = |what: &str| ran.metric("test_accuracy") - ran.metric(&format!("{what}_accuracy"));
    let mut claims = vec![
        Claim::at_least(
            "nats per hidden token won over word frequencies",
            won("unigram"),
            0.3,
        ),
        Claim::at_least(
            "hidden tokens guessed, above word frequencies",
            right("unigram"),
            0.02,
        ),
    ];
    let mut charts = vec![guessed("Hidden tokens of stories guessed", &ran)];
    let mut notes = vec![format!(
        "Bits per byte of hidden text: {:.3}.",
        ran.metric("test_bits_per_byte")
    )];
    if lab.full() {
        claims.extend([
            Claim::at_least(
                "nats won over counting both neighbours",
                won("neighbours"),
                0.3,
            ),
            Claim::at_least(
                "guessed, above counting both neighbours",
                right("neighbours"),
                0.05,
            ),
            Claim::at_least(
                "guessed, above counting the left one",
                right("bigram"),
                0.05,
            ),
            Claim::at_least(
                "told whether a text follows",
                ran.metric("test_pair_accuracy"),
                0.75,
            ),
            Claim::at_least(
                "probability of \"time\" in: once upon a [MASK]",
                time(&bert, lab)?,
                0.5,
            ),
        ]);
        let (tuned, chart) = tuned(lab, folder.path(), &bert)?;
        claims.extend(tuned);
        charts.push(chart);
        match lab.real("wikitext2-small") {
            Some(path) => {
                let ran = wikitext(lab, folder.path(), &path)?;
                claims.extend(ahead_of_the_left_one(&ran));
                charts.push(guessed("Hidden tokens of WikiText-2 guessed", &ran));
                notes.push(beside_counting(&ran));
            }
            None => notes.push(
                "Left out: real text. The full form reads it where `wikitext2-small` is among the data."
                    .into(),
            ),
        }
    }
    Ok(Outcome {
        claims,
        plot: panels(&charts),
        notes,
    })
}

/// The recipe as it stands, on real text.
fn wikitext(lab: &LabContext<'_>, root: &Path, path: &Path) -> Result<Ran, LabError> {
    lab.say("guessing hidden words of WikiText-2");
    let path = path.display().to_string();
    recipe(lab, BERT, &[("data.path", &*path)], &root.join("wikitext"))
}

/// By how much a model is ahead of counting, which is shown the token to the left even where it is hidden.
fn ahead_of_the_left_one(ran: &Ran) -> [Claim; 2] {
    let of = |what: &str| ran.metric(what);
    [
        Claim::at_least(
            "real text: nats won over counting the left one",
            of("bigram_loss") - of("test_loss"),
            0.5,
        ),
        Claim::at_least(
            "real text: guessed, above counting the left one",
            of("test_accuracy") - of("bigram_accuracy"),
            0.08,
        ),
    ]
}

fn beside_counting(ran: &Ran) -> String {
    let mut table = String::from(
        "WikiText-2, the same hidden tokens for all:\n\n\
         | who guesses | right | nats a token |\n|---|---|---|",
    );
    for (name, key) in [
        ("word frequencies", "unigram"),
        ("the token to the left, counted", "bigram"),
        ("both neighbours, counted", "neighbours"),
        ("BERT", "test"),
    ] {
        table += &format!(
            "\n| {name} | {} | {} |",
            number(ran.metric(&format!("{key}_accuracy"))),
            number(ran.metric(&format!("{key}_loss"))),
        );
    }
    table
}

/// The share of hidden tokens that model and counting guess.
fn guessed(title: &str, ran: &Ran) -> Chart {
    Chart::new(title, "", "share")
        .bar("frequencies", ran.metric("unigram_accuracy"))
        .bar("left", ran.metric("bigram_accuracy"))
        .bar("neighbours", ran.metric("neighbours_accuracy"))
        .bar("BERT", ran.metric("test_accuracy"))
}

/// What the model thinks of a gap that every story-teller knows.
fn time(bert: &Path, lab: &LabContext<'_>) -> Result<f64, LabError> {
    let (_, model) = hf::load_bert(bert, &lab.device).doing("loading the model")?;
    let tokenizer = Tokenizer::load(bert).doing("loading the tokenizer")?;
    let text = "Once upon a [MASK] there was a girl";
    let filled = fill(&model, &tokenizer, text, 5).doing("filling the gap")?;
    let found = filled.gaps[0]
        .iter()
        .find(|candidate| candidate.token == "time");
    Ok(found.map_or(0.0, |candidate| candidate.probability))
}

/// The encoder tuned to three tasks, beside what reads without it.
fn tuned(lab: &LabContext<'_>, root: &Path, bert: &Path) -> Result<(Vec<Claim>, Chart), LabError> {
    let init = format!("{:?}", bert.display().to_string());
    let train = |name: &str, text: &str, sets: &[(&str, &str)]| {
        lab.say(name);
        recipe(
            lab,
            text,
            &[&[("init", &*init)], sets].concat(),
            &root.join(name),
        )
    };
    let order = train("word order", WORD_ORDER, &[])?;
    let fresh = train(
        "the same from nothing",
        WORD_ORDER,
        &[("reader", "fresh-bert")],
    )?;
    let words = train(
        "the same by a bag of words",
        WORD_ORDER,
        &[("reader", "bag-of-words")],
    )?;
    let heroes = train("heroes of stories", HEROES, &[])?;
    let places = train("where people are", WHEREABOUTS, &[])?;
    let accuracy = |ran: &Ran| ran.metric("test_accuracy");
    let claims = vec![
        Claim::at_least(
            "word order: lower end of its accuracy, above the upper end of a bag of words",
            order.metric("test_accuracy_low") - words.metric("test_accuracy_high"),
            0.05,
        ),
        Claim::at_least(
            "word order: accuracy won by pre-training",
            accuracy(&order) - accuracy(&fresh),
            0.05,
        ),
        Claim::at_least(
            "heroes: mean F1 of the tags",
            heroes.metric("test_macro_f1"),
            0.8,
        ),
        Claim::at_least(
            "whereabouts: exact match",
            places.metric("test_exact_match"),
            0.6,
        ),
    ];
    let chart = Chart::new("Word order, told right", "", "share")
        .bar("bag of words", accuracy(&words))
        .bar("from nothing", accuracy(&fresh))
        .bar("fine-tuned", accuracy(&order));
    Ok((claims, chart))
}
