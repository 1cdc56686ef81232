//! Marking a final batch's jobs, set by set: a batch has a thousand of them, and the consumer's
//! lease must not run out meanwhile.

use std::collections::BTreeMap;

use alloy::primitives::B256;
use contracts::{
    id::{JobId, TenantId},
    merkle::JobsTree,
    registry::{Leaf, LeafStatus, chain_job_id, tenant_hash},
};
use deadpool_postgres::Transaction;
use jiff::Timestamp;
use ops::outbox;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{SCHEMA, StoreError, rows, signed};
use crate::{
    announce,
    job::{Finality, Illegal, Job, Moved, State},
};

/// A batch that is final on chain.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The root of the tree of its jobs, as sealed.
    pub jobs_root: B256,
    /// Where each of its jobs stands.
    pub places: BTreeMap<JobId, Place>,
}

/// A job's place in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Whose the job is said to be.
    pub tenant: TenantId,
    /// Where it stands on chain.
    pub finality: Finality,
}

/// Why a batch does not fit the jobs it names. Trying again cannot mend it: a person must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It names a job that does not exist.
    #[error("{0} is none of our jobs")]
    Unknown(JobId),
    /// It says that a job is another tenant's.
    #[error("{0} is not the job of {1}")]
    Tenant(JobId, TenantId),
    /// A job is not waiting for it.
    #[error("{0} does not wait for this: {1}")]
    Unawaited(JobId, Illegal),
    /// What was sealed is not how its jobs ended here.
    #[error("the batch's root is not that of its jobs as they ended here")]
    Root,
}

/// A job of a batch, its row locked, and the hash of how it ended.
struct Sealed {
    job: Job,
    outcome_hash: B256,
}

/// Marks the jobs of one final batch in the caller's transaction, each with its place on chain,
/// and announces them; those that are final there already are no news. Nothing is marked of a batch
/// that does not fit all its jobs: it is not the one that we asked for.
pub async fn confirm(
    transaction: &Transaction<'_>,
    batch: &Batch,
    now: Timestamp,
) -> Result<Result<(), Misfit>, StoreError> {
    let found = lock_all(transaction, batch).await?;
    let moved = match fit(batch, found, now) {
        Ok(moved) => moved,
        Err(misfit) => return Ok(Err(misfit)),
    };
    save_all(transaction, &moved).await?;
    let messages: Vec<_> = moved
        .iter()
        .map(|(moved, _)| announce::message(&moved.job, &moved.event))
        .collect();
    outbox::append_all(transaction, SCHEMA, &messages).await?;
    Ok(Ok(()))
}

/// The moves that a batch makes, if it fits the jobs that were found.
fn fit(
    batch: &Batch,
    mut found: BTreeMap<JobId, Sealed>,
    now: Timestamp,
) -> Result<Vec<(Moved, Finality)>, Misfit> {
    let mut moved = Vec::with_capacity(found.len());
    let mut leaves = Vec::with_capacity(found.len());
    for (&id, Place { tenant, finality }) in &batch.places {
        let sealed = found.remove(&id).ok_or(Misfit::Unknown(id))?;
        if sealed.job.facts.tenant != *tenant {
            return Err(Misfit::Tenant(id, *tenant));
        }
        leaves.push(sealed.leaf(finality.sequence).hash());
        if !sealed.job.is_final_at(finality) {
            let done = sealed.job.confirm(now, *finality);
            moved.push((done.map_err(|why| Misfit::Unawaited(id, why))?, *finality));
        }
    }
    // The tree is the same in whatever order its leaves are given.
    let root = JobsTree::new(&leaves).map(|tree| tree.root());
    if root == Some(batch.jobs_root) {
        Ok(moved)
    } else {
        Err(Misfit::Root)
    }
}

impl Sealed {
    /// What the relayer made of the job's last event; of a job that did not end, a leaf of no tree.
    fn leaf(&self, sequence: u64) -> Leaf {
        let facts = &self.job.facts;
        let status = match self.job.state {
            State::Completed { .. } => LeafStatus::Completed.as_u8(),
            State::Failed { .. } => LeafStatus::Failed.as_u8(),
            State::Pending { .. } | State::Processing { .. } | State::Cancelled { .. } => 0,
        };
        Leaf {
            sequence,
            jobId: chain_job_id(facts.id),
            submitter: facts.submitter,
            tenant: tenant_hash(facts.tenant),
            contentHash: facts.content_hash,
            resultHash: self.outcome_hash,
            status,
        }
    }
}

