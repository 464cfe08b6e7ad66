//! How text is cut into words before bytes merge: the patterns of GPT-2, Llama 3 and Qwen 2, by hand.
//!
//! A pattern's alternatives are tried in its order at every place, as a regular expression does; the
//! tests hold the result to the library's own engine.

use std::sync::LazyLock;

/// A pattern that is known by its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Radford et al. 2019: a space belongs to the word after it.
    Gpt2,
    /// As GPT-4's first: any sign may begin a word, numbers have at most three digits.
    Llama3,
    /// As Llama 3, with digits one by one.
    Qwen2,
}

impl Cut {
    /// What can be cut here.
    pub(crate) const ALL: [Self; 3] = [Self::Gpt2, Self::Llama3, Self::Qwen2];

    /// The pattern as a `tokenizer.json` spells it.
    pub(crate) fn pattern(self) -> &'static str {
        match self {
            Self::Gpt2 => {
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
            }
            Self::Llama3 => {
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            }
            Self::Qwen2 => {
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            }
        }
    }

    /// Where the word ends that begins at byte `at`; `at` must lie before the end of `text`.
    pub(crate) fn end(self, text: &str, at: usize) -> usize {
        let text = Text(text);
        match self {
            Self::Gpt2 => gpt2(text, at),
            Self::Llama3 => gpt4(text, at, 3),
            Self::Qwen2 => gpt4(text, at, 1),
        }
    }
}

/// What the patterns tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Number,
    /// `\s`, line ends among them.
    Space,
    /// Anything else.
    Sign,
}

/// Classes of all code points, from the tables of the engine that the patterns are defined by.
static CLASSES: LazyLock<Vec<Class>> = LazyLock::new(|| {
    let mut classes = vec![Class::Sign; 0x11_0000];
    for (pattern, class) in [
        (r"\p{L}", Class::Letter),
        (r"\p{N}", Class::Number),
        (r"\s", Class::Space),
    ] {
        let parsed = regex_syntax::parse(pattern).expect("a class of Unicode");
        if let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(set)) =
            parsed.kind()
        {
            for range in set.ranges() {
                classes[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
    }
    classes
});

const ASCII: [Class; 128] = {
    let mut classes = [Class::Sign; 128];
    let mut at = 0;
    while at < 128 {
        classes[at] = match at as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'\t'..=b'\r' | b' ' => Class::Space,
            _ => Class::Sign,
        };
        at += 1;
    }
    classes
};

#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl Text<'_> {
    fn byte(self, at: usize) -> Option<u8> {
        self.0.as_bytes().get(at).copied()
    }

    /// The class of the character at a byte, and where the next one begins.
    fn class(self, at: usize) -> Option<(Class, usize)> {
        let byte = self.byte(at)?;
        if byte < 128 {
            return Some((ASCII[byte as usize], at + 1));
        }
        let c = self.0[at..].chars().next()?;
        Some((CLASSES[c as usize], at + c.len_utf8()))
    }

    /// The end of the run of one class from `at` on.
    fn run(self, class: Class, mut at: usize) -> usize {
        while let Some((_, next)) = self.class(at).filter(|(found, _)| *found == class) {
            at = next;
        }
        at
    }

    fn line_ends(self, mut at: usize) -> usize {
        while matches!(self.byte(at), Some(b'\r' | b'\n')) {
            at += 1;
        }
        at
    }

    /// `\s+(?!\S)|\s+` at a space: all of it before the end of the text, else all but the last.
    fn spaces(self, at: usize, end: usize) -> usize {
        if end == self.0.len() {
            return end;
        }
        let last = self.0[at..end].char_indices().next_back();
        match last {
            Some((last, _)) if last > 0 => at + last,
            _ => end,
        }
    }
}

/// The end of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at an apostrophe.
fn contraction(text: Text, at: usize, any_case: bool) -> Option<usize> {
    let lower = |at: usize| {
        let byte = text.byte(at)?;
        Some(match any_case {
            true => byte.to_ascii_lowercase(),
            false => byte,
        })
    };
    match (lower(at + 1)?, lower(at + 2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 3),
        // The long s is an s of another case.
        (0xc5, Some(0xbf)) if any_case => Some(at + 3),
        _ => None,
    }
}

