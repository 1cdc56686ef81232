//! Faults in the middle of a run: shell commands, one after another, at evenly spaced fractions of
//! the submitted jobs.

use std::{process::Stdio, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::Command,
    sync::watch,
    time::Instant,
};

use crate::{exit::BadUsage, report::Progress};

/// Most faults of one run.
const FAULTS_MAX: usize = 64;
/// Longest a fault may take to have its process up again.
pub(crate) const FAULT_TIMEOUT: Duration = Duration::from_mins(2);

/// The faults of a run, and after how many started jobs each is due.
#[derive(Clone, Debug)]
pub(crate) struct FaultPlan {
    due: Vec<(u64, String)>,
}

/// A fault that was made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FaultReport {
    /// The command.
    pub(crate) command: String,
    /// How many jobs had been started when it was due.
    pub(crate) after_jobs: u64,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
}

impl FaultPlan {
    /// `commands` over `jobs` jobs.
    pub(crate) fn new(commands: &[String], jobs: u64) -> Result<Self, BadUsage> {
        if commands.len() > FAULTS_MAX {
            return Err(BadUsage(format!("at most {FAULTS_MAX} faults")));
        }
        let parts = commands.len() as u64 + 1;
        let due = |index: usize| jobs * (index as u64 + 1) / parts;
        let due = commands
            .iter()
            .enumerate()
            .map(|(i, command)| (due(i), command.clone()));
        Ok(Self { due: due.collect() })
    }

    /// Makes each fault once it is due; `started` tells how many jobs have been started so far.
    pub(crate) async fn run(
        self,
        mut started: watch::Receiver<u64>,
        progress: &Progress,
    ) -> anyhow::Result<Vec<FaultReport>> {
        let mut reports = Vec::new();
        for (after_jobs, command) in self.due {
            // The load's end makes whatever is left due.
            let _ = started.wait_for(|started| *started >= after_jobs).await;
            progress.say(format_args!("fault after {after_jobs} jobs: {command}"));
            let began = Instant::now();
            make(&command, progress).await?;
            let seconds = began.elapsed().as_secs_f64();
            reports.push(FaultReport {
                command,
                after_jobs,
                seconds,
            });
        }
        Ok(reports)
    }
}

async fn make(command: &str, progress: &Progress) -> anyhow::Result<()> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting a fault")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async {
        // The command's end counts, not its pipes': the process it started again may keep those.
        tokio::select! {
            status = child.wait() => status,
            () = async { tokio::join!(show(stdout, progress), show(stderr, progress)); } => {
                child.wait().await
            }
        }
    };
    let status = tokio::time::timeout(FAULT_TIMEOUT, ended)
        .await
        .with_context(|| format!("the fault `{command}` did not end"))?
        .context("waiting for a fault")?;
    anyhow::ensure!(status.success(), "the fault `{command}` failed: {status}");
    Ok(())
}

async fn show(output: Option<impl AsyncRead + Unpin>, progress: &Progress) {
    let Some(output) = output else { return };
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        progress.say(format_args!("  {line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_evenly_spaced() {
        let commands = ["a", "b", "c"].map(str::to_owned);
        let due: Vec<_> = FaultPlan::new(&commands, 100).unwrap().due;
        assert_eq!(
            due.iter().map(|(jobs, _)| *jobs).collect::<Vec<_>>(),
            [25, 50, 75]
        );
    }

    #[tokio::test]
    async fn each_fault_is_made_once_and_a_failing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("made");
        let command = format!("echo made >> {}", file.display());
        let plan = FaultPlan::new(&[command.clone(), command], 10).unwrap();
        let (started, receiver) = watch::channel(0);
        started.send_replace(10);
        drop(started);
        let reports = plan
            .run(receiver, &Progress::new("test", 10))
            .await
            .unwrap();
        assert_eq!(
            reports.iter().map(|r| r.after_jobs).collect::<Vec<_>>(),
            [3, 6]
        );
        assert_eq!(std::fs::read_to_string(file).unwrap(), "made\nmade\n");

        let plan = FaultPlan::new(&["exit 3".into()], 1).unwrap();
        let (_, receiver) = watch::channel(0);
        let error = plan
            .run(receiver, &Progress::new("test", 1))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("exit 3"), "{error}");
    }
}
