//! What can go wrong in a run, and what is left afterwards.

mod common;

use std::fs;

use common::{Job, tree, weights};
use maquette_train::spec::{OptimizerKind, PenaltyKind, PenaltySpec};
use maquette_train::{Ending, OptimizerSpec, Place, TrainError, checkpoint, run};

fn checkpointed(steps: u64) -> Job {
    let mut job = Job::new(steps);
    job.train.checkpoint_every = Some(5);
    job
}

#[test]
fn a_flipped_byte_is_named_and_an_earlier_checkpoint_offered() {
    let job = checkpointed(20);
    let straight = weights(&job.run().unwrap().model);
    for file in [
        "model.bpk",
        "optimizer.bpk",
        "trainer.json",
        "manifest.json",
    ] {
        let path = job.dir().join("checkpoints/step-00000020").join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0x80;
        fs::write(&path, &bad).unwrap();
        let error = job.resumed().run().unwrap_err();
        assert!(
            matches!(error, TrainError::DamagedCheckpoint { .. }),
            "{error}"
        );
        let message = error.to_string();
        assert!(
            message.contains(file) && message.contains("step-00000015"),
            "{message}"
        );
        fs::write(&path, &good).unwrap();
    }
    // Following the advice works.
    fs::remove_dir_all(job.dir().join("checkpoints/step-00000020")).unwrap();
    assert_eq!(straight, weights(&job.resumed().run().unwrap().model));
    job.dispose();
}

#[test]
fn a_missing_file_is_damage_too() {
    let job = checkpointed(5);
    job.run().unwrap();
    fs::remove_file(job.dir().join("checkpoints/step-00000005/optimizer.bpk")).unwrap();
    let message = job.resumed().run().unwrap_err().to_string();
    assert!(
        message.contains("optimizer.bpk") && message.contains("start over"),
        "{message}"
    );
    job.dispose();
}

#[test]
fn a_changed_recipe_or_data_is_refused_by_name() {
    let job = Job {
        die_at: Some(7),
        ..checkpointed(10)
    };
    job.run().unwrap_err();
    let mut changed = job.resumed();
    changed.optimizer.lr = 0.5;
    let message = changed.run().unwrap_err().to_string();
    assert!(message.contains("optimizer.lr: 0.01 -> 0.5"), "{message}");
    let changed = Job {
        data: "other".into(),
        ..job.resumed()
    };
    assert!(matches!(changed.run(), Err(TrainError::DataChanged { .. })));
    job.dispose();
}

#[test]
fn a_changed_recipe_is_refused_before_the_first_checkpoint_as_well() {
    let job = Job {
        die_at: Some(2),
        ..checkpointed(10)
    };
    job.run().unwrap_err();
    let mut changed = job.resumed();
    changed.train.seed = 1;
    assert!(matches!(
        changed.run(),
        Err(TrainError::RecipeChanged { .. })
    ));
    job.dispose();
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let mut job = checkpointed(30);
    job.train.keep_checkpoints = 2;
    job.run().unwrap();
    let names: Vec<_> = checkpoint::list(&job.dir().join("checkpoints"))
        .unwrap()
        .into_iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["step-00000025", "step-00000030"]);
    job.dispose();
}

#[test]
fn what_a_kill_left_half_written_is_ignored_and_removed() {
    let job = Job {
        die_at: Some(7),
        ..checkpointed(10)
    };
    job.run().unwrap_err();
    let unfinished = maquette_train::report::render(&job.dir()).unwrap();
    assert!(unfinished.contains("Not finished yet"));
    let half = job.dir().join("checkpoints/.unfinished-abc");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("model.bpk"), b"half").unwrap();
    let log = job.dir().join("metrics.jsonl");
    let mut text = fs::read_to_string(&log).unwrap();
    text.push_str("{\"step\":8,\"pha");
    fs::write(&log, text).unwrap();
    job.resumed().run().unwrap();
    assert!(!half.exists());
    assert_eq!(
        job.metrics()
            .iter()
            .filter(|record| record.step == 7)
            .count(),
        1
    );
    job.dispose();
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones() {
    let job = Job {
        block_at: Some(7),
        ..checkpointed(20)
    };
    let error = job.run().unwrap_err();
    assert!(matches!(error, TrainError::Io { .. }), "{error}");
    // A folder of checkpoints that cannot be read is not an empty one.
    let error = job.resumed().run().unwrap_err();
    assert!(
        matches!(error, TrainError::Io { action: "read", .. }),
        "{error}"
    );

    let root = job.dir().join("checkpoints");
    fs::remove_file(&root).unwrap();
    fs::rename(job.dir().join("kept"), &root).unwrap();
    let straight = job.fresh();
    let straight = Job {
        block_at: None,
        ..straight
    };
    assert_eq!(
        weights(&straight.run().unwrap().model),
        weights(&job.resumed().run().unwrap().model)
    );
    job.dispose();
    straight.dispose();
}