fn gpt2(text: Text, at: usize) -> usize {
    if text.byte(at) == Some(b'\'')
        && let Some(end) = contraction(text, at, false)
    {
        return end;
    }
    let word = at + usize::from(text.byte(at) == Some(b' '));
    match text.class(word) {
        Some((Class::Space, _)) | None => text.spaces(at, text.run(Class::Space, at)),
        Some((class, next)) => text.run(class, next),
    }
}

fn gpt4(text: Text, at: usize, digits: usize) -> usize {
    let first = text.byte(at);
    if first == Some(b'\'')
        && let Some(end) = contraction(text, at, true)
    {
        return end;
    }
    let Some((class, next)) = text.class(at) else {
        return text.0.len();
    };
    let following = text.class(next);
    match (class, following) {
        (Class::Letter, _) => text.run(Class::Letter, next),
        (Class::Number, _) => {
            let mut end = next;
            for _ in 1..digits {
                match text.class(end) {
                    Some((Class::Number, next)) => end = next,
                    _ => break,
                }
            }
            end
        }
        (_, Some((Class::Letter, after))) if !matches!(first, Some(b'\r' | b'\n')) => {
            text.run(Class::Letter, after)
        }
        (Class::Sign, _) => text.line_ends(text.run(Class::Sign, next)),
        (Class::Space, Some((Class::Sign, after))) if first == Some(b' ') => {
            text.line_ends(text.run(Class::Sign, after))
        }
        (Class::Space, _) => {
            let end = text.run(Class::Space, next);
            match text.0[at..end].rfind(['\r', '\n']) {
                Some(last) => at + last + 1,
                None => text.spaces(at, end),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    };

    use super::*;

    fn ours(cut: Cut, text: &str) -> Vec<&str> {
        let (mut at, mut words) = (0, Vec::new());
        while at < text.len() {
            let end = cut.end(text, at);
            words.push(&text[at..end]);
            at = end;
        }
        words
    }

    /// The pattern's words by the library's engine.
    fn theirs(split: &Split, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        split.pre_tokenize(&mut cut).unwrap();
        let words = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        words
            .into_iter()
            .map(|(word, ..)| word.to_owned())
            .collect()
    }

    fn splits() -> &'static [(Cut, Split)] {
        static SPLITS: LazyLock<Vec<(Cut, Split)>> = LazyLock::new(|| {
            let split = |cut: Cut| {
                let pattern = SplitPattern::Regex(cut.pattern().into());
                Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap()
            };
            Cut::ALL.map(|cut| (cut, split(cut))).into()
        });
        &SPLITS
    }

    fn agree(text: &str) {
        for (cut, split) in splits() {
            assert_eq!(ours(*cut, text), theirs(split, text), "{cut:?}");
        }
    }

    #[test]
    fn corners_are_cut_as_the_patterns_cut_them() {
        for text in [
            "it's IT'S 'ſ 'Re 've'LL''d '' 's' ' s",
            "a  b   \n c\r\n\r\n d \u{a0}\u{3000}x \t\ty  ",
            "12345 1,234.50€ ½²³ ٣٤٥٦ x1y2",
            "...\n\n!?\r\r x!\n  \n\n  ",
            " \n",
            "\n ",
            " ",
            "'",
            "  '",
            "Größe, naïveté, 日本語🦀!",
            "\u{85}\u{2028}a\u{2029} b\u{b}\u{c}c\u{1c}\u{200b}d",
        ] {
            agree(text);
        }
    }

    #[test]
    fn shared_texts_are_cut_as_the_patterns_cut_them() {
        let Some(root) = crate::testing::shared("") else {
            return;
        };
        for entry in walkdir::WalkDir::new(root) {
            let entry = entry.unwrap();
            if !entry.file_type().is_file() {
                continue;
            }
            // The library keeps several copies of what it cuts: the beginning of each file, in parts.
            let text = crate::testing::texts(entry.path()).unwrap();
            let lines: Vec<&str> = text.split_inclusive('\n').take(4000).collect();
            for part in lines.chunks(1000) {
                let part: String = part.concat().chars().take(100_000).collect();
                for (cut, split) in splits() {
                    assert!(
                        ours(*cut, &part) == theirs(split, &part),
                        "{cut:?} {}",
                        entry.path().display()
                    );
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn any_text_is_cut_as_the_patterns_cut_it(
            text in "(['sStTmMdDrRvVeElLſK 0-9a\\r\\n\\t!.\u{a0}\u{3000}é½日]|\\PC|.){0,40}"
        ) {
            agree(&text);
        }
    }
}
