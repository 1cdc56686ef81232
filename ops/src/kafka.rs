//! Kafka as everyone here uses it: bounded, acknowledged by all, ordered without gaps.

use std::time::Duration;

use anyhow::Context as _;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    error::RDKafkaErrorCode,
    producer::{FutureProducer, Producer as _},
    util::Timeout,
};

use crate::config::KafkaOptions;

/// Partitions of a topic that we create; a deployment may create them beforehand with more.
const PARTITIONS: i32 = 6;
/// How long an administrative request or a metadata look-up may take.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Bounds on what a producer holds before it refuses more.
const PRODUCER_QUEUE_RECORDS: &str = "20000";
const PRODUCER_QUEUE_KBYTES: &str = "65536";
/// Largest record, in bytes; the broker's default.
pub const MAX_RECORD_BYTES: usize = 1_000_000;

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

/// A producer whose records arrive in the order sent, each once, or not at all from the first
/// failure on (`enable.gapless.guarantee`): after a fatal error it must be made anew.
///
/// # Errors
/// When the configuration is refused.
pub fn producer(options: &KafkaOptions) -> anyhow::Result<FutureProducer> {
    client(options)
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("compression.type", "none")
        .set("message.timeout.ms", "30000")
        .set("queue.buffering.max.messages", PRODUCER_QUEUE_RECORDS)
        .set("queue.buffering.max.kbytes", PRODUCER_QUEUE_KBYTES)
        .create()
        .context("set up the Kafka producer")
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
            .fetch_metadata(None, Timeout::After(Duration::from_secs(2)))
            .map(|_| ())
    };
    tokio::task::spawn_blocking(ask)
        .await?
        .context("Kafka does not answer")
}

pub(crate) fn client(options: &KafkaOptions) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.kafka_brokers)
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "1000");
    config
}
