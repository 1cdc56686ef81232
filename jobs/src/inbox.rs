//! `relayer.confirmed.v1`: a final batch makes its jobs final, and each of them news.

use std::collections::BTreeMap;

use alloy::primitives::B256;
use contracts::event::{BATCH_CONFIRMED_TYPE, BatchConfirmed, EventError, RELAYER_CONFIRMED};
use deadpool_postgres::Transaction;
use ops::{
    admin::Flag,
    clock::Clock,
    config::KafkaOptions,
    inbox::{Consumer, Event, Handler, Handling, Poison},
    postgres::Pool,
};

use crate::{
    SCHEMA,
    job::Finality,
    store::{self, Batch, Place},
};

/// Takes in final batches.
#[derive(Clone, Debug)]
pub struct Confirmations {
    clock: Clock,
}

/// What is done with `relayer.confirmed.v1`.
#[must_use]
pub fn handling(clock: Clock) -> Handling<Confirmations> {
    Handling {
        name: "confirmations",
        topics: &[RELAYER_CONFIRMED],
        handler: Confirmations { clock },
    }
}

/// The consumer of `relayer.confirmed.v1`.
#[must_use]
pub fn consumer(
    pool: Pool,
    kafka: KafkaOptions,
    clock: Clock,
    ready: Flag,
) -> Consumer<Confirmations> {
    Consumer {
        pool,
        schema: SCHEMA,
        kafka,
        handling: handling(clock),
        ready,
    }
}

impl Handler for Confirmations {
    type Item = Batch;

    fn decode(&self, event: &Event) -> Result<Option<Batch>, Poison> {
        if event.kind != BATCH_CONFIRMED_TYPE {
            return Ok(None);
        }
        let batch = BatchConfirmed::from_value(&event.value);
        let batch = batch.and_then(|batch| understand(&batch));
        batch.map(Some).map_err(|error| Poison(error.to_string()))
    }

    async fn apply(&self, transaction: &Transaction<'_>, items: &[Batch]) -> anyhow::Result<()> {
        for batch in items {
            let fits = store::confirm(transaction, batch, self.clock.now()).await?;
            // The jobs stay queued, and the batch becomes a dead letter.
            fits.map_err(|misfit| Poison(misfit.to_string()))?;
        }
        Ok(())
    }
}

fn understand(batch: &BatchConfirmed) -> Result<Batch, EventError> {
    let common = Finality {
        chain_id: storable("chain_id", batch.chain_id)?,
        registry: batch.registry_address()?,
        batch_number: storable("batch_number", batch.batch_number)?,
        sequence: 0,
        transaction_hash: word("transaction_hash", &batch.transaction_hash)?,
        block_number: storable("block_number", batch.block_number)?,
        confirmed_at: batch.time()?,
    };
    let mut places = BTreeMap::new();
    for job in &batch.jobs {
        let id = |name| move |error| EventError::Id(name, error);
        let tenant = job.tenant_id.parse().map_err(id("tenant_id"))?;
        let finality = Finality {
            sequence: storable("sequence", job.sequence)?,
            ..common
        };
        let job = job.job_id.parse().map_err(id("job_id"))?;
        if places.insert(job, Place { tenant, finality }).is_some() {
            return Err(EventError::Malformed("jobs"));
        }
    }
    let jobs_root = word("jobs_root", &batch.jobs_root)?;
    Ok(Batch { jobs_root, places })
}

fn word(name: &'static str, bytes: &[u8]) -> Result<B256, EventError> {
    B256::try_from(bytes).map_err(|_| EventError::Malformed(name))
}

/// Postgres counts to 2^63; a number beyond would stop the partition, not only its record.
fn storable(name: &'static str, number: u64) -> Result<u64, EventError> {
    match i64::try_from(number) {
        Ok(_) => Ok(number),
        Err(_) => Err(EventError::Malformed(name)),
    }
}
