//! The learning rate as a pure function of the step.

use std::f64::consts::PI;

use crate::spec::{ScheduleKind, ScheduleSpec};

/// The learning rate of `step` (counted from 0) in a run of `steps` steps.
///
/// During warm-up it is `peak * (step + 1) / (warmup + 1)`; afterwards the shape runs over the
/// steps that are left, so that `final_lr` is reached at `decay_steps`.
pub fn lr(spec: &ScheduleSpec, peak: f64, steps: u64, step: u64) -> f64 {
    if step < spec.warmup {
        return peak * (step + 1) as f64 / (spec.warmup + 1) as f64;
    }
    let since = (step - spec.warmup) as f64;
    let span = spec
        .decay_steps
        .unwrap_or(steps)
        .saturating_sub(spec.warmup)
        .max(1) as f64;
    let progress = (since / span).min(1.0);
    let gamma = spec.gamma.unwrap_or(1.0);
    match spec.kind {
        ScheduleKind::Constant => peak,
        ScheduleKind::Linear => peak + (spec.final_lr - peak) * progress,
        ScheduleKind::Cosine => {
            spec.final_lr + (peak - spec.final_lr) * 0.5 * (1.0 + (PI * progress).cos())
        }
        ScheduleKind::Step => {
            let drops = (since / spec.every.unwrap_or(1).max(1) as f64).floor();
            (peak * gamma.powf(drops)).max(spec.final_lr)
        }
        ScheduleKind::Exponential => (peak * gamma.powf(since)).max(spec.final_lr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: ScheduleKind) -> ScheduleSpec {
        ScheduleSpec {
            kind,
            warmup: 10,
            final_lr: 0.1,
            ..Default::default()
        }
    }

    #[track_caller]
    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn warm_up_is_a_straight_line_that_ends_at_the_peak() {
        let spec = spec(ScheduleKind::Constant);
        close(lr(&spec, 1.1, 100, 0), 0.1);
        close(lr(&spec, 1.1, 100, 9), 1.0);
        close(lr(&spec, 1.1, 100, 10), 1.1);
        close(lr(&spec, 1.1, 100, 99), 1.1);
    }

    #[test]
    fn linear_and_cosine_meet_at_the_middle_and_at_the_end() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let spec = spec(kind);
            close(lr(&spec, 1.0, 110, 10), 1.0);
            close(lr(&spec, 1.0, 110, 60), 0.55);
            close(lr(&spec, 1.0, 110, 110), 0.1);
            close(lr(&spec, 1.0, 110, 500), 0.1);
        }
        // A quarter of the way: 0.1 + 0.9 * (1 + cos 45 degrees) / 2.
        close(
            lr(&spec(ScheduleKind::Cosine), 1.0, 110, 35),
            0.1 + 0.45 * (1.0 + 0.5f64.sqrt()),
        );
    }

    #[test]
    fn step_and_exponential_multiply() {
        let step = ScheduleSpec {
            every: Some(5),
            gamma: Some(0.5),
            ..spec(ScheduleKind::Step)
        };
        close(lr(&step, 1.0, 100, 14), 1.0);
        close(lr(&step, 1.0, 100, 15), 0.5);
        close(lr(&step, 1.0, 100, 20), 0.25);
        close(lr(&step, 1.0, 100, 90), 0.1);
        let exponential = ScheduleSpec {
            gamma: Some(0.9),
            ..spec(ScheduleKind::Exponential)
        };
        close(lr(&exponential, 1.0, 100, 12), 0.81);
    }
}
