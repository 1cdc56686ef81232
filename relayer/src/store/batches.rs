//! Batches and what was signed for them.

use alloy::primitives::{Address, B256, Bytes};
use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;
use tokio_postgres::Row;

use super::{address, big, unsigned, word};
use crate::{
    batch::{Batch, Pending, State},
    nonce::Nonce,
    sight::{Block, Inclusion},
    signer::Signature,
};

const COLUMNS: &str = "number, first_sequence, job_count, jobs_root, state, signer_epoch,\n    \
    nonce, \
    signed_after, reverts, block_number, block_hash, transaction_hash";

/// How many batches are in a state, and since when the oldest of them.
#[derive(Clone, Debug)]
pub struct Count {
    /// The state's name.
    pub state: String,
    /// How many.
    pub batches: i64,
    /// When the oldest was sealed.
    pub oldest: Timestamp,
}

/// Inserts a batch.
pub async fn insert(
    transaction: &Transaction<'_>,
    lane: i64,
    batch: &Batch,
    now: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- relayer.insert_batch\n\
        INSERT INTO relayer.batches (lane_id, number, first_sequence, job_count, jobs_root,\n    \
        commitment, state, sealed_at) VALUES ($1, $2, $3, $4, $5, $6, 'sealed', $7)";
    let jobs = i32::try_from(batch.job_count).expect("a batch's size has a limit far below 2^31");
    transaction
        .execute(
            sql,
            &[
                &lane,
                &big(batch.number),
                &big(batch.first_sequence),
                &jobs,
                &batch.jobs_root.as_slice(),
                &batch.reference().commitment().as_slice(),
                &now,
            ],
        )
        .await?;
    save(transaction, lane, batch, now).await
}

/// Saves a batch's state.
pub async fn save(
    transaction: &Transaction<'_>,
    lane: i64,
    batch: &Batch,
    now: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- relayer.save_batch\n\
        UPDATE relayer.batches SET state = $3, signer_epoch = $4, nonce = $5,\n    \
        signed_after = $6, \
        block_number = $7, block_hash = $8, transaction_hash = $9,\n    \
        finalized_at = CASE WHEN $3 = 'finalized' THEN coalesce(finalized_at, $10) END,\n    \
        reverts = $11\n\
        WHERE lane_id = $1 AND number = $2";
    let (pending, at) = match batch.state {
        State::Pending(pending) => (pending, None),
        State::Included(pending, at) | State::Finalized(pending, at) => (pending, Some(at)),
    };
    let (epoch, nonce) = match pending {
        Pending::Sealed | Pending::Stalled => (None, None),
        Pending::Signed { epoch } => (Some(i64::from(epoch)), None),
        Pending::Broadcast { epoch, nonce } => (Some(i64::from(epoch)), Some(big(nonce.get()))),
    };
    transaction
        .execute(
            sql,
            &[
                &lane,
                &big(batch.number),
                &batch.state.name(),
                &epoch,
                &nonce,
                &batch.signed_after.map(big),
                &at.map(|at| big(at.block.number)),
                &at.as_ref().map(|at| at.block.hash.as_slice()),
                &at.as_ref().map(|at| at.transaction.as_slice()),
                &now,
                &i32::try_from(batch.reverts).unwrap_or(i32::MAX),
            ],
        )
        .await?;
    Ok(())
}

/// The batches that are not final, and those from `doubted` on, in order.
pub async fn unfinal(
    client: &impl GenericClient,
    lane: i64,
    doubted: Option<u64>,
) -> Result<Vec<Batch>, tokio_postgres::Error> {
    let sql = format!(
        "-- relayer.unfinal_batches\n\
         SELECT {COLUMNS} FROM relayer.batches\n\
         WHERE lane_id = $1 AND (state <> 'finalized' OR number >= $2) ORDER BY number"
    );
    let rows = client.query(&sql, &[&lane, &doubted.map(big)]).await?;
    Ok(rows.iter().map(batch).collect())
}

/// The batch with this number.
pub async fn one(
    client: &impl GenericClient,
    lane: i64,
    number: u64,
) -> Result<Option<Batch>, tokio_postgres::Error> {
    let sql = format!(
        "-- relayer.batch\n\
         SELECT {COLUMNS} FROM relayer.batches WHERE lane_id = $1 AND number = $2"
    );
    Ok(client
        .query_opt(&sql, &[&lane, &big(number)])
        .await?
        .as_ref()
        .map(batch))
}

/// The newest final batch's number and block; zeros for none.
pub async fn last_final(
    client: &impl GenericClient,
    lane: i64,
) -> Result<(u64, u64), tokio_postgres::Error> {
    let sql = "-- relayer.last_final\n\
        SELECT number, block_number FROM relayer.batches\n\
        WHERE lane_id = $1 AND state = 'finalized' ORDER BY number DESC LIMIT 1";
    let row = client.query_opt(sql, &[&lane]).await?;
    Ok(row.map_or((0, 0), |row| (unsigned(row.get(0)), unsigned(row.get(1)))))
}

