//! Submitting, reading and cancelling jobs.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

pub use crate::submit::{Priority, PriorityError, validate_submit};
use crate::{
    id::{JobId, Subject},
    job_type::JobType,
};

/// Most bytes of a submit request's body.
pub const SUBMIT_MAX_BYTES: usize = 1_024 * 1_024;
/// Most bytes of the names and values of `metadata` together.
pub const METADATA_MAX_BYTES: usize = 4 * 1_024;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobStatus {
    /// Waits for a worker.
    Pending,
    /// A worker computes it.
    Processing,
    /// Has a result.
    Completed,
    /// Has an error, and will not be tried again.
    Failed,
    /// Was cancelled before it ended.
    Cancelled,
}

/// Where a job's confirmation on chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConfirmationStatus {
    /// None was asked for.
    NotRequired,
    /// Will be part of a batch.
    Queued,
    /// A transaction was sent.
    Submitted,
    /// In a block that may still be replaced.
    Included,
    /// In a block that counts for ever.
    Finalized,
}

/// How a job is confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConfirmationMode {
    /// With others, in one transaction.
    #[default]
    Batch,
    /// At once, in a batch of its own.
    Individual,
}

/// A job to be done. Made from a body by [`validate_submit`], never by plain deserialisation.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(description = "A job to be done.")]
pub struct SubmitRequest {
    /// What to do.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// What to do it with; must satisfy the type's schema. Hashed and kept exactly as sent.
    #[schema(schema_with = crate::openapi::payload)]
    pub payload: Box<RawValue>,
    /// Whether the outcome is sealed on chain.
    #[schema(required = false, default = false)]
    pub requires_confirmation: bool,
    /// How it is sealed.
    #[schema(required = false)]
    pub confirmation: ConfirmationMode,
    /// The EVM address that may prove the outcome; the principal's registered one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^0x[0-9a-fA-F]{40}$")]
    pub submitter: Option<Address>,
    /// 1 (last) to 9 (first); the plan's if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The tenant's own notes, at most 4 KiB together.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    pub metadata: BTreeMap<String, String>,
}

/// The answer to a submitted job: the same for every repetition of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubmitResponse {
    /// The job.
    pub job_id: JobId,
    /// Always `PENDING`.
    pub status: JobStatus,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it should be done, if all goes well.
    pub estimated_completion: Timestamp,
}

/// A job as its tenant sees it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// The job.
    pub job_id: JobId,
    /// What it does.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// Where it is.
    pub status: JobStatus,
    /// Who submitted it.
    pub subject: Subject,
    /// The submitter's team at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<Subject>,
    /// 1 (last) to 9 (first).
    pub priority: Priority,
    /// How many times a worker began.
    pub attempts: u32,
    /// How many times a worker may begin.
    pub max_attempts: u32,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When anything of it last changed.
    pub updated_at: Timestamp,
    /// When it should be done, if all goes well.
    pub estimated_completion: Timestamp,
    /// When a worker last began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it completed, failed or was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// What the last attempt took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_ms: Option<u64>,
    /// The tenant's own notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    pub metadata: BTreeMap<String, String>,
    /// The result, byte for byte as hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<Box<RawValue>>,
    /// Why it failed, byte for byte as hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<JobFailure>)]
    pub error: Option<Box<RawValue>>,
    /// Where its confirmation on chain is.
    pub blockchain_confirmation: Confirmation,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobFailure {
    /// For programs.
    #[schema(examples("TIMEOUT"))]
    pub code: String,
    /// For people.
    pub detail: String,
}

/// Where a job's confirmation on chain is; the members beside `status` come as they are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Confirmation {
    /// How far it is.
    pub status: ConfirmationStatus,
    /// The chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_id: Option<u64>,
    /// The contract on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub registry: Option<Address>,
    /// The batch the job is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_number: Option<u64>,
    /// The job's number on the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The transaction that confirmed the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub transaction_hash: Option<B256>,
    /// The block it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_number: Option<u64>,
    /// When we saw that it is final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<Timestamp>,
}

/// Which jobs to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListJobsQuery {
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Most items of the page: 50 if absent, at most 200.
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u32>,
    /// Only jobs in this status.
    #[param(inline)]
    pub status: Option<JobStatus>,
    /// Only jobs of this type.
    #[serde(rename = "type")]
    #[param(inline)]
    pub job_type: Option<JobType>,
}

/// From where to follow a job's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FollowJobQuery {
    /// Only events after this number, for who cannot send `Last-Event-ID`, as a browser's
    /// WebSocket; it goes before that.
    pub after: Option<u64>,
}

/// The `data` of one server-sent event; its `event` is `type`, its `id` is `event_number`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobEventView {
    /// 1 for the first event of a job, then without gaps.
    pub event_number: u64,
    /// What happened.
    #[serde(rename = "type")]
    pub event_type: JobEventType,
    /// When.
    pub occurred_at: Timestamp,
    /// The job, as it is now.
    pub job: JobView,
}

/// What can happen to a job.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
pub enum JobEventType {
    /// It was accepted.
    #[serde(rename = "job.submitted")]
    Submitted,
    /// A worker began.
    #[serde(rename = "job.started")]
    Started,
    /// It has a result.
    #[serde(rename = "job.completed")]
    Completed,
    /// It has an error.
    #[serde(rename = "job.failed")]
    Failed,
    /// It was cancelled.
    #[serde(rename = "job.cancelled")]
    Cancelled,
    /// Its outcome is final on chain.
    #[serde(rename = "job.confirmed")]
    Confirmed,
    /// Its payload and result were erased.
    #[serde(rename = "job.purged")]
    Purged,
}

impl JobStatus {
    /// Every status.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Processing,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The status as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Processing => "PROCESSING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl ConfirmationStatus {
    /// The status as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotRequired => "NOT_REQUIRED",
            Self::Queued => "QUEUED",
            Self::Submitted => "SUBMITTED",
            Self::Included => "INCLUDED",
            Self::Finalized => "FINALIZED",
        }
    }
}

impl Confirmation {
    /// A confirmation of which nothing but its status is known.
    #[must_use]
    pub const fn of(status: ConfirmationStatus) -> Self {
        Self {
            status,
            chain_id: None,
            registry: None,
            batch_number: None,
            sequence: None,
            transaction_hash: None,
            block_number: None,
            confirmed_at: None,
        }
    }
}

impl JobEventType {
    /// Every type.
    pub const ALL: [Self; 7] = [
        Self::Submitted,
        Self::Started,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Confirmed,
        Self::Purged,
    ];

    /// The type as it stands in JSON and in `ce_type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "job.submitted",
            Self::Started => "job.started",
            Self::Completed => "job.completed",
            Self::Failed => "job.failed",
            Self::Cancelled => "job.cancelled",
            Self::Confirmed => "job.confirmed",
            Self::Purged => "job.purged",
        }
    }
}
