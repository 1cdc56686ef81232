//! Inbox: per chunk of records, one transaction holds the offset compare-and-set, the event
//! identities, the effect, and the dead letters. `kill -9` anywhere repeats and skips nothing.
//!
//! One consumer of a name is active at a time (a lease); the offsets' compare-and-set fences a
//! second one all the same. Records that cannot be understood or applied go to the table
//! `dead_letters` with the reason, and the partition moves on; [`letters`] hands them in again.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use deadpool_postgres::{Object, Transaction};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    admin::Flag,
    config::KafkaOptions,
    kafka::{self, Topics},
    lease::{Lease, LeaseTable, while_leased},
    postgres::{self, Pool, explain},
};

use fetch::Fetched;
use handling::is_data_error;

pub use handling::{Event, Handler, Handling, Poison};

mod fetch;
mod handling;
pub mod letters;
mod store;

/// How long a consumer may be silent before another takes over.
const LEASE: Duration = Duration::from_secs(5);
/// Most records in one transaction.
const CHUNK: usize = 500;
/// How long Postgres may take for one transaction before its connection is given up.
const COMMIT_DEADLINE: Duration = Duration::from_secs(30);
/// How often Kafka is asked for partitions that were added.
const PARTITIONS_EVERY: Duration = Duration::from_secs(5);
/// A transaction that takes longer is made of too many records; one that takes half, of few.
const COMMIT_SLOW: Duration = Duration::from_secs(5);
/// How long a consumer must go without a failure to count as well again, if it takes in nothing.
const SETTLED: Duration = Duration::from_secs(5);

/// Takes in topics; the progress is kept in `schema`.
#[derive(Debug)]
pub struct Consumer<H> {
    /// The database.
    pub pool: Pool,
    /// Schema with the mechanisms' tables.
    pub schema: &'static str,
    /// Brokers and prefix.
    pub kafka: KafkaOptions,
    /// Which events, and what to do with them.
    pub handling: Handling<H>,
    /// Set while the consumer consumes, or could; not after a failure, until it takes something in
    /// again or has gone without failure for a while.
    pub ready: Flag,
}

/// One record as fetched, with its place.
#[derive(Debug)]
struct Record {
    place: Place,
    offset: i64,
    key: Option<Vec<u8>>,
    headers: BTreeMap<String, String>,
    value: Option<Vec<u8>>,
    /// Why it cannot be understood, where that showed when it was fetched.
    flaw: Option<Poison>,
}

/// A partition of one of our topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    topic: &'static str,
    partition: i32,
}

/// Next offset to take in, by partition.
type Offsets = BTreeMap<Place, i64>;

/// What a consumer has while it runs.
struct Running<H> {
    consumer: Consumer<H>,
    topics: Topics,
    leases: LeaseTable,
    failures: AtomicU64,
    /// Whether this process is the one that consumes.
    consuming: AtomicBool,
    /// Most records in the next transaction.
    chunk: AtomicUsize,
}

impl<H: Handler> Consumer<H> {
    /// Consumes until the process stops, whenever this process holds the consumer's lease.
    ///
    /// # Errors
    /// When the configuration is refused. Outages of Postgres and Kafka are waited out.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let this = &Running {
            topics: Topics::new(&self.kafka)?,
            leases: LeaseTable::named(self.schema),
            failures: AtomicU64::new(0),
            consuming: AtomicBool::new(false),
            chunk: AtomicUsize::new(CHUNK),
            consumer: self,
        };
        let consumer = &this.consumer;
        let name = format!("inbox {}", consumer.handling.name);
        let consume = |lease, over| async move {
            this.consuming.store(true, Ordering::SeqCst);
            let outcome = this.consume_while(&lease, over).await;
            if outcome.is_err() {
                this.failures.fetch_add(1, Ordering::SeqCst);
                consumer.ready.set(false);
            }
            this.consuming.store(false, Ordering::SeqCst);
            outcome
        };
        let consuming = while_leased(&consumer.pool, &this.leases, &name, LEASE, &stop, consume);
        let (outcome, _) = tokio::join!(consuming, stop.run_until_cancelled(this.watch()));
        outcome
    }
}

