//! Claims: which endpoints are owed deliveries, and the leases on those that go out now.
//!
//! Two workers that look at the same moment choose the same deliveries, oldest first; the leases go
//! to one of them and the other gets fewer, so that shares hold over all workers.

use std::time::Duration;

use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;
use ops::lease::{Lease, LeaseTable};
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::{
    delivery::Delivery,
    health::IN_FLIGHT_MAX,
    share::Owed,
    store::{
        deliveries::{endpoints_with, leases},
        health,
    },
};

/// A delivery that was claimed, and what is needed to send it.
#[derive(Debug)]
pub struct Claimed {
    /// The right to send it.
    pub lease: Lease<Uuid>,
    /// Whom to.
    pub endpoint: Uuid,
    /// Where to.
    pub url: String,
    /// What.
    pub body: String,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
    /// Which attempt this is, counted from 1.
    pub attempt: i32,
    /// Where it stands.
    pub delivery: Delivery,
}

/// The endpoints that something is due to or under way to, and the first few deliveries of each:
/// the length of a backlog does not matter. `owner` is the worker that asks.
///
/// # Errors
/// When Postgres fails.
pub async fn owed(
    client: &impl GenericClient,
    owner: Uuid,
    now: Timestamp,
) -> Result<Vec<Owed>, Error> {
    let (pending, free) = (endpoints_with("PENDING"), LeaseTable::FREE);
    let sql = format!(
        "-- webhooks.claim_owed\n\
        WITH RECURSIVE {pending}\n\
        SELECT e.tenant_id, e.health, e.failures, e.probe_at, u.under_way, u.here,\n    \
         due.oldest, due.since\n\
        FROM pending JOIN webhooks.endpoints e USING (endpoint_id)\n\
        CROSS JOIN LATERAL (SELECT count(*) AS under_way,\n    \
        count(*) FILTER (WHERE lease_owner = $1) AS here FROM webhooks.deliveries d\n    \
        WHERE d.endpoint_id = e.endpoint_id\n    \
        AND d.lease_expires_at >= statement_timestamp()) u\n\
        CROSS JOIN LATERAL (SELECT min(next_attempt_at) AS since,\n    \
        array_agg(message_id ORDER BY next_attempt_at, message_id) AS oldest\n    \
        FROM (SELECT message_id, next_attempt_at FROM webhooks.deliveries d\n        \
        WHERE d.endpoint_id = e.endpoint_id AND status = 'PENDING'\n        \
        AND next_attempt_at <= $2 AND {free}\n        \
        ORDER BY next_attempt_at, message_id LIMIT {IN_FLIGHT_MAX}) first) due\n\
        WHERE e.enabled AND (u.here > 0 OR due.oldest IS NOT NULL)"
    );
    let count = |row: &Row, column| usize::try_from(row.get::<_, i64>(column)).unwrap_or_default();
    let rows = client.query(&sql, &[&owner, &now]).await?;
    Ok(rows
        .iter()
        .map(|row| Owed {
            tenant: row.get("tenant_id"),
            health: health::of(row),
            under_way: count(row, "under_way"),
            here: count(row, "here"),
            due: row.get::<_, Option<_>>("oldest").unwrap_or_default(),
            since: row.get::<_, Option<_>>("since").unwrap_or(now),
        })
        .collect())
}

/// Claims those of `messages` that are still free, and writes their attempts ahead. Of an endpoint
/// that is not sent to any more none is: its deliveries follow it later.
///
/// # Errors
/// When Postgres fails.
pub async fn claim(
    transaction: &Transaction<'_>,
    owner: Uuid,
    ttl: Duration,
    messages: &[Uuid],
    now: Timestamp,
) -> Result<Vec<Claimed>, Error> {
    let free = LeaseTable::FREE;
    let pick = format!(
        "SELECT message_id FROM webhooks.deliveries WHERE message_id = ANY($3)\n    \
        AND status = 'PENDING' AND {free} AND EXISTS (SELECT FROM webhooks.endpoints e\n        \
        WHERE e.endpoint_id = deliveries.endpoint_id AND e.enabled) FOR UPDATE SKIP LOCKED"
    );
    let leases: Vec<Lease<Uuid>> = leases()
        .claim(transaction, owner, ttl, &pick, &[&messages])
        .await?;
    let ids: Vec<Uuid> = leases.iter().map(|lease| lease.id).collect();
    let begin = "-- webhooks.delivery_begin\n\
        WITH begun AS (UPDATE webhooks.deliveries SET attempts = attempts + 1\n    \
        WHERE message_id = ANY($1) RETURNING *),\n\
        ahead AS (INSERT INTO webhooks.attempts (message_id, attempt, started_at)\n    \
        SELECT message_id, attempts, $2 FROM begun)\n\
        SELECT begun.*, url FROM begun JOIN webhooks.endpoints USING (endpoint_id)";
    let rows = transaction.query(begin, &[&ids, &now]).await?;
    let with_lease = |row: &Row| {
        let id: Uuid = row.get("message_id");
        let lease = leases.iter().find(|lease| lease.id == id)?.clone();
        let tries: i32 = row.get("tries");
        Some(Claimed {
            lease,
            endpoint: row.get("endpoint_id"),
            url: row.get("url"),
            body: row.get("body"),
            traceparent: row.get("traceparent"),
            attempt: row.get("attempts"),
            delivery: Delivery::Pending {
                tries: tries.unsigned_abs(),
                due: now,
            },
        })
    };
    Ok(rows.iter().filter_map(with_lease).collect())
}
