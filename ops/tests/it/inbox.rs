//! Every event has its effect once: repeated by producers, cut off in the middle, consumed by two
//! at once, and among records that cannot be understood.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::Transaction;
use ops::admin::Flag;
use ops::config::KafkaOptions;
use ops::inbox::{Consumer, Event, Handler, Handling, Poison, letters};
use ops::outbox::{Message, Publisher, append_all};
use ops::postgres::Pool;
use ops::testing::{eventually, kafka};
use rdkafka::producer::FutureRecord;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::outbox::{TOPIC, message};
use crate::{DEADLINE, count, database, wire};

pub(crate) const TOPICS: &[&str] = &[TOPIC];
/// How many records the consumer is past.
const TAKEN_IN: &str = "SELECT coalesce(sum(next_offset), 0)::bigint FROM probe.inbox_offsets";

/// Writes each value to a table that would show a repetition, and refuses what says so.
pub(crate) struct Write;

impl Handler for Write {
    type Item = String;

    fn decode(&self, event: &Event) -> Result<Option<String>, Poison> {
        let text = String::from_utf8(event.value.clone())
            .map_err(|error| Poison(format!("the value is no text: {error}")))?;
        if text == "at length" {
            return Err(Poison(text.repeat(1_000)));
        }
        Ok((text != "of no concern").then_some(text))
    }

    async fn apply(&self, transaction: &Transaction<'_>, items: &[String]) -> anyhow::Result<()> {
        for item in items {
            let sql = "INSERT INTO probe.effects (what) VALUES ($1)";
            transaction.execute(sql, &[item]).await?;
        }
        Ok(())
    }
}

/// Keeps the largest number of bytes that it was given at a time, and takes its time.
#[derive(Clone, Default)]
struct Slow(Arc<AtomicUsize>);

impl Handler for Slow {
    type Item = usize;

    fn decode(&self, event: &Event) -> Result<Option<usize>, Poison> {
        Ok(Some(event.value.len()))
    }

    async fn apply(&self, transaction: &Transaction<'_>, items: &[usize]) -> anyhow::Result<()> {
        self.0.fetch_max(items.iter().sum(), Ordering::SeqCst);
        transaction.execute("SELECT pg_sleep(0.3)", &[]).await?;
        Ok(())
    }
}

fn start(pool: &Pool, kafka: &KafkaOptions, stop: &CancellationToken) -> JoinHandle<()> {
    let consumer = Consumer {
        pool: pool.clone(),
        schema: "probe",
        kafka: kafka.clone(),
        handling: Handling {
            name: "writer",
            topics: TOPICS,
            handler: Write,
        },
        ready: Flag::default(),
    };
    let running = consumer.run(stop.clone());
    tokio::spawn(async move { running.await.unwrap() })
}

pub(crate) async fn setup() -> (ops::testing::TestDatabase, Pool, KafkaOptions) {
    let (database, pool) = database().await;
    let sql = "CREATE TABLE probe.effects (what text CHECK (what <> 'forbidden'))";
    pool.get().await.unwrap().batch_execute(sql).await.unwrap();
    let options = kafka();
    ops::kafka::ensure_topics(&options, TOPICS).await.unwrap();
    (database, pool, options)
}