impl<H: Handler> Running<H> {
    /// Says that a standby is ready when it could consume and has not failed lately.
    async fn watch(&self) {
        let Consumer {
            handling, ready, ..
        } = &self.consumer;
        let mut failures = self.failures.load(Ordering::SeqCst);
        loop {
            if !ready.is_set() && !self.consuming.load(Ordering::SeqCst) {
                let found = self.offsets().await;
                let now = self.failures.load(Ordering::SeqCst);
                match found {
                    Ok(_) if now == failures => ready.set(true),
                    Ok(_) => {}
                    Err(cause) => {
                        let error = explain(&cause);
                        warn!(consumer = handling.name, error, "cannot consume");
                    }
                }
                failures = now;
            }
            tokio::time::sleep(SETTLED).await;
        }
    }

    /// Where to go on in every partition that there is.
    async fn offsets(&self) -> anyhow::Result<Offsets> {
        let Consumer {
            pool,
            schema,
            kafka,
            handling,
            ..
        } = &self.consumer;
        kafka::ensure_topics(kafka, handling.topics).await?;
        // Read before Kafka is asked: meanwhile another process may take in what is told.
        let client = pool.get().await?;
        let read = store::reached(&client, schema, handling.name);
        let outcome = timeout(COMMIT_DEADLINE, read).await;
        let reached = postgres::settle(client, outcome)?;
        let mut bounds = BTreeMap::new();
        for &topic in handling.topics {
            let held = self.topics.bounds(topic).await?.into_iter();
            bounds.extend(held.map(|(partition, held)| (Place { topic, partition }, held)));
        }
        let client = pool.get().await?;
        let read = store::offsets(&client, schema, handling.name, &reached, &bounds);
        let outcome = timeout(COMMIT_DEADLINE, read).await;
        postgres::settle(client, outcome)
    }

    /// Waits until there are more partitions than `known`; where Kafka does not answer, fetching
    /// says so.
    async fn grown(&self, known: usize) {
        loop {
            tokio::time::sleep(PARTITIONS_EVERY).await;
            let mut all = 0;
            for topic in self.consumer.handling.topics {
                let found = self.topics.partitions(topic).await;
                all += found.map_or(0, |partitions| partitions.len());
            }
            if all > known {
                return;
            }
        }
    }

    async fn consume_while(
        &self,
        lease: &Lease<String>,
        over: CancellationToken,
    ) -> anyhow::Result<()> {
        while !over.is_cancelled() {
            self.consume(lease, &over).await?;
        }
        Ok(())
    }

