//! Results go to stdout, progress to stderr.

use std::io::Write;

/// Where and how results are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON object as the last line of stdout, and nothing else there.
    pub(crate) json: bool,
    /// No progress on stderr.
    pub(crate) quiet: bool,
}

impl Output {
    /// Print a line of text, unless the caller asked for JSON.
    pub(crate) fn line(&self, text: impl std::fmt::Display) {
        if !self.json {
            print(&format!("{text}\n"));
        }
    }

    /// Print a piece of text as it comes, unless the caller asked for JSON.
    pub(crate) fn piece(&self, text: &str) {
        if !self.json {
            print(text);
        }
    }

    /// Print the final JSON object, if the caller asked for it.
    pub(crate) fn object(&self, value: &serde_json::Value) {
        if self.json {
            print(&format!("{value}\n"));
        }
    }
}

/// A reader that went away (`maquette list recipes | head -1`) is no error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(0);
    }
}
