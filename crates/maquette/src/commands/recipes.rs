//! The recipes that are compiled in, and recipe files from disk.

use std::path::Path;

use crate::errors::Usage;

/// A recipe's name and its TOML text.
pub(crate) struct Recipe {
    /// What the user types, and the start of the run folder's name.
    pub(crate) name: String,
    /// The text.
    pub(crate) text: String,
}

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        /// Every recipe of `recipes/`, by name.
        pub(crate) const BUILT_IN: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../../../recipes/", $name, ".toml")))),*
        ];
    };
}

built_in![
    "bert-wikitext",
    "cgan-fashion",
    "cgan-mnist",
    "conv-shakespeare",
    "conv-stories",
    "cyclegan-glyphs",
    "date-forms",
    "dates",
    "dcgan-mnist",
    "diffusion-fashion",
    "diffusion-mnist",
    "fashion-classifier",
    "gan-glyphs",
    "gan-grid25",
    "gan-ring8",
    "gan-ring8-plain",
    "gan-tiles",
    "glyphs",
    "glyphs-classifier",
    "grid25",
    "gru-shakespeare",
    "heroes",
    "in-context-linear",
    "lstm-shakespeare",
    "lstm-stories",
    "mask-predict-dates",
    "mask-predict-forms",
    "mask-predict-reverse",
    "mnist-classifier",
    "moons",
    "pix2pix-glyphs",
    "pix2pix-tiles",
    "reverse",
    "ring8",
    "shakespeare-bpe",
    "shakespeare-char",
    "spans",
    "stacked-mnist",
    "stories",
    "stories-experts",
    "stories-streaming",
    "style-glyphs",
    "swiss-roll",
    "vae-glyphs",
    "vae-mnist",
    "vae-mnist-conv",
    "whereabouts",
    "word-order",
];

/// The built-in recipe called `name`, or the recipe file at that path.
///
/// # Errors
/// No such recipe, or a file that cannot be read.
pub(crate) fn find(name: &str) -> Result<Recipe, Usage> {
    if let Some((name, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
        return Ok(Recipe {
            name: (*name).to_owned(),
            text: (*text).to_owned(),
        });
    }
    let path = Path::new(name);
    let looks_like_a_path = path.extension().is_some() || path.components().count() > 1;
    if !looks_like_a_path {
        let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
        return Err(Usage::new(
            format!("there is no recipe called `{name}`"),
            format!(
                "the built-in ones are {}; or give the path of a recipe file",
                names.join(", ")
            ),
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|error| {
        Usage::new(
            format!("cannot read the recipe {name}: {error}"),
            "see `maquette list recipes` for the built-in ones",
        )
    })?;
    let name = path
        .file_stem()
        .map_or("recipe".into(), |stem| stem.to_string_lossy().into_owned());
    Ok(Recipe { name, text })
}

/// `--set KEY=VALUE` in two halves, with the short flags behind them.
///
/// # Errors
/// A `--set` without `=`.
pub(crate) fn sets(
    sets: &[String],
    short: &[(&str, Option<u64>)],
) -> Result<Vec<(String, String)>, Usage> {
    let mut pairs = Vec::new();
    for set in sets {
        let (key, value) = set.split_once('=').ok_or_else(|| {
            Usage::new(
                format!("--set {set}: no `=`"),
                "write --set section.key=value, for example --set train.batch=32",
            )
        })?;
        pairs.push((key.trim().to_owned(), value.trim().to_owned()));
    }
    let short = short
        .iter()
        .filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.to_string())));
    pairs.extend(short);
    Ok(pairs)
}
