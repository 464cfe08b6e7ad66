//! The order of the steps between logits and probabilities.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A step; what it does stands with its option in [`Decoding`](super::Decoding).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // each is its option
pub enum Step {
    Penalties,
    Dry,
    TopNSigma,
    TopK,
    TypicalP,
    TopP,
    MinP,
    Xtc,
    Temperature,
}

/// Every step under its name, in llama.cpp's order.
const ALL: [(&str, Step); 9] = [
    ("penalties", Step::Penalties),
    ("dry", Step::Dry),
    ("top-n-sigma", Step::TopNSigma),
    ("top-k", Step::TopK),
    ("typical-p", Step::TypicalP),
    ("top-p", Step::TopP),
    ("min-p", Step::MinP),
    ("xtc", Step::Xtc),
    ("temperature", Step::Temperature),
];

/// Which steps are taken and in which order, written as their names with semicolons between:
/// `penalties;top-k;temperature`. A step that is left out is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order([Option<Step>; ALL.len()]);

impl Order {
    /// The steps, first to last.
    pub fn steps(self) -> impl Iterator<Item = Step> {
        self.0.into_iter().flatten()
    }
}

impl Default for Order {
    fn default() -> Self {
        Self(ALL.map(|(_, step)| Some(step)))
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |step| {
            ALL.iter()
                .find(|(_, one)| *one == step)
                .map(|(name, _)| *name)
        };
        let names: Vec<&str> = self.steps().filter_map(name).collect();
        f.write_str(&names.join(";"))
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut steps = [None; ALL.len()];
        for (at, name) in text.split(';').map(str::trim).enumerate() {
            let Some((_, step)) = ALL.iter().find(|(known, _)| *known == name) else {
                let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
                return Err(format!("no step `{name}`; there are {}", known.join(", ")));
            };
            if steps.contains(&Some(*step)) {
                return Err(format!("`{name}` stands there twice"));
            }
            steps[at] = Some(*step);
        }
        Ok(Self(steps))
    }
}

impl Serialize for Order {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_is_written() {
        let default = Order::default();
        assert_eq!(default.to_string().parse(), Ok(default));
        let short: Order = "top-k; temperature".parse().unwrap();
        assert_eq!(short.to_string(), "top-k;temperature");
        assert!("top-q".parse::<Order>().unwrap_err().contains("typical-p"));
        assert!("xtc;xtc".parse::<Order>().unwrap_err().contains("twice"));
    }
}
