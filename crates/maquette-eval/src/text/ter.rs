//! TER: how much editing turns a text into its reference.

use super::tokenize::{is_space, isolate, split_stops, split_symbols, unescape, words};
use super::{SACREBLEU, segments, signature, yes};
use crate::EvalError;
use crate::error::at_least;

/// Translation edit rate (Snover et al. 2006) with its settings, as sacreBLEU 2.6.0 computes it:
/// the fewest insertions, deletions, substitutions and shifts of word runs, found greedily as
/// Tercom does, in percent of the references' mean length. Lower is better; it may exceed 100.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ter {
    /// Whether punctuation is split from words, entities are resolved and lines joined.
    pub normalized: bool,
    /// Whether punctuation is left out.
    pub no_punct: bool,
    /// Whether the two above also know CJK: ideographs one by one, full-width punctuation.
    pub asian_support: bool,
    /// Whether case counts.
    pub case_sensitive: bool,
}

/// What TER needs to know of a segment; those of a corpus add up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TerCounts {
    edits: usize,
    length: f64,
}

impl Ter {
    /// The rate of a corpus.
    ///
    /// # Errors
    /// No segments, lists of different lengths, or a segment without references.
    pub fn corpus(&self, hypotheses: &[&str], references: &[Vec<&str>]) -> Result<f64, EvalError> {
        let counts = segments(hypotheses, references, |h, r| self.counts(h, r))?;
        Ok(self.score(&counts))
    }

    /// The rate of one sentence.
    ///
    /// # Errors
    /// No references.
    pub fn sentence(&self, hypothesis: &str, references: &[&str]) -> Result<f64, EvalError> {
        Ok(self.score([&self.counts(hypothesis, references)?]))
    }

    /// The fewest edits to any of the references and their mean length in words, for
    /// [`Self::score`] and for resampling.
    ///
    /// # Errors
    /// No references.
    pub fn counts(&self, hypothesis: &str, references: &[&str]) -> Result<TerCounts, EvalError> {
        at_least("references", 1, references.len())?;
        let hypothesis = self.prepare(hypothesis);
        let own: Vec<&str> = words(&hypothesis).collect();
        let (mut edits, mut length) = (usize::MAX, 0);
        for reference in references {
            // Twice, as sacreBLEU does it: `master's.` gives `master`, `'s` and `.` in a
            // reference, but `master's` and `.` in a hypothesis.
            let reference = self.prepare(&self.prepare(reference));
            let other: Vec<&str> = words(&reference).collect();
            edits = edits.min(fewest_edits(&own, &other));
            length += other.len();
        }
        Ok(TerCounts {
            edits,
            length: length as f64 / references.len() as f64,
        })
    }

    /// The rate of segments together; 100 where there is nothing to reach but something given.
    pub fn score<'a>(&self, counts: impl IntoIterator<Item = &'a TerCounts>) -> f64 {
        let (mut edits, mut length) = (0, 0.0);
        for counts in counts {
            edits += counts.edits;
            length += counts.length;
        }
        match edits {
            0 => 0.0,
            _ if length == 0.0 => 100.0,
            _ => 100.0 * edits as f64 / length,
        }
    }

    /// The settings in sacreBLEU's form:
    /// `nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:2.6.0|maquette:0.1.0`.
    pub fn signature(&self, references: &[Vec<&str>]) -> String {
        let case = if self.case_sensitive { "mixed" } else { "lc" };
        let (norm, punct) = (yes(self.normalized), yes(!self.no_punct));
        let asian = yes(self.asian_support);
        let settings = format!("case:{case}|tok:tercom|norm:{norm}|punct:{punct}|asian:{asian}");
        signature(references, &settings, SACREBLEU)
    }

    /// A line as Tercom's normalisation leaves it.
    fn prepare(&self, line: &str) -> String {
        let mut line = line.trim_end_matches(is_space).to_owned();
        if line.is_empty() {
            return line;
        }
        if !self.case_sensitive {
            line = line.to_lowercase();
        }
        if self.normalized {
            line = line.replace("\n-", "").replace('\n', " ");
            line = split_symbols(&format!(" {} ", unescape(&line)));
            line = split_stops(&line.replace("'s ", " 's "));
            if self.asian_support {
                line = isolate(&line, |c| is_ideograph(c) || is_asian_punctuation(c));
            }
        }
        if self.no_punct {
            line.retain(|c| {
                !(".,?:;!\"()".contains(c) || self.asian_support && is_asian_punctuation(c))
            });
        }
        line
    }
}

/// What Tercom splits into single characters: CJK ideographs, radicals, strokes, enclosed and
/// compatibility forms. Kana stays in runs.
fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{2eff}' | '\u{31c0}'..='\u{31ef}' | '\u{3200}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe4f}')
}

