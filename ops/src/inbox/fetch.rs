//! The Kafka side of the inbox: a `BaseConsumer` on a thread of its own (rust-rdkafka#638: the
//! stream consumer may stop waking), partitions assigned by hand at the offsets Postgres names,
//! and a bounded channel that makes a slow database slow the fetching, not fill the memory.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::{BorrowedMessage, Headers as _, Message as _},
    types::RDKafkaErrorCode,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Offsets, Place, Record};
use crate::{config::KafkaOptions, kafka};

/// Records fetched ahead of the database.
const PREFETCH: usize = 2_000;
/// What librdkafka itself may hold, in records a partition and KiB.
const QUEUED_RECORDS: &str = "2000";
const QUEUED_KBYTES: &str = "16384";
/// How long the thread waits for a record before it looks whether it should end.
const POLL: Duration = Duration::from_millis(100);

/// The partitions of `topics` as the brokers know them.
pub(super) async fn partitions(
    options: &KafkaOptions,
    topics: &'static [&'static str],
) -> anyhow::Result<Vec<Place>> {
    let known = kafka::Topics::new(options)?;
    let mut places = Vec::new();
    for &topic in topics {
        let found = known.partitions(topic).await?.into_iter();
        places.extend(found.map(|partition| Place { topic, partition }));
    }
    Ok(places)
}

/// Starts fetching at `offsets`; the thread ends when `over` is cancelled, the receiver is gone,
/// or Kafka reports something that only a person can mend, which is the last thing received.
pub(super) fn start(
    options: &KafkaOptions,
    name: &str,
    offsets: &Offsets,
    over: CancellationToken,
) -> anyhow::Result<mpsc::Receiver<anyhow::Result<Record>>> {
    let consumer: BaseConsumer = kafka::client(options)
        // Names us to the broker's operators; membership and commits are not used.
        .set("group.id", name)
        .set("client.id", name)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("queued.min.messages", QUEUED_RECORDS)
        .set("queued.max.messages.kbytes", QUEUED_KBYTES)
        .set("fetch.wait.max.ms", "100")
        .create()
        .context("set up the Kafka consumer")?;
    let mut assignment = TopicPartitionList::new();
    let mut topics = BTreeMap::new();
    for (place, offset) in offsets {
        let topic = options.topic(place.topic);
        assignment.add_partition_offset(&topic, place.partition, Offset::Offset(*offset))?;
        topics.insert(topic, place.topic);
    }
    consumer.assign(&assignment).context("assign partitions")?;
    let (sender, receiver) = mpsc::channel(PREFETCH);
    std::thread::Builder::new()
        .name(format!("inbox {name}"))
        .spawn(move || fetch(&consumer, &topics, &sender, &over))
        .context("start the fetching thread")?;
    Ok(receiver)
}

fn fetch(
    consumer: &BaseConsumer,
    topics: &BTreeMap<String, &'static str>,
    sender: &mpsc::Sender<anyhow::Result<Record>>,
    over: &CancellationToken,
) {
    let mut troubled = false;
    while !over.is_cancelled() {
        let fetched = match consumer.poll(POLL) {
            None => continue,
            Some(Ok(message)) => {
                troubled = false;
                Ok(record(&message, topics))
            }
            Some(Err(error)) if is_fatal(&error) => Err(anyhow::Error::from(error).context(
                "Kafka no longer has the next offset that Postgres names: was the topic made \
                 anew, or did its retention pass an outage of ours?",
            )),
            Some(Err(error)) => {
                if !std::mem::replace(&mut troubled, true) {
                    tracing::warn!(%error, "Kafka trouble, waiting it out");
                }
                continue;
            }
        };
        let last = fetched.is_err();
        if sender.blocking_send(fetched).is_err() || last {
            return;
        }
    }
}

/// Whether waiting cannot help: the offset to read from does not exist.
fn is_fatal(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::Fatal
        )
    )
}

fn record(message: &BorrowedMessage<'_>, topics: &BTreeMap<String, &'static str>) -> Record {
    let topic = topics
        .get(message.topic())
        .expect("only assigned topics are fetched");
    let headers = message.headers().map_or_else(BTreeMap::new, |headers| {
        let text = |value: Option<&[u8]>| {
            value
                .and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
                .unwrap_or_default()
        };
        headers
            .iter()
            .map(|header| (header.key.to_owned(), text(header.value)))
            .collect()
    });
    Record {
        place: Place {
            topic,
            partition: message.partition(),
        },
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        headers,
        value: message.payload().map(<[u8]>::to_vec),
    }
}
