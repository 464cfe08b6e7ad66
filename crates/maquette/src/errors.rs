//! From the library's errors to what the user reads: the line at fault, and what to do.

use std::sync::Arc;

use maquette::train::{RecipeError, TrainError};
use miette::{Diagnostic, LabeledSpan, NamedSource};

/// The command line asks for something that cannot be: exit code 2.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub(crate) struct Usage {
    message: String,
    #[help]
    help: Option<String>,
    #[source_code]
    source_code: Option<Arc<NamedSource<String>>>,
    #[label(collection)]
    labels: Vec<LabeledSpan>,
}

impl Usage {
    /// What is wrong, and what to do.
    pub(crate) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: Some(help.into()),
            source_code: None,
            labels: Vec::new(),
        }
    }
}

impl From<RecipeError> for Usage {
    fn from(error: RecipeError) -> Self {
        let labels = error.span.clone().map(LabeledSpan::underline);
        Self {
            message: error.message,
            help: error.help,
            labels: labels.into_iter().collect(),
            source_code: Some(Arc::new(
                NamedSource::new(error.name, error.text).with_language("toml"),
            )),
        }
    }
}

/// A library error as a report; a recipe that cannot be used is a usage error and points at its line.
pub(crate) fn report(error: TrainError) -> miette::Report {
    match error {
        TrainError::Recipe(error) => Usage::from(error).into(),
        error => failed(error),
    }
}

/// Any other error as a report: the message, then each cause that the message does not yet tell.
pub(crate) fn failed(error: impl std::error::Error) -> miette::Report {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let text = source.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = source.source();
    }
    miette::Report::msg(message)
}
