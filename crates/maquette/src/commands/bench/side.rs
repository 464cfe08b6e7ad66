//! One side of a comparison: a child process that takes steps when told to.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;

use crate::args::{Peer, Precision, SuiteName, spelled};

/// What every side of a comparison has in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a> {
    /// The suite's name on the command line.
    pub(crate) suite: &'a str,
    /// The loss of dcgan32, as on the command line.
    pub(crate) loss: Option<&'a str>,
    /// Number format.
    pub(crate) precision: &'a str,
    /// Threads.
    pub(crate) threads: usize,
}

/// A side that cannot be measured, and why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SideError {
    /// PyTorch is not there.
    #[error("{0}")]
    Missing(String),
    /// The process could not be started, or ended early.
    #[error("{name} {cause}{log}")]
    Broken {
        /// Which side.
        name: String,
        /// What happened.
        cause: String,
        /// The end of what it wrote on stderr.
        log: String,
    },
}

/// Who answered.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ready {
    /// For people.
    pub(crate) name: String,
    /// Trained numbers; the same on every side.
    pub(crate) parameters: usize,
    /// Items in a batch (only ours says so).
    #[serde(default)]
    pub(crate) items: usize,
    /// What the items are (only ours says so).
    #[serde(default)]
    pub(crate) unit: String,
}

/// What a block of steps took.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Block {
    /// Wall-clock seconds of all its steps.
    pub(crate) seconds: f64,
    /// The last step's loss.
    pub(crate) loss: f64,
    /// Highest resident size since the warm-up, in units of 10^6 bytes.
    pub(crate) peak_mb: Option<f64>,
}

/// A started and warm process. It ends when dropped.
pub(crate) struct Side {
    /// Who it is.
    pub(crate) ready: Ready,
    process: Process,
}

impl Side {
    /// Our own model, with the kernels or (`composed`) without.
    pub(crate) fn ours(settings: Settings<'_>, composed: bool) -> Result<Self, SideError> {
        let program = std::env::current_exe().map_err(|error| SideError::Broken {
            name: "maquette".into(),
            cause: format!("does not find itself: {error}"),
            log: String::new(),
        })?;
        let mut command = Command::new(program);
        command.args(["bench", "worker", settings.suite]);
        command.args(composed.then_some("--composed"));
        Self::start("maquette", settings.finish(command))
    }

    /// The peer in `script`, run by `python`.
    pub(crate) fn pytorch(
        settings: Settings<'_>,
        python: &Path,
        script: &Path,
        compile: bool,
    ) -> Result<Self, SideError> {
        let mut command = Command::new(python);
        command.arg(script).arg(settings.suite);
        command.args(compile.then_some("--compile"));
        let name = if compile { "torch.compile" } else { "PyTorch" };
        Self::start(name, settings.finish(command))
    }

    /// Whatever `command` runs, if it speaks as the others do.
    pub(crate) fn start(name: &str, mut command: Command) -> Result<Self, SideError> {
        let broken = |cause: String| SideError::Broken {
            name: name.into(),
            cause,
            log: String::new(),
        };
        let program = command.get_program().to_owned();
        let log = tempfile::tempfile().map_err(|error| broken(format!("has no log: {error}")))?;
        let stderr = log
            .try_clone()
            .map_err(|error| broken(format!("has no log: {error}")))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|error| SideError::Missing(format!("{}: {error}", program.display())))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(broken("has no pipes".into()));
        };
        let mut process = Process {
            name: name.into(),
            child,
            input,
            output: BufReader::new(output),
            log,
        };
        let line = process.answer()?;
        if let Ok(Absent { missing }) = serde_json::from_str(&line) {
            return Err(SideError::Missing(format!(
                "{}: {missing}",
                program.display()
            )));
        }
        let ready = process.parse(&line)?;
        Ok(Self { ready, process })
    }

    /// Take `n` steps.
    pub(crate) fn block(&mut self, n: u64) -> Result<Block, SideError> {
        let sent = writeln!(self.process.input, "{n}").and_then(|()| self.process.input.flush());
        if let Err(error) = sent {
            return Err(self.process.broken(format!("does not listen: {error}")));
        }
        let line = self.process.answer()?;
        self.process.parse(&line)
    }
}

impl Settings<'_> {
    fn finish(self, mut command: Command) -> Command {
        let threads = OsString::from(self.threads.to_string());
        command.args(["--precision", self.precision, "--threads"]);
        command.arg(threads);
        if let Some(loss) = self.loss {
            command.args(["--loss", loss]);
        }
        command
    }
}

#[derive(Deserialize)]
struct Absent {
    missing: String,
}

struct Process {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: std::fs::File,
}

impl Process {
    fn answer(&mut self) -> Result<String, SideError> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(n) if n > 0 => Ok(line),
            Ok(_) => Err(self.broken("ended early".into())),
            Err(error) => Err(self.broken(format!("cannot be read: {error}"))),
        }
    }

    fn parse<T: for<'a> Deserialize<'a>>(&mut self, line: &str) -> Result<T, SideError> {
        serde_json::from_str(line)
            .map_err(|error| self.broken(format!("answers {}: {error}", line.trim())))
    }

    /// An error with the last lines the process wrote.
    fn broken(&mut self, cause: String) -> SideError {
        const LINES: usize = 12;
        let _ = self.child.wait();
        let mut log = String::new();
        let read = self.log.rewind();
        let _ = read.and_then(|()| self.log.read_to_string(&mut log));
        let mut lines: Vec<_> = log.lines().rev().take(LINES).collect();
        lines.push("");
        lines.reverse();
        SideError::Broken {
            name: self.name.clone(),
            cause,
            log: lines.join("\n  "),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// Start this peer of a suite.
    pub(crate) fn start(
        self,
        settings: Settings<'_>,
        python: &Path,
        script: &Path,
    ) -> Result<Side, SideError> {
        match self {
            Self::Eager => Side::pytorch(settings, python, script, false),
            Self::Compile => Side::pytorch(settings, python, script, true),
            Self::Burn => Side::ours(settings, true),
        }
    }
}

impl Precision {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        spelled(&self)
    }
}

impl SuiteName {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        spelled(&self)
    }
}
