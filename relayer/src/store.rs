//! Everything the relayer keeps, one function a statement. Writes of a lane go through a
//! [`Session`], whose transactions prove first that the lane's lease still holds.

use alloy::primitives::{Address, B256};
use anyhow::Context as _;
use deadpool_postgres::{GenericClient, Object, Transaction};
use ops::{
    lease::{Lease, LeaseTable},
    postgres::{Migration, Pool},
};

use crate::nonce::Nonce;

pub mod batches;
pub mod confirmations;
pub mod proofs;
pub mod transactions;

/// The schema of this service.
pub const SCHEMA: &str = "relayer";

/// The right to write to one lane.
#[derive(Debug)]
pub struct Session {
    pool: Pool,
    leases: LeaseTable,
    lease: Lease<String>,
}

/// A lane as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneRow {
    /// Its key.
    pub id: i64,
    /// Whose nonces are allotted.
    pub gas_key: Address,
    /// The number of the next batch.
    pub next_batch: u64,
    /// The sequence of its first job.
    pub next_sequence: u64,
    /// The next nonce of the gas key.
    pub next_nonce: Nonce,
}

/// Which lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneKey {
    /// The chain.
    pub chain_id: u64,
    /// The contract.
    pub registry: Address,
}

/// The migrations of the schema.
#[must_use]
pub fn migrations() -> Vec<Migration> {
    let own = [(
        "V10__relayer",
        include_str!("../migrations/V10__relayer.sql"),
    )];
    ops::postgres::migrations(SCHEMA, &own)
}

impl Session {
    /// Writes under this lease.
    #[must_use]
    pub fn new(pool: Pool, lease: Lease<String>) -> Self {
        Self {
            pool,
            leases: LeaseTable::named(SCHEMA),
            lease,
        }
    }

    /// A connection.
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn client(&self) -> anyhow::Result<Object> {
        self.pool.get().await.context("connect to Postgres")
    }

    /// Begins a transaction that holds the lease.
    ///
    /// # Errors
    /// `LeaseError::Fenced` when the lease is lost.
    pub async fn begin<'a>(&self, client: &'a mut Object) -> anyhow::Result<Transaction<'a>> {
        let transaction = client.transaction().await?;
        self.leases.guard(&transaction, &self.lease).await?;
        Ok(transaction)
    }
}

/// The lane with this key, if it was ever opened.
pub async fn lane(
    client: &impl GenericClient,
    key: LaneKey,
) -> Result<Option<LaneRow>, tokio_postgres::Error> {
    let sql = "-- relayer.lane\n\
        SELECT id, gas_key, next_batch, next_sequence, next_nonce\n\
        FROM relayer.lanes WHERE chain_id = $1 AND registry = $2";
    let row = client
        .query_opt(sql, &[&big(key.chain_id), &key.registry.as_slice()])
        .await?;
    Ok(row.map(|row| LaneRow {
        id: row.get("id"),
        gas_key: address(row.get("gas_key")),
        next_batch: unsigned(row.get("next_batch")),
        next_sequence: unsigned(row.get("next_sequence")),
        next_nonce: Nonce::new(unsigned(row.get("next_nonce"))),
    }))
}

/// Opens a lane for the first time; returns its key.
pub async fn create_lane(
    transaction: &Transaction<'_>,
    key: LaneKey,
    row: LaneRow,
) -> Result<i64, tokio_postgres::Error> {
    let sql = "-- relayer.create_lane\n\
        INSERT INTO relayer.lanes\n    \
        (chain_id, registry, gas_key, next_batch, next_sequence, next_nonce)\n\
        VALUES ($1, $2, $3, $4, $5, $6) RETURNING id";
    let created = transaction
        .query_one(
            sql,
            &[
                &big(key.chain_id),
                &key.registry.as_slice(),
                &row.gas_key.as_slice(),
                &big(row.next_batch),
                &big(row.next_sequence),
                &big(row.next_nonce.get()),
            ],
        )
        .await?;
    Ok(created.get(0))
}

/// Gives the lane another gas key, whose next nonce is this.
pub async fn change_gas_key(
    transaction: &Transaction<'_>,
    lane: i64,
    gas_key: Address,
    next_nonce: Nonce,
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- relayer.change_gas_key\n\
        UPDATE relayer.lanes SET gas_key = $2, next_nonce = $3 WHERE id = $1";
    transaction
        .execute(sql, &[&lane, &gas_key.as_slice(), &big(next_nonce.get())])
        .await?;
    Ok(())
}

/// Moves the lane's cursor past a sealed batch.
pub async fn advance_cursor(
    transaction: &Transaction<'_>,
    lane: i64,
    next_batch: u64,
    next_sequence: u64,
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- relayer.advance_cursor\n\
        UPDATE relayer.lanes SET next_batch = $2, next_sequence = $3 WHERE id = $1";
    transaction
        .execute(sql, &[&lane, &big(next_batch), &big(next_sequence)])
        .await?;
    Ok(())
}

/// A number as `bigint`. What endpoints say is held against that bound where it is read.
pub(crate) fn big(number: u64) -> i64 {
    i64::try_from(number).expect("batches, sequences, blocks, nonces and chain ids stay below 2^63")
}

/// A `bigint` that is never negative.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).expect("only numbers from `big` are stored")
}

/// A 20-byte column.
pub(crate) fn address(bytes: &[u8]) -> Address {
    Address::try_from(bytes).expect("the column's check says 20 bytes")
}

/// A 32-byte column.
pub(crate) fn word(bytes: &[u8]) -> B256 {
    B256::try_from(bytes).expect("only 32 bytes are stored")
}
