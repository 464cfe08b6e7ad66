//! The same model before open prompts, closed ones, and prompts whose answers must have a form.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use serde::Deserialize;
use serde_json::json;

use crate::data::stories;
use crate::data::tokenizer::{Tokenizer, TokenizerConfig, TokenizerKind};
use crate::eval::text::distinct_n;
use crate::generate::constraint::Form;
use crate::generate::text::{GenerateOptions, Generated, complete};
use crate::labs::training::{TextTraining, small_gpt};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, beside};
use crate::models::Gpt;
use crate::rng::{Stream, rng};

/// What the closed prompts ask.
const CAPITALS: [(&str, &str); 12] = [
    ("France", "Paris"),
    ("Norway", "Oslo"),
    ("Peru", "Lima"),
    ("Egypt", "Cairo"),
    ("Japan", "Tokyo"),
    ("Kenya", "Nairobi"),
    ("Cuba", "Havana"),
    ("Spain", "Madrid"),
    ("Ghana", "Accra"),
    ("Nepal", "Kathmandu"),
    ("Chile", "Santiago"),
    ("Austria", "Vienna"),
];

/// Texts drawn for each prompt.
const DRAWS: u64 = 4;

/// Characters of a text that is looked at.
const LENGTH: usize = 48;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    // The quick form learns the answers less surely.
    let (wider, known) = if lab.full() { (3.0, 0.9) } else { (2.0, 0.7) };
    let (told, steps, forms) = if lab.full() {
        (1500, 3000, 60)
    } else {
        (400, 1500, 10)
    };
    let corpus = corpus(told, lab.seed);
    let bytes = TokenizerConfig {
        kind: TokenizerKind::Byte,
        ..TokenizerConfig::default()
    };
    let training = TextTraining {
        corpus: &corpus,
        tokenizer: bytes
            .train(std::iter::empty())
            .doing("making a tokenizer")?,
        config: small_gpt(128),
        steps,
        batch: 16,
        rates: (3e-3, 3e-4),
    };
    let trained = training.run(lab)?;
    let random = &mut rng(lab.seed, Stream::Init, 1);
    let untrained = trained.config.init(&lab.device, random);
    let writer = |model| Writer {
        lab,
        model,
        tokenizer: &trained.tokenizer,
    };
    let (writer, blank) = (writer(&trained.model), writer(&untrained));

    lab.say("asking open and closed questions");
    // What the stories begin with, a few letters each, and what has one answer.
    let beginnings = stories::generate(CAPITALS.len(), lab.seed + 1);
    let beginnings = beginnings.split("\n\n").filter(|story| !story.is_empty());
    let openings: Vec<String> = beginnings
        .map(|story| story.chars().take(4).collect())
        .collect();
    let questions: Vec<String> = CAPITALS.iter().map(|(land, _)| question(land)).collect();
    let (open, closed) = (writer.answers(&openings)?, writer.answers(&questions)?);
    let right = share(closed.texts.iter().flatten().enumerate().map(|(i, text)| {
        let (_, capital) = CAPITALS[i / DRAWS as usize];
        text.text.trim() == capital
    }));

    lab.say("asking for forms");
    let all = Asked::all();
    let mut kept = [0.0; 3];
    for asked in &all {
        kept[0] += writer.kept(asked, None, forms)?;
        kept[1] += writer.kept(asked, Some(&asked.form), forms)?;
        kept[2] += blank.kept(asked, Some(&asked.form), forms)?;
    }
    let [free, bound, bound_blank] = kept.map(|sum| sum / all.len() as f64);
    let chosen = writer.chosen()?;
    let guessed = blank.chosen()?;

    let (open_nats, closed_nats) = (open.nats(), closed.nats());
    let claims = vec![
        Claim::at_least(
            "nats per character: open prompts over closed ones",
            open_nats / closed_nats,
            wider,
        ),
        Claim::at_least(
            "different word pairs, as a share: open less closed",
            open.distinct()? - closed.distinct()?,
            0.2,
        ),
        Claim::at_least(
            "closed prompts: answers that are right, drawn at temperature 1",
            right,
            known,
        ),
        Claim::at_least(
            "open prompts: texts of a prompt that differ",
            open.different(),
            0.9,
        ),
        Claim::at_most(
            "closed prompts: texts of a prompt that differ (a quarter: all alike)",
            closed.different(),
            0.5,
        ),
        Claim::at_most(
            "four forms asked for in words alone: texts that parse",
            free,
            0.1,
        ),
        Claim::at_least("the same as constraints: texts that parse", bound, 1.0),
        Claim::at_least(
            "the same, of a model that has learnt nothing",
            bound_blank,
            1.0,
        ),
        Claim::at_least("closed prompts as a choice of twelve: right", chosen, 0.9),
        Claim::at_most(
            "the same, of a model that has learnt nothing (chance 0.083)",
            guessed,
            0.3,
        ),
    ];
    let nats = Chart::new(
        "How sure the model is of what it writes",
        "character",
        "nats",
    )
    .line("open prompts", open.by_place())
    .line("closed prompts", closed.by_place());
    let parse = Chart::new("Texts that parse", "", "share")
        .bar("asked in words", free)
        .bar("constrained", bound)
        .bar("constrained, untrained", bound_blank);
    Ok(Outcome {
        claims,
        plot: beside(&[nats.svg(), parse.svg()]),
        notes: vec![],
    })
}

