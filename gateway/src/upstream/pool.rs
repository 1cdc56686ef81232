//! Connections to one address that nobody uses at the moment.
//!
//! Pingora's own pool has a task and a timer for each of them, begun and ended with every request.
//! Here a connection is looked at when it is taken, and all of them now and then.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use futures::FutureExt as _;
use pingora::protocols::Stream;
use tokio::{io::AsyncReadExt as _, task::unconstrained};

use crate::config::UPSTREAM_IDLE;

/// Most idle connections to one address.
const IDLE_MAX: usize = 512;

/// Idle connections, the one used last at the end.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Idle>>);

#[derive(Debug)]
struct Idle {
    stream: Stream,
    since: Instant,
}

impl Pool {
    /// The connection that was used last, if there is one that is still open.
    pub(super) fn take(&self) -> Option<Stream> {
        loop {
            let mut idle = self.idle().pop()?;
            if idle.is_good() {
                return Some(idle.stream);
            }
        }
    }

    /// Keeps a connection for who needs it next.
    pub(super) fn put(&self, stream: Stream) {
        let since = Instant::now();
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { stream, since });
        }
    }

    /// Drops what was closed or waited for too long.
    pub(super) fn tick(&self) {
        self.idle().retain_mut(Idle::is_good);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    /// An upstream says nothing on a connection by itself but that it closes it. To ask costs no
    /// system call while nothing happened.
    fn is_good(&mut self) -> bool {
        let mut said = [0; 1];
        let silent = unconstrained(self.stream.read(&mut said)).now_or_never();
        silent.is_none() && self.since.elapsed() < UPSTREAM_IDLE
    }
}
