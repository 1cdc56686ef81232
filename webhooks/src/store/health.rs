//! Endpoints' health: moved in the transaction that records an attempt, read by claims.

use deadpool_postgres::GenericClient;
use jiff::Timestamp;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::{delivery::Outcome, health::Health};

/// Saves what an attempt at an endpoint tells of it.
///
/// # Errors
/// When Postgres fails.
pub async fn attempted(
    transaction: &impl GenericClient,
    endpoint: Uuid,
    outcome: &Outcome,
    now: Timestamp,
) -> Result<(), Error> {
    let read = "-- webhooks.health_read\n\
        SELECT health, failures, probe_at FROM webhooks.endpoints WHERE endpoint_id = $1";
    let health = of(&transaction.query_one(read, &[&endpoint]).await?);
    // The usual case needs no lock, so that deliveries to one endpoint do not wait for each other.
    if health.attempted(outcome, now) == health {
        return Ok(());
    }
    let lock = "-- webhooks.health_lock\n\
        SELECT health, failures, probe_at FROM webhooks.endpoints WHERE endpoint_id = $1\n    \
        FOR NO KEY UPDATE";
    let health = of(&transaction.query_one(lock, &[&endpoint]).await?);
    save(transaction, endpoint, health.attempted(outcome, now)).await
}

/// Saves an endpoint's health.
///
/// # Errors
/// When Postgres fails.
pub async fn save(
    transaction: &impl GenericClient,
    endpoint: Uuid,
    health: Health,
) -> Result<(), Error> {
    let sql = "-- webhooks.health_save\n\
        UPDATE webhooks.endpoints SET health = $2, failures = $3, probe_at = $4\n\
        WHERE endpoint_id = $1";
    let word = match health {
        Health::Untried => "UNTRIED",
        Health::Trusted { .. } => "TRUSTED",
        Health::OnProbation { .. } => "ON_PROBATION",
    };
    let failures = i32::try_from(health.failures()).unwrap_or(i32::MAX);
    transaction
        .execute(sql, &[&endpoint, &word, &failures, &health.probe_at()])
        .await?;
    Ok(())
}

/// The health in a row that has its three columns.
pub(super) fn of(row: &Row) -> Health {
    let failures = row.get::<_, i32>("failures").unsigned_abs();
    match (row.get("health"), row.get("probe_at")) {
        (_, Some(probe_at)) => Health::OnProbation { failures, probe_at },
        ("TRUSTED", None) => Health::Trusted { failures },
        (_, None) => Health::Untried,
    }
}
