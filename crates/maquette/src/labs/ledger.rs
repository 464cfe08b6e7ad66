//! The handbook's generated parts: the results on each page, the ledger and the table of contents.
//!
//! No number in the handbook is typed. [`record`] writes a lab's result beside its page and renders
//! everything that quotes it; the tests fail when a rendered part is older than its result.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::claim::number;
use super::{LabError, LabResult, Mode, TOPICS, Topic};

/// The line above a page's results.
pub const BEGIN: &str = "<!-- results: written by `maquette lab --record` -->";
/// The line below a page's results.
pub const END: &str = "<!-- end of results -->";

/// The nearest `handbook` folder in the current folder or above it.
pub fn handbook() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors()
        .map(|folder| folder.join("handbook"))
        .find(|h| h.join("book.toml").is_file())
}

/// Writes a lab's result and plot into the handbook and renders what quotes them.
///
/// # Errors
/// [`LabError::Io`] when a file cannot be written, [`LabError::Page`] when the page has no place
/// for results.
pub fn record(
    topic: &Topic,
    result: &LabResult,
    plot: &str,
    handbook: &Path,
) -> Result<(), LabError> {
    result.write(plot, &handbook.join(topic.folder()))?;
    for (path, text) in rendered(handbook)? {
        fs::write(&path, text).map_err(|e| LabError::io(&path, e))?;
    }
    Ok(())
}

/// Every generated file of the handbook with the text it should have.
///
/// # Errors
/// [`LabError::Io`], [`LabError::Json`] or [`LabError::Page`] when a result or page is unreadable.
pub fn rendered(handbook: &Path) -> Result<Vec<(PathBuf, String)>, LabError> {
    let mut results = Vec::new();
    let mut files = Vec::new();
    for topic in TOPICS.iter().filter(|topic| topic.lab.is_some()) {
        let folder = handbook.join(topic.folder());
        let Some(result) = LabResult::read(&folder)? else {
            continue;
        };
        let path = folder.join("README.md");
        let page = fs::read_to_string(&path).map_err(|e| LabError::io(&path, e))?;
        let text = with_results(&page, &result).ok_or(LabError::Page { path: path.clone() })?;
        files.push((path, text));
        results.push((topic, result));
    }
    files.push((handbook.join("LEDGER.md"), ledger(&results)));
    files.push((handbook.join("SUMMARY.md"), summary()));
    Ok(files)
}

/// `page` with the part between the markers replaced by the result's table.
fn with_results(page: &str, result: &LabResult) -> Option<String> {
    let (head, rest) = page.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}\n{}{END}{tail}", results(result)))
}

fn results(result: &LabResult) -> String {
    let mut text = String::from("| claim | measured | must be | holds |\n|---|---|---|---|\n");
    for claim in &result.claims {
        let holds = if claim.pass { "yes" } else { "**no**" };
        let (got, bound) = (number(claim.got), claim.bound());
        let claim = cell(&claim.claim);
        let _ = writeln!(text, "| {claim} | {got} | {bound} | {holds} |");
    }
    let mode = mode(result.mode);
    let (seconds, seed, machine) = (number(result.seconds), result.seed, &result.machine);
    let _ = writeln!(text, "\nSeed {seed}, {seconds} s, {mode} run on {machine}.");
    for note in &result.notes {
        let _ = writeln!(text, "\n{note}");
    }
    text
}

/// Text inside a table's cell, where a bar would end it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Quick => "quick",
        Mode::Full => "full",
    }
}

fn ledger(results: &[(&Topic, LabResult)]) -> String {
    let mut text = String::from(
        "# The ledger\n\n\
         Every number below was measured by a lab of this handbook and written here by\n\
         `maquette lab N --record`; `maquette lab N` measures it again.\n\n\
         ## Against published numbers\n\n\
         | lab | what | published | ours | must be | seed | seconds | machine |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for (topic, result) in results {
        for claim in &result.claims {
            let Some(published) = &claim.published else {
                continue;
            };
            let _ = writeln!(
                text,
                "| [{}]({}/README.md) | {} | {} ({}) | {} | {} | {} | {} | {} |",
                topic.number,
                topic.folder(),
                cell(&claim.claim),
                number(published.value),
                published.source,
                number(claim.got),
                claim.bound(),
                result.seed,
                number(result.seconds),
                result.machine,
            );
        }
    }
    text.push_str("\n## All claims\n");
    for (topic, result) in results {
        let (number, title, folder) = (topic.number, topic.title, topic.folder());
        let _ = write!(text, "\n### [{number}. {title}]({folder}/README.md)\n\n");
        text.push_str(&self::results(result));
    }
    text
}

fn summary() -> String {
    let mut text =
        String::from("# Summary\n\n[The handbook](README.md)\n[The ledger](LEDGER.md)\n\n");
    for topic in &TOPICS {
        // mdBook shows an entry without a page greyed out: a question still open.
        let page = match topic.lab {
            Some(_) => format!("{}/README.md", topic.folder()),
            None => String::new(),
        };
        let _ = writeln!(text, "- [{}. {}]({page})", topic.number, topic.title);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labs::Claim;

    fn result() -> LabResult {
        LabResult {
            lab: 4,
            title: "KL divergence".into(),
            claims: vec![Claim::within("one", 1.0, 1.0, 0.1).published(2.0, "a paper")],
            seconds: 1.5,
            seed: 7,
            pass: true,
            mode: Mode::Quick,
            machine: "2 cores".into(),
            notes: vec![],
        }
    }

    #[test]
    fn results_replace_what_stood_between_the_markers() {
        let page = format!("above\n{BEGIN}\nstale\n{END}\nbelow");
        let text = with_results(&page, &result()).unwrap();
        assert!(text.starts_with("above") && text.ends_with("below"));
        assert!(text.contains("| one | 1 | = 1 ± 0.1 | yes |") && !text.contains("stale"));
        assert_eq!(with_results("no markers", &result()), None);
    }

    #[test]
    fn the_ledger_shows_published_beside_ours() {
        let text = ledger(&[(&TOPICS[3], result())]);
        assert!(text.contains("| one | 2 (a paper) | 1 | = 1 ± 0.1 | 7 | 1.5 | 2 cores |"));
    }

    #[test]
    fn the_handbook_is_rendered_from_its_results() {
        let handbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../handbook");
        for (path, text) in rendered(&handbook).unwrap() {
            let found = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(
                found,
                text,
                "{} is older than the results; record again",
                path.display()
            );
        }
    }

    #[test]
    fn every_lab_has_its_page_plot_and_passing_result() {
        let handbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../handbook");
        for topic in TOPICS.iter().filter(|topic| topic.lab.is_some()) {
            let folder = handbook.join(topic.folder());
            let result = LabResult::read(&folder).unwrap();
            let result = result.unwrap_or_else(|| panic!("{}: not recorded", topic.folder()));
            assert!(
                result.pass,
                "{}: recorded with a failing claim",
                topic.folder()
            );
            assert_eq!(
                (result.lab, result.title.as_str()),
                (topic.number, topic.title)
            );
            let page = fs::read_to_string(folder.join("README.md")).unwrap();
            assert!(page.contains("plot.svg") && folder.join("plot.svg").is_file());
        }
    }
}
