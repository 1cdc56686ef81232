//! Soft stop, then hard stop: two tokens, one task tracker, one deadline, one exit code.
//!
//! SIGTERM, SIGINT or the end of any component begins the soft stop; a second signal or the
//! deadline turns it into the hard one. A component that failed makes the exit code 1.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::postgres::explain;

/// Owns every task of a process and decides when it ends. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    soft: CancellationToken,
    hard: CancellationToken,
    tasks: TaskTracker,
    failed: Arc<AtomicBool>,
}

impl Lifecycle {
    /// Cancelled when no new work may begin.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.soft.clone()
    }

    /// Runs a component until it returns. Whether it fails or merely ends early, the process stops.
    pub fn spawn(
        &self,
        name: &'static str,
        component: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let this = self.clone();
        let hard = self.hard.clone();
        self.tasks.spawn(async move {
            let guard = StopOnDrop {
                lifecycle: this,
                name,
                finished: false,
            };
            tokio::select! {
                outcome = component => guard.finish(outcome),
                () = hard.cancelled() => guard.finish(Ok(())),
            }
        });
    }

    /// Begins the soft stop, as a signal would.
    pub fn stop(&self) {
        self.soft.cancel();
    }

    /// Waits for a signal or a component's end, then at most `drain` until all components have
    /// finished what they hold, and says how it went: 0 for a clean stop, 1 when a component failed
    /// or the deadline passed.
    pub async fn run_until_stopped(self, drain: Duration) -> ExitCode {
        let mut terminate = signal(SignalKind::terminate()).expect("signal handlers can be set");
        let mut interrupt = signal(SignalKind::interrupt()).expect("signal handlers can be set");
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM: draining"),
            _ = interrupt.recv() => info!("SIGINT: draining"),
            () = self.soft.cancelled() => {}
        }
        self.soft.cancel();
        self.tasks.close();
        let cut_short = tokio::select! {
            () = self.tasks.wait() => None,
            _ = terminate.recv() => Some("a second signal"),
            _ = interrupt.recv() => Some("a second signal"),
            () = tokio::time::sleep(drain) => Some("the drain deadline"),
        };
        if let Some(reason) = cut_short {
            warn!(
                drain.seconds = drain.as_secs(),
                "{reason}: dropping what is left"
            );
            self.failed.store(true, Ordering::SeqCst);
            self.hard.cancel();
        }
        self.tasks.wait().await;
        if self.failed.load(Ordering::SeqCst) {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// Stops the process even when a component panics, so that half a process never lives on.
struct StopOnDrop {
    lifecycle: Lifecycle,
    name: &'static str,
    finished: bool,
}

impl StopOnDrop {
    fn finish(mut self, outcome: anyhow::Result<()>) {
        self.finished = true;
        if let Err(cause) = outcome {
            self.lifecycle.failed.store(true, Ordering::SeqCst);
            error!(
                component = self.name,
                error = explain(&cause),
                "component failed"
            );
        }
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if !self.finished {
            self.lifecycle.failed.store(true, Ordering::SeqCst);
            error!(component = self.name, "component panicked");
        }
        self.lifecycle.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAIN: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_component_that_fails_stops_the_others_and_the_exit_code_says_so() {
        let lifecycle = Lifecycle::default();
        let stopping = lifecycle.stopping();
        lifecycle.spawn("waits", async move {
            stopping.cancelled().await;
            Ok(())
        });
        lifecycle.spawn("fails", async { anyhow::bail!("as it must") });
        assert_eq!(lifecycle.run_until_stopped(DRAIN).await, ExitCode::FAILURE);
    }

    #[tokio::test]
    async fn a_component_that_ignores_the_stop_is_dropped_at_the_deadline() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("never ends", std::future::pending());
        lifecycle.stop();
        assert_eq!(
            lifecycle.run_until_stopped(Duration::from_millis(20)).await,
            ExitCode::FAILURE
        );
    }

    #[tokio::test]
    async fn a_clean_stop_is_success() {
        let lifecycle = Lifecycle::default();
        let stopping = lifecycle.stopping();
        lifecycle.spawn("waits", async move {
            stopping.cancelled().await;
            Ok(())
        });
        lifecycle.stop();
        assert_eq!(lifecycle.run_until_stopped(DRAIN).await, ExitCode::SUCCESS);
    }
}
