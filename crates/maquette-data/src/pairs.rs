//! Pairs of short texts for models that read one and write the other. Seeded, no download.

use maquette_rng::rand::RngExt as _;
use maquette_rng::{Rng, Stream, rng};
use serde::{Deserialize, Serialize};

/// What is asked of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairTask {
    /// Letters, to be written backwards.
    Reverse,
    /// A date as people write it, to be written as ISO 8601 does.
    Dates,
    /// A date as ISO 8601 writes it, to be written as people do, in any of eight ways.
    DateForms,
}

/// A text and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What is read.
    pub source: String,
    /// What is to be written; where several answers are right, one of them.
    pub target: String,
}

impl Pair {
    /// Whether `text` is a right answer.
    pub fn accepts(&self, task: PairTask, text: &str) -> bool {
        let other = || {
            let forms = Day::parse(&self.source)?.forms();
            Some(forms.iter().any(|form| form == text))
        };
        text == self.target || task == PairTask::DateForms && other().unwrap_or(false)
    }
}

/// Which pairs are wanted. The two parts have no answer in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// To learn from.
    Train,
    /// To be measured on: a tenth of all answers.
    HeldOut,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `count` pairs of one part, the same for the same seed.
pub fn generate(task: PairTask, part: Part, count: usize, seed: u64) -> Vec<Pair> {
    let stream = match part {
        Part::Train => 0,
        Part::HeldOut => 1,
    };
    let random = &mut rng(seed, Stream::Data, stream);
    let mut pairs = Vec::with_capacity(count);
    while pairs.len() < count {
        let (pair, answer) = draw(task, random);
        if (hash(&answer).is_multiple_of(10)) == (part == Part::HeldOut) {
            pairs.push(pair);
        }
    }
    pairs
}

/// A pair, and what decides the part it belongs to.
fn draw(task: PairTask, rng: &mut Rng) -> (Pair, String) {
    if task == PairTask::Reverse {
        let pair = reverse(rng);
        let answer = pair.target.clone();
        return (pair, answer);
    }
    let day = Day::draw(rng);
    let form = day.forms()[rng.random_range(0..8)].clone();
    let (source, target) = match task {
        PairTask::DateForms => (day.iso(), form),
        _ => (form, day.iso()),
    };
    (Pair { source, target }, day.iso())
}

/// FNV-1a, 64 bit, its upper half.
fn hash(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 32
}

/// Four to sixteen letters.
fn reverse(rng: &mut Rng) -> Pair {
    let length = rng.random_range(4..=16);
    let letters = (0..length).map(|_| char::from(rng.random_range(b'a'..=b'z')));
    let source: String = letters.collect();
    Pair {
        target: source.chars().rev().collect(),
        source,
    }
}

/// A day of the years 1900 to 2099.
struct Day {
    year: u32,
    month: usize,
    day: u32,
}

impl Day {
    fn draw(rng: &mut Rng) -> Self {
        let year: u32 = rng.random_range(1900..2100);
        let month: usize = rng.random_range(1..=12);
        let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        let days = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let day = rng.random_range(1..=days);
        Self { year, month, day }
    }

    fn iso(&self) -> String {
        format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }

    /// What [`Day::iso`] wrote.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        Some(Self {
            year: parts.next()?.parse().ok()?,
            month: parts
                .next()?
                .parse()
                .ok()
                .filter(|m| (1..=12).contains(m))?,
            day: parts.next()?.parse().ok()?,
        })
    }

    /// The eight ways in which people write it.
    fn forms(&self) -> [String; 8] {
        let Self { year, month, day } = self;
        let name = MONTHS[month - 1];
        let short = &name[..3];
        let ordinal = match day {
            1 | 21 | 31 => "st",
            2 | 22 => "nd",
            3 | 23 => "rd",
            _ => "th",
        };
        [
            format!("{day} {name} {year}"),
            format!("{name} {day}, {year}"),
            format!("{day}{ordinal} of {name} {year}"),
            format!("{short} {day} {year}"),
            format!("{day}-{short}-{year}"),
            format!("{day}.{month}.{year}"),
            format!("{month}/{day}/{year}"),
            format!("{year}, {name} {day}{ordinal}"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn answers_are_right_and_seeded() {
        let pairs = generate(PairTask::Reverse, Part::Train, 50, 1);
        for pair in &pairs {
            let back: String = pair.target.chars().rev().collect();
            assert_eq!(back, pair.source);
        }
        assert_eq!(pairs, generate(PairTask::Reverse, Part::Train, 50, 1));
        assert_ne!(pairs, generate(PairTask::Reverse, Part::Train, 50, 2));
        for pair in generate(PairTask::Dates, Part::Train, 200, 1) {
            let [year, month, day] = [0..4, 5..7, 8..10].map(|at| &pair.target[at]);
            let numeral = |text: &str| text.trim_start_matches('0').to_owned();
            assert!(pair.source.contains(year) && pair.source.contains(&numeral(day)));
            let name = &MONTHS[numeral(month).parse::<usize>().unwrap() - 1][..3];
            assert!(pair.source.contains(name) || pair.source.contains(&numeral(month)));
        }
    }

    #[test]
    fn every_form_of_a_date_is_right() {
        let task = PairTask::DateForms;
        for pair in generate(task, Part::Train, 100, 1) {
            let forms = Day::parse(&pair.source).unwrap().forms();
            assert!(forms.contains(&pair.target) && pair.accepts(task, &forms[3]));
            assert!(!pair.accepts(task, &pair.source) && !pair.accepts(task, ""));
        }
    }

    #[test]
    fn parts_share_no_answer() {
        for task in [PairTask::Reverse, PairTask::Dates, PairTask::DateForms] {
            let answers = |part, n| -> HashSet<String> {
                let pairs = generate(task, part, n, 3);
                pairs.into_iter().map(|pair| pair.target).collect()
            };
            let (train, held_out) = (answers(Part::Train, 20_000), answers(Part::HeldOut, 2000));
            assert!(train.is_disjoint(&held_out));
        }
    }
}
