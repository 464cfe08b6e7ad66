//! `maquette list`: recipes, data sets, model families, tasks, runs, labs.

use std::path::Path;

use maquette::labs::TOPICS;
use maquette::train::recipes::FAMILIES;
use maquette::train::{Source, run};
use serde_json::{Value, json};

use super::evaluate::TASKS;
use super::recipes::BUILT_IN;
use crate::args::{ListArgs, Listing};
use crate::output::Output;

/// Data sets that recipes name, or that `--data` is made for: name, what, where it comes from.
const DATA: &[(&str, &str, &str)] = &[
    ("ring8", "eight Gaussians on a ring, 2-D", "built in"),
    ("grid25", "twenty-five Gaussians on a grid, 2-D", "built in"),
    ("moons", "two half circles, 2-D", "built in"),
    ("swiss-roll", "a spiral, 2-D", "built in"),
    (
        "glyphs",
        "28x28 digits and letters rendered from fonts, train and test fonts disjoint",
        "built in",
    ),
    ("stories", "short stories from a grammar", "built in"),
    (
        "mnist",
        "60,000 + 10,000 digits 28x28",
        "--data FOLDER with train-images-idx3-ubyte(.gz) and its three siblings (yann.lecun.com/exdb/mnist or a mirror)",
    ),
    (
        "fashion-mnist",
        "60,000 + 10,000 garments 28x28",
        "--data FOLDER, files named as MNIST's (github.com/zalandoresearch/fashion-mnist)",
    ),
    (
        "images",
        "your own pictures",
        "--data FOLDER whose sub-folders are classes, or a .tar(.gz) of one; PNG, JPEG, GIF",
    ),
    (
        "crawl-tiles",
        "4,249 colour sprites 32x32 in 8 categories",
        "--data crawl-tiles-Nov-2015.tar.gz, a tar of the folder releases/Nov-2015 (github.com/crawl/tiles)",
    ),
    (
        "pairs",
        "your own pictures and what they are to become",
        "--data FOLDER with `a` (sources) and `b` (targets, same file names), for a recipe without pairs.from",
    ),
    (
        "tinyshakespeare",
        "1 MB of plays",
        "--data input.txt (github.com/karpathy/char-rnn, data/tinyshakespeare)",
    ),
    (
        "text",
        "your own text",
        "--data FILE or FOLDER: .txt, or .jsonl with a `text` field",
    ),
];

/// Print the asked-for list.
pub(crate) fn run(args: &ListArgs, output: Output) -> miette::Result<()> {
    let rows: Vec<Value> = match args.what {
        Listing::Recipes => BUILT_IN.iter().map(|(name, text)| recipe_row(name, text)).collect(),
        Listing::Data => DATA
            .iter()
            .map(|(name, what, from)| json!({ "name": name, "summary": what, "source": from }))
            .collect(),
        Listing::Models => FAMILIES.iter().map(|(name, what)| json!({ "name": name, "summary": what })).collect(),
        Listing::Tasks => TASKS.iter().map(|(name, what, _)| json!({ "name": name, "summary": what })).collect(),
        Listing::Runs => runs(&args.runs),
        Listing::Labs => TOPICS
            .iter()
            .map(|topic| json!({ "name": topic.slug, "number": topic.number, "summary": topic.title, "state": topic.state() }))
            .collect(),
    };
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let state = match args.what {
            Listing::Labs => format!("{:>2} {:8} ", row["number"], text("state")),
            Listing::Recipes => format!("{:11} ", text("family")),
            _ => String::new(),
        };
        output.line(format_args!(
            "{state}{:26} {}",
            text("name"),
            text("summary")
        ));
        if args.what == Listing::Data && text("source") != "built in" {
            output.line(format_args!("{:26} {}", "", text("source")));
        }
    }
    if rows.is_empty() {
        output.line("nothing yet: `maquette train glyphs` makes the first run");
    }
    output.object(&json!({ "rows": rows }));
    Ok(())
}

fn recipe_row(name: &str, text: &str) -> Value {
    let source = Source::new(name, text, &[]);
    let top = |key| source.top(key).unwrap_or_default();
    json!({ "name": name, "family": top("family"), "summary": top("summary") })
}

fn runs(root: &Path) -> Vec<Value> {
    let Ok(entries) = std::fs::read_dir(root) else {
        return Vec::new();
    };
    let mut dirs: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|dir| dir.join("recipe.toml").is_file())
        .collect();
    dirs.sort();
    dirs.iter()
        .map(|dir| {
            let (state, metrics) = match run::result(dir) {
                Ok(result) => (
                    format!(
                        "{} steps: {}",
                        result.steps,
                        super::progress::listed(&result.metrics)
                    ),
                    json!(result.metrics),
                ),
                Err(_) => (
                    format!("unfinished: maquette train --resume {}", dir.display()),
                    Value::Null,
                ),
            };
            json!({ "name": dir.display().to_string(), "summary": state, "metrics": metrics })
        })
        .collect()
}
