//! A run that is killed and resumed ends in the bytes of a run that was not.

mod common;

use common::{Job, weights};
use maquette_train::spec::{OptimizerKind, PenaltyKind, PenaltySpec};
use maquette_train::{OptimizerSpec, TrainError};

fn optimizers() -> Vec<OptimizerSpec> {
    use OptimizerKind::{Adam, AdamW, Muon, RmsProp, Sgd};
    [AdamW, Adam, Sgd, RmsProp, Muon]
        .into_iter()
        .map(|kind| OptimizerSpec {
            momentum: matches!(kind, Sgd | RmsProp).then_some(0.9),
            weight_decay: 0.01,
            ..OptimizerSpec::new(kind, 0.01)
        })
        .collect()
}

#[test]
fn killed_and_resumed_is_bit_identical_for_every_optimizer() {
    for optimizer in optimizers() {
        let mut job = Job::new(30);
        job.optimizer = optimizer;
        job.train.checkpoint_every = Some(7);
        job.train.clip_norm = Some(1.0);
        let straight = weights(&job.run().unwrap().model);

        let killed = Job {
            die_at: Some(17),
            ..job.fresh()
        };
        assert!(matches!(
            killed.run(),
            Err(TrainError::Task { step: 17, .. })
        ));
        let resumed = weights(&killed.resumed().run().unwrap().model);
        assert_eq!(straight, resumed, "{:?}", job.optimizer.kind);
        job.dispose();
        killed.dispose();
    }
}

#[test]
fn average_accumulation_penalties_and_early_stopping_resume_too() {
    let mut job = Job::new(24);
    job.train.checkpoint_every = Some(5);
    job.train.validate_every = Some(4);
    job.train.patience = Some(100);
    job.train.ema = Some(0.9);
    job.train.grad_accumulation = 2;
    job.train.clip_value = Some(0.5);
    job.train.penalties = vec![
        PenaltySpec {
            kind: PenaltyKind::L1,
            weight: 1e-3,
            params: "first.weight".into(),
        },
        PenaltySpec {
            kind: PenaltyKind::L2,
            weight: 1e-3,
            params: "*.bias".into(),
        },
    ];
    let straight = job.run().unwrap();

    let killed = Job {
        die_at: Some(13),
        ..job.fresh()
    };
    killed.run().unwrap_err();
    let again = Job {
        die_at: Some(19),
        ..killed.resumed()
    };
    again.run().unwrap_err();
    let resumed = again.resumed().run().unwrap();
    assert_eq!(weights(&straight.model), weights(&resumed.model));
    assert_eq!(straight.validation, resumed.validation);
    assert_eq!(
        job.metrics(),
        killed.metrics(),
        "the resumed log has no gap and no duplicate"
    );
    job.dispose();
    killed.dispose();
}

#[test]
fn a_kill_before_the_first_checkpoint_starts_over() {
    let mut job = Job::new(12);
    job.train.checkpoint_every = Some(10);
    let straight = weights(&job.run().unwrap().model);
    let killed = Job {
        die_at: Some(4),
        ..job.fresh()
    };
    killed.run().unwrap_err();
    assert_eq!(straight, weights(&killed.resumed().run().unwrap().model));
    assert_eq!(job.metrics(), killed.metrics());
    job.dispose();
    killed.dispose();
}

#[test]
fn a_finished_run_resumes_to_itself() {
    let job = Job::new(6);
    let first = weights(&job.run().unwrap().model);
    assert_eq!(first, weights(&job.resumed().run().unwrap().model));
    job.dispose();
}

#[test]
fn the_same_seed_gives_the_same_weights_and_another_does_not() {
    let job = Job::new(6);
    let mut other = job.fresh();
    other.train.seed = 8;
    let again = job.fresh();
    let first = weights(&job.run().unwrap().model);
    assert_eq!(first, weights(&again.run().unwrap().model));
    assert_ne!(first, weights(&other.run().unwrap().model));
    for job in [job, other, again] {
        job.dispose();
    }
}

#[test]
fn a_stateful_stream_continues_where_it_stood() {
    let mut job = Job::new(20);
    job.stream = true;
    job.train.checkpoint_every = Some(6);
    let straight = weights(&job.run().unwrap().model);
    let killed = Job {
        die_at: Some(15),
        ..job.fresh()
    };
    killed.run().unwrap_err();
    assert_eq!(straight, weights(&killed.resumed().run().unwrap().model));
    job.dispose();
    killed.dispose();
}

#[test]
fn ctrl_c_saves_and_the_run_continues() {
    let job = Job::new(20);
    let straight = weights(&job.run().unwrap().model);
    let stopped = Job {
        stop_at: Some(9),
        ..job.fresh()
    };
    match stopped.run() {
        Err(TrainError::Interrupted { step: 9, run }) => {
            assert!(run.join("checkpoints/step-00000009").is_dir())
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(straight, weights(&stopped.resumed().run().unwrap().model));
    job.dispose();
    stopped.dispose();
}
