//! Retention: what the mechanisms keep and how long. One loop a service deletes the rest, in
//! batches by index until nothing is left; several processes may do it at once.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::postgres::{self, Pool, explain};

/// How often it is looked for what may go.
const EVERY: Duration = Duration::from_mins(1);
/// Rows deleted in one statement.
const BATCH: i64 = 5_000;

const DEAD_LETTERS: &str = "dead_letters";

/// How long Postgres may take for one statement before its connection is given up.
const BATCH_DEADLINE: Duration = Duration::from_secs(30);

/// Rows of a table of the mechanisms that may go.
struct Expired {
    table: &'static str,
    /// What identifies a row.
    key: &'static str,
    /// From when it is kept; indexed.
    since: &'static str,
    keep: &'static str,
}

const EXPIRED: [Expired; 4] = [
    // For whoever asks what was said lately.
    Expired {
        table: "outbox",
        key: "id",
        since: "published_at",
        keep: "1 day",
    },
    // Longer than Kafka keeps a record: 14 days, and up to 7 more until its segment goes. So what
    // can be read again, because offsets were set back, is known again.
    Expired {
        table: "inbox_events",
        key: "consumer, ce_source, ce_id",
        since: "seen_at",
        keep: "35 days",
    },
    // Time enough for a person to look.
    Expired {
        table: DEAD_LETTERS,
        key: "id",
        since: "created_at",
        keep: "90 days",
    },
    Expired {
        table: "idempotency_keys",
        key: "tenant_id, key",
        since: "expires_at",
        keep: "0 days",
    },
];

/// Deletes what may go until the process stops.
///
/// # Errors
/// Never by itself: outages of Postgres are waited out.
pub async fn run(pool: Pool, schema: &'static str, stop: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            swept = sweep(&pool, schema) => if let Err(cause) = swept {
                warn!(schema, error = explain(&cause), "cannot delete what may go, later again");
            },
        }
    }
}

/// Deletes all that may go now; returns how many rows.
///
/// # Errors
/// When Postgres fails.
pub async fn sweep(pool: &Pool, schema: &str) -> anyhow::Result<u64> {
    let mut all = 0;
    for expired in EXPIRED {
        let sql = expired.delete(schema);
        loop {
            let client = pool.get().await?;
            let delete = async { Ok(client.execute(&sql, &[&BATCH]).await?) };
            let outcome = timeout(BATCH_DEADLINE, delete).await;
            let deleted = postgres::settle(client, outcome)?;
            if deleted > 0 && expired.table == DEAD_LETTERS {
                warn!(
                    schema,
                    deleted, "dead letters that nobody replayed are gone"
                );
            }
            all += deleted;
            if deleted == 0 {
                break;
            }
        }
    }
    Ok(all)
}

impl Expired {
    fn delete(&self, schema: &str) -> String {
        let Self {
            table,
            key,
            since,
            keep,
        } = self;
        // `now()` stands still within a statement, which `clock_timestamp()` does not: only for the
        // former does Postgres look into the index.
        format!(
            "-- ops.retention_{table}\n\
             DELETE FROM {schema}.{table} WHERE ({key}) IN (\n    \
             SELECT {key} FROM {schema}.{table} WHERE {since} <= now() - interval '{keep}'\n    \
             ORDER BY {since} LIMIT $1 FOR UPDATE SKIP LOCKED)"
        )
    }
}
