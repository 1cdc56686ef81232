//! Outbox: events are rows inserted with the state they announce, and one publisher per outbox
//! sends every unpublished row in id order, marking it after the broker's acknowledgement.
//!
//! Never `id > cursor`: a slower transaction commits a smaller id later. Events of one key keep
//! their order as long as the transactions that append them lock the row they are about.

use std::time::Duration;

use anyhow::Context as _;
use deadpool_postgres::GenericClient;
use futures::{StreamExt as _, stream::FuturesOrdered};
use jiff::Timestamp;
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    config::KafkaOptions,
    kafka,
    lease::{Lease, LeaseTable, while_leased},
    postgres::Pool,
};

/// How long a publisher may be silent before another takes over.
const LEASE: Duration = Duration::from_secs(5);
/// Rows sent and marked at a time.
const CHUNK: i64 = 500;
/// Pause between looks at an empty outbox.
const IDLE_POLL: Duration = Duration::from_millis(50);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Published rows are kept this long for whoever asks what was said, then deleted in chunks.
const KEEP_PUBLISHED: &str = "1 day";
const PRUNE_EVERY: Duration = Duration::from_mins(1);
const PRUNE_CHUNK: i64 = 5_000;

/// A CloudEvent (1.0, binary mode) about to leave: `(source, id)` is its identity and must be
/// deterministic from what happened.
#[derive(Clone, Debug)]
pub struct Message {
    /// Topic, without the deployment's prefix.
    pub topic: &'static str,
    /// Record key: what must stay in order.
    pub key: Vec<u8>,
    /// `ce_source`.
    pub source: String,
    /// `ce_id`.
    pub id: String,
    /// `ce_type`.
    pub kind: &'static str,
    /// `ce_time`.
    pub time: Timestamp,
    /// W3C trace context to continue; `None` takes the current span's.
    pub traceparent: Option<String>,
    /// The protobuf bytes.
    pub value: Vec<u8>,
}

/// Sends one schema's outbox.
#[derive(Debug)]
pub struct Publisher {
    pool: Pool,
    schema: &'static str,
    kafka: KafkaOptions,
    leases: LeaseTable,
}

struct Row {
    id: i64,
    topic: String,
    key: Vec<u8>,
    headers: OwnedHeaders,
    value: Vec<u8>,
}

/// Appends an event in the caller's transaction.
///
/// # Errors
/// When Postgres fails.
pub async fn append(
    transaction: &impl GenericClient,
    schema: &str,
    message: &Message,
) -> Result<(), tokio_postgres::Error> {
    append_all(transaction, schema, std::slice::from_ref(message)).await
}

/// Appends events, in this order, in the caller's transaction: in one statement, however many.
///
/// # Errors
/// When Postgres fails.
pub async fn append_all(
    transaction: &impl GenericClient,
    schema: &str,
    messages: &[Message],
) -> Result<(), tokio_postgres::Error> {
    let sql = format!(
        "-- ops.outbox_append\n\
         INSERT INTO {schema}.outbox\n    \
         (topic, key, ce_source, ce_id, ce_type, ce_time, traceparent, value)\n\
         SELECT topic, key, source, id, kind, time, traceparent, value\n\
         FROM unnest($1::text[], $2::bytea[], $3::text[], $4::text[], $5::text[],\n    \
         $6::timestamptz[], $7::text[], $8::bytea[]) WITH ORDINALITY\n\
         AS told (topic, key, source, id, kind, time, traceparent, value, place)\n\
         ORDER BY place"
    );
    let current = crate::telemetry::traceparent();
    let traceparent = |it: &Message| it.traceparent.clone().or_else(|| current.clone());
    let parameters: [&(dyn ToSql + Sync); 8] = [
        &column(messages, |it| it.topic),
        &column(messages, |it| it.key.as_slice()),
        &column(messages, |it| it.source.as_str()),
        &column(messages, |it| it.id.as_str()),
        &column(messages, |it| it.kind),
        &column(messages, |it| it.time),
        &column(messages, traceparent),
        &column(messages, |it| it.value.as_slice()),
    ];
    let statement = transaction.prepare_cached(&sql).await?;
    transaction.execute(&statement, &parameters).await?;
    Ok(())
}

fn column<'a, T>(messages: &'a [Message], of: impl Fn(&'a Message) -> T) -> Vec<T> {
    messages.iter().map(of).collect()
}

impl Publisher {
    /// The publisher of `schema`'s outbox.
    #[must_use]
    pub fn new(pool: Pool, schema: &'static str, kafka: KafkaOptions) -> Self {
        Self {
            pool,
            schema,
            kafka,
            leases: LeaseTable::named(schema),
        }
    }

