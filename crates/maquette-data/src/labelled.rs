//! Examples with answers, for fine-tuning: classes of texts, tags of words, answers in a context.
//!
//! They come as JSONL, or are made by seeded code.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use maquette_rng::rand::RngExt as _;
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{DataError, Result, stories};

/// A text and its class: `{"text": ..., "label": ...}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classified {
    /// What is read.
    pub text: String,
    /// The name of its class.
    pub label: String,
}

/// Words and a tag for each: `{"tokens": [...], "tags": [...]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tagged {
    /// The words.
    pub tokens: Vec<String>,
    /// One tag each.
    pub tags: Vec<String>,
}

/// A question whose answer stands in the context: `{"question": ..., "context": ..., "answer": ...}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// What is asked.
    pub question: String,
    /// Where the answer stands.
    pub context: String,
    /// The answer, letter by letter as in the context.
    pub answer: String,
    /// Where it begins, in characters; the first place where it stands if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_start: Option<usize>,
}

impl Answered {
    /// The bytes of the context that are the answer; `None` if it does not stand there.
    pub fn span(&self) -> Option<std::ops::Range<usize>> {
        let start = match self.answer_start {
            None => self.context.find(&self.answer)?,
            Some(start) => {
                let mut places = self.context.char_indices().map(|(at, _)| at);
                let start = places.nth(start)?;
                self.context[start..]
                    .starts_with(&self.answer)
                    .then_some(start)?
            }
        };
        (!self.answer.is_empty()).then(|| start..start + self.answer.len())
    }
}

/// An example that may be at odds with itself.
pub trait Example: DeserializeOwned {
    /// What is wrong with it, if anything is.
    fn fault(&self) -> Option<String>;
}

impl Example for Classified {
    fn fault(&self) -> Option<String> {
        self.text
            .trim()
            .is_empty()
            .then(|| "the text is empty".into())
    }
}

impl Example for Tagged {
    fn fault(&self) -> Option<String> {
        let (tokens, tags) = (self.tokens.len(), self.tags.len());
        (tokens != tags || tokens == 0).then(|| format!("{tokens} tokens and {tags} tags"))
    }
}

impl Example for Answered {
    fn fault(&self) -> Option<String> {
        let missing = self.span().is_none();
        missing.then(|| {
            format!(
                "the answer {:?} does not stand in the context there",
                self.answer
            )
        })
    }
}

/// Reads a JSONL file, one example a line.
///
/// # Errors
/// A missing or empty file, or the first line that is no such example, with its number.
pub fn read<T: Example>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).map_err(DataError::io(path))?;
    let mut examples = Vec::new();
    for (line, text) in BufReader::new(file).lines().enumerate() {
        let text = text.map_err(DataError::io(path))?;
        if text.trim().is_empty() {
            continue;
        }
        let wrong = |reason: String| DataError::Jsonl {
            path: path.to_owned(),
            line: line as u64 + 1,
            reason,
        };
        let example: T = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if let Some(fault) = example.fault() {
            return Err(wrong(fault));
        }
        examples.push(example);
    }
    match examples.is_empty() {
        true => Err(DataError::Empty(path.to_owned())),
        false => Ok(examples),
    }
}

/// Sentences of `text` as they stand, and as many in which two neighbouring words changed places:
/// the probe "bigram shift" of Conneau et al. 2018, arXiv:1805.01070. What words there are says
/// nothing about the class. Sentences end at a full stop and have 5 to 25 words.
pub fn bigram_shift(text: &str, seed: u64) -> Vec<Classified> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('='));
    let sentences = lines.flat_map(|line| line.split(". "));
    let mut examples = Vec::new();
    for (index, sentence) in sentences.enumerate() {
        let mut words: Vec<&str> = sentence.split_whitespace().collect();
        if !(5..=25).contains(&words.len()) {
            continue;
        }
        let random = &mut rng(seed, Stream::Data, index as u64);
        let shifted = random.random::<bool>();
        if shifted {
            let at = random.random_range(0..words.len() - 1);
            if words[at] == words[at + 1] {
                continue;
            }
            words.swap(at, at + 1);
        }
        examples.push(Classified {
            // A capital would give a shifted beginning away, and so would a full stop.
            text: words.join(" ").to_lowercase().replace('.', ""),
            label: if shifted { "shifted" } else { "as written" }.into(),
        });
    }
    examples
}

/// Stories with a tag for every word: `HERO` for the name that the story is about, `FRIEND` for any
/// other name, `O` for the rest. Every name is a hero in some stories and a friend in others.
pub fn heroes(count: usize, seed: u64) -> Vec<Tagged> {
    let tagged = |index| {
        let story = stories::story(seed, index);
        let names = stories::names();
        let plain = |word: &str| word.trim_matches(|c: char| !c.is_alphabetic()).to_owned();
        let mut hero = None;
        let mut tags = Vec::new();
        for word in story.split_whitespace() {
            let word = plain(word.strip_suffix("'s").unwrap_or(word));
            tags.push(match names.contains(&word.as_str()) {
                false => "O",
                true if *hero.get_or_insert_with(|| word.clone()) == word => "HERO",
                true => "FRIEND",
            });
        }
        Tagged {
            tokens: story.split_whitespace().map(str::to_owned).collect(),
            tags: tags.into_iter().map(str::to_owned).collect(),
        }
    };
    (0..count as u64).map(tagged).collect()
}

