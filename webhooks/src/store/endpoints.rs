//! Endpoints and their secrets.

use deadpool_postgres::{GenericClient, Transaction};
use jiff::{SignedDuration, Timestamp};
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::delivery::Standing;

/// An endpoint, as stored.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its id.
    pub id: Uuid,
    /// Where events are sent.
    pub url: String,
    /// Which events.
    pub events: Vec<String>,
    /// The tenant's note.
    pub description: Option<String>,
    /// Whether events are sent.
    pub enabled: bool,
    /// Why it was disabled, if not by the tenant.
    pub disabled_reason: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

const COLUMNS: &str =
    "endpoint_id, url, events, description, enabled, disabled_reason, created_at, updated_at";

fn endpoint(row: &Row) -> Endpoint {
    Endpoint {
        id: row.get("endpoint_id"),
        url: row.get("url"),
        events: row.get("events"),
        description: row.get("description"),
        enabled: row.get("enabled"),
        disabled_reason: row.get("disabled_reason"),
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    }
}

/// Stores a new endpoint unless the tenant has `limit` already; false when it has. Waits for other
/// transactions that do so for the tenant: none of them sees what the others have yet to commit.
///
/// # Errors
/// When Postgres fails.
pub async fn insert(
    transaction: &Transaction<'_>,
    tenant: Uuid,
    endpoint: &Endpoint,
    limit: i64,
) -> Result<bool, Error> {
    let turn = "-- webhooks.endpoint_turn\n\
        SELECT pg_advisory_xact_lock(hashtextextended('webhooks.endpoints ' || $1::text, 0))";
    transaction.query_one(turn, &[&tenant.to_string()]).await?;
    let sql = "-- webhooks.endpoint_insert\n\
        INSERT INTO webhooks.endpoints (endpoint_id, tenant_id, url, events, description,\n    \
        created_at, updated_at)\n\
        SELECT $1, $2, $3, $4, $5, $6, $6 WHERE $7 > (SELECT count(*)\n    \
        FROM webhooks.endpoints WHERE tenant_id = $2 AND deleted_at IS NULL)";
    let Endpoint {
        id,
        url,
        events,
        description,
        created_at,
        ..
    } = endpoint;
    let inserted = transaction
        .execute(
            sql,
            &[id, &tenant, url, events, description, created_at, &limit],
        )
        .await?;
    Ok(inserted == 1)
}

/// One of the tenant's endpoints.
///
/// # Errors
/// When Postgres fails.
pub async fn get(
    client: &impl GenericClient,
    tenant: Uuid,
    id: Uuid,
) -> Result<Option<Endpoint>, Error> {
    let sql = format!(
        "-- webhooks.endpoint_get\nSELECT {COLUMNS} FROM webhooks.endpoints\n\
         WHERE tenant_id = $1 AND endpoint_id = $2 AND deleted_at IS NULL"
    );
    Ok(client
        .query_opt(&sql, &[&tenant, &id])
        .await?
        .as_ref()
        .map(endpoint))
}

/// One of the tenant's endpoints, which nobody else changes before this transaction ends.
///
/// # Errors
/// When Postgres fails.
pub async fn lock(
    transaction: &Transaction<'_>,
    tenant: Uuid,
    id: Uuid,
) -> Result<Option<Endpoint>, Error> {
    let sql = format!(
        "-- webhooks.endpoint_lock\nSELECT {COLUMNS} FROM webhooks.endpoints\n\
         WHERE tenant_id = $1 AND endpoint_id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE"
    );
    Ok(transaction
        .query_opt(&sql, &[&tenant, &id])
        .await?
        .as_ref()
        .map(endpoint))
}

/// How an endpoint stands at this moment.
///
/// # Errors
/// When Postgres fails.
pub async fn standing(client: &impl GenericClient, id: Uuid) -> Result<Standing, Error> {
    let sql = "-- webhooks.endpoint_standing\n\
        SELECT enabled, deleted_at IS NOT NULL FROM webhooks.endpoints WHERE endpoint_id = $1";
    Ok(standing_of(&client.query_one(sql, &[&id]).await?))
}

/// How an endpoint stands, and keeps standing until this transaction ends. To be asked before any
/// delivery of it is locked, as everyone does.
///
/// # Errors
/// When Postgres fails.
pub async fn hold_standing(transaction: &Transaction<'_>, id: Uuid) -> Result<Standing, Error> {
    let sql = "-- webhooks.endpoint_hold_standing\n\
        SELECT enabled, deleted_at IS NOT NULL FROM webhooks.endpoints WHERE endpoint_id = $1\n\
        FOR SHARE";
    Ok(standing_of(&transaction.query_one(sql, &[&id]).await?))
}

fn standing_of(row: &Row) -> Standing {
    if row.get(1) {
        Standing::Deleted
    } else {
        Standing::of(row.get(0))
    }
}

/// The tenant's endpoints, newest first, from before `cursor` on.
///
/// # Errors
/// When Postgres fails.
pub async fn list(
    client: &impl GenericClient,
    tenant: Uuid,
    cursor: Uuid,
    limit: i64,
) -> Result<Vec<Endpoint>, Error> {
    let sql = format!(
        "-- webhooks.endpoint_list\nSELECT {COLUMNS} FROM webhooks.endpoints\n\
         WHERE tenant_id = $1 AND endpoint_id < $2 AND deleted_at IS NULL\n\
         ORDER BY endpoint_id DESC LIMIT $3"
    );
    Ok(client
        .query(&sql, &[&tenant, &cursor, &limit])
        .await?
        .iter()
        .map(endpoint)
        .collect())
}

