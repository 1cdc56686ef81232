//! Faults in the middle of a run: shell commands, one after another, at evenly spaced fractions of
//! the submitted jobs.

use std::{process::Stdio, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::Command,
    sync::watch,
    time::{Instant, sleep},
};

use crate::{exit::BadUsage, log::Submission, report::Progress};

/// Most faults of one run.
const FAULTS_MAX: usize = 64;
/// How long before a fault the last jobs are submitted, so that workers are at them already.
const HEAD_START: Duration = Duration::from_millis(500);
/// Longest a fault may take to have its process up again.
pub(crate) const FAULT_TIMEOUT: Duration = Duration::from_mins(2);

/// The faults of a run, and after how many started jobs each is due.
#[derive(Clone, Debug)]
pub(crate) struct FaultPlan {
    due: Vec<(u64, String)>,
}

/// How far the submissions are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Started {
    /// How many have been started.
    pub(crate) jobs: u64,
    /// The last of them.
    pub(crate) last: Option<Submission>,
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

    /// After how many started jobs each is due.
    pub(crate) fn due(&self) -> impl Iterator<Item = u64> {
        self.due.iter().map(|(jobs, _)| *jobs)
    }

    /// Makes each fault once it is due; `started` tells how many jobs have been started so far. So
    /// that requests are under way when it strikes, `meanwhile` is given the last of those jobs.
    pub(crate) async fn run(
        self,
        mut started: watch::Receiver<Started>,
        meanwhile: impl AsyncFn(Submission) -> anyhow::Result<()>,
        progress: &Progress,
    ) -> anyhow::Result<Vec<FaultReport>> {
        let mut reports = Vec::new();
        for (after_jobs, command) in self.due {
            // The load's end makes whatever is left due.
            let _ = started.wait_for(|started| started.jobs >= after_jobs).await;
            let last = started.borrow().last.clone();
            progress.say(format_args!("fault after {after_jobs} jobs: {command}"));
            let began = Instant::now();
            let busy = async {
                match last {
                    Some(last) => meanwhile(last).await,
                    None => Ok(()),
                }
            };
            let strike = async {
                sleep(HEAD_START).await;
                make(&command, progress).await
            };
            tokio::try_join!(strike, busy)?;
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
    use std::sync::Mutex;

    use contracts::job_type::JobType;

    use super::*;

    #[test]
    fn faults_are_evenly_spaced() {
        let commands = ["a", "b", "c"].map(str::to_owned);
        let plan = FaultPlan::new(&commands, 100).unwrap();
        assert_eq!(plan.due().collect::<Vec<_>>(), [25, 50, 75]);
    }

    #[tokio::test]
    async fn each_fault_is_made_once_and_a_failing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("made");
        let command = format!("echo made >> {}", file.display());
        let plan = FaultPlan::new(&[command.clone(), command], 10).unwrap();
        let (started, receiver) = watch::channel(Started::default());
        let last = Submission {
            key: "last".into(),
            job_type: JobType::Sleep,
            payload: String::new(),
            requires_confirmation: true,
        };
        started.send_replace(Started {
            jobs: 10,
            last: Some(last),
        });
        drop(started);
        let busy = Mutex::new(Vec::new());
        let meanwhile = async |last: Submission| {
            busy.lock().unwrap().push(last.key);
            anyhow::Ok(())
        };
        let reports = plan
            .run(receiver, meanwhile, &Progress::new("test", 10))
            .await
            .unwrap();
        assert_eq!(*busy.lock().unwrap(), ["last", "last"]);
        assert_eq!(
            reports.iter().map(|r| r.after_jobs).collect::<Vec<_>>(),
            [3, 6]
        );
        assert_eq!(std::fs::read_to_string(file).unwrap(), "made\nmade\n");

        let plan = FaultPlan::new(&["exit 3".into()], 1).unwrap();
        let (_, receiver) = watch::channel(Started::default());
        let idle = async |_| anyhow::Ok(());
        let error = plan
            .run(receiver, idle, &Progress::new("test", 1))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("exit 3"), "{error}");
    }
}
