//! Deliveries: queued by the intake, settled by the worker, read and replayed by the API.

use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;
use ops::lease::LeaseTable;
use tokio_postgres::{Error, Row, types::ToSql};
use uuid::Uuid;

use super::endpoints;
use crate::{
    delivery::{Delivery, Standing},
    intake::Telling,
};

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

/// Which of an endpoint's deliveries follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those that no worker has begun to send since they were last settled.
    Idle,
    /// All of them. One that is under way keeps its lease, and is settled as its endpoint stands
    /// then.
    All,
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

/// Queues an event for every endpoint of its tenant that asked for it. Each is locked against being
/// disabled or enabled before this transaction ends, so that what is queued follows it.
///
/// # Errors
/// When Postgres fails.
pub async fn queue(
    transaction: &Transaction<'_>,
    telling: &Telling,
    now: Timestamp,
) -> Result<(), Error> {
    let select = "-- webhooks.endpoints_subscribed\n\
        SELECT endpoint_id, enabled FROM webhooks.endpoints\n\
        WHERE tenant_id = $1 AND $2 = ANY(events) AND deleted_at IS NULL\n\
        ORDER BY endpoint_id FOR SHARE";
    let rows = transaction
        .query(select, &[&telling.tenant, &telling.event_type])
        .await?;
    for row in rows {
        let delivery = Delivery::queue(now, Standing::of(row.get(1)));
        let message = contracts::id::MessageId::generate(now).uuid();
        insert(transaction, message, row.get(0), telling, delivery, now).await?;
    }
    Ok(())
}

async fn insert(
    transaction: &Transaction<'_>,
    message: Uuid,
    endpoint: Uuid,
    telling: &Telling,
    delivery: Delivery,
    now: Timestamp,
) -> Result<(), Error> {
    let sql = "-- webhooks.delivery_queue\n\
        INSERT INTO webhooks.deliveries (message_id, endpoint_id, tenant_id, event_source,\n    \
        event_id, event_type, job_id, body, traceparent, status, next_attempt_at, created_at)\n\
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)\n\
        ON CONFLICT (endpoint_id, event_source, event_id) DO NOTHING";
    let Telling {
        tenant,
        job,
        source,
        id,
        event_type,
        body,
        traceparent,
    } = telling;
    let (status, due, _, _) = columns(delivery);
    transaction
        .execute(
            sql,
            &[
                &message,
                &endpoint,
                tenant,
                source,
                id,
                event_type,
                job,
                body,
                traceparent,
                &status,
                &due,
                &now,
            ],
        )
        .await?;
    Ok(())
}

/// Moves what waits for an endpoint to where the endpoint stands. After whatever changed the
/// endpoint, in its transaction, for [`Reach::All`]. Before it, for [`Reach::Idle`]: a long backlog
/// is then moved while nobody waits for the endpoint's row, least of all the intake of everyone.
///
/// # Errors
/// When Postgres fails.
pub async fn follow(
    transaction: &Transaction<'_>,
    endpoint: Uuid,
    standing: Standing,
    reach: Reach,
    now: Timestamp,
) -> Result<(), Error> {
    let sql = "-- webhooks.delivery_follow\n\
        UPDATE webhooks.deliveries SET status = $3, next_attempt_at = $4, tries = $5,\n    \
        last_error = coalesce($6, last_error)\n\
        WHERE endpoint_id = $1 AND status = $2 AND ($7 OR lease_expires_at IS NULL)";
    let reason = (standing == Standing::Deleted).then_some("the endpoint was deleted");
    for before in [Delivery::Pending { tries: 0, due: now }, Delivery::Held] {
        let after = before.follow(standing, now);
        if after == before {
            continue;
        }
        let (from, ..) = columns(before);
        let (to, due, tries, _) = columns(after);
        let all = reach == Reach::All;
        transaction
            .execute(sql, &[&endpoint, &from, &to, &due, &tries, &reason, &all])
            .await?;
    }
    Ok(())
}

/// Queues a test event for one endpoint.
///
/// # Errors
/// When Postgres fails.
pub async fn queue_test(
    client: &impl GenericClient,
    tenant: Uuid,
    endpoint: Uuid,
    message: Uuid,
    body: &str,
    now: Timestamp,
) -> Result<(), Error> {
    let sql = "-- webhooks.delivery_queue_test\n\
        INSERT INTO webhooks.deliveries (message_id, endpoint_id, tenant_id, event_source,\n    \
        event_id, body, status, next_attempt_at, created_at)\n\
        VALUES ($1, $2, $3, '/webhooks/test', $4, $5, 'PENDING', $6, $6)";
    let id = message.simple().to_string();
    client
        .execute(sql, &[&message, &endpoint, &tenant, &id, &body, &now])
        .await?;
    Ok(())
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
fn columns(delivery: Delivery) -> (&'static str, Option<Timestamp>, i32, Option<Timestamp>) {
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
