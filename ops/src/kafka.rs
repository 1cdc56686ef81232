//! Kafka as everyone here uses it: bounded, acknowledged by all, in the order sent.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use anyhow::Context as _;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
    metadata::MetadataPartition,
    producer::{BaseProducer, FutureProducer, Producer as _, ProducerContext},
    util::Timeout,
};

use crate::config::{BadConfig, KafkaOptions};

/// Partitions of a topic that we create; a deployment may create them beforehand with more.
const PARTITIONS: i32 = 6;
/// How long an administrative request or a metadata look-up may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long brokers may take to say that they are there.
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// Bounds on what a producer holds before it refuses more.
const PRODUCER_QUEUE_RECORDS: &str = "20000";
const PRODUCER_QUEUE_KBYTES: &str = "65536";
/// Largest record, in bytes: key, headers and value.
pub const MAX_RECORD_BYTES: usize = 1_000_000;
/// What the producer lets pass, with a record's framing: the broker's default `message.max.bytes`
/// is a little above this, and a deployment's must not be below.
const MAX_MESSAGE_BYTES: &str = "1048576";
/// How long a topic that we create keeps its records: 14 days, the longest outage of a consumer
/// that loses nothing.
const RETENTION_MS: &str = "1209600000";

/// Asks the brokers about topics. Clones share the connection.
#[derive(Clone)]
pub struct Topics {
    options: KafkaOptions,
    client: Arc<BaseConsumer>,
}

/// Creates the topics that do not exist yet; losing the race to another process is success.
///
/// # Errors
/// When the brokers cannot be reached or refuse.
pub async fn ensure_topics(options: &KafkaOptions, topics: &[&str]) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = client(options).create()?;
    let names: Vec<String> = topics.iter().map(|topic| options.topic(topic)).collect();
    let wanted: Vec<NewTopic<'_>> = names
        .iter()
        // -1: the broker's own default replication factor.
        .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(-1)))
        .map(|topic| topic.set("retention.ms", RETENTION_MS))
        .collect();
    let limits = AdminOptions::new().operation_timeout(Some(REQUEST_DEADLINE));
    let outcomes = admin
        .create_topics(&wanted, &limits)
        .await
        .with_context(|| format!("create topics at {}", options.kafka_brokers))?;
    for outcome in outcomes {
        match outcome {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => anyhow::bail!("create topic {topic}: {code}"),
        }
    }
    Ok(())
}

/// A producer that keeps the order in which records were sent and repeats none by itself
/// (`enable.idempotence`). Where one fails that others follow, it refuses all others from then on
/// and must be made anew (`enable.gapless.guarantee`, which librdkafka calls experimental). That
/// does not cover a record that timed out: later ones may stand before its next telling.
///
/// # Errors
/// When the configuration is refused.
pub fn producer(options: &KafkaOptions) -> Result<FutureProducer, BadConfig> {
    let producer = producer_config(options)
        .create()
        .context("set up the Kafka producer")?;
    Ok(producer)
}

/// The same for whoever sends by the batch: `context` hears only of records that failed, and the
/// others are through when nothing is in flight any more.
///
/// # Errors
/// When the configuration is refused.
pub fn batch_producer<C: ProducerContext>(
    options: &KafkaOptions,
    context: C,
) -> Result<BaseProducer<C>, BadConfig> {
    let producer = producer_config(options)
        .set("delivery.report.only.error", "true")
        .create_with_context(context)
        .context("set up the Kafka producer")?;
    Ok(producer)
}

fn producer_config(options: &KafkaOptions) -> ClientConfig {
    let mut config = client(options);
    config
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("compression.type", "none")
        .set("message.timeout.ms", "30000")
        .set("message.max.bytes", MAX_MESSAGE_BYTES)
        .set("queue.buffering.max.messages", PRODUCER_QUEUE_RECORDS)
        .set("queue.buffering.max.kbytes", PRODUCER_QUEUE_KBYTES);
    config
}

/// Whether the brokers answer. Blocks its own thread, not the runtime's.
///
/// # Errors
/// When they do not.
pub async fn ping(producer: &FutureProducer) -> anyhow::Result<()> {
    let producer = producer.clone();
    let ask = move || {
        producer
            .client()
            .fetch_metadata(None, Timeout::After(PING_DEADLINE))
            .map(|_| ())
    };
    tokio::task::spawn_blocking(ask)
        .await?
        .context("Kafka does not answer")
}

impl Topics {
    /// Connects when first asked.
    ///
    /// # Errors
    /// When the configuration is refused.
    pub fn new(options: &KafkaOptions) -> Result<Self, BadConfig> {
        let client = client(options).create().context("set up a Kafka client")?;
        Ok(Self {
            options: options.clone(),
            client: Arc::new(client),
        })
    }

    /// Whether the brokers answer. Unlike a producer, this has no thread that looks for news.
    ///
    /// # Errors
    /// When they do not.
    pub async fn ping(&self) -> anyhow::Result<()> {
        let client = Arc::clone(&self.client);
        let ask = move || client.fetch_metadata(None, PING_DEADLINE).map(|_| ());
        tokio::task::spawn_blocking(ask)
            .await?
            .context("Kafka does not answer")
    }

    /// The partitions of `topic`, named without the prefix.
    ///
    /// # Errors
    /// When the brokers do not answer, or do not know the topic yet.
    pub async fn partitions(&self, topic: &str) -> anyhow::Result<Vec<i32>> {
        self.ask(topic, partitions).await
    }

    /// Where each partition of `topic` ends: the offset that its next record will have.
    ///
    /// # Errors
    /// When the brokers do not answer, or do not know the topic yet.
    pub async fn ends(&self, topic: &str) -> anyhow::Result<BTreeMap<i32, i64>> {
        let bounds = self.bounds(topic).await?.into_iter();
        Ok(bounds
            .map(|(partition, bounds)| (partition, bounds.end))
            .collect())
    }

    /// The offsets that each partition of `topic` holds: from the oldest record that is kept to
    /// before the next one.
    ///
    /// # Errors
    /// When the brokers do not answer, or do not know the topic yet.
    pub async fn bounds(&self, topic: &str) -> anyhow::Result<BTreeMap<i32, Range<i64>>> {
        let all = |client: &BaseConsumer, name: &str| -> anyhow::Result<BTreeMap<_, _>> {
            let bounds = |partition| {
                let (start, end) = client.fetch_watermarks(name, partition, REQUEST_DEADLINE)?;
                anyhow::Ok((partition, start..end))
            };
            partitions(client, name)?.into_iter().map(bounds).collect()
        };
        self.ask(topic, all).await
    }

    /// Asks on a thread where the client may block.
    async fn ask<T: Send + 'static>(
        &self,
        topic: &str,
        question: impl FnOnce(&BaseConsumer, &str) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (client, name) = (Arc::clone(&self.client), self.options.topic(topic));
        let ask = move || question(&client, &name).with_context(|| format!("look up topic {name}"));
        tokio::task::spawn_blocking(ask).await?
    }
}

fn partitions(client: &BaseConsumer, name: &str) -> anyhow::Result<Vec<i32>> {
    let metadata = client.fetch_metadata(Some(name), REQUEST_DEADLINE)?;
    let found = metadata
        .topics()
        .first()
        .map_or(&[][..], |topic| topic.partitions());
    // A topic that is being created is known before its partitions are.
    anyhow::ensure!(!found.is_empty(), "it has no partitions yet");
    Ok(found.iter().map(MetadataPartition::id).collect())
}

pub(crate) fn client(options: &KafkaOptions) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.kafka_brokers)
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "1000");
    config
}
