//! The arena: a page that shows pictures of two models side by side and asks which are better.
//!
//! The page learns no names: a question is a number, from which the server knows the pair, the sides
//! and the pictures. All pairs are asked equally often, sides change at random.

use std::collections::BTreeSet;
use std::io::{Cursor, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use maquette_generate::image::{Picture, encode_png, grid};
use maquette_rng::{Stream, rand::RngExt, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tiny_http::{Header, Method, Request, Response, Server};

use crate::votes::{self, Choice, Kept, Rating, ServeError};

const PAGE: &str = include_str!("../templates/arena.html");
/// The side of a grid of pictures on the page, in pixels, at least.
const SIDE: usize = 360;

/// A model and the pictures it is judged by.
#[derive(Debug, Clone)]
pub struct Contestant {
    /// What the scores call it.
    pub name: String,
    /// Its run folder, which keeps the votes.
    pub folder: PathBuf,
    /// SHA-256 of its weights.
    pub model: String,
    /// Picture `i` of each contestant was asked for in the same words.
    pub pictures: Vec<Picture>,
}

/// Contestants, and what was said of them.
#[derive(Debug)]
pub struct Arena {
    contestants: Vec<Contestant>,
    /// Pictures in a row, and rows.
    grid: usize,
    seed: u64,
    state: Mutex<Votes>,
}

#[derive(Debug)]
struct Votes {
    kept: Vec<Kept>,
    /// The number of the next question.
    next: u64,
    /// Questions without an answer.
    open: BTreeSet<u64>,
}

/// What a question shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question {
    left: usize,
    right: usize,
    /// The first picture.
    first: usize,
}

impl Arena {
    /// An arena that asks for `grid` x `grid` pictures at a time, with the votes that the contestants'
    /// folders hold.
    ///
    /// # Errors
    /// Fewer than two contestants, the same model twice, too few pictures, or damaged votes.
    pub fn new(contestants: Vec<Contestant>, grid: usize, seed: u64) -> Result<Self, ServeError> {
        let refuse = |reason: String| Err(ServeError::Contestants(reason));
        if contestants.len() < 2 {
            return refuse("an arena needs two runs or more".into());
        }
        for (i, one) in contestants.iter().enumerate() {
            if let Some(other) = contestants[..i].iter().find(|o| o.model == one.model) {
                return refuse(format!(
                    "{} and {} are the same model",
                    other.name, one.name
                ));
            }
            let (has, needs) = (one.pictures.len(), grid * grid);
            if needs == 0 || has < needs {
                return refuse(format!(
                    "{} has {has} pictures, {needs} are shown at a time",
                    one.name
                ));
            }
        }
        let folders: Vec<_> = contestants.iter().map(|one| one.folder.as_path()).collect();
        let models: Vec<_> = contestants.iter().map(|one| one.model.as_str()).collect();
        let kept = votes::read(&folders, &models)?;
        let state = Mutex::new(Votes {
            next: kept.len() as u64,
            kept,
            open: BTreeSet::new(),
        });
        Ok(Self {
            contestants,
            grid,
            seed,
            state,
        })
    }

    /// The scores so far, best first.
    ///
    /// # Errors
    /// None in practice: votes were checked when they were read.
    pub fn ratings(&self) -> Result<Vec<Rating>, ServeError> {
        let contestants = self.contestants.iter();
        let contestants: Vec<_> = contestants
            .map(|one| (one.name.as_str(), one.model.as_str()))
            .collect();
        votes::ratings(&contestants, &self.votes().kept, self.seed)
    }

    /// How many votes there are.
    pub fn count(&self) -> usize {
        self.votes().kept.len()
    }

    /// A panic elsewhere leaves whole votes.
    fn votes(&self) -> MutexGuard<'_, Votes> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn question(&self, number: u64) -> Question {
        let n = self.contestants.len();
        let pairs: Vec<_> = (0..n).flat_map(|b| (0..b).map(move |a| (a, b))).collect();
        let (a, b) = pairs[number as usize % pairs.len()];
        let random = &mut rng(self.seed, Stream::Sample, number);
        let (left, right) = if random.random() { (a, b) } else { (b, a) };
        let shown = self.grid * self.grid;
        let fewest = [a, b].map(|one| self.contestants[one].pictures.len());
        let places = fewest[0].min(fewest[1]) / shown;
        Question {
            left,
            right,
            first: random.random_range(0..places) * shown,
        }
    }

    fn ask(&self) -> u64 {
        let mut votes = self.votes();
        let number = votes.next;
        votes.next += 1;
        votes.open.insert(number);
        number
    }

    /// Keeps an answer in both folders.
    fn answer(&self, number: u64, preferred: Choice) -> Result<bool, ServeError> {
        let mut votes = self.votes();
        if !votes.open.remove(&number) {
            return Ok(false);
        }
        let Question { left, right, first } = self.question(number);
        let [left, right] = [left, right].map(|one| &self.contestants[one]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let vote = Kept {
            id: format!("{:x}-{number}", now.unwrap_or_default().as_nanos()),
            left: left.model.clone(),
            right: right.model.clone(),
            preferred,
            pictures: [first, self.grid * self.grid],
        };
        for one in [left, right] {
            votes::append(&one.folder, &vote)?;
        }
        votes.kept.push(vote);
        Ok(true)
    }

    /// The pictures on one side of a question that was asked.
    fn picture(&self, number: u64, left: bool) -> Option<Vec<u8>> {
        if !self.votes().open.contains(&number) {
            return None;
        }
        let question = self.question(number);
        let one = if left { question.left } else { question.right };
        let shown = self.grid * self.grid;
        let pictures = &self.contestants[one].pictures[question.first..][..shown];
        let sheet = grid(pictures, self.grid, 1, 128).ok()?;
        let factor = SIDE.div_ceil(sheet.width().max(sheet.height())).max(1);
        encode_png(&sheet.upscaled(factor).ok()?, &[]).ok()
    }
}

/// How often a waiting server looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(200);
/// The longest body that is read.
const LONGEST: u64 = 1 << 10;

/// Serves the arena on `listener` until `stop`.
///
/// # Errors
/// [`ServeError::Server`].
pub fn serve(arena: &Arena, listener: TcpListener, stop: &AtomicBool) -> Result<(), ServeError> {
    let server = Server::from_listener(listener, None);
    let server = server.map_err(|error| ServeError::Server(std::io::Error::other(error)))?;
    while !stop.load(Ordering::Relaxed) {
        let Some(mut request) = server.recv_timeout(LOOK).map_err(ServeError::Server)? else {
            continue;
        };
        let answer = arena.respond(&mut request);
        // A reader that went away misses nothing.
        let _ = request.respond(answer.into_response());
    }
    Ok(())
}

/// What a reader is told.
struct Answer {
    status: u16,
    kind: &'static str,
    body: Vec<u8>,
}

impl Answer {
    fn new(kind: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            kind,
            body: body.into(),
        }
    }

    fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::new("application/json", body),
            Err(error) => Self::fault(500, error.to_string()),
        }
    }

    fn fault(status: u16, what: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            ..Self::new("text/plain; charset=utf-8", what)
        }
    }

    fn into_response(self) -> Response<Cursor<Vec<u8>>> {
        let header = |name: &str, value: &str| {
            Header::from_bytes(name, value).expect("names and values here are plain ASCII")
        };
        Response::from_data(self.body)
            .with_status_code(self.status)
            .with_header(header("Content-Type", self.kind))
            .with_header(header("Cache-Control", "no-store"))
    }
}

