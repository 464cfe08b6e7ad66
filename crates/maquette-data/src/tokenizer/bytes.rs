//! The bytes that each token stands for, as constraints and stop sequences need them.

use std::collections::HashSet;

use serde_json::Value;

use super::simple::byte_of;
use super::{Model, Result, Tokenizer, error};

/// What SentencePiece writes for a space.
const SPACE: char = '\u{2581}';

/// How the vocabulary spells bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Each byte as a visible character (GPT-2).
    ByteLevel,
    /// `U+2581` for a space, `<0x0A>` for bytes no piece spells (SentencePiece).
    Pieces,
    /// As it is.
    Plain,
}

impl Tokenizer {
    /// The bytes of every token, by id; `None` for special tokens and ids without a token. The bytes
    /// of a text's tokens, one after the other, are the text (SentencePiece puts a space before it).
    ///
    /// # Errors
    /// When a token's bytes depend on its neighbours, as with WordPiece.
    pub fn token_bytes(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let spelling = self.spelling()?;
        let special = self.special_tokens();
        let special: HashSet<u32> = special.into_iter().map(|(_, id)| id).collect();
        let bytes = |id: u32| {
            let token = self.id_to_token(id).filter(|_| !special.contains(&id))?;
            Some(match spelling {
                // A token that was added to the vocabulary is spelt as it is.
                Spelling::ByteLevel => {
                    let spelt: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                    spelt.unwrap_or_else(|| token.into_bytes())
                }
                Spelling::Pieces => match hexadecimal(&token) {
                    Some(byte) => vec![byte],
                    None => token.replace(SPACE, " ").into_bytes(),
                },
                Spelling::Plain => token.into_bytes(),
            })
        };
        Ok((0..self.vocab_size() as u32).map(bytes).collect())
    }

    fn spelling(&self) -> Result<Spelling> {
        let hf = match &self.model {
            Model::Simple(simple) if simple.is_bytes() => return Ok(Spelling::ByteLevel),
            Model::Simple(_) => return Ok(Spelling::Plain),
            Model::Hf(library) => &library.hf,
        };
        let decoder = serde_json::to_value(hf.get_decoder()).map_err(error)?;
        let mut kinds = Vec::new();
        collect_kinds(&decoder, &mut kinds);
        let has = |kind: &str| kinds.iter().any(|one| one == kind);
        match () {
            () if has("ByteLevel") => Ok(Spelling::ByteLevel),
            () if has("Metaspace") || has("ByteFallback") || has("Replace") => Ok(Spelling::Pieces),
            () if kinds == ["Fuse"] => Ok(Spelling::Plain),
            () => Err(error(
                "the text of a token depends on its neighbours in this tokenizer (WordPiece and the \
                 like); constraints need byte-level BPE, SentencePiece, characters or bytes",
            )),
        }
    }
}

/// The types of a decoder and of those in it.
fn collect_kinds(decoder: &Value, kinds: &mut Vec<String>) {
    match decoder["decoders"].as_array() {
        Some(all) => all.iter().for_each(|one| collect_kinds(one, kinds)),
        None => kinds.extend(decoder["type"].as_str().map(str::to_owned)),
    }
}

/// The byte of `<0x0A>`.
fn hexadecimal(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{TokenizerConfig, TokenizerKind};

    const TEXT: &str = "Ein Bär 🐻 isst Äpfel.\n{\"a\": [1, 2]}";

    fn trained(kind: TokenizerKind) -> Tokenizer {
        let config = TokenizerConfig {
            kind,
            vocab_size: 300,
            ..TokenizerConfig::default()
        };
        config.train(std::iter::once(Ok(TEXT.repeat(20)))).unwrap()
    }

    #[test]
    fn the_bytes_of_a_texts_tokens_are_the_text() {
        use TokenizerKind::{Bpe, Byte, Char, Unigram};
        for kind in [Byte, Char, Bpe, Unigram] {
            let tokenizer = trained(kind);
            let bytes = tokenizer.token_bytes().unwrap();
            assert_eq!(bytes.len(), tokenizer.vocab_size());
            let ids = tokenizer.encode(TEXT).unwrap();
            let spelt: Vec<u8> = ids
                .iter()
                .flat_map(|id| bytes[*id as usize].clone().unwrap())
                .collect();
            let spelt = String::from_utf8(spelt).unwrap();
            assert_eq!(spelt.trim_start_matches(' '), TEXT, "{kind:?}");
        }
    }

    #[test]
    fn special_tokens_have_no_bytes_and_word_pieces_are_refused() {
        let tokenizer = Tokenizer::byte(&["<|endoftext|>".to_owned()]);
        assert_eq!(tokenizer.token_bytes().unwrap()[256], None);
        let refused = trained(TokenizerKind::WordPiece).token_bytes();
        assert!(refused.unwrap_err().to_string().contains("neighbours"));
    }
}
