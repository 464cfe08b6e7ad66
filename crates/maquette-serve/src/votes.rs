//! Votes on disk: each run keeps, line by line, every comparison it took part in.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use maquette_eval::EvalError;
use maquette_eval::bootstrap::Interval;
use maquette_eval::rating::{Vote, bradley_terry_intervals};
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};

/// The file in a run's folder.
const FILE: &str = "votes.jsonl";
/// Ties with an average contestant that everyone begins with.
const PRIOR: f64 = 1.0;
const RESAMPLES: usize = 500;
const LEVEL: f64 = 0.95;
/// Points of Elo's scale per logit: 400 are ten wins to one.
const ELO: f64 = 400.0 / std::f64::consts::LN_10;

/// What goes wrong in the arena.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A file of votes could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line that is no vote.
    #[error("{}, line {line}: no vote ({reason}); mend or remove the line", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// Contestants that cannot be compared.
    #[error("{0}")]
    Contestants(String),
    /// A metric that has no value.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The server could not be started, or stopped.
    #[error("the server: {0}")]
    Server(std::io::Error),
}

/// Which side was preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Choice {
    Left,
    Right,
    Tie,
}

/// A vote as it is kept: models by the SHA-256 of their weights, so that a run that was trained again
/// does not inherit what was said of another model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Unlike any other vote's.
    pub(crate) id: String,
    pub(crate) left: String,
    pub(crate) right: String,
    pub(crate) preferred: Choice,
    /// The first picture of each side, and how many there were.
    pub(crate) pictures: [usize; 2],
}

/// What people think of a contestant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rating {
    /// Its name.
    pub run: String,
    /// Bradley-Terry score in Elo points, 0 on average: 400 ahead means ten wins to one. With its 95 %
    /// bootstrap interval.
    pub score: Interval,
    /// Votes it won, ties counted half.
    pub wins: f64,
    /// Votes it took part in.
    pub votes: usize,
}

/// The votes in `folders` on models of which both are in `models`, each once.
pub(crate) fn read(folders: &[&Path], models: &[&str]) -> Result<Vec<Kept>, ServeError> {
    let (mut seen, mut all) = (BTreeSet::new(), Vec::new());
    for folder in folders {
        let path = folder.join(FILE);
        for (i, line) in text(&path)?.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let vote: Kept = serde_json::from_str(line).map_err(|error| ServeError::Malformed {
                path: path.clone(),
                line: i + 1,
                reason: error.to_string(),
            })?;
            let ours = [&vote.left, &vote.right].map(|model| models.contains(&model.as_str()));
            if ours == [true, true] && seen.insert(vote.id.clone()) {
                all.push(vote);
            }
        }
    }
    Ok(all)
}

/// Adds a vote to the file in `folder`, which is replaced as a whole.
pub(crate) fn append(folder: &Path, vote: &Kept) -> Result<(), ServeError> {
    let path = folder.join(FILE);
    let mut all = text(&path)?;
    if !all.is_empty() && !all.ends_with('\n') {
        all.push('\n');
    }
    let io = |source| ServeError::Io {
        path: path.clone(),
        source,
    };
    all.push_str(&serde_json::to_string(vote).map_err(|error| io(error.into()))?);
    all.push('\n');
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(all.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)
    };
    write().map(drop).map_err(io)
}

fn text(path: &Path) -> Result<String, ServeError> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|source| ServeError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Ratings of contestants (name and model), best first.
pub(crate) fn ratings(
    contestants: &[(&str, &str)],
    votes: &[Kept],
    seed: u64,
) -> Result<Vec<Rating>, ServeError> {
    let place = |model: &str| contestants.iter().position(|(_, known)| *known == model);
    let votes: Vec<Vote> = votes
        .iter()
        .filter_map(|vote| {
            let share = match vote.preferred {
                Choice::Left => 1.0,
                Choice::Right => 0.0,
                Choice::Tie => 0.5,
            };
            let (a, b) = (place(&vote.left)?, place(&vote.right)?);
            Some(Vote { a, b, share })
        })
        .collect();
    let random = &mut rng(seed, Stream::Evaluate, 0);
    let n = contestants.len();
    let scores = match votes.is_empty() {
        // Nothing is known of anybody.
        true => vec![None; n],
        false => {
            let resampling = (RESAMPLES, LEVEL);
            let scores = bradley_terry_intervals(n, &votes, PRIOR, resampling, random)?;
            scores.into_iter().map(Some).collect()
        }
    };
    let rating = |(i, score): (usize, Option<Interval>)| {
        let mut rating = Rating {
            run: contestants[i].0.to_owned(),
            score: elo(score.unwrap_or(Interval {
                value: 0.0,
                low: f64::NEG_INFINITY,
                high: f64::INFINITY,
                level: LEVEL,
            })),
            wins: 0.0,
            votes: 0,
        };
        for vote in &votes {
            let won = [(vote.a, vote.share), (vote.b, 1.0 - vote.share)];
            for (_, share) in won.into_iter().filter(|(who, _)| *who == i) {
                rating.wins += share;
                rating.votes += 1;
            }
        }
        rating
    };
    let mut all: Vec<Rating> = scores.into_iter().enumerate().map(rating).collect();
    all.sort_by(|a, b| b.score.value.total_cmp(&a.score.value));
    Ok(all)
}

fn elo(score: Interval) -> Interval {
    Interval {
        value: score.value * ELO,
        low: score.low * ELO,
        high: score.high * ELO,
        ..score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(id: &str, left: &str, right: &str, preferred: Choice) -> Kept {
        Kept {
            id: id.into(),
            left: left.into(),
            right: right.into(),
            preferred,
            pictures: [0, 9],
        }
    }

    #[test]
    fn votes_come_back_once() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let paths = [folders[0].path(), folders[1].path()];
        let one = vote("1", "a", "b", Choice::Left);
        for path in paths {
            append(path, &one).unwrap();
        }
        append(paths[0], &vote("2", "a", "other", Choice::Tie)).unwrap();
        assert_eq!(read(&paths, &["a", "b"]).unwrap(), [one]);
        fs::write(paths[1].join(FILE), "\nnonsense").unwrap();
        let error = read(&paths, &["a", "b"]).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        // A line that was cut off keeps to itself.
        append(paths[1], &vote("3", "a", "b", Choice::Tie)).unwrap();
        assert!(
            fs::read_to_string(paths[1].join(FILE))
                .unwrap()
                .contains("nonsense\n{")
        );
    }

    #[test]
    fn the_preferred_leads() {
        let votes = [
            vote("1", "a", "b", Choice::Right),
            vote("2", "b", "a", Choice::Left),
            vote("3", "a", "b", Choice::Tie),
        ];
        let got = ratings(&[("x", "a"), ("y", "b")], &votes, 0).unwrap();
        assert_eq!(
            (got[0].run.as_str(), got[0].wins, got[0].votes),
            ("y", 2.5, 3)
        );
        assert_eq!((got[1].run.as_str(), got[1].wins), ("x", 0.5));
        assert!((got[0].score.value + got[1].score.value).abs() < 1e-6);
        assert!(got[0].score.low <= got[0].score.value);
        let nothing = ratings(&[("x", "a"), ("y", "b")], &[], 0).unwrap();
        assert_eq!((nothing[0].score.value, nothing[0].votes), (0.0, 0));
    }
}