fn is_asian_punctuation(c: char) -> bool {
    matches!(c, '、' | '。' | '〈'..='】' | '〔'..='\u{301f}' | '\u{ff61}'..='\u{ff65}' | '・'
        | '．' | '，' | '？' | '：' | '；' | '！' | '＂' | '（' | '）')
}

/// The longest run of words that is shifted.
const MAX_SHIFT: usize = 10;
/// How far a run may lie from its place in the reference.
const MAX_DISTANCE: usize = 50;
/// How many shifts are tried for a sentence.
const MAX_TRIES: usize = 1000;
/// How far the alignment may stray from the diagonal.
const BEAM: usize = 25;

/// Shifts the run that saves most edits until none saves any (Tercom's greedy search), and
/// counts the shifts and what is left to edit.
fn fewest_edits<'a>(hypothesis: &[&'a str], reference: &'a [&'a str]) -> usize {
    if reference.is_empty() {
        return hypothesis.len();
    }
    let mut distance = EditDistance::new(reference);
    let mut text = hypothesis.to_vec();
    let (mut shifts, mut tries) = (0, 0);
    while let Some(shifted) = best_shift(&text, reference, &mut distance, &mut tries) {
        text = shifted;
        shifts += 1;
    }
    shifts + distance.of(&text)
}

/// The shift that saves most edits; of equals the longest, then the leftmost run, then the
/// leftmost target. None where no shift saves any, or `tries` are used up.
fn best_shift<'a>(
    text: &[&'a str],
    reference: &[&str],
    distance: &mut EditDistance<'a>,
    tries: &mut usize,
) -> Option<Vec<&'a str>> {
    use std::cmp::Reverse;
    let before = distance.of(text);
    let alignment = distance.alignment(text.len());
    let mut best: Option<(_, Vec<&str>)> = None;
    for (start, place, length) in common_runs(text, reference) {
        // Only a run that stands wrong, to a place that is not yet right, and not into itself.
        let own = start..start + length;
        if !alignment.text_wrong[own.clone()].contains(&true)
            || !alignment.reference_wrong[place..place + length].contains(&true)
            || alignment.words_before[place]
                .checked_sub(1)
                .is_some_and(|at| own.contains(&at))
        {
            continue;
        }
        // After the word that each of the reference's words, from the one before the run's place
        // on, is aligned with.
        let mut last = None;
        for offset in 0..=length {
            let target = match (place + offset).checked_sub(1) {
                None => 0,
                Some(at) => alignment.words_before[at],
            };
            if last.replace(target) == Some(target) {
                continue;
            }
            let shifted = shift(text, start, length, target);
            let saved = before as isize - distance.of(&shifted) as isize;
            let rank = (saved, length, Reverse(start), Reverse(target));
            *tries += 1;
            if best.as_ref().is_none_or(|(most, _)| rank > *most) {
                best = Some((rank, shifted));
            }
        }
        if *tries >= MAX_TRIES {
            return None;
        }
    }
    best.filter(|((saved, _, _, _), _)| *saved > 0)
        .map(|(_, shifted)| shifted)
}

/// Every run of words that both have: where it starts in the text and in the reference, and its
/// length; with each run all that it starts with.
fn common_runs(text: &[&str], reference: &[&str]) -> Vec<(usize, usize, usize)> {
    let mut runs = Vec::new();
    for start in 0..text.len() {
        for place in 0..reference.len() {
            if start.abs_diff(place) > MAX_DISTANCE {
                continue;
            }
            let common = text[start..]
                .iter()
                .zip(&reference[place..])
                .take(MAX_SHIFT)
                .take_while(|(own, other)| own == other)
                .count();
            runs.extend((1..=common).map(|length| (start, place, length)));
        }
    }
    runs
}

/// The text with the run of `length` words at `start` moved to before the word at `target`, or,
/// for a target within the run or at its end, that many words further on.
fn shift<'a>(text: &[&'a str], start: usize, length: usize, target: usize) -> Vec<&'a str> {
    let end = start + length;
    let mut words = text.to_vec();
    if target < start {
        words[target..end].rotate_right(length);
    } else {
        let to = match target > end {
            true => target,
            false => (target + length).min(text.len()),
        };
        words[start..to].rotate_left(length);
    }
    words
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Edit {
    Keep,
    Substitute,
    /// Drop a word of the text.
    Delete,
    /// Add a word of the reference.
    Insert,
}

