//! When keys were last used, to the minute: noted in the snapshot by requests, which costs them
//! nothing, and written in batches beside them. What was not written is lost in a crash.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
use ops::postgres::{Pool, settle};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::rows;
use crate::snapshot::Snapshots;

/// How often what was noted is written.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// Keys of one statement.
const BATCH: usize = 1_000;
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(5);
const MINUTE: i64 = 60;

/// The last use of one key.
#[derive(Debug, Default)]
pub struct LastUse {
    /// Minutes of Unix time; 0 while there was none here.
    seen: AtomicI64,
    written: AtomicI64,
}

impl LastUse {
    /// The key was used.
    pub fn note(&self, now: Timestamp) {
        let minute = now.as_second() / MINUTE;
        // Read first: a line that nobody writes is shared by all cores.
        if self.seen.load(Ordering::Relaxed) != minute {
            self.seen.store(minute, Ordering::Relaxed);
        }
    }

    /// Takes over what was noted under an older snapshot.
    pub fn inherit(&self, older: &Self) {
        for (mine, theirs) in [(&self.seen, &older.seen), (&self.written, &older.written)] {
            mine.store(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn unwritten(&self) -> Option<Timestamp> {
        let seen = self.seen.load(Ordering::Relaxed);
        let is_new = seen != self.written.load(Ordering::Relaxed);
        Timestamp::from_second(seen * MINUTE)
            .ok()
            .filter(|_| is_new)
    }
}

/// Writes what was noted until the process stops. Outages only make it later.
///
/// # Errors
/// Never by itself.
pub async fn write(
    pool: Pool,
    snapshots: Arc<Snapshots>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let stopped = timeout(WRITE_EVERY, stop.cancelled()).await.is_ok();
        if let Err(error) = write_once(&pool, &snapshots).await {
            let error = ops::postgres::explain(&error);
            warn!(error, "when keys were last used is not written");
        }
        if stopped {
            return Ok(());
        }
    }
}

async fn write_once(pool: &Pool, snapshots: &Snapshots) -> anyhow::Result<()> {
    let snapshot = snapshots.load_full();
    let used: Vec<_> = snapshot
        .keys
        .values()
        .filter_map(|key| Some((key, key.last_use.unwritten()?)))
        .collect();
    for batch in used.chunks(BATCH) {
        let keys: Vec<_> = batch.iter().map(|(key, _)| key.id.uuid()).collect();
        let at: Vec<_> = batch.iter().map(|(_, at)| *at).collect();
        let client = pool.get().await.context("connect")?;
        let outcome = timeout(DEADLINE, rows::note_uses(&**client, &keys, &at)).await;
        settle(client, outcome)?;
        for (key, at) in batch {
            let minute = at.as_second() / MINUTE;
            key.last_use.written.store(minute, Ordering::Relaxed);
        }
    }
    Ok(())
}
