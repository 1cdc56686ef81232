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
use tokio_util::sync::CancellationToken;

/// How often it is looked whether everyone is served.
const LOOK: Duration = Duration::from_millis(20);

/// Counts requests and says whether the process is on its way out. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    in_flight: Arc<AtomicUsize>,
    begun: Arc<AtomicBool>,
    closed: CancellationToken,
}

/// One request being served.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicUsize>);

/// Tells Pingora to stop listening; signals themselves are ours.
#[derive(Debug)]
pub struct Listening(CancellationToken);

impl Drain {
    /// Counts a request until the value is dropped.
    #[must_use]
    pub fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(&self.in_flight))
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

    /// Waits until nobody is being served, streams of events excepted.
    pub async fn idle(&self) {
        while self.in_flight.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(LOOK).await;
        }
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