/// Levenshtein distance to one reference within a beam around the diagonal. Rows of the table
/// are kept for as long as the next text starts alike; texts must be equally long.
struct EditDistance<'a> {
    reference: &'a [&'a str],
    text: Vec<&'a str>,
    /// Cost and last edit, by words of the text and of the reference.
    rows: Vec<Vec<(usize, Edit)>>,
}

/// How a text and the reference stand against each other.
struct Alignment {
    /// For every word of the reference, the number of the text's words up to its counterpart.
    words_before: Vec<usize>,
    /// Whether a word of the text is deleted or replaced.
    text_wrong: Vec<bool>,
    /// Whether a word of the reference is inserted or a replacement.
    reference_wrong: Vec<bool>,
}

impl<'a> EditDistance<'a> {
    fn new(reference: &'a [&'a str]) -> Self {
        let first = (0..=reference.len()).map(|j| (j, Edit::Insert)).collect();
        Self {
            reference,
            text: Vec::new(),
            rows: vec![first],
        }
    }

    /// The fewest edits from `text` to the reference.
    fn of(&mut self, text: &[&'a str]) -> usize {
        const FAR: usize = usize::MAX / 2;
        let same = self
            .text
            .iter()
            .zip(text)
            .take_while(|(a, b)| a == b)
            .count();
        self.rows.truncate(same + 1);
        self.text = text.to_vec();
        let width = self.reference.len();
        let slope = width as f64 / text.len().max(1) as f64;
        // Wide enough for the rows to overlap where the reference is much the longer.
        let beam = match slope / 2.0 {
            half if half > BEAM as f64 => (half + BEAM as f64).ceil() as usize,
            _ => BEAM,
        };
        for i in same + 1..=text.len() {
            let middle = (i as f64 * slope).floor() as usize;
            let last = match i == text.len() {
                true => width,
                false => width.min(middle + beam - 1),
            };
            let above = &self.rows[i - 1];
            let mut row = vec![(FAR, Edit::Keep); width + 1];
            for j in middle.saturating_sub(beam)..=last {
                let delete = (above[j].0 + 1, Edit::Delete);
                row[j] = match j {
                    0 => delete,
                    _ => {
                        let pair = match text[i - 1] == self.reference[j - 1] {
                            true => (above[j - 1].0, Edit::Keep),
                            false => (above[j - 1].0 + 1, Edit::Substitute),
                        };
                        // Of equally cheap edits the first; Tercom's order.
                        let insert = (row[j - 1].0 + 1, Edit::Insert);
                        [delete, insert]
                            .into_iter()
                            .fold(pair, |best, edit| if edit.0 < best.0 { edit } else { best })
                    }
                };
            }
            self.rows.push(row);
        }
        self.rows[text.len()][width].0
    }

    /// How the text last measured, of `length` words, stands against the reference.
    fn alignment(&self, length: usize) -> Alignment {
        let width = self.reference.len();
        let mut alignment = Alignment {
            words_before: vec![0; width],
            text_wrong: vec![false; length],
            reference_wrong: vec![false; width],
        };
        let (mut i, mut j) = (length, width);
        while i > 0 || j > 0 {
            let edit = self.rows[i][j].1;
            let wrong = edit != Edit::Keep;
            if edit != Edit::Delete {
                j -= 1;
                alignment.words_before[j] = i;
                alignment.reference_wrong[j] = wrong;
            }
            if edit != Edit::Insert {
                i -= 1;
                alignment.text_wrong[i] = wrong;
            }
        }
        alignment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(hypothesis: &str, reference: &str) -> f64 {
        Ter::default().sentence(hypothesis, &[reference]).unwrap()
    }

    #[test]
    fn edits_by_hand() {
        assert_eq!(rate("a b c d", "a b c d"), 0.0);
        // One replaced, one missing, one too many.
        assert_eq!(rate("a x c d", "a b c d"), 25.0);
        assert_eq!(rate("a c d", "a b c d"), 25.0);
        assert_eq!(rate("a b c d e", "a b c d"), 25.0);
        // A run of two is one shift.
        assert_eq!(rate("c d a b", "a b c d"), 25.0);
        assert_eq!(rate("", ""), 0.0);
        assert_eq!(rate("a b", ""), 100.0);
        assert_eq!(rate("", "a b"), 100.0);
        assert!(Ter::default().sentence("a", &[]).is_err());
    }

    #[test]
    fn runs_move() {
        let words = ["a", "b", "c", "d"];
        assert_eq!(shift(&words, 2, 2, 0), ["c", "d", "a", "b"]);
        assert_eq!(shift(&words, 0, 1, 3), ["b", "c", "a", "d"]);
        assert_eq!(shift(&words, 0, 2, 1), ["c", "a", "b", "d"]);
        assert_eq!(shift(&words, 2, 2, 4), words);
    }
}
