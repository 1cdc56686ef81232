//! Lease: a row with an owner, an epoch and an expiry by the database's clock.
//!
//! Every write under a lease names the epoch ([`LeaseTable::guard`]), so an owner that was paused
//! past its expiry is fenced instead of believed. Any table can carry leases by having the columns
//! `lease_owner uuid, lease_epoch bigint NOT NULL DEFAULT 0, lease_expires_at timestamptz`;
//! a service's `leases` table holds the named ones (publishers, consumers, lanes).

use std::time::{Duration, Instant};

use anyhow::anyhow;
use deadpool_postgres::GenericClient;
use tokio::time::{timeout, timeout_at};
use tokio_postgres::types::{FromSqlOwned, ToSql};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::postgres::{self, Pool, explain};

/// How often a standby looks whether a named lease has become free.
const STANDBY_POLL: Duration = Duration::from_millis(500);

/// A table whose rows can be leased: its qualified name, its id column, and how a guard locks.
#[derive(Clone, Debug)]
pub struct LeaseTable {
    table: String,
    id: &'static str,
    lock: &'static str,
}

/// The right to act on one row, until it expires or someone else is given the next epoch.
#[derive(Clone, Debug)]
pub struct Lease<I> {
    /// Which row.
    pub id: I,
    /// Who holds it.
    pub owner: Uuid,
    /// Which holding of the row this is; grows with each claim.
    pub epoch: i64,
    /// When the holder must have stopped, by its own monotonic clock. Set before the database was
    /// asked, so it never lies later than the database's expiry.
    pub until: Instant,
}

/// Why a leased write was refused.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The lease expired or has a new owner; what was done under it must not be recorded.
    #[error("the lease is lost: it expired or has a new owner")]
    Fenced,
    /// Postgres failed.
    #[error("the lease cannot be told from Postgres")]
    Postgres(#[from] tokio_postgres::Error),
}

impl LeaseTable {
    /// Leases on the rows of `table` (schema-qualified), by its column `id`. A guard keeps everyone
    /// from the row, since the row is what is worked on.
    #[must_use]
    pub fn new(table: impl Into<String>, id: &'static str) -> Self {
        Self {
            table: table.into(),
            id,
            lock: "FOR UPDATE",
        }
    }

    /// The named leases of a service's schema. A guard keeps others from claiming one, but lets its
    /// holder renew it: a guarded transaction may last longer than the lease.
    #[must_use]
    pub fn named(schema: &str) -> Self {
        Self {
            table: format!("{schema}.leases"),
            id: "name",
            lock: "FOR KEY SHARE",
        }
    }

