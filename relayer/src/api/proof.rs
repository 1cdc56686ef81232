//! `GET /v1/jobs/{job_id}/proof`: what `JobsRegistry.verify` accepts. The job's path in its batch
//! never changes; the batch's path in the contract's range is derived from the batches that stand.

use alloy::primitives::B256;
use axum::extract::State;
use contracts::{
    api::proof::{BlockRef, ProofResponse},
    assertion::Scope,
    id::JobId,
    merkle,
    problem::{Code, Problem},
    server::{Json, Path, Principal},
};
use deadpool_postgres::Transaction;
use ops::postgres::{Pool, explain, is_outage};
use tokio_postgres::IsolationLevel;
use tracing::error;

use crate::{
    batch::{Batch, State as BatchState},
    confirmation,
    sight::Block,
    store::{batches, confirmations, proofs},
};

/// When to ask again for a proof that is not there yet, or a database, in seconds.
const RETRY_AFTER: u64 = 3;

/// Why there is no answer.
enum Missing {
    /// The caller is told this.
    Told(Problem),
    /// The caller is told nothing.
    Failed(anyhow::Error),
}

pub(super) async fn get(
    State(pool): State<Pool>,
    principal: Principal,
    Path(job_id): Path<JobId>,
) -> Result<Json<ProofResponse>, Problem> {
    principal.require_one_of(&Scope::READ_JOBS)?;
    prove(&pool, &principal, job_id)
        .await
        .map(Json)
        .map_err(|missing| match missing {
            Missing::Told(problem) => problem,
            Missing::Failed(cause) => {
                error!(job.id = %job_id, error = explain(&cause), "cannot prove");
                if is_outage(cause.as_ref()) {
                    return Problem::new(Code::ServiceUnavailable, "Try again shortly.")
                        .with_retry_after(RETRY_AFTER);
                }
                Problem::internal()
            }
        })
}

async fn prove(
    pool: &Pool,
    principal: &Principal,
    job_id: JobId,
) -> Result<ProofResponse, Missing> {
    let mut client = pool.get().await.map_err(anyhow::Error::from)?;
    // One snapshot: a batch that is lost or joined meanwhile is wholly in it or not at all.
    let snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let sealed = proofs::sealed(&snapshot, principal.tenant(), job_id)
        .await?
        .filter(|sealed| principal.may_read_job(&sealed.subject, sealed.team.as_deref()))
        .ok_or_else(|| told("No job with a confirmation has this id."))?;
    let Some(place) = sealed.place else {
        return Err(not_yet("waits for a batch"));
    };
    let batch = batches::one(&snapshot, place.lane, place.batch_number)
        .await?
        .ok_or_else(|| anyhow::anyhow!("batch {} is gone", place.batch_number))?;
    let (BatchState::Included(_, at) | BatchState::Finalized(_, at)) = batch.state else {
        return Err(not_yet("is in a batch on its way to the chain"));
    };
    let (batch_proof, at_block) = batch_path(&snapshot, place.lane, &batch)
        .await?
        .ok_or_else(|| not_yet("is in a batch behind one on its way to the chain"))?;
    let (leaf, job_proof) = job_path(&snapshot, place.lane, &batch, place.sequence).await?;
    Ok(ProofResponse {
        job_id,
        leaf: (&leaf).into(),
        job_proof,
        batch: (&batch.reference()).into(),
        batch_proof,
        at_block: BlockRef {
            number: at_block.number,
            hash: at_block.hash,
        },
        chain_id: place.chain_id,
        registry: place.registry,
        transaction_hash: at.transaction,
        salt: sealed.salt,
    })
}

/// The job's leaf, and its path in the batch's tree.
async fn job_path(
    snapshot: &Transaction<'_>,
    lane: i64,
    batch: &Batch,
    sequence: u64,
) -> anyhow::Result<(contracts::registry::Leaf, Vec<B256>)> {
    let jobs = confirmations::of_batch(snapshot, lane, batch.number).await?;
    let index = usize::try_from(sequence - batch.first_sequence)?;
    let found = confirmation::tree(&jobs, batch.first_sequence)
        .filter(|tree| tree.root() == batch.jobs_root)
        .and_then(|tree| Some((jobs.get(index)?.leaf(sequence), tree.proof(index)?)));
    found.ok_or_else(|| anyhow::anyhow!("batch {} is not what was sealed", batch.number))
}

/// The batch's path in the range of all that stand, and the block of the last of them.
async fn batch_path(
    snapshot: &Transaction<'_>,
    lane: i64,
    batch: &Batch,
) -> anyhow::Result<Option<(Vec<B256>, Block)>> {
    let commitments = batches::standing(snapshot, lane).await?;
    let last = batches::one(snapshot, lane, u64::try_from(commitments.len())?).await?;
    let index = usize::try_from(batch.number - 1)?;
    Ok(
        match (
            merkle::batch_proof(&commitments, index),
            last.map(|last| last.state),
        ) {
            (Some(path), Some(BatchState::Included(_, at) | BatchState::Finalized(_, at))) => {
                Some((path, at.block))
            }
            _ => None,
        },
    )
}

fn told(detail: &str) -> Missing {
    Missing::Told(Problem::new(Code::ProofNotFound, detail))
}

fn not_yet(state: &str) -> Missing {
    let detail = format!("There is no proof yet: the job {state}.");
    Missing::Told(Problem::new(Code::ProofNotFound, detail).with_retry_after(RETRY_AFTER))
}

impl From<anyhow::Error> for Missing {
    fn from(cause: anyhow::Error) -> Self {
        Self::Failed(cause)
    }
}

impl From<tokio_postgres::Error> for Missing {
    fn from(cause: tokio_postgres::Error) -> Self {
        Self::Failed(cause.into())
    }
}
