//! A job as the HTTP interface shows it.

use contracts::{
    api::jobs::{self, JobView},
    problem::Problem,
};
use serde_json::value::RawValue;

use crate::{
    job::{Confirmation, State},
    store::{Record, StoreError},
};

/// What the tenant sees of a job.
pub(super) fn view(record: Record) -> Result<JobView, Problem> {
    let Record { job, metadata, .. } = record;
    let ended_at = match job.state {
        State::Pending { .. } | State::Processing { .. } => None,
        State::Completed { ended_at }
        | State::Failed { ended_at }
        | State::Cancelled { ended_at } => Some(ended_at),
    };
    Ok(JobView {
        job_id: job.facts.id,
        job_type: job.facts.job_type,
        status: job.status(),
        priority: job.facts.priority,
        attempts: job.attempts,
        max_attempts: job.facts.max_attempts,
        created_at: job.facts.created_at,
        updated_at: job.updated_at,
        estimated_completion: record.estimated_completion,
        started_at: record.started_at,
        ended_at,
        compute_ms: record.compute_ms,
        metadata: serde_json::from_value(metadata)
            .map_err(|_| StoreError::Unreadable("metadata"))?,
        result: record
            .result
            .map(|text| exact(text, "result"))
            .transpose()?,
        error: record.error.map(|text| exact(text, "error")).transpose()?,
        blockchain_confirmation: confirmation(&job.confirmation),
        subject: job.facts.subject,
        team: job.facts.team,
    })
}

/// A stored JSON text, to be shown byte for byte.
fn exact(text: String, column: &'static str) -> Result<Box<RawValue>, StoreError> {
    RawValue::from_string(text).map_err(|_| StoreError::Unreadable(column))
}

fn confirmation(confirmation: &Confirmation) -> jobs::Confirmation {
    let status = jobs::Confirmation::of(confirmation.status());
    match confirmation {
        Confirmation::NotRequired | Confirmation::Queued => status,
        Confirmation::Finalized(finality) => jobs::Confirmation {
            chain_id: Some(finality.chain_id),
            registry: Some(finality.registry),
            batch_number: Some(finality.batch_number),
            sequence: Some(finality.sequence),
            transaction_hash: Some(finality.transaction_hash),
            block_number: Some(finality.block_number),
            confirmed_at: Some(finality.confirmed_at),
            ..status
        },
    }
}
