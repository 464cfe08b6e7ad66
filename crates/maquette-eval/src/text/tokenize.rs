//! How the metrics of strings cut them into words.

use regex::Regex;
use std::sync::LazyLock;

/// How BLEU cuts a line into words; the figure depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BleuTokenizer {
    /// `13a`: WMT's mteval-v13a, for languages of Western punctuation. The default.
    #[default]
    V13a,
    /// `intl`: mteval-v14's, by the Unicode classes of punctuation, symbols and numbers.
    International,
    /// `char`: every character is a word, for languages without spaces.
    Character,
    /// `none`: words as they stand between white space, for text that is already tokenized.
    None,
}

impl BleuTokenizer {
    /// Its name in the signature.
    pub fn name(self) -> &'static str {
        match self {
            Self::V13a => "13a",
            Self::International => "intl",
            Self::Character => "char",
            Self::None => "none",
        }
    }

    /// The words of a line.
    pub fn tokenize(self, line: &str) -> Vec<String> {
        let line = line.trim_end_matches(is_space);
        let spaced = match self {
            Self::V13a => v13a(line),
            Self::International => international(line),
            Self::Character => isolate(line, |_| true),
            Self::None => line.to_owned(),
        };
        words(&spaced).map(str::to_owned).collect()
    }
}

/// White space as Python's `str.split` has it: Unicode's, and the four ASCII separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// What stands between white space.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Puts spaces around the characters that are `wanted`.
pub(super) fn isolate(text: &str, wanted: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        match wanted(c) {
            true => out.extend([' ', c, ' ']),
            false => out.push(c),
        }
    }
    out
}

/// Rewrites the pairs of neighbours that match, from left to right, none overlapping: `around`
/// is what to write before, between and after the two.
fn pairs(text: &str, matches: impl Fn(char, char) -> bool, around: [&str; 3]) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        match rest.next_if(|&second| matches(first, second)) {
            Some(second) => {
                out.push_str(around[0]);
                out.push(first);
                out.push_str(around[1]);
                out.push(second);
                out.push_str(around[2]);
            }
            None => out.push(first),
        }
    }
    out
}

/// The four entities that mteval and Tercom resolve.
pub(super) fn unescape(text: &str) -> String {
    text.replace("&quot;", "\"")
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
}

/// ASCII punctuation other than `'`, `,`, `-` and `.` stands alone.
pub(super) fn split_symbols(text: &str) -> String {
    isolate(text, |c| {
        c.is_ascii_punctuation() && !matches!(c, '\'' | ',' | '-' | '.')
    })
}

/// Full stops and commas stand alone unless within a number, and dashes after a digit.
pub(super) fn split_stops(text: &str) -> String {
    let stop = |c| c == '.' || c == ',';
    let digit = |c: char| c.is_ascii_digit();
    let text = pairs(text, |a, b| !digit(a) && stop(b), ["", " ", " "]);
    let text = pairs(&text, |a, b| stop(a) && !digit(b), [" ", " ", ""]);
    pairs(&text, |a, b| digit(a) && b == '-', ["", " ", " "])
}

fn v13a(line: &str) -> String {
    let line = line.replace("<skipped>", "");
    let line = line.replace("-\n", "").replace('\n', " ");
    split_stops(&split_symbols(&format!(" {} ", unescape(&line))))
}

fn international(line: &str) -> String {
    static RULES: LazyLock<[(Regex, &str); 3]> = LazyLock::new(|| {
        [
            // Punctuation that does not follow, or does not precede, a number.
            (r"(\P{N})(\p{P})", "$1 $2 "),
            (r"(\p{P})(\P{N})", " $1 $2"),
            (r"(\p{S})", " $1 "),
        ]
        .map(|(rule, by)| (Regex::new(rule).expect("a constant pattern"), by))
    });
    RULES.iter().fold(line.to_owned(), |line, (rule, by)| {
        rule.replace_all(&line, *by).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(tokenizer: BleuTokenizer, line: &str) -> String {
        tokenizer.tokenize(line).join(" ")
    }

    #[test]
    fn numbers_stay_whole() {
        let line = "It's 1,250.5 (or so), i.e. 3-4.";
        assert_eq!(
            joined(BleuTokenizer::V13a, line),
            "It's 1,250.5 ( or so ) , i . e . 3 - 4 ."
        );
        assert_eq!(
            joined(BleuTokenizer::International, line),
            "It ' s 1,250.5 ( or so ) , i . e . 3-4."
        );
        assert_eq!(joined(BleuTokenizer::None, line), line);
        assert_eq!(
            joined(BleuTokenizer::Character, "a b\u{301}"),
            "a b \u{301}"
        );
    }
}
