//! Deliveries follow how their endpoint stands, a batch at a time: a backlog may be a million long.
//!
//! How the endpoint stands is what counts meanwhile: claims and replays ask it.

use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;
use tokio_postgres::Error;
use uuid::Uuid;

use super::{
    deliveries::{columns, endpoints_with},
    endpoints,
};
use crate::delivery::{Delivery, Standing};

/// Most deliveries moved in one statement, after which it is the next tenant's turn.
pub const FOLLOW_MAX: usize = 1_000;

/// Endpoints with deliveries that do not stand as they do: one of each tenant, so that none waits
/// for all of another's.
///
/// # Errors
/// When Postgres fails.
pub async fn misfits(client: &impl GenericClient) -> Result<Vec<Uuid>, Error> {
    let (pending, held) = (endpoints_with("PENDING"), endpoints_with("HELD"));
    let sql = format!(
        "-- webhooks.follow_misfits\n\
        WITH RECURSIVE {pending}, {held}\n\
        SELECT DISTINCT ON (tenant_id) endpoint_id FROM (\n    \
        SELECT tenant_id, endpoint_id FROM pending\n    \
        JOIN webhooks.endpoints USING (endpoint_id) WHERE NOT enabled\n    \
        UNION ALL\n    \
        SELECT tenant_id, endpoint_id FROM held\n    \
        JOIN webhooks.endpoints USING (endpoint_id) WHERE enabled OR deleted_at IS NOT NULL\n\
        ) AS misfits ORDER BY tenant_id, random()"
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Moves at most [`FOLLOW_MAX`] deliveries of each kind to where their endpoint stands; returns how
/// many. One that is under way keeps its lease, and is settled as its endpoint stands then. The
/// intake, which shares the lock of the endpoint, need not wait, and no delivery is waited for.
///
/// # Errors
/// When Postgres fails.
pub async fn follow(
    transaction: &Transaction<'_>,
    endpoint: Uuid,
    now: Timestamp,
) -> Result<u64, Error> {
    let standing = endpoints::hold_standing(transaction, endpoint).await?;
    let reason = (standing == Standing::Deleted).then_some("the endpoint was deleted");
    let mut moved = 0;
    for before in [Delivery::Pending { tries: 0, due: now }, Delivery::Held] {
        let after = before.follow(standing, now);
        if after == before {
            continue;
        }
        let (from, ..) = columns(before);
        let (to, due, tries, _) = columns(after);
        let sql = format!(
            "-- webhooks.follow\n\
            UPDATE webhooks.deliveries SET status = $2, next_attempt_at = $3, tries = $4,\n    \
            last_error = coalesce($5, last_error)\n\
            WHERE message_id = ANY(ARRAY(SELECT message_id FROM webhooks.deliveries\n    \
            WHERE endpoint_id = $1 AND status = '{from}'\n    \
            ORDER BY next_attempt_at, message_id LIMIT {FOLLOW_MAX} FOR UPDATE SKIP LOCKED))"
        );
        moved += transaction
            .execute(&sql, &[&endpoint, &to, &due, &tries, &reason])
            .await?;
    }
    Ok(moved)
}