/// Saves what may be changed of an endpoint; false when it is not there.
///
/// # Errors
/// When Postgres fails.
pub async fn update(
    client: &impl GenericClient,
    tenant: Uuid,
    endpoint: &Endpoint,
) -> Result<bool, Error> {
    let sql = "-- webhooks.endpoint_update\n\
        UPDATE webhooks.endpoints SET url = $3, events = $4, description = $5, enabled = $6,\n    \
        disabled_reason = $7, updated_at = $8\n\
        WHERE tenant_id = $1 AND endpoint_id = $2 AND deleted_at IS NULL";
    let Endpoint {
        id,
        url,
        events,
        description,
        enabled,
        disabled_reason,
        updated_at,
        ..
    } = endpoint;
    let updated = client
        .execute(
            sql,
            &[
                &tenant,
                id,
                url,
                events,
                description,
                enabled,
                disabled_reason,
                updated_at,
            ],
        )
        .await?;
    Ok(updated == 1)
}

/// Removes an endpoint from the tenant's sight; its deliveries stay on record.
///
/// # Errors
/// When Postgres fails.
pub async fn delete(
    transaction: &impl GenericClient,
    tenant: Uuid,
    id: Uuid,
    now: Timestamp,
) -> Result<bool, Error> {
    let sql = "-- webhooks.endpoint_delete\n\
        UPDATE webhooks.endpoints SET deleted_at = $3, enabled = false\n\
        WHERE tenant_id = $1 AND endpoint_id = $2 AND deleted_at IS NULL";
    Ok(transaction.execute(sql, &[&tenant, &id, &now]).await? == 1)
}

/// Stops sending to an endpoint that asked for it (410).
///
/// # Errors
/// When Postgres fails.
pub async fn disable(
    transaction: &impl GenericClient,
    id: Uuid,
    reason: &str,
    now: Timestamp,
) -> Result<(), Error> {
    let sql = "-- webhooks.endpoint_disable\n\
        UPDATE webhooks.endpoints SET enabled = false, disabled_reason = $2, updated_at = $3\n\
        WHERE endpoint_id = $1 AND enabled";
    transaction.execute(sql, &[&id, &reason, &now]).await?;
    Ok(())
}

/// Stores an endpoint's secret, encrypted.
///
/// # Errors
/// When Postgres fails.
pub async fn add_secret(
    transaction: &impl GenericClient,
    endpoint: Uuid,
    ciphertext: &[u8],
    now: Timestamp,
) -> Result<(), Error> {
    let sql = "-- webhooks.secret_add\n\
        INSERT INTO webhooks.secrets (endpoint_id, ciphertext, created_at) VALUES ($1, $2, $3)";
    transaction
        .execute(sql, &[&endpoint, &ciphertext, &now])
        .await?;
    Ok(())
}

/// How many secrets sign at `now`, and when the first of them ends, if any does.
///
/// # Errors
/// When Postgres fails.
pub async fn live_secrets(
    transaction: &impl GenericClient,
    endpoint: Uuid,
    now: Timestamp,
) -> Result<(i64, Option<Timestamp>), Error> {
    let sql = "-- webhooks.secrets_live\n\
        SELECT count(*), min(expires_at) FROM webhooks.secrets\n\
        WHERE endpoint_id = $1 AND (expires_at IS NULL OR expires_at > $2)";
    let row = transaction.query_one(sql, &[&endpoint, &now]).await?;
    Ok((row.get(0), row.get(1)))
}

/// Lets the present secret sign for `overlap` more, and forgets those that ended.
///
/// # Errors
/// When Postgres fails.
pub async fn retire_secrets(
    transaction: &impl GenericClient,
    endpoint: Uuid,
    now: Timestamp,
    overlap: SignedDuration,
) -> Result<Timestamp, Error> {
    let until = now.saturating_add(overlap).unwrap_or(Timestamp::MAX);
    let forget = "-- webhooks.secret_forget\n\
        DELETE FROM webhooks.secrets WHERE endpoint_id = $1 AND expires_at <= $2";
    transaction.execute(forget, &[&endpoint, &now]).await?;
    let retire = "-- webhooks.secret_retire\n\
        UPDATE webhooks.secrets SET expires_at = $2\n\
        WHERE endpoint_id = $1 AND (expires_at IS NULL OR expires_at > $2)";
    transaction.execute(retire, &[&endpoint, &until]).await?;
    Ok(until)
}

/// The encrypted secrets that sign at `now`, newest first.
///
/// # Errors
/// When Postgres fails.
pub async fn active_secrets(
    client: &impl GenericClient,
    endpoints: &[Uuid],
    now: Timestamp,
) -> Result<Vec<(Uuid, Vec<u8>)>, Error> {
    let sql = "-- webhooks.secrets_active\n\
        SELECT endpoint_id, ciphertext FROM webhooks.secrets\n\
        WHERE endpoint_id = ANY($1) AND (expires_at IS NULL OR expires_at > $2)\n\
        ORDER BY secret_id DESC";
    let rows = client.query(sql, &[&endpoints, &now]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