/// In order of their ids, so that two such transactions wait for each other instead of dying.
async fn lock_all(
    transaction: &Transaction<'_>,
    batch: &Batch,
) -> Result<BTreeMap<JobId, Sealed>, StoreError> {
    let sql = format!(
        "-- jobs.lock_all\n\
         SELECT {}, coalesce(outcome_hash, decode(repeat('00', 32), 'hex')) AS outcome_hash\n\
         FROM jobs.jobs WHERE job_id = ANY($1) ORDER BY job_id FOR UPDATE",
        rows::COLUMNS
    );
    let ids: Vec<Uuid> = batch.places.keys().map(|id| id.uuid()).collect();
    let rows = transaction.query(&sql, &[&ids]).await?;
    let sealed = |row: &Row| {
        let job = rows::job(row)?;
        let outcome_hash = rows::word(row, "outcome_hash")?;
        Ok((job.facts.id, Sealed { job, outcome_hash }))
    };
    rows.iter().map(sealed).collect()
}

async fn save_all(
    transaction: &Transaction<'_>,
    confirmed: &[(Moved, Finality)],
) -> Result<(), StoreError> {
    const SQL: &str = "-- jobs.save_confirmed
        WITH confirmed AS (
            SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::bigint[],
                $5::bytea[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bigint[],
                $10::timestamptz[], $11::text[], $12::text[])
            AS place (job_id, event_number, now, chain_id, registry, batch_number, sequence,
                transaction_hash, block_number, confirmed_at, status, event_type)
        ), told AS (
            INSERT INTO jobs.job_events (job_id, event_number, event_type, occurred_at)
            SELECT job_id, event_number, event_type, now FROM confirmed
        )
        UPDATE jobs.jobs AS job SET confirmation_status = place.status,
            event_number = place.event_number, updated_at = place.now,
            chain_id = place.chain_id, registry = place.registry,
            batch_number = place.batch_number, sequence = place.sequence,
            transaction_hash = place.transaction_hash, block_number = place.block_number,
            confirmed_at = place.confirmed_at
        FROM confirmed AS place WHERE job.job_id = place.job_id";
    let column = |number: fn(&Finality) -> u64| -> Result<Vec<i64>, StoreError> {
        confirmed
            .iter()
            .map(|(_, finality)| signed(number(finality)))
            .collect()
    };
    let places = || confirmed.iter().map(|(_, finality)| finality);
    let moves = || confirmed.iter().map(|(moved, _)| moved);
    let numbers: Result<Vec<i64>, StoreError> =
        moves().map(|moved| signed(moved.event.number)).collect();
    let parameters: [&(dyn ToSql + Sync); 12] = [
        &moves()
            .map(|moved| moved.job.facts.id.uuid())
            .collect::<Vec<Uuid>>(),
        &numbers?,
        &moves()
            .map(|moved| moved.event.at)
            .collect::<Vec<Timestamp>>(),
        &column(|finality| finality.chain_id)?,
        &places()
            .map(|finality| finality.registry.as_slice())
            .collect::<Vec<&[u8]>>(),
        &column(|finality| finality.batch_number)?,
        &column(|finality| finality.sequence)?,
        &places()
            .map(|finality| finality.transaction_hash.as_slice())
            .collect::<Vec<&[u8]>>(),
        &column(|finality| finality.block_number)?,
        &places()
            .map(|finality| finality.confirmed_at)
            .collect::<Vec<Timestamp>>(),
        &moves()
            .map(|moved| moved.job.confirmation.status().as_str())
            .collect::<Vec<&str>>(),
        &moves()
            .map(|moved| moved.event.what.event_type().as_str())
            .collect::<Vec<&str>>(),
    ];
    transaction.execute(SQL, &parameters).await?;
    Ok(())
}
