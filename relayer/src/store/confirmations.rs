//! Confirmations: what came in, what waits, what a proof is made of.

use contracts::{
    event::ConfirmedJob,
    id::{JobId, Subject, TenantId},
    registry::LeafStatus,
};
use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{address, big, unsigned, word};
use crate::confirmation::{Confirmation, NewConfirmation};

/// Columns of a [`Confirmation`].
const SEALED: &str = "job_id, tenant_id, submitter, content_hash, result_hash, status";

/// What waits for a batch.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// How many, at most as many as were asked for.
    pub count: u32,
    /// When the oldest came in.
    pub oldest: Option<Timestamp>,
    /// Whether one that goes alone is among them.
    pub individual: bool,
}

/// Takes in outcomes; a job that is known already stays as it is.
pub async fn insert(
    transaction: &Transaction<'_>,
    new: &[&NewConfirmation],
    now: Timestamp,
) -> Result<u64, tokio_postgres::Error> {
    let sql = "-- relayer.insert_confirmations\n\
        INSERT INTO relayer.confirmations (job_id, tenant_id, subject, team, individual,\n    \
        submitter, content_hash, result_hash, status, salt, received_at)\n\
        SELECT job_id, tenant_id, subject, team, individual,\n    \
        submitter, content_hash, result_hash, status, salt, $11\n\
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::boolean[],\n    \
        $6::bytea[], $7::bytea[], $8::bytea[], $9::smallint[], $10::bytea[]) WITH ORDINALITY\n\
        AS told (job_id, tenant_id, subject, team, individual,\n    \
        submitter, content_hash, result_hash, status, salt, place)\n\
        ORDER BY place ON CONFLICT (job_id) DO NOTHING";
    let parameters: [&(dyn ToSql + Sync); 11] = [
        &column(new, |it| it.confirmation.job_id.uuid()),
        &column(new, |it| it.confirmation.tenant_id.uuid()),
        &column(new, |it| it.subject.as_str()),
        &column(new, |it| it.team.as_ref().map(Subject::as_str)),
        &column(new, |it| it.individual),
        &column(new, |it| it.confirmation.submitter.as_slice()),
        &column(new, |it| it.confirmation.content_hash.as_slice()),
        &column(new, |it| it.confirmation.result_hash.as_slice()),
        &column(new, |it| i16::from(it.confirmation.status.as_u8())),
        &column(new, |it| it.salt.as_slice()),
        &now,
    ];
    let statement = transaction.prepare_cached(sql).await?;
    transaction.execute(&statement, &parameters).await
}

fn column<'a, T>(new: &[&'a NewConfirmation], of: impl Fn(&'a NewConfirmation) -> T) -> Vec<T> {
    new.iter().map(|it| of(it)).collect()
}

/// Deletes the salts of erased jobs; the hashes stay, and can no longer be guessed from.
pub async fn forget(
    transaction: &Transaction<'_>,
    jobs: &[Uuid],
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- relayer.forget_salt\n\
        UPDATE relayer.confirmations SET salt = NULL WHERE job_id = ANY($1)";
    transaction.execute(sql, &[&jobs]).await?;
    Ok(())
}

/// What waits for a batch, up to `max` jobs.
pub async fn waiting(
    client: &impl GenericClient,
    max: u32,
) -> Result<Waiting, tokio_postgres::Error> {
    let sql = "-- relayer.waiting\n\
        SELECT (SELECT count(*) FROM (SELECT FROM relayer.confirmations\n        \
            WHERE lane_id IS NULL AND NOT individual LIMIT $1) AS waiting),\n    \
        (SELECT received_at FROM relayer.confirmations\n        \
            WHERE lane_id IS NULL AND NOT individual ORDER BY ordinal LIMIT 1),\n    \
        EXISTS (SELECT FROM relayer.confirmations WHERE lane_id IS NULL AND individual)";
    let row = client.query_one(sql, &[&i64::from(max)]).await?;
    Ok(Waiting {
        count: u32::try_from(row.get::<_, i64>(0)).unwrap_or(max),
        oldest: row.get(1),
        individual: row.get(2),
    })
}

