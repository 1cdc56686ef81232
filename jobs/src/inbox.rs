//! `relayer.confirmed.v1`: a final batch makes its jobs final, and each of them news.

use std::collections::BTreeMap;

use alloy::primitives::B256;
use contracts::{
    event::{BATCH_CONFIRMED_TYPE, BatchConfirmed, EventError, RELAYER_CONFIRMED},
    id::JobId,
};
use deadpool_postgres::Transaction;
use ops::{
    admin::Flag,
    clock::Clock,
    config::KafkaOptions,
    inbox::{Consumer, Event, Handler, Poison},
    postgres::Pool,
};
use tracing::error;

use crate::{SCHEMA, job::Finality, store};

/// Takes in final batches.
#[derive(Clone, Debug)]
pub struct Confirmations {
    clock: Clock,
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
        name: "confirmations",
        kafka,
        topics: &[RELAYER_CONFIRMED],
        handler: Confirmations { clock },
        ready,
    }
}

impl Handler for Confirmations {
    /// Where the jobs of one batch stand on chain.
    type Item = BTreeMap<JobId, Finality>;

    fn decode(&self, event: &Event) -> Result<Option<Self::Item>, Poison> {
        if event.kind != BATCH_CONFIRMED_TYPE {
            return Ok(None);
        }
        let batch = BatchConfirmed::from_value(&event.value);
        let places = batch.and_then(|batch| places(&batch));
        places.map(Some).map_err(|error| Poison(error.to_string()))
    }

    async fn apply(
        &self,
        transaction: &Transaction<'_>,
        items: &[Self::Item],
    ) -> anyhow::Result<()> {
        for places in items {
            let now = self.clock.now();
            for (job, reason) in store::confirm(transaction, places, now).await? {
                // The chain says so all the same: a person must look.
                error!(job.id = %job, %reason, "a confirmation does not fit its job");
                metrics::counter!("jobs_confirmations_refused_total").increment(1);
            }
        }
        Ok(())
    }
}

fn places(batch: &BatchConfirmed) -> Result<BTreeMap<JobId, Finality>, EventError> {
    let common = Finality {
        chain_id: storable("chain_id", batch.chain_id)?,
        registry: batch.registry_address()?,
        batch_number: storable("batch_number", batch.batch_number)?,
        sequence: 0,
        transaction_hash: B256::try_from(batch.transaction_hash.as_slice())
            .map_err(|_| EventError::Malformed("transaction_hash"))?,
        block_number: storable("block_number", batch.block_number)?,
        confirmed_at: batch.time()?,
    };
    let place = |job: &contracts::event::ConfirmedJob| {
        let id = job
            .job_id
            .parse()
            .map_err(|error| EventError::Id("job_id", error))?;
        Ok((
            id,
            Finality {
                sequence: storable("sequence", job.sequence)?,
                ..common
            },
        ))
    };
    batch.jobs.iter().map(place).collect()
}

/// Postgres counts to 2^63; a number beyond would stop the partition, not only its record.
fn storable(name: &'static str, number: u64) -> Result<u64, EventError> {
    match i64::try_from(number) {
        Ok(_) => Ok(number),
        Err(_) => Err(EventError::Malformed(name)),
    }
}