/// Stories, each followed by a question and its answer.
fn corpus(told: usize, seed: u64) -> String {
    let mut questions = CAPITALS.iter().cycle();
    let mut text = String::new();
    for story in stories::generate(told, seed)
        .split("\n\n")
        .filter(|story| !story.is_empty())
    {
        text += story;
        text += "\n\n";
        for (land, capital) in questions.by_ref().take(5) {
            text += &format!("{} {capital}\n\n", question(land));
        }
    }
    text
}

fn question(land: &str) -> String {
    format!("Question: What is the capital of {land}?\nAnswer:")
}

fn share(all: impl IntoIterator<Item = bool>) -> f64 {
    let all: Vec<bool> = all.into_iter().collect();
    all.iter().filter(|yes| **yes).count() as f64 / all.len().max(1) as f64
}

/// A model that is asked things.
struct Writer<'a> {
    lab: &'a LabContext<'a>,
    model: &'a Gpt,
    tokenizer: &'a Tokenizer,
}

impl Writer<'_> {
    /// The text after a prompt, drawn as the model has it, to the end of the line.
    fn write(&self, prompt: &str, form: Option<&Form>, draw: u64) -> Result<Generated, LabError> {
        let options = GenerateOptions {
            max_tokens: LENGTH,
            stop: vec!["\n".into()],
            form: form.cloned(),
            log_probs: Some(0),
            ..GenerateOptions::default()
        };
        let random = &mut rng(self.lab.seed, Stream::Sample, draw);
        let go_on = |_: &str| ControlFlow::Continue(());
        complete(self.model, self.tokenizer, prompt, &options, random, go_on).doing("writing")
    }

    fn answers(&self, prompts: &[String]) -> Result<Answers, LabError> {
        let mut texts = Vec::new();
        for prompt in prompts {
            let draws = (0..DRAWS).map(|draw| self.write(prompt, None, draw));
            texts.push(draws.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Answers { texts })
    }

    /// The share of texts that are what was asked for.
    fn kept(&self, asked: &Asked, form: Option<&Form>, count: u64) -> Result<f64, LabError> {
        let mut parse = Vec::new();
        for draw in 0..count {
            let text = self.write(asked.prompt, form, draw)?.text;
            parse.push((asked.parses)(text.trim()));
        }
        Ok(share(parse))
    }

    /// The share of closed prompts answered rightly when all twelve answers are given to choose from.
    fn chosen(&self) -> Result<f64, LabError> {
        let choices = CAPITALS.map(|(_, capital)| format!(" {capital}")).to_vec();
        let form = Form::Choices(choices);
        let mut right = Vec::new();
        for (land, capital) in CAPITALS {
            let text = self.write(&question(land), Some(&form), 0)?.text;
            right.push(text.trim() == capital);
        }
        Ok(share(right))
    }
}

/// Texts per prompt.
struct Answers {
    texts: Vec<Vec<Generated>>,
}

impl Answers {
    /// Nats per character that the model gave to what it drew: an estimate of its entropy.
    fn nats(&self) -> f64 {
        let all = self.texts.iter().flatten().flat_map(|text| &text.log_probs);
        let all: Vec<f64> = all.map(|token| -f64::from(token.log_prob)).collect();
        all.iter().sum::<f64>() / all.len().max(1) as f64
    }

