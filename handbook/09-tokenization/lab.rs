//! Five tokenizers on text they have seen and on text they have not, what size buys, and how fast the
//! ids are found.

use std::time::Instant;

use crate::data::tokenizer::{Tokenizer, TokenizerConfig, TokenizerKind};
use crate::data::{stories, text};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};

/// Nothing of this occurs in the stories.
const UNSEEN: [&str; 10] = [
    "antidisestablishmentarianism",
    "zyxwvutsrqponm",
    "naïve café, déjà vu",
    "Ωμέγα και άλφα",
    "東京タワー",
    "🦀🎉👩‍👩‍👧",
    "x = {\"key\": [1, 2]};",
    "\ttabs\r\nand returns ",
    "3.14159265358979",
    "ĳsje \u{200b} zero width",
];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let (corpus, held_out, name) = match lab.real("tinyshakespeare/input.txt") {
        Some(path) => {
            let all = text::read(&path).doing("reading the corpus")?;
            let cut = all.len() * 9 / 10;
            let cut = (cut..all.len())
                .find(|i| all.is_char_boundary(*i))
                .unwrap_or(all.len());
            (
                all[..cut].to_string(),
                all[cut..].to_string(),
                "tiny Shakespeare",
            )
        }
        None => (
            stories::generate(1000, lab.seed),
            stories::generate(100, lab.seed + 1),
            "stories",
        ),
    };
    let train = |kind, vocab_size| -> Result<Tokenizer, LabError> {
        let config = TokenizerConfig {
            kind,
            vocab_size,
            ..TokenizerConfig::default()
        };
        config
            .train(std::iter::once(Ok(corpus.clone())))
            .doing("training a tokenizer")
    };
    use TokenizerKind::{Bpe, Byte, Char, Unigram, WordPiece};
    lab.say("training five tokenizers");
    let bpe = train(Bpe, 1000)?;
    let byte = train(Byte, 256)?;
    let (chars, word_piece, unigram) = (
        train(Char, 0)?,
        train(WordPiece, 1000)?,
        train(Unigram, 1000)?,
    );

    let mut claims = vec![
        Claim::at_most(
            "byte-level BPE: of 10 unseen texts, not restored exactly",
            lost(&bpe),
            0.0,
        ),
        Claim::at_most(
            "bytes: of 10 unseen texts, not restored exactly",
            lost(&byte),
            0.0,
        ),
        Claim::at_least(
            "characters: of 10 unseen texts, refused with an error",
            refused(&chars),
            5.0,
        ),
        Claim::at_least(
            "WordPiece: of 10 unseen texts, not restored exactly",
            lost(&word_piece),
            3.0,
        ),
        Claim::at_least(
            "Unigram: of 10 unseen texts, not restored exactly",
            lost(&unigram),
            3.0,
        ),
    ];
    for (name, tokenizer) in [
        ("byte-level BPE", &bpe),
        ("characters", &chars),
        ("bytes", &byte),
    ] {
        let ids = tokenizer.encode(&held_out).doing("encoding")?;
        let same = tokenizer.decode(&ids).doing("decoding")? == held_out;
        claims.push(Claim::at_least(
            format!("{name}: held-out text restored exactly"),
            f64::from(same),
            1.0,
        ));
    }
    let reloaded = Tokenizer::from_json(&bpe.to_json().doing("saving")?).doing("loading")?;
    let (a, b) = (
        bpe.encode(&held_out).doing("encoding")?,
        reloaded.encode(&held_out).doing("encoding")?,
    );
    let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len());
    claims.push(Claim::at_most(
        "ids that differ after saving and loading tokenizer.json",
        differ as f64,
        0.0,
    ));

    let (curve, largest, curve_claims) =
        compression(lab, (&held_out, name == "tiny Shakespeare"), &train)?;
    claims.extend(curve_claims);
    let (speed, note) = speed(lab, &largest, &held_out)?;
    claims.extend(speed);
    let density = |t: &Tokenizer| bytes_per_token(t, &held_out);
    let bars = Chart::new("Vocabulary of 1,000", "", "bytes per token")
        .bar("bytes", density(&byte)?)
        .bar("chars", density(&chars)?)
        .bar("WordPiece", density(&word_piece)?)
        .bar("Unigram", density(&unigram)?)
        .bar("BPE", density(&bpe)?);
    let notes = vec![format!("Corpus: {name}, {} bytes.", corpus.len()), note];
    Ok(Outcome {
        claims,
        plot: panels(&[curve, bars]),
        notes,
    })
}

