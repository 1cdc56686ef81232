//! What must be done from time to time: jobs whose worker went silent, and the depths that
//! operators look at. Several workers may do it at once.

use std::time::Duration;

use ops::{clock::Clock, lease::Lease, postgres::explain};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::{
    job::Failure,
    store::{Store, StoreError},
    worker::jitter,
};

/// How often leases that ran out are looked for.
const EVERY: Duration = Duration::from_secs(1);
/// Most of them taken over at a time.
const TAKE_OVER_MAX: i64 = 100;
/// How often the queue is measured.
const DEPTHS_EVERY: Duration = Duration::from_secs(5);

/// Keeps house until the process stops.
///
/// # Errors
/// Never by itself: outages of Postgres are waited out.
pub async fn run(
    store: Store,
    clock: Clock,
    lease: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let owner = Uuid::now_v7();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut depths = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        complain(take_over(&store, &clock, owner, lease).await.map(|_| ()));
        if depths.elapsed() >= DEPTHS_EVERY {
            complain(measure(&store).await);
            depths = Instant::now();
        }
    }
}

/// Sends jobs whose lease ran out back to the queue, or fails those that have no attempt left;
/// returns how many. Each is a transaction of its own under a lease taken over, so that a crash
/// in between leaves the rest to the next sweep.
///
/// # Errors
/// When Postgres fails.
pub async fn take_over(
    store: &Store,
    clock: &Clock,
    owner: Uuid,
    lease: Duration,
) -> Result<usize, StoreError> {
    let lost: Vec<Lease<Uuid>> = store.take_over_lost(owner, lease, TAKE_OVER_MAX).await?;
    for lease in &lost {
        let jitter = jitter();
        let now = clock.now();
        match store
            .finish(lease, |job| job.fail(now, &Failure::WorkerLost, jitter))
            .await
        {
            // Fenced: cancelled meanwhile.
            Ok(_) | Err(StoreError::Fenced) => {}
            Err(error) => return Err(error),
        }
        metrics::counter!("jobs_leases_lost_total").increment(1);
    }
    Ok(lost.len())
}

async fn measure(store: &Store) -> Result<(), StoreError> {
    let (pending, processing) = store.depths().await?;
    for (status, depth) in [("PENDING", pending), ("PROCESSING", processing)] {
        // Exact up to 2^53 jobs.
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics::gauge!("jobs_depth", "status" => status).set(depth as f64);
    }
    Ok(())
}

fn complain(outcome: Result<(), StoreError>) {
    if let Err(error) = outcome {
        warn!(error = explain(&error.into()), "upkeep failed, later again");
    }
}
