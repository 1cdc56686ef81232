//! The Kafka side of the inbox: a `BaseConsumer` on a thread of its own (rust-rdkafka#638: the
//! stream consumer may stop waking), partitions assigned by hand at the offsets Postgres names,
//! and a bounded channel that makes a slow database slow the fetching, not fill the memory.

use std::{
    cell::Cell,
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Once},
    time::Duration,
};

use anyhow::Context as _;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::{BorrowedHeaders, BorrowedMessage, Header, Headers as _, Message as _},
    types::RDKafkaErrorCode,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

use super::{Offsets, Place, Poison, Record};
use crate::{config::KafkaOptions, kafka};

/// Records fetched ahead of the database, those that it works on included: how many, and how many
/// bytes.
const PREFETCH: usize = 2_000;
const PREFETCH_BYTES: u32 = 16 * 1024 * 1024;
/// What a record takes besides its bytes.
const RECORD_BYTES: usize = 256;
/// What librdkafka itself may hold: records a partition, KiB in all, and bytes on their way.
const QUEUED_RECORDS: &str = "2000";
const QUEUED_KBYTES: &str = "16384";
const FETCH_BYTES: &str = "8388608";
/// How long librdkafka waits before it fetches again for a queue that was full.
const FULL_PAUSE_MS: &str = "50";
/// How long the thread waits for a record before it looks whether it should end.
const POLL: Duration = Duration::from_millis(100);

/// A record with the room that it takes up until it is dropped.
pub(super) type Fetched = (Record, OwnedSemaphorePermit);

thread_local! {
    /// Whether this thread reads a header, and panics quietly.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Starts fetching at `offsets`; the thread ends when `over` is cancelled, the receiver is gone,
/// or Kafka reports something that only a person can mend, which is the last thing received.
pub(super) fn start(
    options: &KafkaOptions,
    name: &str,
    offsets: &Offsets,
    over: CancellationToken,
) -> anyhow::Result<mpsc::Receiver<anyhow::Result<Fetched>>> {
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
        .set("fetch.max.bytes", FETCH_BYTES)
        .set("fetch.queue.backoff.ms", FULL_PAUSE_MS)
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
    let runtime = Handle::current();
    std::thread::Builder::new()
        .name(format!("inbox {name}"))
        .spawn(move || fetch(&consumer, &topics, &sender, &over, &runtime))
        .context("start the fetching thread")?;
    Ok(receiver)
}

fn fetch(
    consumer: &BaseConsumer,
    topics: &BTreeMap<String, &'static str>,
    sender: &mpsc::Sender<anyhow::Result<Fetched>>,
    over: &CancellationToken,
    runtime: &Handle,
) {
    let room = Arc::new(Semaphore::new(PREFETCH_BYTES as usize));
    let mut troubled = false;
    while !over.is_cancelled() {
        let fetched = match consumer.poll(POLL) {
            None => continue,
            Some(Ok(message)) => {
                troubled = false;
                let record = record(&message, topics);
                let wanted = room.clone().acquire_many_owned(bytes(&record));
                let Some(Ok(taken)) = runtime.block_on(over.run_until_cancelled(wanted)) else {
                    return;
                };
                Ok((record, taken))
            }
            Some(Err(error)) if is_fatal(&error) => Err(anyhow::Error::from(error)
                .context("Kafka does not have the next offset that Postgres names")),
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
    let (mut headers, mut flaw) = (BTreeMap::new(), None);
    if let Some(found) = message.headers() {
        for index in 0..found.count() {
            if let Some(Header { key, value }) = header(found, index) {
                let text = value.and_then(|bytes| str::from_utf8(bytes).ok());
                headers.insert(key.to_owned(), text.unwrap_or_default().to_owned());
            } else {
                let number = index + 1;
                flaw = Some(Poison(format!("the name of header {number} is not UTF-8")));
            }
        }
    }
    Record {
        place: Place {
            topic,
            partition: message.partition(),
        },
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        headers,
        value: message.payload().map(<[u8]>::to_vec),
        flaw,
    }
}

/// A header, or `None` if its name is not UTF-8: at such a one rdkafka panics, which must not end
/// the thread, nor frighten the log's reader.
fn header(headers: &BorrowedHeaders, index: usize) -> Option<Header<'_, &[u8]>> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                usual(panic);
            }
        }));
    });
    QUIET.set(true);
    let read = panic::catch_unwind(AssertUnwindSafe(|| headers.get(index)));
    QUIET.set(false);
    read.ok()
}

/// The room that a record takes up; one that is larger than all of it takes all.
fn bytes(record: &Record) -> u32 {
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, text)| name.len() + text.len())
        .sum();
    let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let all = headers + length(&record.key) + length(&record.value) + RECORD_BYTES;
    u32::try_from(all).map_or(PREFETCH_BYTES, |all| all.min(PREFETCH_BYTES))
}