/// Gives the batches that stalled another set of tries; says which, by registry.
pub async fn resume(
    client: &impl GenericClient,
) -> Result<Vec<(Address, u64)>, tokio_postgres::Error> {
    let sql = "-- relayer.resume_batches\n\
        UPDATE relayer.batches AS it SET state = 'sealed', reverts = 0\n\
        FROM relayer.lanes WHERE lanes.id = it.lane_id AND it.state = 'stalled'\n\
        RETURNING lanes.registry, it.number";
    let rows = client.query(sql, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| (address(row.get(0)), unsigned(row.get(1))))
        .collect())
}

/// Commitments of the batches from the first on, as long as they stand in blocks.
pub async fn standing(
    client: &impl GenericClient,
    lane: i64,
) -> Result<Vec<B256>, tokio_postgres::Error> {
    let sql = "-- relayer.standing_batches\n\
        SELECT commitment FROM relayer.batches WHERE lane_id = $1 AND number < coalesce(\n    \
        (SELECT min(number) FROM relayer.batches\n        \
        WHERE lane_id = $1 AND state NOT IN ('included', 'finalized')),\n    \
        9223372036854775807) ORDER BY number";
    let rows = client.query(sql, &[&lane]).await?;
    Ok(rows.iter().map(|row| word(row.get(0))).collect())
}

/// How many batches are in each state but the last.
pub async fn counts(
    client: &impl GenericClient,
    lane: i64,
) -> Result<Vec<Count>, tokio_postgres::Error> {
    let sql = "-- relayer.count_batches\n\
        SELECT state, count(*), min(sealed_at) FROM relayer.batches\n\
        WHERE lane_id = $1 AND state <> 'finalized' GROUP BY state";
    let rows = client.query(sql, &[&lane]).await?;
    Ok(rows
        .iter()
        .map(|row| Count {
            state: row.get(0),
            batches: row.get(1),
            oldest: row.get(2),
        })
        .collect())
}

/// Keeps what was signed; the same word again changes nothing.
pub async fn insert_signatures(
    transaction: &Transaction<'_>,
    lane: i64,
    batch: u64,
    epoch: u32,
    signatures: &[Signature],
    now: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- relayer.insert_signature\n\
        INSERT INTO relayer.signatures\n    \
        (lane_id, batch_number, signer_epoch, signer, signature, created_at)\n\
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    for Signature { signer, bytes } in signatures {
        let (signer, bytes) = (signer.as_slice(), bytes.as_slice());
        transaction
            .execute(
                sql,
                &[&lane, &big(batch), &i64::from(epoch), &signer, &bytes, &now],
            )
            .await?;
    }
    Ok(())
}

/// What those who may sign have signed for a batch in an epoch, in the contract's order and as
/// many as it wants; what others once signed would have it refused.
pub async fn signatures(
    client: &impl GenericClient,
    lane: i64,
    confirmation: (u64, u32),
    allowed: &[Address],
    threshold: u16,
) -> Result<Vec<Bytes>, tokio_postgres::Error> {
    let sql = "-- relayer.signatures\n\
        SELECT signature FROM relayer.signatures\n\
        WHERE lane_id = $1 AND batch_number = $2 AND signer_epoch = $3 AND signer = ANY($4)\n\
        ORDER BY signer LIMIT $5";
    let (batch, epoch) = confirmation;
    let allowed: Vec<&[u8]> = allowed.iter().map(|signer| signer.as_slice()).collect();
    let rows = client
        .query(
            sql,
            &[
                &lane,
                &big(batch),
                &i64::from(epoch),
                &allowed,
                &i64::from(threshold),
            ],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| row.get::<_, Vec<u8>>(0).into())
        .collect())
}

fn batch(row: &Row) -> Batch {
    let epoch = row
        .get::<_, Option<i64>>("signer_epoch")
        .map(|epoch| u32::try_from(epoch).expect("the contract's epochs are 32 bits"));
    let nonce: Option<i64> = row.get("nonce");
    let pending = match (epoch, nonce) {
        (None, _) => Pending::Sealed,
        (Some(epoch), None) => Pending::Signed { epoch },
        (Some(epoch), Some(nonce)) => Pending::Broadcast {
            epoch,
            nonce: Nonce::new(unsigned(nonce)),
        },
    };
    let inclusion = || Inclusion {
        block: Block {
            number: unsigned(row.get("block_number")),
            hash: word(row.get("block_hash")),
        },
        transaction: word(row.get("transaction_hash")),
    };
    Batch {
        number: unsigned(row.get("number")),
        first_sequence: unsigned(row.get("first_sequence")),
        job_count: u32::try_from(row.get::<_, i32>("job_count")).expect("the check says positive"),
        jobs_root: word(row.get("jobs_root")),
        signed_after: row.get::<_, Option<i64>>("signed_after").map(unsigned),
        reverts: u32::try_from(row.get::<_, i32>("reverts")).expect("the check says so"),
        state: match row.get("state") {
            "included" => State::Included(pending, inclusion()),
            "finalized" => State::Finalized(pending, inclusion()),
            "stalled" => State::Pending(Pending::Stalled),
            _ => State::Pending(pending),
        },
    }
}
