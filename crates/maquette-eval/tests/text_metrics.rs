//! Text metrics against sacreBLEU 2.6.0, rouge-score 0.1.2 and NLTK's stemmer: every case and
//! option of `fixtures/text_metrics.json`, which `fixtures/text_metrics.py` made.

use maquette_eval::text::*;
use serde_json::Value;

struct Fixture {
    all: Value,
    cases: Vec<(String, Vec<String>)>,
}

impl Fixture {
    fn read() -> Self {
        let all: Value =
            serde_json::from_str(include_str!("../fixtures/text_metrics.json")).unwrap();
        let cases = serde_json::from_value(all["cases"].clone()).unwrap();
        Self { all, cases }
    }

    fn references(&self, case: usize) -> Vec<&str> {
        self.cases[case].1.iter().map(String::as_str).collect()
    }

    /// The hypotheses and references of the cases with this many references, or, for 0, of all.
    fn corpus(&self, count: u64) -> (Vec<&str>, Vec<Vec<&str>>) {
        (0..self.cases.len())
            .map(|i| (self.cases[i].0.as_str(), self.references(i)))
            .filter(|(_, references)| count == 0 || references.len() as u64 == count)
            .unzip()
    }

    /// Checks one metric: its sentence scores, corpus scores and signatures.
    fn check<M>(
        &self,
        name: &str,
        metric: impl Fn(&Value) -> M,
        sentence: impl Fn(&M, &str, &[&str]) -> f64,
        corpus: impl Fn(&M, &[&str], &[Vec<&str>], &Value) -> f64,
        signature: impl Fn(&M, &[Vec<&str>]) -> String,
    ) {
        let rows = self.all[name].as_array().unwrap();
        assert!(rows.len() > 5);
        let mut wrong = Vec::new();
        for row in rows {
            let options = &row["options"];
            let metric = metric(options);
            let scores = row["scores"].as_array().unwrap();
            assert_eq!(scores.len(), self.cases.len());
            for (i, want) in scores.iter().enumerate() {
                let got = sentence(&metric, &self.cases[i].0, &self.references(i));
                if !near(got, want) {
                    wrong.push(format!(
                        "{options}: {:?}: {got} is not {want}",
                        self.cases[i]
                    ));
                }
            }
            for want in row["corpora"].as_array().unwrap() {
                let (hypotheses, references) = self.corpus(want["references"].as_u64().unwrap());
                let got = corpus(&metric, &hypotheses, &references, want);
                if !near(got, &want["score"]) {
                    wrong.push(format!("{options}: corpus: {got} is not {}", want["score"]));
                }
                let got = signature(&metric, &references);
                let theirs = got.rsplit_once("|maquette:").unwrap().0;
                assert_eq!(theirs, want["signature"].as_str().unwrap(), "{options}");
            }
        }
        assert!(
            wrong.is_empty(),
            "{} differ:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
}

fn near(got: f64, want: &Value) -> bool {
    (got - want.as_f64().unwrap()).abs() < 1e-6
}

fn flag(options: &Value, name: &str) -> bool {
    options[name].as_bool().unwrap_or(false)
}

fn count(options: &Value, name: &str, default: usize) -> usize {
    options[name].as_u64().map_or(default, |n| n as usize)
}

#[test]
fn there_are_enough_cases() {
    let fixture = Fixture::read();
    let with = |of: fn(&(String, Vec<String>)) -> bool| {
        fixture.cases.iter().filter(|case| of(case)).count()
    };
    assert!(fixture.cases.len() >= 50);
    assert!(with(|(h, r)| h.is_empty() || r.iter().any(String::is_empty)) >= 4);
    assert!(with(|(h, _)| !h.is_ascii()) >= 15);
    assert!(with(|(_, r)| r.len() > 1) >= 15);
}

#[test]
fn bleu_is_sacrebleus() {
    let metric = |options: &Value| Bleu {
        tokenizer: match options["tokenize"].as_str() {
            Some("intl") => BleuTokenizer::International,
            Some("char") => BleuTokenizer::Character,
            Some("none") => BleuTokenizer::None,
            _ => BleuTokenizer::V13a,
        },
        smoothing: match options["smooth_method"].as_str() {
            Some("floor") => Smoothing::Floor(options["smooth_value"].as_f64().unwrap_or(0.1)),
            Some("add-k") => Smoothing::AddK(options["smooth_value"].as_f64().unwrap_or(1.0)),
            Some("none") => Smoothing::None,
            _ => Smoothing::Exp,
        },
        lowercase: flag(options, "lowercase"),
        effective_order: flag(options, "effective_order"),
        max_order: count(options, "max_ngram_order", 4),
    };
    Fixture::read().check(
        "bleu",
        metric,
        |bleu, hypothesis, references| bleu.sentence(hypothesis, references).unwrap().score,
        |bleu, hypotheses, references, want| {
            let got = bleu.corpus(hypotheses, references).unwrap();
            let precisions = want["precisions"].as_array().unwrap();
            assert_eq!(got.precisions.len(), precisions.len());
            for (got, want) in got.precisions.iter().zip(precisions) {
                assert!(near(*got, want), "precision {got} is not {want}");
            }
            assert!(near(got.brevity_penalty, &want["bp"]));
            assert!(near(got.hypothesis_length as f64, &want["sys_len"]));
            assert!(near(got.reference_length as f64, &want["ref_len"]));
            got.score
        },
        Bleu::signature,
    );
}

#[test]
fn chrf_is_sacrebleus() {
    let metric = |options: &Value| Chrf {
        char_order: count(options, "char_order", 6),
        word_order: count(options, "word_order", 0),
        beta: count(options, "beta", 2) as u32,
        lowercase: flag(options, "lowercase"),
        whitespace: flag(options, "whitespace"),
        eps_smoothing: flag(options, "eps_smoothing"),
    };
    Fixture::read().check(
        "chrf",
        metric,
        |chrf, hypothesis, references| chrf.sentence(hypothesis, references).unwrap(),
        |chrf, hypotheses, references, _| chrf.corpus(hypotheses, references).unwrap(),
        Chrf::signature,
    );
}

#[test]
fn ter_is_sacrebleus() {
    let metric = |options: &Value| Ter {
        normalized: flag(options, "normalized"),
        no_punct: flag(options, "no_punct"),
        asian_support: flag(options, "asian_support"),
        case_sensitive: flag(options, "case_sensitive"),
    };
    Fixture::read().check(
        "ter",
        metric,
        |ter, hypothesis, references| ter.sentence(hypothesis, references).unwrap(),
        |ter, hypotheses, references, _| ter.corpus(hypotheses, references).unwrap(),
        Ter::signature,
    );
}

#[test]
fn rouge_is_rouge_scores() {
    let fixture = Fixture::read();
    for (name, stemmer) in [("plain", false), ("stemmed", true)] {
        let rouge = Rouge { stemmer };
        let rows = fixture.all["rouge"][name].as_array().unwrap();
        assert_eq!(rows.len(), fixture.cases.len());
        for (i, row) in rows.iter().enumerate() {
            let (hypothesis, references) = (&fixture.cases[i].0, fixture.references(i));
            let all = rouge.sentence(hypothesis, &references).unwrap();
            let three = rouge.n(hypothesis, &references, 3).unwrap();
            let got = [all.rouge1, all.rouge2, three, all.rouge_l, all.rouge_lsum];
            for (k, got) in got.into_iter().enumerate() {
                for (part, got) in [got.precision, got.recall, got.f1].into_iter().enumerate() {
                    let want = &row[k][part];
                    assert!(
                        near(got, want),
                        "{name} {k} {part} of {hypothesis:?}: {got} is not {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_corpus_has_the_mean_rouge() {
    let fixture = Fixture::read();
    let (hypotheses, references) = fixture.corpus(0);
    let rouge = Rouge { stemmer: true };
    let got = rouge.corpus(&hypotheses, &references).unwrap();
    let rows = fixture.all["rouge"]["stemmed"].as_array().unwrap();
    let sum: f64 = rows.iter().map(|row| row[4][2].as_f64().unwrap()).sum();
    assert!((got.rouge_lsum.f1 - sum / rows.len() as f64).abs() < 1e-6);
    assert!(
        rouge
            .signature(&references)
            .starts_with("nrefs:var|stem:yes|")
    );
}

#[test]
fn stems_are_nltks() {
    let fixture = Fixture::read();
    let words: Vec<&str> = fixture.all["stems"].as_str().unwrap().split(' ').collect();
    assert!(words.len() > 2000);
    for pair in words.chunks_exact(2) {
        assert_eq!(stem(pair[0]), pair[1], "{}", pair[0]);
    }
}

#[test]
fn answers_are_squads() {
    let fixture = Fixture::read();
    let rows = fixture.all["answers"].as_array().unwrap();
    assert_eq!(rows.len(), fixture.cases.len());
    for (i, row) in rows.iter().enumerate() {
        let (answer, references) = (&fixture.cases[i].0, fixture.references(i));
        assert_eq!(
            exact_match(answer, &references).unwrap(),
            row[0].as_bool().unwrap(),
            "{answer:?}"
        );
        let got = token_f1(answer, &references).unwrap();
        assert!(near(got, &row[1]), "{answer:?}: {got} is not {}", row[1]);
    }
}
