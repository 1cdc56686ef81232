//! Looking at jobs and their events, without a lock.

use std::time::Duration;

use contracts::{
    api::jobs::{JobEventType, JobStatus},
    id::{JobId, Subject, TenantId},
    job_type::JobType,
};
use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::{Row, error::SqlState, types::ToSql};

use super::{Store, StoreError, rows, signed};
use crate::job::Job;

/// Most events read at a time; a job has a handful.
const EVENTS_MAX: i64 = 100;
/// How long a list may take. It holds a connection of all tenants' meanwhile.
const LIST_DEADLINE: Duration = Duration::from_secs(2);

/// Everything about a job that its tenant may see.
#[derive(Clone, Debug)]
pub struct Record {
    /// The job.
    pub job: Job,
    /// The tenant's own notes.
    pub metadata: Value,
    /// When it should be done, if all goes well.
    pub estimated_completion: Timestamp,
    /// When a worker last began.
    pub started_at: Option<Timestamp>,
    /// What the last attempt took.
    pub compute_ms: Option<u64>,
    /// The result's exact JSON text.
    pub result: Option<String>,
    /// The error's exact JSON text.
    pub error: Option<String>,
}

/// Whose jobs someone sees.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// In which tenant.
    pub tenant: TenantId,
    /// Every job of the tenant.
    pub everything: bool,
    /// Otherwise, the jobs this subject submitted,
    pub subject: Subject,
    /// and those that a member of this team did.
    pub team: Option<Subject>,
}

/// Which jobs to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Only jobs in this status.
    pub status: Option<JobStatus>,
    /// Only jobs of this type.
    pub job_type: Option<JobType>,
    /// Only jobs accepted before this one.
    pub before: Option<JobId>,
}

/// An event as the job's own list has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// 1 for the first event of the job.
    pub number: u64,
    /// What happened.
    pub event_type: JobEventType,
    /// When.
    pub at: Timestamp,
}

impl Store {
    /// A job of the tenant.
    pub async fn find(&self, tenant: TenantId, id: JobId) -> Result<Option<Record>, StoreError> {
        let sql = format!(
            "-- jobs.find\nSELECT {}, {EXTRA} FROM jobs.jobs WHERE job_id = $1 AND tenant_id = $2",
            rows::COLUMNS
        );
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(&sql).await?;
        let row = client
            .query_opt(&statement, &[&id.uuid(), &tenant.uuid()])
            .await?;
        row.as_ref().map(record).transpose()
    }

    /// At most `limit` jobs that `viewer` sees, newest first.
    pub async fn list(
        &self,
        viewer: &Viewer,
        filter: &Filter,
        limit: u32,
    ) -> Result<Vec<Record>, StoreError> {
        let mut client = self.pool.get().await?;
        let transaction = client.build_transaction().read_only(true).start().await?;
        let deadline = format!(
            "-- jobs.list_deadline\nSET LOCAL statement_timeout = {}",
            LIST_DEADLINE.as_millis()
        );
        transaction.batch_execute(&deadline).await?;
        list(&transaction, viewer, filter, limit).await
    }

    /// The events of a job after number `after`, in order.
    pub async fn events(&self, job: JobId, after: u64) -> Result<Vec<Told>, StoreError> {
        const SQL: &str = "-- jobs.events
            SELECT event_number, event_type, occurred_at FROM jobs.job_events
            WHERE job_id = $1 AND event_number > $2 ORDER BY event_number LIMIT $3";
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(SQL).await?;
        let rows = client
            .query(&statement, &[&job.uuid(), &signed(after)?, &EVENTS_MAX])
            .await?;
        rows.iter().map(told).collect()
    }

    /// How many jobs wait, and how many are being computed.
    pub async fn depths(&self) -> Result<(u64, u64), StoreError> {
        const SQL: &str = "-- jobs.depths
            SELECT (SELECT count(*) FROM jobs.jobs WHERE status = 'PENDING') AS pending,
                (SELECT count(*) FROM jobs.jobs WHERE status = 'PROCESSING') AS processing";
        let client = self.pool.get().await?;
        let row = client.query_one(SQL, &[]).await?;
        Ok((
            rows::count(&row, "pending")?,
            rows::count(&row, "processing")?,
        ))
    }
}

/// At most `limit` jobs that `viewer` sees, newest first: a few rows of the index that suits the
/// filter, but for a filter by several things at once, which reads on until it has found enough.
pub async fn list(
    transaction: &Transaction<'_>,
    viewer: &Viewer,
    filter: &Filter,
    limit: u32,
) -> Result<Vec<Record>, StoreError> {
    let sql = format!(
        "-- jobs.list\n\
         SELECT {}, {EXTRA} FROM jobs.jobs\n\
         WHERE tenant_id = $1 AND ($2 OR subject = $3 OR team = $4)\n    \
         AND ($5::text IS NULL OR status = $5) AND ($6::text IS NULL OR job_type = $6)\n    \
         AND ($7::uuid IS NULL OR job_id < $7)\n\
         ORDER BY job_id DESC LIMIT $8",
        rows::COLUMNS
    );
    let parameters: [&(dyn ToSql + Sync); 8] = [
        &viewer.tenant.uuid(),
        &viewer.everything,
        &viewer.subject.as_str(),
        &viewer.team.as_ref().map(Subject::as_str),
        &filter.status.map(JobStatus::as_str),
        &filter.job_type.map(JobType::as_str),
        &filter.before.map(JobId::uuid),
        &i64::from(limit),
    ];
    // Planned with the values at hand: which index serves depends on them.
    let rows = transaction
        .query(&sql, &parameters)
        .await
        .map_err(|error| {
            if error.code() == Some(&SqlState::QUERY_CANCELED) {
                StoreError::TooSlow
            } else {
                error.into()
            }
        })?;
    rows.iter().map(record).collect()
}

const EXTRA: &str = "metadata, estimated_completion, compute_ms, result, error";

fn record(row: &Row) -> Result<Record, StoreError> {
    let compute_ms: Option<i64> = row.get("compute_ms");
    Ok(Record {
        job: rows::job(row)?,
        metadata: row.get("metadata"),
        estimated_completion: row.get("estimated_completion"),
        started_at: row.get("started_at"),
        compute_ms: compute_ms.and_then(|number| u64::try_from(number).ok()),
        result: row.get("result"),
        error: row.get("error"),
    })
}

fn told(row: &Row) -> Result<Told, StoreError> {
    let text: &str = row.get("event_type");
    let event_type = JobEventType::ALL
        .into_iter()
        .find(|known| known.as_str() == text);
    Ok(Told {
        number: rows::count(row, "event_number")?,
        event_type: event_type.ok_or(StoreError::Unreadable("event_type"))?,
        at: row.get("occurred_at"),
    })
}