    /// Publishes until the process stops, whenever this process holds the outbox's lease.
    ///
    /// # Errors
    /// Never by itself: outages of Postgres and Kafka are waited out.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        while_leased(
            &self.pool,
            &self.leases,
            "outbox",
            LEASE,
            &stop,
            |lease, over| self.publish_while(lease, over),
        )
        .await
    }

    async fn publish_while(
        &self,
        lease: Lease<String>,
        over: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut producer = kafka::producer(&self.kafka)?;
        let mut pruned = tokio::time::Instant::now();
        while !over.is_cancelled() {
            let pause = match self.publish_chunk(&lease, &producer).await {
                Ok(0) => IDLE_POLL,
                Ok(_) => Duration::ZERO,
                Err(cause) => {
                    warn!(
                        schema = self.schema,
                        error = format!("{cause:#}"),
                        "cannot publish"
                    );
                    producer = kafka::producer(&self.kafka)?;
                    RETRY_PAUSE
                }
            };
            if pruned.elapsed() > PRUNE_EVERY {
                self.prune().await?;
                pruned = tokio::time::Instant::now();
            }
            tokio::select! {
                () = over.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Sends the oldest unpublished rows and marks those that were acknowledged; returns how many.
    /// A crash between the two sends them again, with the same identities.
    async fn publish_chunk(
        &self,
        lease: &Lease<String>,
        producer: &FutureProducer,
    ) -> anyhow::Result<usize> {
        let rows = self.unpublished().await?;
        if rows.is_empty() {
            return Ok(0);
        }
        let mut acknowledgements = FuturesOrdered::new();
        for row in &rows {
            let record = FutureRecord::to(&row.topic)
                .key(&row.key)
                .payload(&row.value)
                .headers(row.headers.clone());
            let sent = producer.send_result(record).map_err(|(error, _)| error);
            acknowledgements.push_back(async move { anyhow::Ok(sent?.await?) });
        }
        let mut published = Vec::with_capacity(rows.len());
        let mut failure = None;
        let mut ids = rows.iter().map(|row| row.id);
        while let Some(outcome) = acknowledgements.next().await {
            let id = ids.next().expect("one acknowledgement a row");
            match outcome? {
                Ok(_) if failure.is_none() => published.push(id),
                Ok(_) => {}
                Err((error, _)) => failure = failure.or(Some(error)),
            }
        }
        self.mark(lease, &published).await?;
        metrics::counter!("outbox_published_total", "schema" => self.schema)
            .increment(published.len() as u64);
        match failure {
            Some(error) => Err(error).context("Kafka did not acknowledge"),
            None => Ok(rows.len()),
        }
    }

    async fn unpublished(&self) -> anyhow::Result<Vec<Row>> {
        let sql = format!(
            "-- ops.outbox_unpublished\n\
             SELECT id, topic, key, ce_source, ce_id, ce_type, ce_time, traceparent, value\n\
             FROM {}.outbox WHERE published_at IS NULL ORDER BY id LIMIT $1",
            self.schema
        );
        let client = self.pool.get().await?;
        let rows = client.query(&sql, &[&CHUNK]).await?;
        Ok(rows
            .iter()
            .map(|row| Row {
                id: row.get("id"),
                topic: self.kafka.topic(row.get("topic")),
                key: row.get("key"),
                headers: cloud_event_headers(row),
                value: row.get("value"),
            })
            .collect())
    }

    async fn mark(&self, lease: &Lease<String>, published: &[i64]) -> anyhow::Result<()> {
        let sql = format!(
            "-- ops.outbox_mark\n\
             UPDATE {}.outbox SET published_at = clock_timestamp() WHERE id = ANY($1)",
            self.schema
        );
        let mut client = self.pool.get().await?;
        let transaction = client.transaction().await?;
        self.leases.guard(&transaction, lease).await?;
        transaction.execute(&sql, &[&published]).await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn prune(&self) -> anyhow::Result<()> {
        let sql = format!(
            "-- ops.outbox_prune\n\
             DELETE FROM {schema}.outbox WHERE id IN (SELECT id FROM {schema}.outbox\n    \
             WHERE published_at < clock_timestamp() - interval '{KEEP_PUBLISHED}' LIMIT $1)",
            schema = self.schema
        );
        let client = self.pool.get().await?;
        client.execute(&sql, &[&PRUNE_CHUNK]).await?;
        Ok(())
    }
}

fn cloud_event_headers(row: &tokio_postgres::Row) -> OwnedHeaders {
    let time: Timestamp = row.get("ce_time");
    let text = |column| Some(row.get::<_, String>(column));
    let headers = OwnedHeaders::new_with_capacity(7)
        .insert(Header {
            key: "ce_specversion",
            value: Some("1.0"),
        })
        .insert(Header {
            key: "ce_source",
            value: text("ce_source").as_ref(),
        })
        .insert(Header {
            key: "ce_id",
            value: text("ce_id").as_ref(),
        })
        .insert(Header {
            key: "ce_type",
            value: text("ce_type").as_ref(),
        })
        .insert(Header {
            key: "ce_time",
            value: Some(&time.to_string()),
        })
        .insert(Header {
            key: "content-type",
            value: Some("application/protobuf"),
        });
    match row.get::<_, Option<String>>("traceparent") {
        Some(parent) => headers.insert(Header {
            key: "traceparent",
            value: Some(&parent),
        }),
        None => headers,
    }
}
