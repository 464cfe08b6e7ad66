//! The live line on stderr.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use maquette::train::{Event, Metrics, Progress};

/// A log that is not a terminal gets one line every so often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// One line that says what is being done.
pub(crate) struct Status {
    bar: ProgressBar,
    quiet: bool,
}

impl Status {
    /// Silent when `quiet`; plain lines where stderr is no terminal.
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = ProgressBar::new_spinner();
        if quiet || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        } else {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Self { bar, quiet }
    }

    /// Say what is being done now.
    pub(crate) fn say(&self, what: &str) {
        if self.bar.is_hidden() && !self.quiet {
            eprintln!("{what}");
        }
        self.bar.set_message(what.to_owned());
    }

    /// Take the line away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The training line: step, loss, rate, time left; validations and checkpoints above it.
pub(crate) struct TrainingLine {
    bar: ProgressBar,
    quiet: bool,
    last_log: RefCell<Option<Instant>>,
}

impl TrainingLine {
    /// Silent when `quiet`; a line every ten seconds where stderr is no terminal.
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = ProgressBar::new(0);
        if quiet || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Self {
            bar,
            quiet,
            last_log: RefCell::new(None),
        }
    }

    /// Show what happened.
    pub(crate) fn event(&self, event: &Event<'_>) {
        match event {
            Event::Started {
                step: 0,
                parameters,
            } => self.note(&format!("{} parameters", thousands(*parameters))),
            Event::Started { step, .. } => self.note(&format!("continuing after step {step}")),
            Event::Step(progress) => self.step(progress),
            Event::Validated { step, metrics } => {
                self.note(&format!("step {step}: {}", listed(metrics)));
                let idle = metrics.get("experts_idle").copied().unwrap_or(0.0);
                if idle > 0.0 {
                    self.note(&format!(
                        "warning: {idle} experts get less than a tenth of an even load; raise \
                         model.experts.balance"
                    ));
                }
            }
            Event::Sampled { step, path } => {
                self.note(&format!("step {step}: samples in {}", path.display()))
            }
            Event::Saved { .. } => {}
            Event::Found(finding) => self.note(&format!("warning: {finding}")),
            Event::Doing(what) => self.note(what),
        }
    }

    fn step(&self, progress: &Progress) {
        let critic = progress
            .critic
            .map_or(String::new(), |loss| format!("  critic {loss:.4}"));
        let line = format!(
            "loss {:.4}{critic}  lr {:.2e}  {:.0} {}/s  {} left",
            progress.loss,
            progress.lr,
            progress.rate,
            progress.unit,
            clock(progress.left)
        );
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.step);
        self.bar.set_message(line.clone());
        let mut last = self.last_log.borrow_mut();
        let due = last.is_none_or(|last| last.elapsed() >= LOG_EVERY);
        if self.bar.is_hidden() && !self.quiet && due {
            eprintln!("step {}/{}  {line}", progress.step, progress.total);
            *last = Some(Instant::now());
        }
    }

    fn note(&self, text: &str) {
        match (self.quiet, self.bar.is_hidden()) {
            (true, _) => {}
            (false, true) => eprintln!("{text}"),
            (false, false) => self.bar.println(text),
        }
    }

    /// Take the line away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// `name value, name value`, four digits each.
pub(crate) fn listed(metrics: &Metrics) -> String {
    let each: Vec<_> = metrics
        .iter()
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    each.join(", ")
}

/// 1234567 as `1,234,567`.
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration as `1h02m`, `3m20s` or `12s`.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        s if s >= 100 * 3600 => "over 100h".into(),
        s if s >= 3600 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        s if s >= 60 => format!("{}m{:02}s", s / 60, s % 60),
        s => format!("{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(clock(Duration::from_secs(59)), "59s");
        assert_eq!(clock(Duration::from_secs(200)), "3m20s");
        assert_eq!(clock(Duration::from_secs(3720)), "1h02m");
    }
}