/// People who walk about and, at the end, the question where one of them is, after the first tasks
/// of bAbI (Weston et al. 2015, arXiv:1502.05698). The answer is the last place of several.
pub fn whereabouts(count: usize, seed: u64) -> Vec<Answered> {
    const PEOPLE: [&str; 6] = ["Mina", "Tom", "Clara", "Jonas", "Ada", "Emil"];
    const PLACES: [&str; 8] = [
        "kitchen", "garden", "attic", "cellar", "library", "harbour", "market", "mill",
    ];
    const WAYS: [&str; 4] = ["went to", "ran to", "walked to", "is back in"];
    let story = |index| {
        let random = &mut rng(seed, Stream::Data, index);
        let mut told = Vec::new();
        let mut moved: Vec<(usize, usize)> = Vec::new();
        for _ in 0..random.random_range(3..=6) {
            let who = random.random_range(0..PEOPLE.len());
            let place = random.random_range(0..PLACES.len());
            let way = WAYS[random.random_range(0..WAYS.len())];
            told.push(format!("{} {way} the {}.", PEOPLE[who], PLACES[place]));
            moved.push((who, place));
        }
        let (who, _) = moved[random.random_range(0..moved.len())];
        let last = moved
            .iter()
            .rposition(|(other, _)| *other == who)
            .unwrap_or(0);
        let place = PLACES[moved[last].1];
        // Everything up to the place that ends the sentence.
        let before = told[..=last].join(" ").len() - place.len() - 1;
        Answered {
            question: format!("Where is {}?", PEOPLE[who]),
            context: told.join(" "),
            answer: place.to_owned(),
            answer_start: Some(before),
        }
    };
    (0..count as u64).map(story).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jsonl_is_read_and_faults_have_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("{\"text\": \"a b\", \"label\": \"x\"}\n\n{\"text\": \"c\", \"label\": \"y\"}\n");
        let read_back: Vec<Classified> = read(&path).unwrap();
        assert_eq!(read_back.len(), 2);
        assert_eq!(read_back[1].label, "y");
        write("{\"text\": \"a b\", \"label\": \"x\"}\n{\"text\": 3}\n");
        let error = read::<Classified>(&path).unwrap_err().to_string();
        assert!(error.contains('2'), "{error}");
        write("{\"question\": \"q\", \"context\": \"c\", \"answer\": \"z\"}\n");
        let error = read::<Answered>(&path).unwrap_err().to_string();
        assert!(error.contains("does not stand"), "{error}");
        write("{\"tokens\": [\"a\"], \"tags\": []}\n");
        assert!(read::<Tagged>(&path).is_err());
    }

    #[test]
    fn shifted_sentences_have_the_same_words() {
        let text = stories::generate(300, 1);
        let examples = bigram_shift(&text, 5);
        let shifted = examples.iter().filter(|e| e.label == "shifted").count();
        let share = shifted as f64 / examples.len() as f64;
        assert!(
            (share - 0.5).abs() < 0.1 && examples.len() > 500,
            "{share} {}",
            examples.len()
        );
        assert_eq!(examples, bigram_shift(&text, 5));
    }

    #[test]
    fn a_story_has_one_hero_who_is_a_friend_elsewhere() {
        let tagged = heroes(200, 3);
        let of = |tag: &str| -> std::collections::BTreeSet<String> {
            let words = tagged
                .iter()
                .flat_map(|one| one.tokens.iter().zip(&one.tags));
            let named = words.filter(|(_, t)| *t == tag);
            named
                .map(|(w, _)| w.trim_matches(|c: char| !c.is_alphabetic()).to_owned())
                .collect()
        };
        let both = of("HERO").intersection(&of("FRIEND")).count();
        assert!(both >= 10, "{both}");
        for one in &tagged {
            assert_eq!(one.fault(), None);
            assert!(one.tags.iter().any(|tag| tag == "HERO"));
        }
    }

    #[test]
    fn the_answer_is_the_last_place() {
        for one in whereabouts(200, 4) {
            assert_eq!(one.fault(), None);
            let name = one
                .question
                .trim_start_matches("Where is ")
                .trim_end_matches('?');
            let last = one
                .context
                .split(". ")
                .filter(|s| s.starts_with(name))
                .last()
                .unwrap();
            assert!(last.contains(&one.answer), "{one:?}");
            let span = one.span().unwrap();
            let told = one.context[..span.start].matches(". ").count();
            let sentence = one.context.split(". ").nth(told).unwrap();
            assert!(sentence.starts_with(name), "{one:?}");
        }
    }
}
