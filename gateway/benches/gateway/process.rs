//! The measured processes: started, watched until they listen, metered, and stopped whatever
//! happens. CPU time is what the kernel counts for all threads, and for the children of a master.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::net::TcpStream;

/// How long a process may take until it listens.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a process that was asked to stop may take before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(12);
const LOOK: Duration = Duration::from_millis(10);
/// The kernel tells CPU time in ticks of this length, on every architecture of ours.
const TICK: Duration = Duration::from_millis(10);

/// A process that ends with this value.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// Starts `command` with its log in `folder`, and waits until it listens.
    pub(crate) async fn start(
        name: &'static str,
        command: &mut Command,
        listen: SocketAddr,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let mut process = Self { name, child };
        let began = Instant::now();
        while TcpStream::connect(listen).await.is_err() {
            if let Some(status) = process.child.try_wait()? {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("{name} ended while starting ({status}):\n{said}");
            }
            ensure!(
                began.elapsed() < START_DEADLINE,
                "{name} does not listen in time; its log is {}",
                log.display()
            );
            tokio::time::sleep(LOOK).await;
        }
        Ok(process)
    }

    /// CPU time that it and its children have used.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let children = children.split_whitespace().map(str::to_owned);
        let mut ticks = 0;
        for pid in children.chain([pid.to_string()]) {
            ticks += cpu_ticks(&pid).with_context(|| format!("CPU time of {}", self.name))?;
        }
        Ok(TICK * ticks)
    }
}

/// Fields 14 and 15 of the process's stat, user and system time; the second one may hold spaces.
fn cpu_ticks(pid: &str) -> anyhow::Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    ensure!(fields.len() > 12, "a short stat");
    Ok(fields[11].parse::<u32>()? + fields[12].parse::<u32>()?)
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // nginx's master must be asked, or its worker stays.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        let began = Instant::now();
        while began.elapsed() < STOP_DEADLINE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