/// Byte-level BPE at growing sizes, and the largest of them.
fn compression(
    lab: &LabContext<'_>,
    (held_out, shakespeare): (&str, bool),
    train: &dyn Fn(TokenizerKind, usize) -> Result<Tokenizer, LabError>,
) -> Result<(Chart, Tokenizer, Vec<Claim>), LabError> {
    let mut points = Vec::new();
    let mut sizes = vec![256, 320, 400, 512, 700, 1000, 1500, 2000];
    if !lab.quick {
        sizes.extend([4000, 8000]);
    }
    let mut tokenizer = train(TokenizerKind::Bpe, 256)?;
    for size in sizes {
        lab.say(&format!("BPE with {size} tokens"));
        tokenizer = train(TokenizerKind::Bpe, size)?;
        points.push((size as f64, bytes_per_token(&tokenizer, held_out)?));
    }
    let least_rise = points
        .windows(2)
        .map(|w| w[1].1 - w[0].1)
        .fold(f64::INFINITY, f64::min);
    let at = |i: usize| points[i].1;
    let per_token = |a: usize, b: usize| (at(b) - at(a)) / (points[b].0 - points[a].0);
    // Verse says more in a word than stories of a small grammar.
    let expected = if shakespeare { 2.5 } else { 3.0 };
    let mut claims = vec![
        Claim::within(
            "BPE with 256 tokens is bytes: bytes per token",
            at(0),
            1.0,
            1e-9,
        ),
        Claim::at_least(
            "least rise in bytes per token from one size to the next",
            least_rise,
            0.0,
        ),
        Claim::at_least("bytes per token with 2,000 tokens", at(7), expected),
        Claim::at_most(
            "what one more token buys between 1,000 and 2,000, over that between 256 and 512",
            per_token(5, 7) / per_token(0, 3),
            0.25,
        ),
    ];
    if let Some((_, most)) = points.last().filter(|_| shakespeare) {
        let claim = "bytes per token with 8,000 tokens, learnt from the first nine tenths";
        let source = "GPT-2's 50,257 tokens, learnt elsewhere, on the same tenth: 111,540 bytes in \
                      36,059 tokens (karpathy/nanoGPT, data/shakespeare)";
        claims.push(Claim::at_least(claim, *most, 3.0).published(3.093, source));
    }
    let chart = Chart::new(
        "Compression by byte-level BPE",
        "vocabulary size",
        "bytes per token",
    )
    .line("", points);
    Ok((chart, tokenizer, claims))
}

/// Ids alone, and ids by the library that keeps every token's text and place: the same, but sooner.
fn speed(
    lab: &LabContext<'_>,
    tokenizer: &Tokenizer,
    text: &str,
) -> Result<(Vec<Claim>, String), LabError> {
    lab.say("encoding both ways");
    let (mut fast, mut slow) = (f64::INFINITY, f64::INFINITY);
    let (mut ids, mut pieces) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let began = Instant::now();
        ids = tokenizer.encode(text).doing("encoding")?;
        fast = fast.min(began.elapsed().as_secs_f64());
        let began = Instant::now();
        pieces = tokenizer.pieces(text).doing("encoding")?;
        slow = slow.min(began.elapsed().as_secs_f64());
    }
    let differ = ids
        .iter()
        .zip(&pieces)
        .filter(|(id, piece)| **id != piece.id)
        .count();
    let differ = differ + ids.len().abs_diff(pieces.len());
    let claims = vec![
        Claim::at_most(
            "ids that differ between the fast way and the library's",
            differ as f64,
            0.0,
        ),
        Claim::at_least("how many times faster the fast way is", slow / fast, 2.0),
    ];
    let rate = |seconds: f64| text.len() as f64 / 1e6 / seconds;
    let note = format!(
        "One thread encodes {:.0} MB/s the fast way, {:.1} MB/s by the library.",
        rate(fast),
        rate(slow)
    );
    Ok((claims, note))
}

fn bytes_per_token(tokenizer: &Tokenizer, text: &str) -> Result<f64, LabError> {
    let ids = tokenizer.encode(text).doing("encoding")?;
    Ok(text.len() as f64 / ids.len().max(1) as f64)
}

/// How many unseen texts do not come back as they were.
fn lost(tokenizer: &Tokenizer) -> f64 {
    let restored = |text: &str| -> Option<bool> {
        let ids = tokenizer.encode(text).ok()?;
        Some(tokenizer.decode(&ids).ok()? == text)
    };
    UNSEEN
        .iter()
        .filter(|text| restored(text) != Some(true))
        .count() as f64
}

fn refused(tokenizer: &Tokenizer) -> f64 {
    UNSEEN
        .iter()
        .filter(|text| tokenizer.encode(text).is_err())
        .count() as f64
}
