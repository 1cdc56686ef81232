//! Revocations that nobody needs any more, since the tokens have ended. Several gateways may delete
//! them at once.

use std::time::Duration;

use anyhow::Context as _;
use ops::postgres::{Pool, explain, settle};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How often it is looked for what may go.
const EVERY: Duration = Duration::from_mins(10);
/// How much longer than a token can live its revocation is kept: for issuers' clocks, and for a
/// configuration that lets tokens live longer from some moment on.
const SLACK: Duration = Duration::from_hours(24);
/// Rows deleted in one statement, each of which is a change that gateways hear of.
const BATCH: i64 = 1_000;
/// How long Postgres may take for one statement.
const DEADLINE: Duration = Duration::from_secs(30);

/// Deletes revocations of tokens, none of which lives longer than `lifetime`, until the process
/// stops. Those of subjects and tenants stay: they are of what may yet come, too.
///
/// # Errors
/// Never by itself.
pub(crate) async fn revocations(
    pool: Pool,
    lifetime: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        if let Err(error) = sweep(&pool, lifetime + SLACK).await {
            let error = explain(&error);
            warn!(error, "old revocations are not deleted, later again");
        }
        if timeout(EVERY, stop.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}

async fn sweep(pool: &Pool, age: Duration) -> anyhow::Result<()> {
    let sql = "-- gateway.prune_revocations\n\
               DELETE FROM gateway.revocations WHERE (kind, value) IN (\n    \
               SELECT kind, value FROM gateway.revocations WHERE kind = 'jti'\n    \
               AND created_at < now() - make_interval(secs => $1)\n    \
               LIMIT $2 FOR UPDATE SKIP LOCKED)";
    loop {
        let client = pool.get().await.context("connect")?;
        let delete = async { Ok(client.execute(sql, &[&age.as_secs_f64(), &BATCH]).await?) };
        let outcome = timeout(DEADLINE, delete).await;
        if settle(client, outcome)? == 0 {
            return Ok(());
        }
    }
}
