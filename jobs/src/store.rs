//! The record of truth in Postgres. Every change of a job is one transaction that holds the job's
//! row: state, event and outbox row together, exactly as the move returned them.

use contracts::id::JobId;
use deadpool_postgres::{PoolError, Transaction};
use jiff::Timestamp;
use ops::{
    lease::{LeaseError, LeaseTable},
    outbox,
    postgres::{Migration, Pool, retrying},
};
use tokio_postgres::types::ToSql;

use crate::{
    announce,
    job::{Event, Happening, Illegal, Job, Moved, Outcome, State},
};

mod confirm;
mod create;
mod read;
mod rows;
mod work;

pub use confirm::{Batch, Misfit, Place, confirm};
pub use create::{Created, NewJob};
pub use read::{Filter, Record, Told, Viewer, list};
pub use work::{Slots, Work};

/// The schema this service owns.
pub const SCHEMA: &str = "jobs";

/// Access to the jobs. Cloning shares the pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Pool,
    leases: LeaseTable,
}

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres refused or failed.
    #[error("Postgres failed")]
    Postgres(#[from] tokio_postgres::Error),
    /// No connection was to be had.
    #[error("no connection to Postgres")]
    Pool(#[from] PoolError),
    /// What happened cannot be told.
    #[error("what happened cannot be told")]
    Untold(#[from] outbox::AppendError),
    /// The lease is lost: someone else decides about the job now.
    #[error("the lease is lost")]
    Fenced,
    /// The job cannot make the move.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// There is no such job, and jobs are never deleted.
    #[error("there is no such job")]
    Missing,
    /// What was asked for takes longer than it may.
    #[error("not found in time")]
    TooSlow,
    /// A row holds what this program does not know.
    #[error("column {0} holds what this program does not know")]
    Unreadable(&'static str),
}

/// What became of a wish to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It is cancelled, now or since earlier.
    Yes,
    /// It had ended before.
    TooLate(Illegal),
}

/// All migrations of the schema.
#[must_use]
pub fn migrations() -> Vec<Migration> {
    let own = [("V10__jobs", include_str!("../migrations/V10__jobs.sql"))];
    ops::postgres::migrations(SCHEMA, &own)
}

impl Store {
    /// The jobs in the database behind `pool`.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        Self {
            pool,
            leases: LeaseTable::new("jobs.jobs", "job_id"),
        }
    }

    /// Cancels a job that has not ended; whoever computes it is fenced. Cancelling twice is the
    /// same as once.
    pub async fn cancel(&self, job: JobId, now: Timestamp) -> Result<Cancelled, StoreError> {
        let attempt = || async move {
            let mut client = self.pool.get().await?;
            let transaction = client.transaction().await?;
            let job = rows::lock(&transaction, job).await?;
            if matches!(job.state, State::Cancelled { .. }) {
                return Ok(Cancelled::Yes);
            }
            match job.cancel(now) {
                Ok(moved) => {
                    save(&transaction, &moved).await?;
                    transaction.commit().await?;
                    Ok(Cancelled::Yes)
                }
                Err(illegal) => Ok(Cancelled::TooLate(illegal)),
            }
        };
        retrying("jobs.cancel", attempt).await
    }
}

impl From<LeaseError> for StoreError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Fenced => Self::Fenced,
            LeaseError::Postgres(error) => Self::Postgres(error),
        }
    }
}

/// Saves a move whose job's row is locked: the job's new state, and its event.
async fn save(transaction: &Transaction<'_>, moved: &Moved) -> Result<(), StoreError> {
    let Moved { job, event } = moved;
    save_state(transaction, job, Some(&event.what)).await?;
    if !job.is_active() {
        leave_active(transaction, job).await?;
    }
    tell(transaction, job, event).await
}

/// Saves a job's state, and the outcome that came with it. A job that is not being processed has
/// no lease, so that a worker which still computes it is fenced.
async fn save_state(
    transaction: &Transaction<'_>,
    job: &Job,
    what: Option<&Happening>,
) -> Result<(), StoreError> {
    const SQL: &str = "-- jobs.save_state
        UPDATE jobs.jobs SET status = $2, attempts = $3, event_number = $4, updated_at = $5,
            confirmation_status = $6, run_after = $7, ended_at = $9,
            started_at = coalesce($8, started_at),
            result = $10, error = $11, outcome_hash = $12, compute_ms = $13,
            lease_owner = CASE WHEN $2 = 'PROCESSING' THEN lease_owner END,
            lease_expires_at = CASE WHEN $2 = 'PROCESSING' THEN lease_expires_at END
        WHERE job_id = $1";
    let (run_after, started_at, ended_at) = match job.state {
        State::Pending { run_after } => (Some(run_after), None, None),
        State::Processing { started_at } => (None, Some(started_at), None),
        State::Completed { ended_at }
        | State::Failed { ended_at }
        | State::Cancelled { ended_at } => (None, None, Some(ended_at)),
    };
    let (result, error) = match what {
        Some(Happening::Completed(outcome)) => (Some(outcome), None),
        Some(Happening::Failed(_, outcome)) => (None, Some(outcome)),
        _ => (None, None),
    };
    let outcome = result.or(error);
    let parameters: [&(dyn ToSql + Sync); 13] = [
        &job.facts.id.uuid(),
        &job.status().as_str(),
        &i64::from(job.attempts),
        &signed(job.events)?,
        &job.updated_at,
        &job.confirmation.status().as_str(),
        &run_after,
        &started_at,
        &ended_at,
        &result.map(|outcome| &outcome.text),
        &error.map(|outcome| &outcome.text),
        &outcome.map(|outcome| outcome.hash.as_slice()),
        &outcome.map(compute_ms),
    ];
    transaction
        .execute(&transaction.prepare_cached(SQL).await?, &parameters)
        .await?;
    Ok(())
}

/// Takes an ended job off its tenant's active ones.
async fn leave_active(transaction: &Transaction<'_>, job: &Job) -> Result<(), StoreError> {
    const SQL: &str = "-- jobs.leave_active
        UPDATE jobs.tenants SET active = active - 1 WHERE tenant_id = $1";
    let statement = transaction.prepare_cached(SQL).await?;
    transaction
        .execute(&statement, &[&job.facts.tenant.uuid()])
        .await?;
    Ok(())
}

/// Appends an event to the job's own list and to the outbox.
async fn tell(transaction: &Transaction<'_>, job: &Job, event: &Event) -> Result<(), StoreError> {
    const SQL: &str = "-- jobs.tell
        INSERT INTO jobs.job_events (job_id, event_number, event_type, occurred_at)
        VALUES ($1, $2, $3, $4)";
    let statement = transaction.prepare_cached(SQL).await?;
    let (job_id, number) = (job.facts.id.uuid(), signed(event.number)?);
    let event_type = event.what.event_type().as_str();
    transaction
        .execute(&statement, &[&job_id, &number, &event_type, &event.at])
        .await?;
    outbox::append(transaction, SCHEMA, &announce::message(job, event)).await?;
    Ok(())
}

fn compute_ms(outcome: &Outcome) -> i64 {
    i64::try_from(announce::compute_ms(outcome)).unwrap_or(i64::MAX)
}

/// A count as Postgres keeps it.
fn signed(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Unreadable("a number beyond 63 bits"))
}