/// The jobs for a shared batch that wait longest, locked for the one they are about to join.
pub async fn lock_oldest(
    transaction: &Transaction<'_>,
    max: u32,
) -> Result<Vec<Confirmation>, tokio_postgres::Error> {
    let sql = format!(
        "-- relayer.lock_oldest\n\
         SELECT {SEALED} FROM relayer.confirmations\n\
         WHERE lane_id IS NULL AND NOT individual\n\
         ORDER BY ordinal LIMIT $1 FOR UPDATE SKIP LOCKED"
    );
    let rows = transaction.query(&sql, &[&i64::from(max)]).await?;
    Ok(rows.iter().map(confirmation).collect())
}

/// The job that goes alone next, locked: the one that waits longest of the tenant whose turn it is
/// after `last`, so that a tenant with many holds nobody up.
pub async fn lock_alone(
    transaction: &Transaction<'_>,
    last: Uuid,
) -> Result<Vec<Confirmation>, tokio_postgres::Error> {
    let sql = format!(
        "-- relayer.lock_alone\n\
         SELECT {SEALED} FROM relayer.confirmations\n\
         WHERE lane_id IS NULL AND individual AND tenant_id > $1\n\
         ORDER BY tenant_id, ordinal LIMIT 1 FOR UPDATE SKIP LOCKED"
    );
    // After the last tenant comes the first again.
    for after in [last, Uuid::nil()] {
        if let Some(row) = transaction.query_opt(&sql, &[&after]).await? {
            return Ok(vec![confirmation(&row)]);
        }
    }
    Ok(Vec::new())
}

/// Puts jobs into a batch, with sequences in the order given.
pub async fn join_batch(
    transaction: &Transaction<'_>,
    lane: i64,
    batch: u64,
    first_sequence: u64,
    jobs: &[Confirmation],
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- relayer.join_batch\n\
        UPDATE relayer.confirmations AS it SET lane_id = $1, batch_number = $2,\n    \
        sequence = $3 + told.place - 1\n\
        FROM unnest($4::uuid[]) WITH ORDINALITY AS told (job_id, place)\n\
        WHERE it.job_id = told.job_id";
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.job_id.uuid()).collect();
    transaction
        .execute(sql, &[&lane, &big(batch), &big(first_sequence), &ids])
        .await?;
    Ok(())
}

/// The jobs of a batch as they are announced, in order of their sequences.
pub async fn announced(
    client: &impl GenericClient,
    lane: i64,
    batch: u64,
) -> Result<Vec<ConfirmedJob>, tokio_postgres::Error> {
    let sql = "-- relayer.announced_jobs\n\
        SELECT job_id, tenant_id, sequence FROM relayer.confirmations\n\
        WHERE lane_id = $1 AND batch_number = $2 ORDER BY sequence";
    let rows = client.query(sql, &[&lane, &big(batch)]).await?;
    Ok(rows
        .iter()
        .map(|row| ConfirmedJob {
            job_id: JobId::from_uuid(row.get("job_id")).to_string(),
            tenant_id: TenantId::from_uuid(row.get("tenant_id")).to_string(),
            sequence: unsigned(row.get("sequence")),
        })
        .collect())
}

/// The jobs of a batch as they were sealed, in order of their sequences.
pub async fn of_batch(
    client: &impl GenericClient,
    lane: i64,
    batch: u64,
) -> Result<Vec<Confirmation>, tokio_postgres::Error> {
    let sql = format!(
        "-- relayer.sealed_jobs\n\
         SELECT {SEALED} FROM relayer.confirmations\n\
         WHERE lane_id = $1 AND batch_number = $2 ORDER BY sequence"
    );
    let rows = client.query(&sql, &[&lane, &big(batch)]).await?;
    Ok(rows.iter().map(confirmation).collect())
}

fn confirmation(row: &Row) -> Confirmation {
    let status = u8::try_from(row.get::<_, i16>("status")).unwrap_or_default();
    Confirmation {
        job_id: JobId::from_uuid(row.get("job_id")),
        tenant_id: TenantId::from_uuid(row.get("tenant_id")),
        submitter: address(row.get("submitter")),
        content_hash: word(row.get("content_hash")),
        result_hash: word(row.get("result_hash")),
        status: LeafStatus::try_from(status).expect("the column's check says 1 or 2"),
    }
}
