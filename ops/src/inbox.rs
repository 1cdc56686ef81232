//! Inbox: per chunk of records, one transaction holds the offset compare-and-set, the event
//! identities, the effect, and the dead letters. `kill -9` anywhere repeats and skips nothing.
//!
//! One consumer of a name is active at a time (a lease); the offsets' compare-and-set fences a
//! second one all the same. Records that cannot be understood or applied go to the table
//! `dead_letters` with the reason, and the partition moves on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    admin::Flag,
    config::KafkaOptions,
    kafka,
    lease::{Lease, LeaseTable, while_leased},
    postgres::{Pool, sql_state},
};

mod fetch;
mod store;

/// How long a consumer may be silent before another takes over.
const LEASE: Duration = Duration::from_secs(5);
/// Most records in one transaction.
const CHUNK: usize = 500;

/// A record in CloudEvents 1.0 binary mode, as it stood in Kafka.
#[derive(Clone, Debug)]
pub struct Event {
    /// Topic, without the deployment's prefix.
    pub topic: &'static str,
    /// `ce_source`; with `id`, the event's identity.
    pub source: String,
    /// `ce_id`.
    pub id: String,
    /// `ce_type`.
    pub kind: String,
    /// `ce_time`.
    pub time: Timestamp,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The protobuf bytes.
    pub value: Vec<u8>,
}

/// Why a record can never be taken in, for the dead-letter table's reader.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Poison(pub String);

/// What a consumer does with events.
pub trait Handler: Send + Sync + 'static {
    /// An event, understood.
    type Item: Send + Sync;

    /// Understands one event, purely; `None` when it is of no concern here.
    ///
    /// # Errors
    /// [`Poison`] when it cannot be understood; it becomes a dead letter.
    fn decode(&self, event: &Event) -> Result<Option<Self::Item>, Poison>;

    /// Does what the events ask, in the transaction that also moves the offsets. Each item comes
    /// from an event that no earlier transaction applied, in partition order.
    fn apply(
        &self,
        transaction: &Transaction<'_>,
        items: &[Self::Item],
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Takes in topics under a name whose progress is kept in `schema`.
#[derive(Debug)]
pub struct Consumer<H> {
    /// The database.
    pub pool: Pool,
    /// Schema with the mechanisms' tables.
    pub schema: &'static str,
    /// The consumer's name, unique in the schema.
    pub name: &'static str,
    /// Brokers and prefix.
    pub kafka: KafkaOptions,
    /// Topics to take in, without prefix.
    pub topics: &'static [&'static str],
    /// What to do with the events.
    pub handler: H,
    /// Set while the consumer consumes or stands by; not after a failure, until it consumes again.
    pub ready: Flag,
}

/// One record as fetched, with its place.
#[derive(Clone, Debug)]
struct Record {
    place: Place,
    offset: i64,
    key: Option<Vec<u8>>,
    headers: BTreeMap<String, String>,
    value: Option<Vec<u8>>,
}

/// A partition of one of our topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    topic: &'static str,
    partition: i32,
}

/// Next offset to take in, by partition.
type Offsets = BTreeMap<Place, i64>;