    /// Claims the rows that `pick` selects. `pick` is a `SELECT id … FOR UPDATE SKIP LOCKED` with
    /// parameters from `$3` on; it must itself demand [`LeaseTable::FREE`].
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn claim<I: FromSqlOwned>(
        &self,
        client: &impl GenericClient,
        owner: Uuid,
        ttl: Duration,
        pick: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Lease<I>>, tokio_postgres::Error> {
        let Self { table, id, .. } = self;
        let sql = format!(
            "-- ops.lease_claim\n\
             UPDATE {table} SET lease_owner = $1, lease_epoch = lease_epoch + 1,\n    \
             lease_expires_at = clock_timestamp() + $2 * interval '1 second'\n\
             WHERE {id} = ANY(ARRAY({pick}))\n\
             RETURNING {id}, lease_epoch"
        );
        let until = Instant::now() + ttl;
        let seconds = ttl.as_secs_f64();
        let mut all: Vec<&(dyn ToSql + Sync)> = vec![&owner, &seconds];
        all.extend_from_slice(parameters);
        let rows = client.query(&sql, &all).await?;
        Ok(rows
            .iter()
            .map(|row| Lease {
                id: row.get(0),
                owner,
                epoch: row.get(1),
                until,
            })
            .collect())
    }

    /// The condition for a row to be claimable.
    pub const FREE: &'static str =
        "(lease_expires_at IS NULL OR lease_expires_at < clock_timestamp())";

    /// Makes a held lease last `ttl` from now.
    ///
    /// # Errors
    /// [`LeaseError::Fenced`] when it is no longer held.
    pub async fn renew<I: ToSql + Sync>(
        &self,
        client: &impl GenericClient,
        lease: &mut Lease<I>,
        ttl: Duration,
    ) -> Result<(), LeaseError> {
        let Self { table, id, .. } = self;
        let sql = format!(
            "-- ops.lease_renew\n\
             UPDATE {table} SET lease_expires_at = clock_timestamp() + $4 * interval '1 second'\n\
             WHERE {id} = $1 AND lease_owner = $2 AND lease_epoch = $3\n    \
             AND lease_expires_at > clock_timestamp()"
        );
        let until = Instant::now() + ttl;
        let seconds = ttl.as_secs_f64();
        let renewed = client
            .execute(&sql, &[&lease.id, &lease.owner, &lease.epoch, &seconds])
            .await?;
        if renewed == 0 {
            return Err(LeaseError::Fenced);
        }
        lease.until = until;
        Ok(())
    }

    /// Proves that the lease still holds, and locks its row for the rest of the transaction: nobody
    /// can claim it before that ends.
    ///
    /// # Errors
    /// [`LeaseError::Fenced`] when it is no longer held.
    pub async fn guard<I: ToSql + Sync>(
        &self,
        transaction: &impl GenericClient,
        lease: &Lease<I>,
    ) -> Result<(), LeaseError> {
        let Self { table, id, lock } = self;
        let sql = format!(
            "-- ops.lease_guard\n\
             SELECT lease_owner = $2 AND lease_epoch = $3\n    \
             AND lease_expires_at > clock_timestamp()\n\
             FROM {table} WHERE {id} = $1 {lock}"
        );
        let row = transaction
            .query_opt(&sql, &[&lease.id, &lease.owner, &lease.epoch])
            .await?;
        match row.and_then(|row| row.get::<_, Option<bool>>(0)) {
            Some(true) => Ok(()),
            _ => Err(LeaseError::Fenced),
        }
    }

    /// Gives a lease back early. A lease that is already lost is left alone.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn release<I: ToSql + Sync>(
        &self,
        client: &impl GenericClient,
        lease: &Lease<I>,
    ) -> Result<(), tokio_postgres::Error> {
        let Self { table, id, .. } = self;
        let sql = format!(
            "-- ops.lease_release\n\
             UPDATE {table} SET lease_owner = NULL, lease_expires_at = NULL\n\
             WHERE {id} = $1 AND lease_owner = $2 AND lease_epoch = $3"
        );
        client
            .execute(&sql, &[&lease.id, &lease.owner, &lease.epoch])
            .await?;
        Ok(())
    }

    /// Claims the named lease, or `None` while someone else holds it.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn claim_named(
        &self,
        client: &impl GenericClient,
        name: &str,
        owner: Uuid,
        ttl: Duration,
    ) -> Result<Option<Lease<String>>, tokio_postgres::Error> {
        let table = &self.table;
        let insert = format!(
            "-- ops.lease_create\nINSERT INTO {table} (name) VALUES ($1) ON CONFLICT DO NOTHING"
        );
        client.execute(&insert, &[&name]).await?;
        let pick = format!(
            "SELECT name FROM {table} WHERE name = $3 AND {} FOR UPDATE SKIP LOCKED",
            Self::FREE
        );
        Ok(self.claim(client, owner, ttl, &pick, &[&name]).await?.pop())
    }
}

