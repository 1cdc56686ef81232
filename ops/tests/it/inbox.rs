//! Every event has its effect once: repeated by producers, cut off in the middle, consumed by two
//! at once, and among records that cannot be understood.

use std::time::Duration;

use deadpool_postgres::Transaction;
use ops::admin::Flag;
use ops::config::KafkaOptions;
use ops::inbox::{Consumer, Event, Handler, Poison};
use ops::outbox::{Message, Publisher, append_all};
use ops::postgres::Pool;
use ops::testing::{eventually, kafka};
use rdkafka::producer::FutureRecord;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::outbox::{TOPIC, message};
use crate::{DEADLINE, count, database};

const TOPICS: &[&str] = &[TOPIC];
/// How many records the consumer is past.
const TAKEN_IN: &str = "SELECT coalesce(sum(next_offset), 0)::bigint FROM probe.inbox_offsets";

/// Writes each value to a table that would show a repetition, and refuses what says so.
struct Write;

impl Handler for Write {
    type Item = String;

    fn decode(&self, event: &Event) -> Result<Option<String>, Poison> {
        let text = String::from_utf8(event.value.clone())
            .map_err(|error| Poison(format!("the value is no text: {error}")))?;
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

fn start(pool: &Pool, kafka: &KafkaOptions, stop: &CancellationToken) -> JoinHandle<()> {
    let consumer = Consumer {
        pool: pool.clone(),
        schema: "probe",
        name: "writer",
        kafka: kafka.clone(),
        topics: TOPICS,
        handler: Write,
        ready: Flag::default(),
    };
    let running = consumer.run(stop.clone());
    tokio::spawn(async move { running.await.unwrap() })
}

async fn setup() -> (ops::testing::TestDatabase, Pool, KafkaOptions) {
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

async fn reaches(pool: &Pool, sql: &str, wanted: i64) {
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
        with_value(6, b"fine too"),
    ];
    send(&pool, &options, &odd).await;
    let stop = CancellationToken::new();
    let running = start(&pool, &options, &stop);
    reaches(&pool, TAKEN_IN, 7).await;
    assert_eq!(count(&pool, "SELECT count(*) FROM probe.effects").await, 2);
    let client = pool.get().await.unwrap();
    let sql = "SELECT reason FROM probe.dead_letters ORDER BY record_offset";
    let rows = client.query(sql, &[]).await.unwrap();
    let reasons: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    assert!(
        reasons[0].contains("header ce_specversion is missing"),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("the value is no text"), "{reasons:?}");
    assert!(reasons[2].contains("effects_what_check"), "{reasons:?}");
    assert!(
        reasons[3].contains("refused by the database"),
        "{reasons:?}"
    );
    stop.cancel();
    running.await.unwrap();
}
