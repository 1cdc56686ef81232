//! What an endpoint is owed follows how it stands: held while it is disabled, due once it is
//! enabled, failed once it is deleted. Several workers may do it at once.

use std::time::Duration;

use jiff::Timestamp;
use ops::{
    clock::Clock,
    postgres::{Pool, explain},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::store::follow;

/// Pause between looks while nothing is to be moved, and after a failure.
const EVERY: Duration = Duration::from_millis(500);

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

/// Moves one batch of each endpoint that has deliveries to be moved, so that endpoints take turns;
/// returns how many were moved.
///
/// # Errors
/// When Postgres fails.
pub async fn follow_all(pool: &Pool, now: Timestamp) -> anyhow::Result<u64> {
    let mut client = pool.get().await?;
    let mut moved = 0;
    for endpoint in follow::misfits(&client).await? {
        let transaction = client.transaction().await?;
        moved += follow::follow(&transaction, endpoint, now).await?;
        transaction.commit().await?;
    }
    Ok(moved)
}