/// Runs `work` whenever this process holds the named lease, as the only one anywhere. `work` gets
/// the lease and a token that is cancelled when it is lost or the process stops; it must return
/// soon after, and its writes must [`LeaseTable::guard`]. What has not returned a further `ttl`
/// later is dropped where it stands, as by a crash: it may hang on something that never answers.
/// When `work` fails, the lease is given up and taken again after the standby poll.
///
/// # Errors
/// Never by itself: outages of Postgres are waited out.
pub async fn while_leased<F, Fut>(
    pool: &Pool,
    table: &LeaseTable,
    name: &str,
    ttl: Duration,
    stop: &CancellationToken,
    mut work: F,
) -> anyhow::Result<()>
where
    F: FnMut(Lease<String>, CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let owner = Uuid::now_v7();
    while !stop.is_cancelled() {
        match take(pool, table, name, owner, ttl).await {
            Ok(Some(lease)) => {
                info!(lease = name, lease.epoch = lease.epoch, "holding the lease");
                let over = stop.child_token();
                let holding = lease.clone();
                let (outcome, ()) = tokio::join!(
                    async {
                        let outcome = tokio::select! {
                            outcome = work(lease.clone(), over.clone()) => outcome,
                            () = overdue(&over, ttl) => Err(anyhow!("it did not end in time")),
                        };
                        over.cancel();
                        outcome
                    },
                    keep(pool, table, holding, ttl, &over),
                );
                if let Err(cause) = outcome {
                    let error = explain(&cause);
                    warn!(lease = name, error, "work under lease failed");
                }
                give_back(pool, table, &lease, ttl).await;
            }
            Ok(None) => {}
            Err(cause) => warn!(lease = name, error = explain(&cause), "cannot claim"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(STANDBY_POLL) => {}
        }
    }
    Ok(())
}

async fn take(
    pool: &Pool,
    table: &LeaseTable,
    name: &str,
    owner: Uuid,
    ttl: Duration,
) -> anyhow::Result<Option<Lease<String>>> {
    let client = pool.get().await?;
    let claim = async { Ok(table.claim_named(&client, name, owner, ttl).await?) };
    let outcome = timeout(ttl, claim).await;
    postgres::settle(client, outcome)
}

/// Waits until the work has had a grace period since it was over.
async fn overdue(over: &CancellationToken, grace: Duration) {
    over.cancelled().await;
    tokio::time::sleep(grace).await;
}

/// Renews the lease every third of its time until `over`, sooner after a failure; cancels `over`
/// when it is lost.
async fn keep(
    pool: &Pool,
    table: &LeaseTable,
    mut lease: Lease<String>,
    ttl: Duration,
    over: &CancellationToken,
) {
    let mut pause = ttl / 3;
    loop {
        tokio::select! {
            () = over.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        match renew_soon(pool, table, &mut lease, ttl).await {
            Ok(()) => pause = ttl / 3,
            Err(cause) if !is_fenced(&cause) && Instant::now() < lease.until => {
                let error = explain(&cause);
                debug!(lease = lease.id, error, "renewal failed, once more");
                pause = ttl / 12;
            }
            Err(_) => {
                warn!(
                    lease = lease.id,
                    lease.epoch = lease.epoch,
                    "the lease is lost"
                );
                return over.cancel();
            }
        }
    }
}

/// Renews the lease, with time left to try once more on another connection.
async fn renew_soon(
    pool: &Pool,
    table: &LeaseTable,
    lease: &mut Lease<String>,
    ttl: Duration,
) -> anyhow::Result<()> {
    let soon = lease.until.min(Instant::now() + ttl / 3);
    let deadline = tokio::time::Instant::from_std(soon);
    let client = timeout_at(deadline, pool.get()).await??;
    let renew = async { Ok(table.renew(&client, lease, ttl).await?) };
    let outcome = timeout_at(deadline, renew).await;
    postgres::settle(client, outcome)
}

fn is_fenced(cause: &anyhow::Error) -> bool {
    matches!(cause.downcast_ref(), Some(LeaseError::Fenced))
}

async fn give_back(pool: &Pool, table: &LeaseTable, lease: &Lease<String>, ttl: Duration) {
    // Merely a courtesy to the next owner: an unreleased lease expires by itself.
    if let Ok(client) = pool.get().await {
        let release = async { Ok(table.release(&client, lease).await?) };
        let outcome = timeout(ttl, release).await;
        postgres::settle(client, outcome).ok();
    }
}
