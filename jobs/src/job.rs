//! A job: its states and their legal moves, without I/O.
//!
//! ```text
//! PENDING ──start──▶ PROCESSING ──complete──▶ COMPLETED ─┐
//!    ▲ │                │  │ └─────fail─────▶ FAILED ────┴─confirm──▶ the same, FINALIZED
//!    └─┼── fail, give ──┘  │
//!      └──────cancel───────┴────────────────▶ CANCELLED
//! ```
//!
//! A move consumes the job and returns it moved, with the event to tell; the store saves exactly
//! that. Payload and result stay outside: a batch confirms a thousand jobs at a time.

use std::time::Duration;

use alloy::primitives::{Address, B256};
use contracts::{
    api::jobs::{
        ConfirmationMode, ConfirmationStatus, JobEventType, JobFailure, JobStatus, Priority,
    },
    id::{JobId, Subject, TenantId},
    job_type::JobType,
};
use jiff::Timestamp;

mod moves;

pub use moves::salted_hash;

/// How many times a worker may begin a job.
pub const MAX_ATTEMPTS: u32 = 3;

/// A job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// What never changes.
    pub facts: Facts,
    /// Where it is in its life.
    pub state: State,
    /// How many times a worker began, but for attempts given back.
    pub attempts: u32,
    /// Where its confirmation on chain is.
    pub confirmation: Confirmation,
    /// The number of its last event, which is how many it has.
    pub events: u64,
    /// When anything of it last changed.
    pub updated_at: Timestamp,
}

/// What was settled when the job was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which job.
    pub id: JobId,
    /// Whose job.
    pub tenant: TenantId,
    /// Who submitted it.
    pub subject: Subject,
    /// The submitter's team at that time.
    pub team: Option<Subject>,
    /// What it does.
    pub job_type: JobType,
    /// Length of the payload as sent.
    pub payload_bytes: u64,
    /// Keeps the hashes from being guessed.
    pub salt: B256,
    /// keccak256(salt ‖ payload).
    pub content_hash: B256,
    /// The EVM address that may prove the outcome; zero for none.
    pub submitter: Address,
    /// Its place in the tenant's own queue.
    pub priority: Priority,
    /// How the outcome is sealed, if at all.
    pub mode: Option<ConfirmationMode>,
    /// How many times a worker may begin.
    pub max_attempts: u32,
    /// The trace it belongs to (W3C Trace Context).
    pub traceparent: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for a worker.
    Pending {
        /// Not to be begun earlier.
        run_after: Timestamp,
    },
    /// A worker that holds its lease computes it.
    Processing {
        /// When the worker began.
        started_at: Timestamp,
    },
    /// Has a result.
    Completed {
        /// Since when.
        ended_at: Timestamp,
    },
    /// Has an error and will not be tried again.
    Failed {
        /// Since when.
        ended_at: Timestamp,
    },
    /// Was cancelled before it ended.
    Cancelled {
        /// Since when.
        ended_at: Timestamp,
    },
}

/// Where a job's confirmation on chain is, as far as this service is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// None was asked for, or there is nothing to confirm.
    NotRequired,
    /// Will be part of a batch.
    Queued,
    /// In a block that counts for ever.
    Finalized(Finality),
}

/// The place on chain that proves a job's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finality {
    /// The chain.
    pub chain_id: u64,
    /// The contract on it.
    pub registry: Address,
    /// The batch.
    pub batch_number: u64,
    /// The job's number on the contract.
    pub sequence: u64,
    /// The transaction that confirmed the batch.
    pub transaction_hash: B256,
    /// The block it is in.
    pub block_number: u64,
    /// When the relayer saw that it is final.
    pub confirmed_at: Timestamp,
}

/// A move, made: the job as it now is, and what to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The job as it now is.
    pub job: Job,
    /// What happened.
    pub event: Event,
}

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// 1 for the first of a job, then without gaps.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: Happening,
}

/// What can happen to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It was accepted.
    Submitted,
    /// A worker began.
    Started,
    /// It has a result.
    Completed(Outcome),
    /// It has an error.
    Failed(JobFailure, Outcome),
    /// It was cancelled.
    Cancelled,
    /// Its outcome is final on chain.
    Confirmed(Finality),
}

/// How a job ended, byte for byte as sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The JSON text of the result or the error.
    pub text: String,
    /// keccak256(salt ‖ text).
    pub hash: B256,
    /// What the last attempt took.
    pub compute: Duration,
}

/// Why an attempt brought no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Trying again cannot help.
    Permanent(String),
    /// Trying again may help.
    Retryable(String),
    /// It took longer than the type's time.
    TimedOut(Duration),
    /// The worker stopped renewing its lease.
    WorkerLost,
}

/// What a failed attempt means for the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It waits for another attempt, which is nobody's news.
    Again(Job),
    /// It failed.
    Over(Moved),
}

/// The move is not one that this job can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {} ({}) cannot {wanted}", status.as_str(), confirmation.as_str())]
pub struct Illegal {
    /// Where the job is.
    pub status: JobStatus,
    /// Where its confirmation is.
    pub confirmation: ConfirmationStatus,
    /// What was wanted of it.
    pub wanted: &'static str,
}

impl Job {
    /// The job's status.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        match self.state {
            State::Pending { .. } => JobStatus::Pending,
            State::Processing { .. } => JobStatus::Processing,
            State::Completed { .. } => JobStatus::Completed,
            State::Failed { .. } => JobStatus::Failed,
            State::Cancelled { .. } => JobStatus::Cancelled,
        }
    }

    /// Whether it was confirmed at this very place before: being told so again is no news. What the
    /// chain may move, the transaction and its block, is not the place.
    #[must_use]
    pub fn is_final_at(&self, place: &Finality) -> bool {
        let Confirmation::Finalized(known) = self.confirmation else {
            return false;
        };
        let place_of = |f: &Finality| (f.chain_id, f.registry, f.batch_number, f.sequence);
        place_of(&known) == place_of(place)
    }

    /// Whether it counts against the tenant's limit of active jobs.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Pending { .. } | State::Processing { .. })
    }
}

impl Confirmation {
    /// The confirmation's status.
    #[must_use]
    pub fn status(&self) -> ConfirmationStatus {
        match self {
            Self::NotRequired => ConfirmationStatus::NotRequired,
            Self::Queued => ConfirmationStatus::Queued,
            Self::Finalized(_) => ConfirmationStatus::Finalized,
        }
    }
}

impl Happening {
    /// The event's type.
    #[must_use]
    pub fn event_type(&self) -> JobEventType {
        match self {
            Self::Submitted => JobEventType::Submitted,
            Self::Started => JobEventType::Started,
            Self::Completed(_) => JobEventType::Completed,
            Self::Failed(..) => JobEventType::Failed,
            Self::Cancelled => JobEventType::Cancelled,
            Self::Confirmed(_) => JobEventType::Confirmed,
        }
    }
}

/// Whether an event of this type is the last one that a job, asked for confirmation or not, will
/// have.
#[must_use]
pub fn is_last(event_type: JobEventType, confirmation: ConfirmationStatus) -> bool {
    match event_type {
        JobEventType::Submitted | JobEventType::Started => false,
        JobEventType::Completed | JobEventType::Failed => {
            confirmation == ConfirmationStatus::NotRequired
        }
        JobEventType::Cancelled | JobEventType::Confirmed | JobEventType::Purged => true,
    }
}
