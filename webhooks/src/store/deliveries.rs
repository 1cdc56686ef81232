//! Deliveries: settled by the worker, read and replayed by the API.
//!
//! Who locks an endpoint's row and its deliveries' locks the endpoint's first, here and everywhere.

use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;
use ops::lease::LeaseTable;
use tokio_postgres::{Error, Row, types::ToSql};
use uuid::Uuid;

use super::endpoints;
use crate::delivery::{Delivery, Standing};

/// A delivery, as the API shows it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The message.
    pub message: Uuid,
    /// Whom for.
    pub endpoint: Uuid,
    /// What happened; none for a test.
    pub event_type: Option<String>,
    /// To which job; none for a test.
    pub job: Option<Uuid>,
    /// How far it is.
    pub status: String,
    /// How often it was tried.
    pub attempts: i32,
    /// When the event arrived.
    pub created_at: Timestamp,
    /// When it will be tried next.
    pub next_attempt_at: Option<Timestamp>,
    /// When the endpoint took it.
    pub delivered_at: Option<Timestamp>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// Which deliveries to list.
#[derive(Debug)]
pub struct Filter {
    /// Whose.
    pub tenant: Uuid,
    /// Only those before this one.
    pub cursor: Uuid,
    /// Only those for this endpoint.
    pub endpoint: Option<Uuid>,
    /// Only those in this status.
    pub status: Option<&'static str>,
    /// Only those about this job.
    pub job: Option<Uuid>,
    /// At most this many.
    pub limit: i64,
}

/// What became of a wish to send a delivery again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// It is queued.
    Queued,
    /// Its endpoint is not sent to.
    Refused(Standing),
    /// There is no such delivery.
    Missing,
}

/// The table of deliveries, as leases see it.
#[must_use]
pub fn leases() -> LeaseTable {
    LeaseTable::new("webhooks.deliveries", "message_id")
}

/// A recursive table of the endpoints with deliveries in `status`, named as the status is, for a
/// query that begins `WITH RECURSIVE`. Hops from endpoint to endpoint in the index of that status:
/// the length of a backlog does not matter.
pub(super) fn endpoints_with(status: &str) -> String {
    format!(
        "{status} (endpoint_id) AS (\n    \
        (SELECT endpoint_id FROM webhooks.deliveries WHERE status = '{status}'\n    \
        ORDER BY endpoint_id, next_attempt_at LIMIT 1)\n    \
        UNION ALL\n    \
        SELECT (SELECT d.endpoint_id FROM webhooks.deliveries d\n        \
        WHERE d.status = '{status}' AND d.endpoint_id > {status}.endpoint_id\n        \
        ORDER BY d.endpoint_id, d.next_attempt_at LIMIT 1)\n    \
        FROM {status} WHERE {status}.endpoint_id IS NOT NULL)"
    )
}

/// Saves where an attempt led, in a transaction that holds the lease's guard; gives the lease back.
///
/// # Errors
/// When Postgres fails.
pub async fn settle(
    transaction: &impl GenericClient,
    message: Uuid,
    delivery: Delivery,
    error: Option<&str>,
) -> Result<(), Error> {
    let sql = "-- webhooks.delivery_settle\n\
        UPDATE webhooks.deliveries SET status = $2, next_attempt_at = $3, tries = $4,\n    \
        delivered_at = $5, last_error = $6, lease_owner = NULL, lease_expires_at = NULL\n\
        WHERE message_id = $1";
    let (status, due, tries, delivered_at) = columns(delivery);
    transaction
        .execute(
            sql,
            &[&message, &status, &due, &tries, &delivered_at, &error],
        )
        .await?;
    Ok(())
}

/// Queues a delivery of the tenant once more, if its endpoint is sent to.
///
/// # Errors
/// When Postgres fails.
pub async fn replay(
    transaction: &Transaction<'_>,
    tenant: Uuid,
    message: Uuid,
    now: Timestamp,
) -> Result<Replayed, Error> {
    let Some(delivery) = get(transaction, tenant, message).await? else {
        return Ok(Replayed::Missing);
    };
    let standing = endpoints::hold_standing(transaction, delivery.endpoint).await?;
    if standing != Standing::Enabled {
        return Ok(Replayed::Refused(standing));
    }
    let sql = "-- webhooks.delivery_replay\n\
        UPDATE webhooks.deliveries SET status = $2, next_attempt_at = $3, tries = $4,\n    \
        delivered_at = $5, lease_owner = NULL, lease_expires_at = NULL,\n    \
        lease_epoch = lease_epoch + 1\n\
        WHERE message_id = $1";
    let (status, due, tries, delivered_at) = columns(Delivery::Held.replay(now));
    transaction
        .execute(sql, &[&message, &status, &due, &tries, &delivered_at])
        .await?;
    Ok(Replayed::Queued)
}

/// One of the tenant's deliveries.
///
/// # Errors
/// When Postgres fails.
pub async fn get(
    client: &impl GenericClient,
    tenant: Uuid,
    message: Uuid,
) -> Result<Option<Stored>, Error> {
    let sql = "-- webhooks.delivery_get\n\
        SELECT * FROM webhooks.deliveries WHERE tenant_id = $1 AND message_id = $2";
    Ok(client
        .query_opt(sql, &[&tenant, &message])
        .await?
        .as_ref()
        .map(stored))
}

/// Deliveries, newest first.
///
/// # Errors
/// When Postgres fails.
pub async fn list(client: &impl GenericClient, filter: &Filter) -> Result<Vec<Stored>, Error> {
    let sql = "-- webhooks.delivery_list\n\
        SELECT * FROM webhooks.deliveries WHERE tenant_id = $1 AND message_id < $2\n    \
        AND ($3::uuid IS NULL OR endpoint_id = $3) AND ($4::text IS NULL OR status = $4)\n    \
        AND ($5::uuid IS NULL OR job_id = $5)\n\
        ORDER BY message_id DESC LIMIT $6";
    let Filter {
        tenant,
        cursor,
        endpoint,
        status,
        job,
        limit,
    } = filter;
    let parameters: [&(dyn ToSql + Sync); 6] = [tenant, cursor, endpoint, status, job, limit];
    Ok(client
        .query(sql, &parameters)
        .await?
        .iter()
        .map(stored)
        .collect())
}

/// Status, next attempt, tries and time of delivery of a state.
pub(super) fn columns(
    delivery: Delivery,
) -> (&'static str, Option<Timestamp>, i32, Option<Timestamp>) {
    match delivery {
        Delivery::Pending { tries, due } => (
            "PENDING",
            Some(due),
            i32::try_from(tries).unwrap_or(i32::MAX),
            None,
        ),
        Delivery::Delivered(at) => ("DELIVERED", None, 0, Some(at)),
        Delivery::Failed => ("FAILED", None, 0, None),
        Delivery::Held => ("HELD", None, 0, None),
    }
}

fn stored(row: &Row) -> Stored {
    Stored {
        message: row.get("message_id"),
        endpoint: row.get("endpoint_id"),
        event_type: row.get("event_type"),
        job: row.get("job_id"),
        status: row.get("status"),
        attempts: row.get("attempts"),
        created_at: row.get("created_at"),
        next_attempt_at: row.get("next_attempt_at"),
        delivered_at: row.get("delivered_at"),
        last_error: row.get("last_error"),
    }
}
