//! Deliveries are queued: events for all who asked for them, and tests.

use std::collections::HashMap;

use contracts::id::MessageId;
use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;
use tokio_postgres::{Error, Row, types::ToSql};
use uuid::Uuid;

use super::deliveries::columns;
use crate::{
    delivery::{Delivery, Standing},
    intake::Telling,
};

/// Most deliveries queued in one statement: a fraction of a second, unless they are huge.
const QUEUE_MAX: usize = 5_000;

/// An endpoint that some of the events may be for.
struct Endpoint {
    id: Uuid,
    events: Vec<String>,
    standing: Standing,
}

/// An event for an endpoint that asked for it.
struct Owed<'a> {
    telling: &'a Telling,
    endpoint: &'a Endpoint,
}

/// Queues events, each for every endpoint of its tenant that asked for it. Those are locked against
/// being disabled or enabled before this transaction ends: what is queued stands as they do.
///
/// # Errors
/// When Postgres fails.
pub async fn queue(
    transaction: &Transaction<'_>,
    tellings: &[Telling],
    now: Timestamp,
) -> Result<(), Error> {
    let endpoints = lock_endpoints(transaction, tellings).await?;
    let mut owed = Vec::new();
    for telling in tellings {
        let of_tenant = endpoints.get(&telling.tenant).into_iter().flatten();
        let told = of_tenant.filter(|it| it.events.iter().any(|it| it == telling.event_type));
        owed.extend(told.map(|endpoint| Owed { telling, endpoint }));
    }
    for part in owed.chunks(QUEUE_MAX) {
        insert(transaction, part, now).await?;
    }
    Ok(())
}

/// The endpoints of the tenants that something happened to, which asked for such.
async fn lock_endpoints(
    transaction: &Transaction<'_>,
    tellings: &[Telling],
) -> Result<HashMap<Uuid, Vec<Endpoint>>, Error> {
    let sql = "-- webhooks.queue_endpoints\n\
        SELECT tenant_id, endpoint_id, events, enabled FROM webhooks.endpoints\n\
        WHERE tenant_id = ANY($1) AND events && $2 AND deleted_at IS NULL\n\
        ORDER BY endpoint_id FOR SHARE";
    let mut tenants: Vec<Uuid> = tellings.iter().map(|telling| telling.tenant).collect();
    tenants.sort_unstable();
    tenants.dedup();
    let mut kinds: Vec<&str> = tellings.iter().map(|telling| telling.event_type).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut found: HashMap<Uuid, Vec<Endpoint>> = HashMap::new();
    for row in transaction.query(sql, &[&tenants, &kinds]).await? {
        let of_tenant = found.entry(row.get("tenant_id")).or_default();
        of_tenant.push(endpoint(&row));
    }
    Ok(found)
}

fn endpoint(row: &Row) -> Endpoint {
    Endpoint {
        id: row.get("endpoint_id"),
        events: row.get("events"),
        standing: Standing::of(row.get("enabled")),
    }
}

async fn insert(
    transaction: &Transaction<'_>,
    owed: &[Owed<'_>],
    now: Timestamp,
) -> Result<(), Error> {
    // An event's body crosses once, and is stored for each of its endpoints.
    let sql = "-- webhooks.queue_insert\n\
        INSERT INTO webhooks.deliveries (message_id, endpoint_id, tenant_id, event_source,\n    \
        event_id, event_type, job_id, body, traceparent, status, next_attempt_at, created_at)\n\
        SELECT message_id, endpoint_id, tenant_id, source, id, event_type, job_id, body,\n    \
        traceparent, status, due, $5\n\
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[], $6::bigint[])\n    \
        AS owed (message_id, endpoint_id, status, due, place)\n\
        JOIN unnest($7::uuid[], $8::text[], $9::text[], $10::text[], $11::uuid[],\n    \
        $12::text[], $13::text[]) WITH ORDINALITY\n    \
        AS told (tenant_id, source, id, event_type, job_id, body, traceparent, place)\n    \
        USING (place)\n\
        ON CONFLICT (endpoint_id, event_source, event_id) DO NOTHING";
    // All that one event is owed to stand side by side.
    let of_one = |one: &Owed, other: &Owed| std::ptr::eq(one.telling, other.telling);
    let mut told: Vec<&Telling> = Vec::new();
    let mut places: Vec<i64> = Vec::with_capacity(owed.len());
    for (place, same) in (1..).zip(owed.chunk_by(of_one)) {
        told.push(same[0].telling);
        places.extend(same.iter().map(|_| place));
    }
    let stands = |it: &Owed| columns(Delivery::queue(now, it.endpoint.standing));
    let id = |_: &Owed| MessageId::generate(now).uuid();
    let parameters: [&(dyn ToSql + Sync); 13] = [
        &column(owed, id),
        &column(owed, |it| it.endpoint.id),
        &column(owed, |it| stands(it).0),
        &column(owed, |it| stands(it).1),
        &now,
        &places,
        &column(&told, |it| it.tenant),
        &column(&told, |it| it.source.as_str()),
        &column(&told, |it| it.id.as_str()),
        &column(&told, |it| it.event_type),
        &column(&told, |it| it.job),
        &column(&told, |it| it.body.as_str()),
        &column(&told, |it| it.traceparent.as_deref()),
    ];
    let statement = transaction.prepare_cached(sql).await?;
    transaction.execute(&statement, &parameters).await?;
    Ok(())
}

fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
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
    let sql = "-- webhooks.queue_test\n\
        INSERT INTO webhooks.deliveries (message_id, endpoint_id, tenant_id, event_source,\n    \
        event_id, body, status, next_attempt_at, created_at)\n\
        VALUES ($1, $2, $3, '/webhooks/test', $4, $5, 'PENDING', $6, $6)";
    let id = message.simple().to_string();
    client
        .execute(sql, &[&message, &endpoint, &tenant, &id, &body, &now])
        .await?;
    Ok(())
}
