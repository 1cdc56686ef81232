//! What an endpoint is owed follows how it stands: held while it is disabled, due once it is
//! enabled, failed once it is deleted. Several workers may do it at once.

use std::time::Duration;

use jiff::Timestamp;
use ops::{
    clock::Clock,
    postgres::{self, Pool, explain},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::store::follow;

/// Pause between looks while nothing is to be moved, and after a failure.
const EVERY: Duration = Duration::from_millis(500);
/// How long Postgres may take for one step before its connection is given up.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// Lets deliveries follow their endpoints until the process stops.
///
/// # Errors
/// Never by itself: outages of Postgres are waited out.
pub async fn run(pool: Pool, clock: Clock, stop: CancellationToken) -> anyhow::Result<()> {
    stop.run_until_cancelled(keep(pool, clock)).await;
    Ok(())
}

async fn keep(pool: Pool, clock: Clock) {
    loop {
        match follow_all(&pool, clock.now()).await {
            Ok(0) => {}
            Ok(_) => continue,
            Err(cause) => warn!(error = explain(&cause), "upkeep failed, later again"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Moves one batch of one endpoint of each tenant that has deliveries to be moved, so that tenants
/// take turns; returns how many were moved.
///
/// # Errors
/// When Postgres fails to say which, or to move any.
pub async fn follow_all(pool: &Pool, now: Timestamp) -> anyhow::Result<u64> {
    let client = pool.get().await?;
    let look = async { Ok(follow::misfits(&client).await?) };
    let outcome = timeout(STEP_DEADLINE, look).await;
    let misfits = postgres::settle(client, outcome)?;
    let (mut moved, mut failure) = (0, None);
    for endpoint in misfits {
        // One that fails does not hold up the others.
        match follow_one(pool, endpoint, now).await {
            Ok(count) => moved += count,
            Err(cause) => failure = Some(cause),
        }
    }
    match failure {
        Some(cause) if moved == 0 => Err(cause),
        _ => Ok(moved),
    }
}

async fn follow_one(pool: &Pool, endpoint: Uuid, now: Timestamp) -> anyhow::Result<u64> {
    let mut client = pool.get().await?;
    let work = async {
        let transaction = client.transaction().await?;
        let moved = follow::follow(&transaction, endpoint, now).await?;
        transaction.commit().await?;
        Ok(moved)
    };
    let outcome = timeout(STEP_DEADLINE, work).await;
    postgres::settle(client, outcome)
}
