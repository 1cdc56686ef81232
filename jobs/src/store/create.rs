//! Accepting a job: idempotency record, place among the active jobs, job, first event and outbox
//! row in one transaction.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use ops::{
    idempotency::{Claim, Request, claim, recall},
    postgres::retrying,
};
use serde_json::Value;
use tokio_postgres::types::ToSql;

use super::{SCHEMA, Store, StoreError, rows, signed, tell};
use crate::job::{Moved, State};

/// A job about to be accepted.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// The job, with its first event.
    pub moved: Moved,
    /// The payload's exact bytes.
    pub payload: Vec<u8>,
    /// The tenant's own notes.
    pub metadata: Value,
    /// When it should be done, if all goes well.
    pub estimated_completion: Timestamp,
    /// Most active jobs of the tenant.
    pub active_limit: Option<u32>,
    /// The plan's priority: the tenant's weight when slots are shared out.
    pub weight: u8,
}

/// What became of a wish to create.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// The job exists now.
    New,
    /// It existed before; this is the answer it had.
    Before(Value),
    /// The key belongs to another request.
    Mismatch,
    /// The tenant has as many active jobs as it may; the key stays free.
    TooManyActive,
}

impl Store {
    /// Accepts `new` under an idempotency key, unless the key says otherwise. `answer` is what
    /// every retry gets until `forget_at`.
    pub async fn create(
        &self,
        new: &NewJob,
        request: Request<'_>,
        answer: &Value,
        forget_at: Timestamp,
    ) -> Result<Created, StoreError> {
        let attempt = || async move {
            let mut client = self.pool.get().await?;
            // Dropped without a commit, it leaves nothing: neither job nor key.
            let transaction = client.transaction().await?;
            match claim(&transaction, SCHEMA, request, answer, forget_at).await? {
                Claim::Fresh => {}
                Claim::Replay(answer) => return Ok(Created::Before(answer)),
                Claim::Mismatch => return Ok(Created::Mismatch),
            }
            if !join_active(&transaction, new).await? {
                return Ok(Created::TooManyActive);
            }
            insert(&transaction, new).await?;
            tell(&transaction, &new.moved.job, &new.moved.event).await?;
            transaction.commit().await?;
            Ok(Created::New)
        };
        retrying("jobs.create", attempt).await
    }

    /// What the key of a request for a job stands for, if for anything.
    pub async fn recall(&self, request: Request<'_>) -> Result<Option<Claim>, StoreError> {
        let client = self.pool.get().await?;
        Ok(recall(&client, SCHEMA, request).await?)
    }
}

/// Counts the job among the tenant's active ones, if there is room.
async fn join_active(transaction: &Transaction<'_>, new: &NewJob) -> Result<bool, StoreError> {
    const SQL: &str = "-- jobs.join_active
        INSERT INTO jobs.tenants AS tenant (tenant_id, active, weight)
        SELECT $1, 1, $3 WHERE $2::bigint IS NULL OR $2 > 0
        ON CONFLICT (tenant_id) DO UPDATE SET active = tenant.active + 1, weight = EXCLUDED.weight
        WHERE $2::bigint IS NULL OR tenant.active < $2";
    let tenant = new.moved.job.facts.tenant.uuid();
    let limit = new.active_limit.map(i64::from);
    let statement = transaction.prepare_cached(SQL).await?;
    let joined = transaction
        .execute(&statement, &[&tenant, &limit, &i16::from(new.weight)])
        .await?;
    Ok(joined == 1)
}

async fn insert(transaction: &Transaction<'_>, new: &NewJob) -> Result<(), StoreError> {
    const SQL: &str = "-- jobs.insert
        INSERT INTO jobs.jobs (job_id, tenant_id, subject, team, job_type, payload, payload_bytes,
            salt, content_hash, submitter, priority, metadata, confirmation_mode, max_attempts,
            traceparent, created_at, estimated_completion, status, attempts, run_after,
            event_number, updated_at, confirmation_status)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
            $19, $20, $21, $22, $23)";
    let job = &new.moved.job;
    let facts = &job.facts;
    let run_after = match job.state {
        State::Pending { run_after } => Some(run_after),
        _ => None,
    };
    let parameters: [&(dyn ToSql + Sync); 23] = [
        &facts.id.uuid(),
        &facts.tenant.uuid(),
        &facts.subject.as_str(),
        &facts.team.as_ref().map(contracts::id::Subject::as_str),
        &facts.job_type.as_str(),
        &new.payload,
        &signed(facts.payload_bytes)?,
        &facts.salt.as_slice(),
        &facts.content_hash.as_slice(),
        &facts.submitter.as_slice(),
        &i16::from(facts.priority.get()),
        &new.metadata,
        &facts.mode.map(rows::mode_text),
        &i64::from(facts.max_attempts),
        &facts.traceparent,
        &facts.created_at,
        &new.estimated_completion,
        &job.status().as_str(),
        &i64::from(job.attempts),
        &run_after,
        &signed(job.events)?,
        &job.updated_at,
        &job.confirmation.status().as_str(),
    ];
    transaction
        .execute(&transaction.prepare_cached(SQL).await?, &parameters)
        .await?;
    Ok(())
}
