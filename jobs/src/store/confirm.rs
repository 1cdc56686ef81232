//! Marking a final batch's jobs, set by set: a batch has a thousand of them, and the consumer's
//! lease must not run out meanwhile.

use std::collections::BTreeMap;

use contracts::id::JobId;
use deadpool_postgres::Transaction;
use jiff::Timestamp;
use ops::outbox;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{SCHEMA, StoreError, rows, signed};
use crate::{
    announce,
    job::{Finality, Job, Moved},
};

/// Marks the jobs of one final batch in the caller's transaction, each with its place on chain,
/// and announces them. Returns what was refused, with the reason: it cannot be mended by trying
/// again, and the other jobs of the batch are none the worse for it.
pub async fn confirm(
    transaction: &Transaction<'_>,
    places: &BTreeMap<JobId, Finality>,
    now: Timestamp,
) -> Result<Vec<(JobId, StoreError)>, StoreError> {
    let mut found = lock_all(transaction, places).await?;
    let mut moved = Vec::with_capacity(places.len());
    let mut refused = Vec::new();
    for (id, finality) in places {
        match found.remove(id).map(|job| job.confirm(now, *finality)) {
            Some(Ok(done)) => moved.push((done, *finality)),
            Some(Err(illegal)) => refused.push((*id, illegal.into())),
            None => refused.push((*id, StoreError::Missing)),
        }
    }
    save_all(transaction, &moved).await?;
    let messages: Vec<_> = moved
        .iter()
        .map(|(moved, _)| announce::message(&moved.job, &moved.event))
        .collect();
    outbox::append_all(transaction, SCHEMA, &messages).await?;
    Ok(refused)
}

/// In order of their ids, so that two such transactions wait for each other instead of dying.
async fn lock_all(
    transaction: &Transaction<'_>,
    places: &BTreeMap<JobId, Finality>,
) -> Result<BTreeMap<JobId, Job>, StoreError> {
    let sql = format!(
        "-- jobs.lock_all\n\
         SELECT {} FROM jobs.jobs WHERE job_id = ANY($1) ORDER BY job_id FOR UPDATE",
        rows::COLUMNS
    );
    let ids: Vec<Uuid> = places.keys().map(|id| id.uuid()).collect();
    let rows = transaction.query(&sql, &[&ids]).await?;
    rows.iter()
        .map(|row| rows::job(row).map(|job| (job.facts.id, job)))
        .collect()
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