/// A vote as the page sends it.
#[derive(Deserialize)]
struct Ballot {
    number: u64,
    preferred: Choice,
}

impl Arena {
    fn respond(&self, request: &mut Request) -> Answer {
        let header = |name: &'static str| {
            let mut headers = request.headers().iter();
            let found = headers.find(|header| header.field.equiv(name));
            found.map_or("", |header| header.value.as_str())
        };
        // Another site's name that leads to this machine's address is not answered: its scripts could
        // otherwise read and vote.
        let host = header("Host");
        let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
        if !matches!(host, "127.0.0.1" | "localhost") {
            return Answer::fault(403, "open this page at http://127.0.0.1");
        }
        // Nor can another site's form send this type.
        let is_json = header("Content-Type").starts_with("application/json");
        let path = request.url().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (request.method(), parts.as_slice()) {
            (Method::Get, [""]) => Answer::new("text/html; charset=utf-8", PAGE),
            (Method::Get, ["picture", number, side @ ("left" | "right")]) => {
                let number = number.parse().ok();
                match number.and_then(|number| self.picture(number, *side == "left")) {
                    Some(png) => Answer::new("image/png", png),
                    None => Answer::fault(404, "no such question is open"),
                }
            }
            (Method::Get, ["scores"]) => match self.ratings() {
                Ok(ratings) => Answer::json(&ratings),
                Err(error) => Answer::fault(500, error.to_string()),
            },
            (Method::Post, ["question"]) if is_json => {
                Answer::json(&json!({ "number": self.ask(), "votes": self.count() }))
            }
            (Method::Post, ["vote"]) if is_json => self.vote(request),
            _ => Answer::fault(404, "there is no such page"),
        }
    }

    fn vote(&self, request: &mut Request) -> Answer {
        let mut body = Vec::new();
        let read = request.as_reader().take(LONGEST).read_to_end(&mut body);
        if let Err(error) = read {
            return Answer::fault(400, error.to_string());
        }
        match serde_json::from_slice::<Ballot>(&body) {
            Err(error) => Answer::fault(400, format!("no vote: {error}")),
            Ok(ballot) => match self.answer(ballot.number, ballot.preferred) {
                Ok(true) => Answer::json(&json!({})),
                Ok(false) => Answer::fault(409, "that question is not open"),
                Err(error) => Answer::fault(500, error.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contestant(folder: &std::path::Path, name: &str, pictures: usize) -> Contestant {
        let picture = Picture::new(2, 2, 1, vec![name.as_bytes()[0]; 4]).unwrap();
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Contestant {
            name: name.into(),
            folder,
            model: format!("sha-{name}"),
            pictures: vec![picture; pictures],
        }
    }

    fn arena(folder: &std::path::Path) -> Arena {
        let all = ["a", "b", "c"].map(|name| contestant(folder, name, 8));
        Arena::new(all.into(), 2, 5).unwrap()
    }

    #[test]
    fn every_pair_is_asked_and_sides_change() {
        let folder = tempfile::tempdir().unwrap();
        let arena = arena(folder.path());
        let questions: Vec<Question> = (0..60).map(|n| arena.question(n)).collect();
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let of = |left, right| {
                let found = questions
                    .iter()
                    .filter(|q| (q.left, q.right) == (left, right));
                found.count()
            };
            assert_eq!(of(a, b) + of(b, a), 20);
            assert!(of(a, b) >= 4 && of(b, a) >= 4);
        }
        assert!(questions.iter().all(|q| q.first == 0 || q.first == 4));
        assert_eq!(questions[7], arena.question(7));
    }

    #[test]
    fn an_answer_counts_once_and_is_there_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = arena(folder.path());
        assert!(!first.answer(0, Choice::Left).unwrap(), "it was not asked");
        assert!(first.picture(0, true).is_none());
        for _ in 0..6 {
            let number = first.ask();
            assert!(first.picture(number, false).is_some());
            // "a" is preferred wherever it is.
            let question = first.question(number);
            let preferred = match (question.left, question.right) {
                (0, _) => Choice::Left,
                (_, 0) => Choice::Right,
                _ => Choice::Tie,
            };
            assert!(first.answer(number, preferred).unwrap());
            assert!(!first.answer(number, preferred).unwrap());
        }
        let again = arena(folder.path());
        assert_eq!(again.count(), 6);
        assert_eq!(again.ask(), 6);
        let ratings = again.ratings().unwrap();
        assert_eq!(
            (ratings[0].run.as_str(), ratings[0].wins, ratings[0].votes),
            ("a", 4.0, 4)
        );
    }

    #[test]
    fn contestants_that_cannot_meet_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let one = |name| contestant(folder.path(), name, 8);
        let says = |all: Vec<Contestant>, grid, what: &str| {
            let error = Arena::new(all, grid, 0).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says(vec![one("a")], 2, "two runs");
        says(vec![one("a"), one("a")], 2, "the same model");
        says(vec![one("a"), one("b")], 3, "a has 8 pictures, 9 are shown");
    }
}
