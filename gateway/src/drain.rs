//! The way out: who is still being served, and when Pingora stops listening.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// How often it is looked whether everyone is served.
const LOOK: Duration = Duration::from_millis(20);
/// A connection that brings nothing for this long is not waited for.
const QUIET: Duration = Duration::from_secs(1);

/// Counts what is being served and says whether the process is on its way out. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    requests: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    begun: Arc<AtomicBool>,
    closed: CancellationToken,
    ended: CancellationToken,
}

/// One thing that is being served.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicUsize>);

/// Tells Pingora to stop listening; signals themselves are ours.
#[derive(Debug)]
pub struct Listening(CancellationToken);

impl Drain {
    /// Counts a request until the value is dropped.
    #[must_use]
    pub fn enter(&self) -> InFlight {
        InFlight::new(&self.requests)
    }

    /// Counts a stream, which nobody waits for, until the value is dropped.
    #[must_use]
    pub fn stream(&self) -> InFlight {
        InFlight::new(&self.streams)
    }

    /// Counts a connection until the value is dropped.
    #[must_use]
    pub fn connection(&self) -> InFlight {
        InFlight::new(&self.connections)
    }

    /// From now on this process is not ready, and asks clients to go elsewhere.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Whether the way out has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Makes Pingora stop listening.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// What Pingora waits for.
    #[must_use]
    pub fn listening(&self) -> Listening {
        Listening(self.closed.clone())
    }

    /// Waits until no request is being served, and every connection has either been closed with its
    /// last answer or brought none for a while; streams excepted.
    pub async fn quiet(&self) {
        let (mut left, mut since) = (usize::MAX, Instant::now());
        loop {
            let count = |of: &AtomicUsize| of.load(Ordering::Acquire);
            let busy = count(&self.requests) > 0;
            let open = count(&self.connections);
            if busy || open != left {
                (left, since) = (open, Instant::now());
            }
            let waited = open <= count(&self.streams) || since.elapsed() >= QUIET;
            if !busy && waited {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends the streams: their clients come back, to another process.
    pub async fn end_streams(&self) {
        self.ended.cancel();
        while self.streams.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What a stream waits for beside its events.
    pub fn streams_end(&self) -> WaitForCancellationFuture<'_> {
        self.ended.cancelled()
    }
}

impl InFlight {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[async_trait]
impl ShutdownSignalWatch for Listening {
    async fn recv(&self) -> ShutdownSignal {
        self.0.cancelled().await;
        ShutdownSignal::GracefulTerminate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_requests_and_a_moment_for_idle_connections() {
        let drain = Drain::default();
        let started = Instant::now();
        drain.quiet().await;
        assert!(started.elapsed() < LOOK, "nothing to wait for");
        let (idle, request) = (drain.connection(), drain.enter());
        let served = async {
            tokio::time::sleep(3 * QUIET).await;
            drop(request);
        };
        tokio::join!(drain.quiet(), served);
        assert!(started.elapsed() >= 4 * QUIET);
        let (before, last) = (Instant::now(), drain.connection());
        drop(idle);
        let closes = async {
            tokio::time::sleep(QUIET / 2).await;
            drop(last);
        };
        tokio::join!(drain.quiet(), closes);
        assert!(before.elapsed() < QUIET, "every connection is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn streams_are_told_to_end_and_not_waited_for_before() {
        let drain = Drain::default();
        let (stream, connection) = (drain.stream(), drain.connection());
        drain.quiet().await;
        let follows = async {
            drain.streams_end().await;
            drop((stream, connection));
        };
        tokio::join!(drain.end_streams(), follows);
    }
}
