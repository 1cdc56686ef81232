//! Outbox: events are rows inserted with the state they announce, and one publisher per outbox
//! sends every unpublished row in id order, marking it after the broker's acknowledgement.
//!
//! Never `id > cursor`: a slower transaction commits a smaller id later. Events of one key keep
//! their order as long as the transactions that append them lock the row they are about.

use std::time::Duration;

use deadpool_postgres::GenericClient;
use jiff::Timestamp;
use rdkafka::{
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    config::KafkaOptions,
    kafka::{self, MAX_RECORD_BYTES},
    lease::{Lease, LeaseTable, while_leased},
    postgres::{self, Pool, explain},
};

/// How long a publisher may be silent before another takes over.
const LEASE: Duration = Duration::from_secs(5);
/// Rows sent and marked at a time, and the bytes at which a chunk is full: far less than what the
/// producer holds, so that it takes a chunk whole.
const CHUNK: i64 = 500;
const CHUNK_BYTES: i64 = 8 * 1024 * 1024;
/// Room for the headers that are the same for every record.
const COMMON_HEADERS_BYTES: usize = 300;
/// How long Postgres may take to read or mark a chunk before its connection is given up.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between looks at an empty outbox.
const IDLE_POLL: Duration = Duration::from_millis(50);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

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

/// Why an event was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Kafka would refuse the record for ever, and with it all that stand behind it.
    #[error(
        "the event {id} has {bytes} bytes for Kafka, which takes at most {MAX_RECORD_BYTES} in one \
         record"
    )]
    TooLarge {
        /// `ce_id`.
        id: String,
        /// What the record would have.
        bytes: usize,
    },
    /// Postgres failed.
    #[error("Postgres failed")]
    Postgres(#[from] tokio_postgres::Error),
}

/// Appends an event in the caller's transaction.
///
/// # Errors
/// When the event is larger than [`MAX_RECORD_BYTES`], or Postgres fails.
pub async fn append(
    transaction: &impl GenericClient,
    schema: &str,
    message: &Message,
) -> Result<(), AppendError> {
    append_all(transaction, schema, std::slice::from_ref(message)).await
}

/// Appends events, in this order, in the caller's transaction: in one statement, however many.
///
/// # Errors
/// When an event is larger than [`MAX_RECORD_BYTES`], or Postgres fails.
pub async fn append_all(
    transaction: &impl GenericClient,
    schema: &str,
    messages: &[Message],
) -> Result<(), AppendError> {
    for message in messages {
        let bytes = message.bytes();
        if bytes > MAX_RECORD_BYTES {
            let id = message.id.clone();
            return Err(AppendError::TooLarge { id, bytes });
        }
    }
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

impl Message {
    /// What the record has in Kafka, at most: key, headers and value.
    fn bytes(&self) -> usize {
        let headers = self.source.len() + self.id.len() + self.kind.len() + COMMON_HEADERS_BYTES;
        self.key.len() + headers + self.value.len()
    }
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
        while !over.is_cancelled() {
            let pause = match self.publish_chunk(&lease, &producer).await {
                Ok(0) => IDLE_POLL,
                Ok(_) => Duration::ZERO,
                Err(cause) => {
                    let error = explain(&cause);
                    warn!(schema = self.schema, error, "cannot publish");
                    producer = kafka::producer(&self.kafka)?;
                    RETRY_PAUSE
                }
            };
            tokio::select! {
                () = over.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Sends the oldest unpublished rows and marks those that were acknowledged, up to the first
    /// that was not; returns how many. A crash between the two sends them again, with the same
    /// identities.
    async fn publish_chunk(
        &self,
        lease: &Lease<String>,
        producer: &FutureProducer,
    ) -> anyhow::Result<usize> {
        let rows = self.unpublished().await?;
        let (published, failure) = send(producer, &rows).await;
        if !published.is_empty() {
            self.mark(lease, &published).await?;
            metrics::counter!("outbox_published_total", "schema" => self.schema)
                .increment(published.len() as u64);
        }
        match failure {
            Some(cause) => Err(cause),
            None => Ok(rows.len()),
        }
    }

    async fn unpublished(&self) -> anyhow::Result<Vec<Row>> {
        // The first row comes whatever its size: `before` is what stands before a row.
        let sql = format!(
            "-- ops.outbox_unpublished\n\
             SELECT id, topic, key, ce_source, ce_id, ce_type, ce_time, traceparent, value\n\
             FROM (SELECT *, coalesce(sum(octet_length(key) + octet_length(value)) OVER (\n        \
             ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before\n    \
             FROM {}.outbox WHERE published_at IS NULL ORDER BY id LIMIT $1) AS oldest\n\
             WHERE before < $2 ORDER BY id",
            self.schema
        );
        let client = self.pool.get().await?;
        let read = async { Ok(client.query(&sql, &[&CHUNK, &CHUNK_BYTES]).await?) };
        let outcome = timeout(STEP_DEADLINE, read).await;
        let rows = postgres::settle(client, outcome)?;
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
        let write = async {
            let transaction = client.transaction().await?;
            self.leases.guard(&transaction, lease).await?;
            transaction.execute(&sql, &[&published]).await?;
            Ok(transaction.commit().await?)
        };
        let outcome = timeout(STEP_DEADLINE, write).await;
        postgres::settle(client, outcome)
    }
}

/// Sends rows in this order up to the first that the producer refuses, and waits for what becomes
/// of them. Returns the rows before the first that is not on its topic, and why that one is not.
async fn send(producer: &FutureProducer, rows: &[Row]) -> (Vec<i64>, Option<anyhow::Error>) {
    let mut sent = Vec::with_capacity(rows.len());
    let mut failure = None;
    for row in rows {
        let record = FutureRecord::to(&row.topic)
            .key(&row.key)
            .payload(&row.value)
            .headers(row.headers.clone());
        match producer.send_result(record) {
            Ok(acknowledgement) => sent.push((row, acknowledgement)),
            Err((error, _)) => {
                failure = Some(failed(row, error));
                break;
            }
        }
    }
    let mut published = Vec::with_capacity(sent.len());
    let mut broken = None;
    for (row, acknowledgement) in sent {
        let error = match acknowledgement.await {
            Ok(Ok(_)) if broken.is_none() => {
                published.push(row.id);
                continue;
            }
            Ok(Ok(_)) => continue,
            Ok(Err((error, _))) => error,
            // The producer ended before it said what became of the record.
            Err(_) => KafkaError::Canceled,
        };
        broken.get_or_insert_with(|| failed(row, error));
    }
    (published, broken.or(failure))
}

fn failed(row: &Row, error: KafkaError) -> anyhow::Error {
    let Row { id, topic, .. } = row;
    anyhow::Error::from(error).context(format!("row {id} of the outbox is not on topic {topic}"))
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
