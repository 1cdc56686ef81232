//! Attempts: written ahead of sending, completed after it.

use deadpool_postgres::GenericClient;
use jiff::Timestamp;
use tokio_postgres::Error;
use uuid::Uuid;

use crate::client::Report;

/// An attempt, as stored.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Counted from 1.
    pub attempt: i32,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took; none while it runs, or when its worker died in the middle.
    pub duration_ms: Option<i64>,
    /// What the endpoint answered.
    pub status_code: Option<i32>,
    /// Why it failed.
    pub error: Option<String>,
    /// The beginning of the answer's body.
    pub response_body: Option<String>,
}

/// Records what came of an attempt.
///
/// # Errors
/// When Postgres fails.
pub async fn finish(
    transaction: &impl GenericClient,
    message: Uuid,
    attempt: i32,
    duration_ms: i64,
    report: &Report,
) -> Result<(), Error> {
    let sql = "-- webhooks.attempt_finish\n\
        UPDATE webhooks.attempts SET duration_ms = $3, status_code = $4, error = $5,\n    \
        response_body = $6 WHERE message_id = $1 AND attempt = $2";
    let status = report.status.map(i32::from);
    transaction
        .execute(
            sql,
            &[
                &message,
                &attempt,
                &duration_ms,
                &status,
                &report.error,
                &report.body,
            ],
        )
        .await?;
    Ok(())
}

/// The attempts at a delivery, in order.
///
/// # Errors
/// When Postgres fails.
pub async fn list(client: &impl GenericClient, message: Uuid) -> Result<Vec<Attempt>, Error> {
    let sql = "-- webhooks.attempt_list\n\
        SELECT attempt, started_at, duration_ms, status_code, error, response_body\n\
        FROM webhooks.attempts WHERE message_id = $1 ORDER BY attempt LIMIT 1000";
    let rows = client.query(sql, &[&message]).await?;
    Ok(rows
        .iter()
        .map(|row| Attempt {
            attempt: row.get(0),
            started_at: row.get(1),
            duration_ms: row.get(2),
            status_code: row.get(3),
            error: row.get(4),
            response_body: row.get(5),
        })
        .collect())
}
