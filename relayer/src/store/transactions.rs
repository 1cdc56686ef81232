//! Nonces and transactions, written down before anyone sees them.

use alloy::primitives::{Address, B256};
use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;

use super::{big, unsigned, word};
use crate::{
    classify::Verdict,
    fees::Fees,
    nonce::Nonce,
    transaction::{Attempt, Outstanding},
};

/// Most transactions looked at together. The lane has far fewer in the pools; there are more only
/// where the chain took many back, and then the oldest ones have to go first.
const OUTSTANDING_MAX: i64 = 64;

/// Takes a nonce for a batch, for ever; false when the lane has moved past it meanwhile.
pub async fn take_nonce(
    transaction: &Transaction<'_>,
    lane: i64,
    gas_key: Address,
    nonce: Nonce,
    batch: u64,
) -> Result<bool, tokio_postgres::Error> {
    let sql = "-- relayer.take_nonce\n\
        WITH moved AS (UPDATE relayer.lanes SET next_nonce = $3 + 1\n    \
            WHERE id = $1 AND gas_key = $2 AND next_nonce <= $3 RETURNING id)\n\
        INSERT INTO relayer.nonces (lane_id, gas_key, nonce, batch_number)\n\
        SELECT id, $2, $3, $4 FROM moved";
    let taken = transaction
        .execute(
            sql,
            &[&lane, &gas_key.as_slice(), &big(nonce.get()), &big(batch)],
        )
        .await?;
    Ok(taken == 1)
}

/// Writes a transaction down.
pub async fn insert(
    transaction: &Transaction<'_>,
    lane: i64,
    gas_key: Address,
    attempt: &Attempt,
    now: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- relayer.insert_transaction\n\
        INSERT INTO relayer.transactions (hash, lane_id, gas_key, nonce, attempt,\n    \
        batch_number, \
        max_fee_wei, tip_wei, raw, created_at)\n\
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let number = i32::try_from(attempt.number).expect("raises end at the cap");
    transaction
        .execute(
            sql,
            &[
                &attempt.hash.as_slice(),
                &lane,
                &gas_key.as_slice(),
                &big(attempt.nonce.get()),
                &number,
                &big(attempt.batch_number),
                &wei(attempt.fees.max_fee),
                &wei(attempt.fees.tip),
                &attempt.raw.as_ref(),
                &now,
            ],
        )
        .await?;
    Ok(())
}

/// The newest transaction of each nonce from `from` on, in nonce order: the lowest ones, which all
/// others wait for.
pub async fn outstanding(
    client: &impl GenericClient,
    lane: i64,
    gas_key: Address,
    from: Nonce,
) -> Result<Vec<Outstanding>, tokio_postgres::Error> {
    let sql = "-- relayer.outstanding\n\
        SELECT DISTINCT ON (nonce) hash, nonce, attempt, batch_number, max_fee_wei, tip_wei,\n    \
        raw, created_at, broadcast_at, outcome FROM relayer.transactions\n\
        WHERE lane_id = $1 AND gas_key = $2 AND nonce >= $3\n\
        ORDER BY nonce, attempt DESC LIMIT $4";
    let rows = client
        .query(
            sql,
            &[
                &lane,
                &gas_key.as_slice(),
                &big(from.get()),
                &OUTSTANDING_MAX,
            ],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Outstanding {
            attempt: Attempt {
                nonce: Nonce::new(unsigned(row.get("nonce"))),
                number: u32::try_from(row.get::<_, i32>("attempt")).unwrap_or_default(),
                batch_number: unsigned(row.get("batch_number")),
                fees: Fees {
                    max_fee: unsigned(row.get("max_fee_wei")).into(),
                    tip: unsigned(row.get("tip_wei")).into(),
                },
                raw: row.get::<_, Vec<u8>>("raw").into(),
                hash: word(row.get("hash")),
            },
            created_at: row.get("created_at"),
            broadcast_at: row.get("broadcast_at"),
            verdict: row
                .get::<_, Option<&str>>("outcome")
                .and_then(Verdict::parse),
        })
        .collect())
}

/// Notes that a transaction was sent, and what came of it.
pub async fn note_sent(
    client: &impl GenericClient,
    hash: B256,
    verdict: Verdict,
    now: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- relayer.note_sent\n\
        UPDATE relayer.transactions SET broadcast_at = $2, outcome = $3 WHERE hash = $1";
    client
        .execute(sql, &[&hash.as_slice(), &now, &verdict.as_str()])
        .await?;
    Ok(())
}

fn wei(amount: u128) -> i64 {
    i64::try_from(amount).expect("the fee cap's own limit is a million gwei, 10^15 wei")
}