#[test]
fn a_learning_rate_that_diverges_stops_with_its_cause() {
    let mut job = checkpointed(400);
    job.optimizer = OptimizerSpec {
        ..OptimizerSpec::new(OptimizerKind::Sgd, 1e4)
    };
    job.schedule.warmup = 50;
    match job.run() {
        Err(TrainError::Diverged { cause, kept, .. }) => {
            assert!(
                cause.contains("loss") || cause.contains("gradient"),
                "{cause}"
            );
            assert!(kept.contains("optimizer.lr"), "{kept}");
        }
        other => panic!("{other:?}"),
    }
    for record in job.metrics() {
        assert!(record.values.values().all(|value| value.is_finite()));
    }
    job.dispose();
}

#[test]
fn early_stopping_returns_the_best_weights() {
    let mut job = Job::new(400);
    job.optimizer = OptimizerSpec::adamw(0.2);
    job.train.validate_every = Some(2);
    job.train.patience = Some(3);
    let fitted = job.run().unwrap();
    let Ending::Stopped { best_step } = fitted.ending else {
        panic!("{:?}", fitted.ending);
    };
    assert_eq!(fitted.step, best_step + 6);
    let lowest = job
        .metrics()
        .into_iter()
        .filter(|record| record.phase == maquette_train::Phase::Validation)
        .map(|record| record.values["loss"])
        .fold(f64::INFINITY, f64::min);
    assert_eq!(fitted.validation["loss"], lowest);
    // Resuming a stopped run does not continue it.
    let again = job.resumed().run().unwrap();
    assert_eq!(
        (again.step, weights(&again.model)),
        (fitted.step, weights(&fitted.model))
    );
    job.dispose();
}

#[test]
fn folders_that_are_not_runs_are_left_alone() {
    let job = Job::new(3);
    fs::create_dir_all(job.dir()).unwrap();
    fs::write(job.dir().join("thesis.tex"), b"years of work").unwrap();
    assert!(matches!(job.run(), Err(TrainError::FolderInUse(_))));
    assert!(matches!(job.resumed().run(), Err(TrainError::NotARun(_))));
    assert_eq!(
        fs::read(job.dir().join("thesis.tex")).unwrap(),
        b"years of work"
    );
    job.dispose();
}

#[test]
fn a_penalty_on_nothing_is_an_error_that_lists_the_parameters() {
    let mut job = Job::new(3);
    job.train.penalties = vec![PenaltySpec {
        kind: PenaltyKind::L1,
        weight: 1.0,
        params: "encoder.*".into(),
    }];
    let message = job.run().unwrap_err().to_string();
    assert!(
        message.contains("`encoder.*`") && message.contains("hidden.weight"),
        "{message}"
    );
    job.dispose();
}

#[test]
fn a_finished_run_holds_everything_and_nothing_half_done() {
    let mut job = checkpointed(10);
    job.place = Place::New {
        root: job.dir(),
        name: "tiny".into(),
    };
    job.train.validate_every = Some(5);
    let (fitted, open) = job.fit().unwrap();
    let dir = open.dir().to_owned();
    let result = open.finish(&fitted, fitted.validation.clone()).unwrap();
    assert_eq!((result.steps, result.run.clone()), (10, dir.clone()));
    assert_eq!(run::result(&dir).unwrap(), result);
    assert_eq!(run::environment(&dir).unwrap().data_sha256, "data");
    let names: Vec<String> = tree(&dir)
        .iter()
        .map(|path| path.strip_prefix(&dir).unwrap().display().to_string())
        .collect();
    for needed in [
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "report.html",
        "samples/step-00000010/sample.txt",
    ] {
        assert!(
            names.iter().any(|name| name == needed),
            "{needed} is missing from {names:?}"
        );
    }
    assert!(
        names
            .iter()
            .any(|name| name.starts_with("events.out.tfevents."))
    );
    assert!(!names.iter().any(|name| name.contains(".unfinished-")));
    let report = fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(report.contains("&lt;sample 10&gt;"), "samples are escaped");
    job.dispose();
}