    /// The same for each place of a text, as far as half of the texts go.
    fn by_place(&self) -> Vec<(f64, f64)> {
        let texts: Vec<&Generated> = self.texts.iter().flatten().collect();
        let at = |place: usize| -> Vec<f64> {
            let tokens = texts.iter().filter_map(|text| text.log_probs.get(place));
            tokens.map(|token| -f64::from(token.log_prob)).collect()
        };
        let places = (0..LENGTH)
            .map(at)
            .take_while(|nats| 2 * nats.len() >= texts.len());
        let means = places.map(|nats| nats.iter().sum::<f64>() / nats.len() as f64);
        (1..).map(f64::from).zip(means).collect()
    }

    /// The mean over prompts of the share of their texts that are different from each other.
    fn different(&self) -> f64 {
        let share = |texts: &Vec<Generated>| {
            let all: HashSet<&str> = texts.iter().map(|t| t.text.trim()).collect();
            all.len() as f64 / texts.len() as f64
        };
        self.texts.iter().map(share).sum::<f64>() / self.texts.len() as f64
    }

    /// The mean over prompts of the share of different word pairs, those across the beginning of a text
    /// included: an answer may be one word.
    fn distinct(&self) -> Result<f64, LabError> {
        let mut sum = 0.0;
        for texts in &self.texts {
            let mut ids = HashMap::new();
            let mut id = |word: String| {
                let next = ids.len() as u32;
                *ids.entry(word).or_insert(next)
            };
            let words = |text: &Generated| -> Vec<String> {
                let words = text.text.split_whitespace().map(str::to_owned);
                std::iter::once(String::new()).chain(words).collect()
            };
            let texts: Vec<Vec<u32>> = texts
                .iter()
                .map(|text| words(text).into_iter().map(&mut id).collect())
                .collect();
            sum += distinct_n(&texts, 2).doing("counting word pairs")?;
        }
        Ok(sum / self.texts.len() as f64)
    }
}

/// A form, in words and as a constraint, and a parser that knows of neither.
struct Asked {
    prompt: &'static str,
    form: Form,
    parses: fn(&str) -> bool,
}

impl Asked {
    fn all() -> [Self; 4] {
        let schema = json!({
            "type": "object",
            "properties": {
                "hero": { "enum": ["Mina", "Ada", "Tom"] },
                "age": { "type": "integer", "minimum": 1, "maximum": 99 },
                "brave": { "type": "boolean" },
            },
            "required": ["hero", "age", "brave"],
            "additionalProperties": false,
        });
        let grammar = "start: NUMBER SIGN NUMBER\nNUMBER: /[1-9][0-9]{0,2}/\nSIGN: \"+\" | \"-\"";
        let colours = ["red", "green", "blue"].map(str::to_owned).to_vec();
        [
            Self {
                prompt: "The hero as JSON with the fields hero, age and brave:",
                form: Form::JsonSchema(schema),
                parses: |text| {
                    serde_json::from_str::<Hero>(text).is_ok_and(|hero| {
                        ["Mina", "Ada", "Tom"].contains(&hero.hero.as_str())
                            && (1..=99).contains(&hero.age)
                    })
                },
            },
            Self {
                prompt: "The month it happened in, as year and number:",
                form: Form::Regex("[0-9]{4}-(0[1-9]|1[0-2])".into()),
                parses: |text| {
                    let parts = text.split_once('-').filter(|parts| parts.0.len() == 4);
                    parts.is_some_and(|(year, month)| {
                        let month = (month.len() == 2)
                            .then(|| month.parse::<u8>().ok())
                            .flatten();
                        year.parse::<u16>().is_ok() && month.is_some_and(|m| (1..=12).contains(&m))
                    })
                },
            },
            Self {
                prompt: "A sum or a difference of two numbers:",
                form: Form::Grammar(grammar.into()),
                parses: |text| {
                    let numbers = text.split_once(['+', '-']);
                    numbers.is_some_and(|(a, b)| [a, b].iter().all(|n| n.parse::<u16>().is_ok()))
                },
            },
            Self {
                prompt: "The colour of the door, red, green or blue:",
                form: Form::Choices(colours),
                parses: |text| ["red", "green", "blue"].contains(&text),
            },
        ]
    }
}

/// What the schema describes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hero {
    hero: String,
    age: u8,
    #[serde(rename = "brave")]
    _brave: bool,
}
