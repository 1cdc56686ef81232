//! Rows of `jobs.jobs` and the domain's job, both ways of looking at the same thing.

use alloy::primitives::{Address, B256};
use contracts::{
    api::jobs::{ConfirmationMode, ConfirmationStatus, JobStatus, Priority},
    id::{JobId, TenantId},
};
use deadpool_postgres::Transaction;
use jiff::Timestamp;
use tokio_postgres::Row;

use super::StoreError;
use crate::job::{Confirmation, Facts, Finality, Job, State};

/// The columns that [`job`] reads.
pub(super) const COLUMNS: &str = "job_id, tenant_id, subject, team, job_type, payload_bytes, \
    salt, content_hash, submitter, priority, confirmation_mode, max_attempts, traceparent, \
    created_at, status, attempts, run_after, started_at, ended_at, event_number, updated_at, \
    confirmation_status, chain_id, registry, batch_number, sequence, transaction_hash, \
    block_number, confirmed_at";

/// Locks a job's row for the rest of the transaction and reads it.
pub(super) async fn lock(transaction: &Transaction<'_>, id: JobId) -> Result<Job, StoreError> {
    let sql = format!("-- jobs.lock\nSELECT {COLUMNS} FROM jobs.jobs WHERE job_id = $1 FOR UPDATE");
    let statement = transaction.prepare_cached(&sql).await?;
    let row = transaction.query_opt(&statement, &[&id.uuid()]).await?;
    job(&row.ok_or(StoreError::Missing)?)
}

/// The job that a row with [`COLUMNS`] holds.
pub(super) fn job(row: &Row) -> Result<Job, StoreError> {
    Ok(Job {
        facts: facts(row)?,
        state: state(row)?,
        attempts: narrow(row, "attempts")?,
        confirmation: confirmation(row)?,
        events: count(row, "event_number")?,
        updated_at: row.get("updated_at"),
    })
}

fn facts(row: &Row) -> Result<Facts, StoreError> {
    let team: Option<&str> = row.get("team");
    let mode: Option<&str> = row.get("confirmation_mode");
    let priority: i16 = row.get("priority");
    Ok(Facts {
        id: JobId::from_uuid(row.get("job_id")),
        tenant: TenantId::from_uuid(row.get("tenant_id")),
        subject: read("subject", row.get::<_, &str>("subject").parse())?,
        team: read("team", team.map(str::parse).transpose())?,
        job_type: read("job_type", row.get::<_, &str>("job_type").parse())?,
        payload_bytes: count(row, "payload_bytes")?,
        salt: word(row, "salt")?,
        content_hash: word(row, "content_hash")?,
        submitter: address(row, "submitter")?,
        priority: read("priority", u8::try_from(priority).map(Priority::try_from))?
            .map_err(|_| StoreError::Unreadable("priority"))?,
        mode: mode.map(confirmation_mode).transpose()?,
        max_attempts: narrow(row, "max_attempts")?,
        traceparent: row.get("traceparent"),
        created_at: row.get("created_at"),
    })
}

fn state(row: &Row) -> Result<State, StoreError> {
    let time = |column: &'static str| {
        let found: Option<Timestamp> = row.get(column);
        found.ok_or(StoreError::Unreadable(column))
    };
    let text: &str = row.get("status");
    let status = JobStatus::ALL
        .into_iter()
        .find(|status| status.as_str() == text);
    Ok(match status.ok_or(StoreError::Unreadable("status"))? {
        JobStatus::Pending => State::Pending {
            run_after: time("run_after")?,
        },
        JobStatus::Processing => State::Processing {
            started_at: time("started_at")?,
        },
        JobStatus::Completed => State::Completed {
            ended_at: time("ended_at")?,
        },
        JobStatus::Failed => State::Failed {
            ended_at: time("ended_at")?,
        },
        JobStatus::Cancelled => State::Cancelled {
            ended_at: time("ended_at")?,
        },
    })
}

fn confirmation(row: &Row) -> Result<Confirmation, StoreError> {
    let text: &str = row.get("confirmation_status");
    let is = |status: ConfirmationStatus| status.as_str() == text;
    if is(ConfirmationStatus::NotRequired) {
        return Ok(Confirmation::NotRequired);
    }
    if is(ConfirmationStatus::Queued) {
        return Ok(Confirmation::Queued);
    }
    if !is(ConfirmationStatus::Finalized) {
        return Err(StoreError::Unreadable("confirmation_status"));
    }
    Ok(Confirmation::Finalized(Finality {
        chain_id: count(row, "chain_id")?,
        registry: address(row, "registry")?,
        batch_number: count(row, "batch_number")?,
        sequence: count(row, "sequence")?,
        transaction_hash: word(row, "transaction_hash")?,
        block_number: count(row, "block_number")?,
        confirmed_at: read("confirmed_at", row.try_get("confirmed_at"))?,
    }))
}

/// The mode as the column keeps it.
pub(super) const fn mode_text(mode: ConfirmationMode) -> &'static str {
    match mode {
        ConfirmationMode::Batch => "batch",
        ConfirmationMode::Individual => "individual",
    }
}

fn confirmation_mode(text: &str) -> Result<ConfirmationMode, StoreError> {
    [ConfirmationMode::Batch, ConfirmationMode::Individual]
        .into_iter()
        .find(|mode| mode_text(*mode) == text)
        .ok_or(StoreError::Unreadable("confirmation_mode"))
}

/// A `bigint` that counts something.
pub(super) fn count(row: &Row, column: &'static str) -> Result<u64, StoreError> {
    let number: Option<i64> = row.get(column);
    number
        .and_then(|number| u64::try_from(number).ok())
        .ok_or(StoreError::Unreadable(column))
}

fn narrow(row: &Row, column: &'static str) -> Result<u32, StoreError> {
    read(column, u32::try_from(count(row, column)?))
}

fn address(row: &Row, column: &'static str) -> Result<Address, StoreError> {
    let bytes: Option<&[u8]> = row.get(column);
    read(column, Address::try_from(bytes.unwrap_or_default()))
}

/// A `bytea` of 32 bytes.
pub(super) fn word(row: &Row, column: &'static str) -> Result<B256, StoreError> {
    let bytes: Option<&[u8]> = row.get(column);
    read(column, B256::try_from(bytes.unwrap_or_default()))
}

fn read<T, E>(column: &'static str, read: Result<T, E>) -> Result<T, StoreError> {
    read.map_err(|_| StoreError::Unreadable(column))
}