impl<H: Handler> Consumer<H> {
    /// Consumes until the process stops, whenever this process holds the consumer's lease.
    ///
    /// # Errors
    /// Never by itself: outages of Postgres and Kafka are waited out.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let leases = LeaseTable::named(self.schema);
        let lease_name = format!("inbox {}", self.name);
        let this = Arc::new(self);
        this.ready.set(true);
        while_leased(
            &this.pool,
            &leases,
            &lease_name,
            LEASE,
            &stop,
            |lease, over| {
                let this = Arc::clone(&this);
                let leases = leases.clone();
                async move {
                    let outcome = this.consume(&leases, &lease, over).await;
                    this.ready.set(outcome.is_ok());
                    outcome
                }
            },
        )
        .await
    }

    async fn consume(
        &self,
        leases: &LeaseTable,
        lease: &Lease<String>,
        over: CancellationToken,
    ) -> anyhow::Result<()> {
        kafka::ensure_topics(&self.kafka, self.topics).await?;
        let places = fetch::partitions(&self.kafka, self.topics).await?;
        let mut offsets = store::offsets(&self.pool, self.schema, self.name, &places).await?;
        let mut records = fetch::start(&self.kafka, self.name, &offsets, over.clone())?;
        self.ready.set(true);
        info!(
            consumer = self.name,
            partitions = offsets.len(),
            "consuming"
        );
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            tokio::select! {
                () = over.cancelled() => return Ok(()),
                taken = records.recv_many(&mut chunk, CHUNK) => if taken == 0 {
                    // Stopping ends the fetcher too, and may be seen second.
                    anyhow::ensure!(over.is_cancelled(), "the fetcher ended");
                    return Ok(());
                },
            }
            let taken = chunk.drain(..).collect::<anyhow::Result<Vec<Record>>>()?;
            self.take_in(leases, lease, &taken, &mut offsets).await?;
        }
    }

    /// Applies a chunk; when Postgres refuses some of its data, record by record, so that only the
    /// guilty one becomes a dead letter.
    async fn take_in(
        &self,
        leases: &LeaseTable,
        lease: &Lease<String>,
        records: &[Record],
        offsets: &mut Offsets,
    ) -> anyhow::Result<()> {
        let Err(cause) = self.commit(leases, lease, records, offsets, None).await else {
            return Ok(());
        };
        if !is_data_error(&cause) {
            return Err(cause);
        }
        for record in records {
            let one = std::slice::from_ref(record);
            match self.commit(leases, lease, one, offsets, None).await {
                Ok(()) => {}
                Err(cause) if is_data_error(&cause) => {
                    let reason = Poison(format!("refused by the database: {cause:#}"));
                    self.commit(leases, lease, one, offsets, Some(reason))
                        .await?;
                }
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// The one transaction. `refused` makes every record a dead letter with that reason.
    async fn commit(
        &self,
        leases: &LeaseTable,
        lease: &Lease<String>,
        records: &[Record],
        offsets: &mut Offsets,
        refused: Option<Poison>,
    ) -> anyhow::Result<()> {
        let mut client = self.pool.get().await?;
        let transaction = client.transaction().await?;
        leases.guard(&transaction, lease).await?;
        let moved = store::advance(&transaction, self.schema, self.name, offsets, records).await?;
        let mut understood = Vec::with_capacity(records.len());
        for record in records {
            let outcome = match &refused {
                Some(reason) => Err(reason.clone()),
                None => self.understand(record),
            };
            match outcome {
                Ok(item) => understood.extend(item),
                Err(reason) => self.bury(&transaction, record, &reason).await?,
            }
        }
        let items = self.keep_new(&transaction, understood).await?;
        if !items.is_empty() {
            self.handler.apply(&transaction, &items).await?;
        }
        transaction.commit().await?;
        *offsets = moved;
        metrics::counter!("inbox_records_total", "consumer" => self.name)
            .increment(records.len() as u64);
        Ok(())
    }

    /// Records the identities and keeps the items of events that are told for the first time.
    async fn keep_new(
        &self,
        transaction: &Transaction<'_>,
        understood: Vec<(Event, H::Item)>,
    ) -> anyhow::Result<Vec<H::Item>> {
        let mut new =
            store::new_identities(transaction, self.schema, self.name, &understood).await?;
        // Removing as we go keeps only the first of two equal identities in one chunk.
        let first = |event: &Event| new.remove(&(event.source.clone(), event.id.clone()));
        Ok(keep_first(understood, first))
    }

    async fn bury(
        &self,
        transaction: &Transaction<'_>,
        record: &Record,
        reason: &Poison,
    ) -> Result<(), tokio_postgres::Error> {
        let Place { topic, partition } = record.place;
        warn!(
            consumer = self.name, kafka.topic = topic, kafka.partition = partition,
            kafka.offset = record.offset, %reason, "dead letter"
        );
        metrics::counter!("inbox_dead_letters_total", "consumer" => self.name).increment(1);
        store::bury(transaction, self.schema, self.name, record, reason).await
    }

    fn understand(&self, record: &Record) -> Result<Option<(Event, H::Item)>, Poison> {
        let event = event_of(record)?;
        Ok(self.handler.decode(&event)?.map(|item| (event, item)))
    }
}

fn keep_first<I>(understood: Vec<(Event, I)>, mut first: impl FnMut(&Event) -> bool) -> Vec<I> {
    understood
        .into_iter()
        .filter_map(|(event, item)| first(&event).then_some(item))
        .collect()
}

/// Reads the CloudEvents attributes of a record (Kafka protocol binding, binary mode).
fn event_of(record: &Record) -> Result<Event, Poison> {
    let attribute = |name: &str| match record.headers.get(name) {
        Some(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(Poison(format!(
            "header {name} is missing or not UTF-8 text"
        ))),
    };
    let version = attribute("ce_specversion")?;
    if version != "1.0" {
        return Err(Poison(format!(
            "ce_specversion is {version:?}, not \"1.0\""
        )));
    }
    let time = attribute("ce_time")?;
    Ok(Event {
        topic: record.place.topic,
        source: attribute("ce_source")?,
        id: attribute("ce_id")?,
        kind: attribute("ce_type")?,
        time: time
            .parse()
            .map_err(|error| Poison(format!("ce_time {time:?}: {error}")))?,
        traceparent: record.headers.get("traceparent").cloned(),
        value: record
            .value
            .clone()
            .ok_or_else(|| Poison("the record has no value".into()))?,
    })
}

/// Whether Postgres refused the data itself (SQLSTATE classes 21, 22, 23, or a program limit),
/// which trying again cannot mend.
fn is_data_error(cause: &anyhow::Error) -> bool {
    let state = cause.chain().find_map(|error| sql_state(error));
    state.is_some_and(|state| {
        ["21", "22", "23", "54"]
            .iter()
            .any(|class| state.code().starts_with(class))
    }) || cause.chain().any(<dyn std::error::Error>::is::<Poison>)
}
