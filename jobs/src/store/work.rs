//! Jobs as work: leased with their first move, renewed, ended or handed back under the lease.

use std::time::Duration;

use contracts::id::JobId;
use jiff::Timestamp;
use ops::{
    lease::{Lease, LeaseTable},
    postgres::retrying,
};
use uuid::Uuid;

use super::{Store, StoreError, rows, save, save_state};
use crate::job::{Illegal, Job, Moved, Verdict};

/// A job that this process computes.
#[derive(Clone, Debug)]
pub struct Work {
    /// The right to do so.
    pub lease: Lease<Uuid>,
    /// The job, its attempt begun.
    pub job: Job,
    /// The payload's exact bytes.
    pub payload: Vec<u8>,
}

/// Of a worker's slots, one in so many is never the same tenant's as the others: a job cannot be
/// taken back once it is begun, so room for who comes next must be left before.
const KEPT_ONE_IN: usize = 4;

/// A worker's slots.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// How many there are.
    pub all: usize,
    /// How many of them are free.
    pub free: usize,
}

impl Slots {
    /// So many slots, all free.
    #[must_use]
    pub fn free(all: usize) -> Self {
        Self { all, free: all }
    }

    /// Most slots that one tenant may hold.
    fn tenant_max(self) -> usize {
        let kept = (self.all / KEPT_ONE_IN).max(1);
        self.all.saturating_sub(kept).max(1)
    }
}

impl Store {
    /// Leases waiting jobs, at most as many as there are free slots, and begins an attempt of each.
    ///
    /// Slots are shared out in proportion to the tenants' weights: a tenant's next job comes the
    /// later the more of its jobs are computed already, and not at all while the tenant holds as
    /// many of this worker's slots as it may. A job's own priority counts only within its tenant,
    /// so that nobody gets ahead of others by asking.
    pub async fn claim(
        &self,
        owner: Uuid,
        ttl: Duration,
        slots: Slots,
        now: Timestamp,
    ) -> Result<Vec<Work>, StoreError> {
        let free = LeaseTable::FREE;
        // ARRAYs are computed once, before what surrounds them: a bare subquery may run, and lock,
        // once per row joined, and a join with the candidates may read the whole queue.
        let pick = format!(
            "SELECT unnest(ARRAY(
            WITH candidates AS MATERIALIZED (SELECT ARRAY(
                SELECT head.job_id
                FROM jobs.tenants AS tenant
                CROSS JOIN LATERAL (
                    SELECT count(*) AS running,
                        count(*) FILTER (WHERE lease_owner = $1) AS here
                    FROM jobs.jobs
                    WHERE tenant_id = tenant.tenant_id AND status = 'PROCESSING'
                ) AS share
                CROSS JOIN LATERAL (
                    SELECT job_id,
                        row_number() OVER (ORDER BY priority DESC, run_after, job_id) AS turn
                    FROM jobs.jobs
                    WHERE tenant_id = tenant.tenant_id AND status = 'PENDING' AND run_after <= $3
                    ORDER BY priority DESC, run_after, job_id LIMIT 2 * $4::bigint
                ) AS head
                WHERE tenant.active > 0 AND share.here + head.turn <= $5::bigint
                ORDER BY (share.running + head.turn)::float8 / tenant.weight, head.job_id
                LIMIT 2 * $4::bigint
            ) AS ids)
            SELECT job.job_id FROM jobs.jobs AS job
            WHERE job.job_id = ANY((SELECT ids FROM candidates)::uuid[])
                AND job.status = 'PENDING' AND {free}
            ORDER BY array_position((SELECT ids FROM candidates), job.job_id)
            LIMIT $4::bigint FOR UPDATE OF job SKIP LOCKED))"
        );
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX / 2);
        let (limit, tenant_max) = (number(slots.free), number(slots.tenant_max()));
        let attempt = || async {
            let mut client = self.pool.get().await?;
            let transaction = client.transaction().await?;
            let leases: Vec<Lease<Uuid>> = self
                .leases
                .claim(
                    &transaction,
                    owner,
                    ttl,
                    &pick,
                    &[&now, &limit, &tenant_max],
                )
                .await?;
            let mut begun = Vec::with_capacity(leases.len());
            for lease in leases {
                let job = rows::lock(&transaction, JobId::from_uuid(lease.id)).await?;
                let moved = job.start(now)?;
                save(&transaction, &moved).await?;
                let payload = payload(&transaction, lease.id).await?;
                begun.push(Work {
                    lease,
                    job: moved.job,
                    payload,
                });
            }
            transaction.commit().await?;
            Ok(begun)
        };
        retrying("jobs.claim", attempt).await
    }

    /// Makes a held lease last `ttl` from now.
    pub async fn renew(&self, lease: &mut Lease<Uuid>, ttl: Duration) -> Result<(), StoreError> {
        let client = self.pool.get().await?;
        Ok(self.leases.renew(&client, lease, ttl).await?)
    }

    /// Takes over at most `limit` leases that ran out while a job was computed: whoever held them
    /// is fenced from here on.
    pub async fn take_over_lost(
        &self,
        owner: Uuid,
        ttl: Duration,
        limit: i64,
    ) -> Result<Vec<Lease<Uuid>>, StoreError> {
        let pick = format!(
            "SELECT unnest(ARRAY(SELECT job_id FROM jobs.jobs
            WHERE status = 'PROCESSING' AND {} LIMIT $3::bigint FOR UPDATE SKIP LOCKED))",
            LeaseTable::FREE
        );
        let client = self.pool.get().await?;
        Ok(self
            .leases
            .claim(&client, owner, ttl, &pick, &[&limit])
            .await?)
    }

    /// Makes a move that only the lease's holder may make, and gives the lease up with it.
    pub async fn finish(
        &self,
        lease: &Lease<Uuid>,
        decide: impl Fn(Job) -> Result<Verdict, Illegal>,
    ) -> Result<Job, StoreError> {
        let attempt = || async {
            let mut client = self.pool.get().await?;
            let transaction = client.transaction().await?;
            self.leases.guard(&transaction, lease).await?;
            let job = rows::lock(&transaction, JobId::from_uuid(lease.id)).await?;
            let job = match decide(job)? {
                Verdict::Again(job) => {
                    save_state(&transaction, &job, None).await?;
                    job
                }
                Verdict::Over(moved) => {
                    save(&transaction, &moved).await?;
                    let Moved { job, .. } = moved;
                    job
                }
            };
            transaction.commit().await?;
            Ok(job)
        };
        retrying("jobs.finish", attempt).await
    }
}

async fn payload(
    transaction: &deadpool_postgres::Transaction<'_>,
    job: Uuid,
) -> Result<Vec<u8>, StoreError> {
    const SQL: &str = "-- jobs.payload\nSELECT payload FROM jobs.jobs WHERE job_id = $1";
    let statement = transaction.prepare_cached(SQL).await?;
    Ok(transaction.query_one(&statement, &[&job]).await?.get(0))
}