/// Sends messages through a real outbox.
async fn send(pool: &Pool, options: &KafkaOptions, messages: &[Message]) {
    let client = pool.get().await.unwrap();
    append_all(&client, "probe", messages).await.unwrap();
    let stop = CancellationToken::new();
    let publisher = Publisher::new(pool.clone(), "probe", options.clone());
    let running = tokio::spawn(publisher.run(stop.clone()));
    eventually("sent", DEADLINE, || async {
        let sql = "SELECT count(*) FROM probe.outbox WHERE published_at IS NULL";
        (count(pool, sql).await == 0).then_some(())
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

pub(crate) async fn reaches(pool: &Pool, sql: &str, wanted: i64) {
    eventually(sql, DEADLINE, || async {
        (count(pool, sql).await >= wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_cut_off_anywhere_repeat_nothing_and_skip_nothing() {
    const EVENTS: usize = 2_000;
    let (_database, pool, options) = setup().await;
    let messages: Vec<Message> = (0..EVENTS)
        .map(|number| message(&format!("key{}", number % 7), number))
        .collect();
    send(&pool, &options, &messages[..EVENTS / 2]).await;
    let stop = CancellationToken::new();
    let mut running = [start(&pool, &options, &stop), start(&pool, &options, &stop)];
    for round in 0..3 {
        let wanted = count(&pool, "SELECT count(*) FROM probe.effects").await + 1;
        if wanted <= i64::try_from(EVENTS / 2).unwrap() {
            reaches(&pool, "SELECT count(*) FROM probe.effects", wanted).await;
        }
        running[round % 2].abort();
        running[round % 2] = start(&pool, &options, &stop);
    }
    // The first half is told once more, as a producer that lost its acknowledgements would.
    send(&pool, &options, &messages).await;
    let all = i64::try_from(EVENTS).unwrap();
    reaches(&pool, "SELECT count(*) FROM probe.effects", all).await;
    let records = all + all / 2;
    reaches(&pool, TAKEN_IN, records).await;
    assert_eq!(
        count(&pool, "SELECT count(*) FROM probe.effects").await,
        all
    );
    assert_eq!(
        count(&pool, "SELECT count(DISTINCT what) FROM probe.effects").await,
        all
    );
    assert_eq!(
        count(&pool, "SELECT count(*) FROM probe.dead_letters").await,
        0
    );
    stop.cancel();
    for task in running {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_buried_with_its_reason_and_the_partition_moves_on() {
    let (_database, pool, options) = setup().await;
    let producer = ops::kafka::producer(&options).unwrap();
    let topic = options.topic(TOPIC);
    // No CloudEvents headers at all.
    let bare: FutureRecord<'_, str, str> = FutureRecord::to(&topic).key("k").payload("hello");
    producer.send(bare, Duration::from_secs(10)).await.unwrap();
    let with_value = |number: usize, value: &[u8]| Message {
        value: value.to_vec(),
        ..message("k", number)
    };
    let odd = [
        with_value(1, b"fine"),
        with_value(2, &[0xff, 0xfe]),
        with_value(3, b"forbidden"),
        with_value(4, b"nul \0 byte"),
        with_value(5, b"of no concern"),
        with_value(6, b"at length"),
        with_value(7, b"fine too"),
    ];
    send(&pool, &options, &odd).await;
    let stop = CancellationToken::new();
    let running = start(&pool, &options, &stop);
    // The name of its header is not UTF-8, at which rdkafka panics.
    wire::produce(&options, TOPIC, (&[0xff, b'h'], b"value"), b"wire").await;
    reaches(&pool, TAKEN_IN, 9).await;
    assert_eq!(count(&pool, "SELECT count(*) FROM probe.effects").await, 2);
    let client = pool.get().await.unwrap();
    let sql = "SELECT reason FROM probe.dead_letters ORDER BY value = 'wire', record_offset";
    let rows = client.query(sql, &[]).await.unwrap();
    let reasons: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let wanted = [
        "header ce_specversion is missing",
        "the value is no text",
        "effects_what_check",
        "refused by the database",
        "at length",
        "the name of header 1 is not UTF-8",
    ];
    assert_eq!(reasons.len(), wanted.len(), "{reasons:?}");
    for (reason, wanted) in reasons.iter().zip(wanted) {
        assert!(reason.contains(wanted), "{reasons:?}");
        assert!(reason.chars().count() <= 500, "{reason}");
        // Postgres' DETAIL, which repeats the row.
        assert!(!reason.contains("Failing row"), "{reason}");
    }
    stop.cancel();
    running.await.unwrap();

    // Told again from the beginning, each still lies there once.
    let again = "UPDATE probe.inbox_offsets SET next_offset = 0";
    client.execute(again, &[]).await.unwrap();
    let stop = CancellationToken::new();
    let running = start(&pool, &options, &stop);
    reaches(&pool, TAKEN_IN, 9).await;
    let letters = "SELECT count(*) FROM probe.dead_letters";
    assert_eq!(count(&pool, letters).await, 6);
    stop.cancel();
    running.await.unwrap();
}

/// More than a producer holds passes the outbox, and a slow database holds up the fetching before
/// much of it is in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_records_are_bounded_by_bytes_on_both_ways() {
    const RECORDS: usize = 80;
    const BYTES: usize = 900_000;
    const MOST: usize = 16 * 1024 * 1024;
    let (_database, pool, options) = setup().await;
    let large = |number| Message {
        value: vec![b'x'; BYTES],
        ..message("k", number)
    };
    let messages: Vec<Message> = (0..RECORDS).map(large).collect();
    send(&pool, &options, &messages).await;
    let (stop, handler) = (CancellationToken::new(), Slow::default());
    let largest = Arc::clone(&handler.0);
    let consumer = Consumer {
        pool: pool.clone(),
        schema: "probe",
        kafka: options.clone(),
        handling: Handling {
            name: "slow",
            topics: TOPICS,
            handler,
        },
        ready: Flag::default(),
    };
    let running = tokio::spawn(consumer.run(stop.clone()));
    reaches(&pool, TAKEN_IN, i64::try_from(RECORDS).unwrap()).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    let largest = largest.load(Ordering::SeqCst);
    assert!((BYTES..=MOST).contains(&largest), "{largest} at a time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_listed_and_handed_in_again_once_their_cause_is_gone() {
    let (_database, pool, options) = setup().await;
    let with_value = |number: usize, value: &[u8]| Message {
        value: value.to_vec(),
        ..message("k", number)
    };
    let odd = [
        with_value(1, b"forbidden"),
        with_value(2, &[0xff]),
        with_value(3, b"forbidden"),
    ];
    send(&pool, &options, &odd).await;
    let stop = CancellationToken::new();
    let running = start(&pool, &options, &stop);
    reaches(&pool, TAKEN_IN, 3).await;
    stop.cancel();
    running.await.unwrap();
    let table = letters::list(&pool, "probe").await.unwrap();
    assert_eq!(table.lines().count(), 1 + 3, "{table}");
    assert!(table.contains("effects_what_check"), "{table}");

    let handlings = [Handling {
        name: "writer",
        topics: TOPICS,
        handler: Write,
    }];
    let replay = |ids| letters::replay(&pool, "probe", &handlings, ids);
    let sql = "SELECT id FROM probe.dead_letters ORDER BY record_offset";
    let rows = pool.get().await.unwrap().query(sql, &[]).await.unwrap();
    let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    let (one, nobodys) = (ids[0], 999);
    let some = [one, nobodys];
    let refused = replay(Some(&some)).await.unwrap();
    assert_eq!((refused.kept[0].0, refused.missing), (one, vec![nobodys]));
    let sql = "ALTER TABLE probe.effects DROP CONSTRAINT effects_what_check";
    pool.get().await.unwrap().batch_execute(sql).await.unwrap();
    let replayed = replay(None).await.unwrap();
    assert_eq!(replayed.taken, [ids[0], ids[2]]);
    assert!(replayed.kept[0].1.contains("no text"), "{replayed:?}");
    let left = "SELECT count(*) FROM probe.dead_letters WHERE reason LIKE '%no text%'";
    assert_eq!(count(&pool, left).await, 1);
    assert_eq!(count(&pool, "SELECT count(*) FROM probe.effects").await, 2);
    // Its identity is known now: a repetition has no effect.
    send(&pool, &options, &odd[..1]).await;
    let stop = CancellationToken::new();
    let running = start(&pool, &options, &stop);
    reaches(&pool, TAKEN_IN, 4).await;
    assert_eq!(count(&pool, "SELECT count(*) FROM probe.effects").await, 2);
    stop.cancel();
    running.await.unwrap();
}