    /// Consumes the partitions that there are now, until it is over or there are more.
    async fn consume(&self, lease: &Lease<String>, over: &CancellationToken) -> anyhow::Result<()> {
        let Consumer {
            kafka, handling, ..
        } = &self.consumer;
        let mut offsets = self.offsets().await?;
        let fetching = over.child_token();
        let _ended_with_us = fetching.clone().drop_guard();
        let mut records = fetch::start(kafka, handling.name, &offsets, fetching)?;
        let partitions = offsets.len();
        info!(consumer = handling.name, partitions, "consuming");
        let mut grown = pin!(self.grown(partitions));
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            let most = self.chunk.load(Ordering::SeqCst);
            tokio::select! {
                () = over.cancelled() => return Ok(()),
                () = &mut grown => return Ok(()),
                taken = records.recv_many(&mut chunk, most) => if taken == 0 {
                    // Stopping ends the fetcher too, and may be seen second.
                    anyhow::ensure!(over.is_cancelled(), "the fetcher ended");
                    return Ok(());
                },
                () = tokio::time::sleep(SETTLED), if !self.consumer.ready.is_set() => {
                    self.consumer.ready.set(true);
                    continue;
                }
            }
            let fetched = chunk.drain(..).collect::<anyhow::Result<Vec<Fetched>>>()?;
            let (taken, _room): (Vec<Record>, Vec<_>) = fetched.into_iter().unzip();
            let began = Instant::now();
            let outcome = self.take_in(lease, &taken, &mut offsets).await;
            let took = outcome.is_ok().then(|| began.elapsed());
            let next = next_chunk(most, taken.len(), took);
            self.chunk.store(next, Ordering::SeqCst);
            outcome?;
            self.consumer.ready.set(true);
        }
    }

    /// Applies a chunk; when Postgres refuses some of its data, record by record, so that only the
    /// guilty one becomes a dead letter.
    async fn take_in(
        &self,
        lease: &Lease<String>,
        records: &[Record],
        offsets: &mut Offsets,
    ) -> anyhow::Result<()> {
        let Err(cause) = self.commit(lease, records, offsets, None).await else {
            return Ok(());
        };
        if !is_data_error(&cause) {
            return Err(cause);
        }
        for record in records {
            let one = std::slice::from_ref(record);
            match self.commit(lease, one, offsets, None).await {
                Ok(()) => {}
                Err(cause) if is_data_error(&cause) => {
                    let reason = Poison(format!("refused by the database: {}", explain(&cause)));
                    self.commit(lease, one, offsets, Some(reason)).await?;
                }
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// The one transaction. `refused` makes every record a dead letter with that reason.
    async fn commit(
        &self,
        lease: &Lease<String>,
        records: &[Record],
        offsets: &mut Offsets,
        refused: Option<Poison>,
    ) -> anyhow::Result<()> {
        let mut client = self.consumer.pool.get().await?;
        let work = self.apply(&mut client, lease, records, offsets, refused);
        let outcome = timeout(COMMIT_DEADLINE, work).await;
        *offsets = postgres::settle(client, outcome)?;
        metrics::counter!("inbox_records_total", "consumer" => self.consumer.handling.name)
            .increment(records.len() as u64);
        Ok(())
    }

    async fn apply(
        &self,
        client: &mut Object,
        lease: &Lease<String>,
        records: &[Record],
        offsets: &Offsets,
        refused: Option<Poison>,
    ) -> anyhow::Result<Offsets> {
        let Consumer {
            schema, handling, ..
        } = &self.consumer;
        let transaction = client.transaction().await?;
        self.leases.guard(&transaction, lease).await?;
        let moved = store::advance(&transaction, schema, handling.name, offsets, records).await?;
        let mut understood = Vec::with_capacity(records.len());
        for record in records {
            let outcome = match &refused {
                Some(reason) => Err(reason.clone()),
                None => handling.understand(record),
            };
            match outcome {
                Ok(item) => understood.extend(item),
                Err(reason) => self.bury(&transaction, record, &reason).await?,
            }
        }
        handling.apply(&transaction, schema, understood).await?;
        transaction.commit().await?;
        Ok(moved)
    }

    async fn bury(
        &self,
        transaction: &Transaction<'_>,
        record: &Record,
        reason: &Poison,
    ) -> Result<(), tokio_postgres::Error> {
        let Consumer {
            schema, handling, ..
        } = &self.consumer;
        let Place { topic, partition } = record.place;
        let reason = reason.storable();
        warn!(
            consumer = handling.name, kafka.topic = topic, kafka.partition = partition,
            kafka.offset = record.offset, %reason, "dead letter"
        );
        metrics::counter!("inbox_dead_letters_total", "consumer" => handling.name).increment(1);
        store::bury(transaction, schema, handling.name, record, &reason).await
    }
}

/// Most records in the next transaction, where one of `records` out of `most` allowed took so long,
/// or failed. What is too slow for a transaction would be tried again and again.
fn next_chunk(most: usize, records: usize, took: Option<Duration>) -> usize {
    match took {
        Some(took) if took <= COMMIT_SLOW / 2 && records == most => (most * 2).min(CHUNK),
        Some(took) if took <= COMMIT_SLOW => most,
        _ => (records / 2).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_transactions_become_smaller_and_quick_ones_larger_within_bounds() {
        let quick = Some(COMMIT_SLOW / 3);
        assert_eq!(next_chunk(CHUNK, CHUNK, quick), CHUNK);
        assert_eq!(next_chunk(10, 10, quick), 20);
        assert_eq!(next_chunk(10, 3, quick), 10, "it says nothing about ten");
        assert_eq!(next_chunk(10, 10, Some(COMMIT_SLOW)), 10);
        assert_eq!(next_chunk(CHUNK, 9, Some(COMMIT_SLOW * 2)), 4);
        assert_eq!(next_chunk(CHUNK, CHUNK, None), CHUNK / 2);
        assert_eq!(next_chunk(1, 1, None), 1);
    }
}
