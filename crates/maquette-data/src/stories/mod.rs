//! `stories`: short stories for language models, told by a seeded grammar.
//!
//! A plot is a row of templates. `{key}` is a choice out of the rules, made at its first use and
//! kept for the rest of the story, so that a lantern lost in the first sentence is the lantern
//! found in the last; `{Key}` is the same with a capital, `{a key}` with its article.

mod plots;
mod words;

use std::collections::HashMap;

use maquette_rng::{Rng, Stream, rand::Rng as _, rng};

use plots::{CHARACTERS, OPENINGS, PLOTS};
use words::RULES;

/// `n` stories, one paragraph each, separated by blank lines. A pure function of `(n, seed)`, and
/// a shorter text is the beginning of a longer one.
pub fn generate(n: usize, seed: u64) -> String {
    (0..n).map(|i| story(seed, i as u64) + "\n\n").collect()
}

/// Story number `index`.
pub fn story(seed: u64, index: u64) -> String {
    sentences(seed, index).join(" ")
}

/// A story whose last sentence is to be found among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloze {
    /// The story without its last sentence.
    pub beginning: String,
    /// Its last sentence, and those of three other stories.
    pub endings: Vec<String>,
    /// Which of them is its own.
    pub answer: usize,
}

/// `n` stories with their last sentences among others. A pure function of `(n, seed)`, and fewer are
/// the beginning of more.
pub fn cloze(n: usize, seed: u64) -> Vec<Cloze> {
    let ending = |index| sentences(seed, index).pop().unwrap_or_default();
    let one = |index: u64| {
        let mut told = sentences(seed, index);
        let own = told.pop().unwrap_or_default();
        let mut endings = vec![own.clone()];
        // Other stories follow in their order, behind those that are asked about.
        let mut other = (1 << 32) + 100 * index;
        while endings.len() < 4 {
            let ending = ending(other);
            if !endings.contains(&ending) {
                endings.push(ending);
            }
            other += 1;
        }
        let answer = rng(seed, Stream::Shuffle, index).next_u64() as usize % endings.len();
        endings.swap(0, answer);
        Cloze {
            beginning: told.join(" "),
            endings,
            answer,
        }
    };
    (0..n as u64).map(one).collect()
}

fn sentences(seed: u64, index: u64) -> Vec<String> {
    let mut teller = Teller {
        rng: rng(seed, Stream::Data, index),
        bound: HashMap::new(),
    };
    teller.cast();
    let opening = *teller.choose(OPENINGS);
    let plot = *teller.choose(PLOTS);
    let sentences = std::iter::once(opening).chain(plot.iter().map(|beat| *teller.choose(beat)));
    let sentences: Vec<&str> = sentences.collect();
    sentences.iter().map(|s| teller.tell(s)).collect()
}

/// Every name that a character may have.
pub fn names() -> Vec<&'static str> {
    CHARACTERS.iter().map(|character| character.name).collect()
}

struct Teller {
    rng: Rng,
    /// What each key stands for in this story.
    bound: HashMap<&'static str, String>,
}

impl Teller {
    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[(self.rng.next_u64() % from.len() as u64) as usize]
    }

    /// Chooses the hero and a friend of another name and kind, with their pronouns.
    fn cast(&mut self) {
        let hero = *self.choose(CHARACTERS);
        let friend = loop {
            let other = *self.choose(CHARACTERS);
            if other.name != hero.name && other.kind != hero.kind {
                break other;
            }
        };
        let keys = [
            (hero, ["hero", "kind", "she", "her", "obj"]),
            (friend, ["friend", "fkind", "fshe", "fher", "fobj"]),
        ];
        for (who, keys) in keys {
            let (she, her, obj) = if who.female {
                ("she", "her", "her")
            } else {
                ("he", "his", "him")
            };
            for (key, value) in keys.into_iter().zip([who.name, who.kind, she, her, obj]) {
                self.bound.insert(key, value.into());
            }
        }
    }

    /// Fills in a template.
    fn tell(&mut self, template: &str) -> String {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (slot, after) = after.split_once('}').expect("the templates are tested");
            out.push_str(before);
            out.push_str(&self.slot(slot));
            rest = after;
        }
        out + rest
    }

    fn slot(&mut self, slot: &str) -> String {
        if let Some(key) = slot.strip_prefix("a ") {
            let word = self.slot(key);
            let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) {
                "an"
            } else {
                "a"
            };
            return format!("{article} {word}");
        }
        let key = slot.to_lowercase();
        let value = match self.bound.get(key.as_str()) {
            Some(value) => value.clone(),
            None => {
                let (name, choices) = RULES
                    .iter()
                    .find(|(name, _)| *name == key)
                    .expect("the templates are tested");
                let choices: Vec<&str> = choices.split('|').collect();
                let template = *self.choose(&choices);
                let value = self.tell(template);
                self.bound.insert(name, value.clone());
                value
            }
        };
        let mut letters = value.chars();
        match letters.next() {
            Some(first) if slot != key => first.to_uppercase().chain(letters).collect(),
            _ => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn same_seed_same_stories_and_a_prefix_is_a_prefix() {
        assert_eq!(generate(20, 3), generate(20, 3));
        assert_ne!(generate(20, 3), generate(20, 4));
        assert!(generate(20, 3).starts_with(&generate(5, 3)));
    }

    #[test]
    fn stories_are_varied_and_use_several_hundred_words() {
        let text = generate(2000, 0);
        let stories: HashSet<&str> = text.trim().split("\n\n").collect();
        assert_eq!(stories.len(), 2000);
        let words: HashSet<String> = text
            .split(|c: char| !c.is_alphabetic() && c != '\'')
            .map(str::to_lowercase)
            .collect();
        assert!(words.len() > 600, "{} different words", words.len());
    }

    #[test]
    fn every_template_can_be_told() {
        let bound = [
            "hero", "kind", "she", "her", "obj", "friend", "fkind", "fshe", "fher", "fobj",
        ];
        let known: HashSet<&str> = RULES.iter().map(|(name, _)| *name).chain(bound).collect();
        let plots = PLOTS
            .iter()
            .flat_map(|plot| plot.iter().flat_map(|beat| beat.iter()));
        let rules: Vec<&str> = RULES.iter().flat_map(|(_, c)| c.split('|')).collect();
        for template in OPENINGS.iter().chain(plots).chain(&rules) {
            assert_eq!(template.matches('{').count(), template.matches('}').count());
            for slot in template.split('{').skip(1) {
                let slot = slot.split('}').next().unwrap();
                let key = slot.strip_prefix("a ").unwrap_or(slot).to_lowercase();
                assert!(known.contains(key.as_str()), "{key} in {template:?}");
            }
        }
    }

    #[test]
    fn sentences_are_clean() {
        let text = generate(3000, 1);
        for wrong in [
            "{", "}", "  ", " ,", " .", "..", " a a", " a e", " a i", " a o", "\n\n\n",
        ] {
            let at = text.find(wrong);
            assert!(
                at.is_none(),
                "{wrong:?} in {:?}",
                at.map(|i| &text[i.saturating_sub(40)..i + 9])
            );
        }
        for story in text.trim().split("\n\n") {
            assert!(
                story.starts_with(char::is_uppercase) && story.ends_with(['.', '!', '"']),
                "{story}"
            );
            let words = story.split_whitespace().count();
            assert!((50..260).contains(&words), "{words}: {story}");
        }
    }
}
