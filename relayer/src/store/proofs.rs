//! What a proof needs to know of one job.

use alloy::primitives::{Address, B256};
use contracts::id::{JobId, TenantId};
use deadpool_postgres::Transaction;

use super::{address, unsigned, word};

/// A job's confirmation as a reader sees it.
#[derive(Clone, Debug)]
pub struct SealedJob {
    /// Who submitted the job.
    pub subject: String,
    /// Their team.
    pub team: Option<String>,
    /// What the hashes were made with, until the job is erased.
    pub salt: Option<B256>,
    /// Where it was sealed, if it was.
    pub place: Option<Place>,
}

/// Where a job was sealed.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The lane.
    pub lane: i64,
    /// Its chain.
    pub chain_id: u64,
    /// Its contract.
    pub registry: Address,
    /// The batch.
    pub batch_number: u64,
    /// The job's number on the contract.
    pub sequence: u64,
}

/// The confirmation of a tenant's job.
pub async fn sealed(
    snapshot: &Transaction<'_>,
    tenant: TenantId,
    job: JobId,
) -> Result<Option<SealedJob>, tokio_postgres::Error> {
    let sql = "-- relayer.sealed_job\n\
        SELECT job.subject, job.team, job.salt, job.lane_id, job.batch_number, job.sequence,\n    \
        lane.chain_id, lane.registry\n\
        FROM relayer.confirmations AS job\n    \
        LEFT JOIN relayer.lanes AS lane ON lane.id = job.lane_id\n\
        WHERE job.job_id = $1 AND job.tenant_id = $2";
    let row = snapshot
        .query_opt(sql, &[&job.uuid(), &tenant.uuid()])
        .await?;
    Ok(row.map(|row| SealedJob {
        subject: row.get("subject"),
        team: row.get("team"),
        salt: row.get::<_, Option<&[u8]>>("salt").map(word),
        place: row.get::<_, Option<i64>>("lane_id").map(|lane| Place {
            lane,
            chain_id: unsigned(row.get("chain_id")),
            registry: address(row.get("registry")),
            batch_number: unsigned(row.get("batch_number")),
            sequence: unsigned(row.get("sequence")),
        }),
    }))
}
