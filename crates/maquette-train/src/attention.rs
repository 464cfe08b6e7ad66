//! A page to look at a model's attention: heads by layer, tokens on hover, what the heads do. It
//! needs nothing else.

use std::path::Path;

use maquette_eval::attention::Head;
use maquette_models::nn::AttentionMaps;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;
use serde_json::json;

use crate::TrainError;
use crate::files::write_atomic;
use crate::report::base64;

const TEMPLATE: &str = include_str!("../templates/attention.html");
/// Longer texts would make a page of hundreds of megabytes.
pub const MAX_TOKENS: usize = 512;
/// Heads whose scores are listed.
const LISTED: usize = 12;

/// What one head does on a text, see [`Head`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadScore {
    /// The block, from 0.
    pub layer: usize,
    /// The head, from 0.
    pub head: usize,
    /// How much it looks at the token before.
    pub previous_token: f64,
    /// How much it looks at what came after earlier occurrences of the same token.
    pub induction: f64,
}

/// A text and the weights of every head on it.
#[derive(Debug, Clone)]
pub struct Attention {
    ids: Vec<u32>,
    /// By layer and head, `[n, n]` each, row by row.
    weights: Vec<Vec<Vec<f32>>>,
}

impl Attention {
    /// The first text of a batch of maps.
    ///
    /// # Errors
    /// Maps that are not of the tokens `ids`.
    pub fn new(ids: &[u32], maps: &AttentionMaps) -> Result<Self, TrainError> {
        let n = ids.len();
        let mut weights = Vec::new();
        for map in &maps.own {
            let [_, n_heads, rows, columns] = map.dims();
            if (rows, columns) != (n, n) {
                return Err(TrainError::other(format!(
                    "attention from {rows} to {columns} positions is not that of {n} tokens"
                )));
            }
            let first = map.clone().narrow(0, 0, 1).into_data();
            let all: Vec<f32> = first.iter::<f32>().collect();
            weights.push(
                all.chunks(all.len() / n_heads)
                    .map(<[f32]>::to_vec)
                    .collect(),
            );
        }
        Ok(Self {
            ids: ids.to_vec(),
            weights,
        })
    }

    /// One head's weights, `[n, n]`, row by row.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn head(&self, layer: usize, head: usize) -> &[f32] {
        &self.weights[layer][head]
    }

    /// What every head does, layer by layer.
    ///
    /// # Errors
    /// None that [`Attention::new`] lets through.
    pub fn scores(&self) -> Result<Vec<HeadScore>, TrainError> {
        let mut scores = Vec::new();
        for (layer, heads) in self.weights.iter().enumerate() {
            for (head, weights) in heads.iter().enumerate() {
                let of = Head::new(weights, self.ids.len()).map_err(TrainError::other)?;
                scores.push(HeadScore {
                    layer,
                    head,
                    previous_token: of.previous_token(),
                    induction: of.induction(&self.ids),
                });
            }
        }
        Ok(scores)
    }

    /// The page. `tokens` are the texts of the ids, `name` is the model's.
    ///
    /// # Errors
    /// None that [`Attention::new`] lets through.
    pub fn page(&self, name: &str, tokens: &[String]) -> Result<String, TrainError> {
        #[derive(Serialize)]
        struct Row {
            layer: usize,
            head: usize,
            previous: String,
            induction: String,
        }
        let mut scores = self.scores()?;
        scores.sort_by(|a, b| {
            let most = |score: &HeadScore| score.induction.max(score.previous_token);
            most(b).total_cmp(&most(a))
        });
        let rows = scores.iter().take(LISTED).map(|score| Row {
            layer: score.layer + 1,
            head: score.head + 1,
            previous: format!("{:.2}", score.previous_token),
            induction: format!("{:.2}", score.induction),
        });
        // A weight in a byte: a map of 100 tokens is 13 kB of text.
        let bytes = |head: &Vec<f32>| {
            let bytes: Vec<u8> = head.iter().map(|w| (w * 255.0).round() as u8).collect();
            base64(&bytes)
        };
        let maps: Vec<Vec<String>> = self
            .weights
            .iter()
            .map(|heads| heads.iter().map(bytes).collect())
            .collect();
        // A token may be `</script>`.
        let data = json!({ "tokens": tokens, "maps": maps });
        let data = data.to_string().replace('<', "\\u003c");
        let mut jinja = Environment::new();
        jinja.set_auto_escape_callback(|_| AutoEscape::Html);
        let page = context! {
            name,
            count => self.ids.len(),
            layers => self.weights.len(),
            heads => self.weights.first().map_or(0, Vec::len),
            scores => Value::from(Serde(rows.collect::<Vec<_>>())),
            data => Value::from_safe_string(data),
        };
        jinja.render_str(TEMPLATE, page).map_err(TrainError::other)
    }

    /// Writes [`Attention::page`] to `path`.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn write(&self, path: &Path, name: &str, tokens: &[String]) -> Result<(), TrainError> {
        write_atomic(path, self.page(name, tokens)?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor};

    fn attention() -> Attention {
        let map = [[
            [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        ]];
        let maps = AttentionMaps {
            own: vec![Tensor::<4>::from_floats(map, &Device::flex())],
            cross: Vec::new(),
        };
        Attention::new(&[5, 9, 5], &maps).unwrap()
    }

    #[test]
    fn a_page_holds_text_maps_and_scores() {
        let attention = attention();
        let scores = attention.scores().unwrap();
        assert_eq!((scores[0].previous_token, scores[0].induction), (1.0, 1.0));
        assert_eq!((scores[1].previous_token, scores[1].induction), (0.0, 0.0));
        let tokens = ["a", "</script><b>", "a"].map(str::to_owned);
        let page = attention.page("tiny", &tokens).unwrap();
        assert!(page.contains("3 tokens, 1 blocks of 2 heads"));
        assert!(!page.contains("</script><b>"));
        assert!(page.contains(&base64(&[255, 0, 0, 255, 0, 0, 0, 255, 0])));
        assert!(page.contains("<tr><td>1</td><td>1</td><td>1.00</td><td>1.00</td></tr>"));
    }

    #[test]
    fn maps_of_another_text_are_refused() {
        let maps = AttentionMaps {
            own: vec![Tensor::<4>::zeros([1, 2, 3, 3], &Device::flex())],
            cross: Vec::new(),
        };
        assert!(Attention::new(&[1, 2], &maps).is_err());
    }
}
