//! `maquette arena`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::common::Bench;
use serde_json::Value;

/// A page that is served, and ends with the test.
struct Served {
    child: Child,
    address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    fn start(bench: &Bench) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_maquette"))
            .current_dir(bench.dir.path())
            .args([
                "arena", "a", "b", "--port", "0", "--grid", "2", "--images", "8", "--quiet",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").unwrap().to_owned();
        Self { child, address }
    }

    /// Status and body.
    fn request(&self, method: &str, path: &str, host: &str, body: &str) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let status = std::str::from_utf8(&answer[9..12])
            .unwrap()
            .parse()
            .unwrap();
        (status, answer[end + 4..].to_vec())
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        self.request(method, path, &self.address, body)
    }
}

#[test]
fn people_vote_without_being_told_for_whom() {
    let bench = Bench::new();
    let train = "train vae-glyphs --steps 2 --set train.batch=8 --set data.glyphs.per_class=2 \
                 --set model.network={mlp={hidden=[8]}} --set evaluate.importance_samples=0 --set evaluate.samples=0";
    bench.run(&format!("{train} --seed 1 --out a")).succeeds();
    bench.run(&format!("{train} --seed 2 --out b")).succeeds();
    {
        let page = Served::start(&bench);
        let (status, html) = page.ask("GET", "/", "");
        assert_eq!(status, 200);
        assert!(
            String::from_utf8(html)
                .unwrap()
                .contains("Which pictures are better?")
        );
        for preferred in ["left", "right", "tie"] {
            let (_, asked) = page.ask("POST", "/question", "");
            let asked: Value = serde_json::from_slice(&asked).unwrap();
            assert_eq!(
                asked.as_object().unwrap().len(),
                2,
                "names stay with the server"
            );
            let number = &asked["number"];
            let (status, png) = page.ask("GET", &format!("/picture/{number}/left"), "");
            assert!(status == 200 && png.starts_with(b"\x89PNG"));
            let vote = format!("{{\"number\": {number}, \"preferred\": \"{preferred}\"}}");
            assert_eq!(page.ask("POST", "/vote", &vote).0, 200);
            assert_eq!(page.ask("POST", "/vote", &vote).0, 409, "one answer each");
        }
        assert_eq!(page.ask("GET", "/picture/7/left", "").0, 404);
        assert_eq!(page.ask("POST", "/vote", "{}").0, 400);
        assert_eq!(page.request("GET", "/", "evil.example", "").0, 403);
    }
    for run in ["a", "b"] {
        let kept = std::fs::read_to_string(bench.path(run).join("votes.jsonl")).unwrap();
        assert_eq!(kept.lines().count(), 3);
    }
    let scores = bench.run("arena a b --scores --json").succeeds().json();
    assert_eq!(scores["votes"], 3);
    let ratings = scores["ratings"].as_array().unwrap();
    let wins: f64 = ratings
        .iter()
        .map(|one| one["wins"].as_f64().unwrap())
        .sum();
    assert_eq!((ratings.len(), wins), (2, 3.0));

    bench.run("arena a").fails(2, &["RUN"]);
    bench
        .run("arena a a --scores")
        .fails(1, &["the same model"]);
    bench.run("arena a nowhere --scores").fails(1, &["nowhere"]);
    bench.write("a/votes.jsonl", "rubbish\n");
    bench
        .run("arena a b --scores")
        .fails(1, &["votes.jsonl, line 1"]);
}
