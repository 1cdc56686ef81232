//! Every appended event reaches Kafka, in its key's order, whatever is cut off and when.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ops::config::KafkaOptions;
use ops::kafka::{MAX_RECORD_BYTES, Topics};
use ops::outbox::{AppendError, Message, Publisher, append, append_all};
use ops::postgres::Pool;
use ops::testing::{eventually, kafka, records::from_the_start};
use rdkafka::message::{Headers as _, Message as _};
use tokio_util::sync::CancellationToken;

use crate::{DEADLINE, count, database, stall::Stall};

pub(crate) const TOPIC: &str = "probe.v1";

/// Event `number` of key `key`; its identity is what happened.
pub(crate) fn message(key: &str, number: usize) -> Message {
    Message {
        topic: TOPIC,
        key: key.as_bytes().to_vec(),
        source: "/probe".to_owned(),
        id: format!("{key}-{number}"),
        kind: "probe.happened",
        time: "2026-11-21T00:00:00Z".parse().unwrap(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        value: format!("{key} {number}").into_bytes(),
    }
}

/// Everything that stands in the topic, as `(key, id)`, each key's in order.
pub(crate) async fn everything(options: &KafkaOptions) -> Vec<(String, String)> {
    let ends = Topics::new(options).unwrap().ends(TOPIC).await.unwrap();
    let all = usize::try_from(ends.values().sum::<i64>()).unwrap();
    let consumer = from_the_start(options, TOPIC).await;
    let (mut found, started) = (Vec::new(), Instant::now());
    while found.len() < all {
        assert!(
            started.elapsed() < DEADLINE,
            "{} records, not {all}",
            found.len()
        );
        // `None` may also be an event that is no record (rust-rdkafka#644).
        let Some(record) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let record = record.unwrap();
        let mut headers = record.headers().unwrap().iter();
        let id = headers.find(|header| header.key == "ce_id").unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        found.push((text(record.key().unwrap()), text(id.value.unwrap())));
    }
    found
}

async fn published(pool: &Pool) {
    eventually("the outbox is empty", DEADLINE, || async {
        let sql = "SELECT count(*) FROM probe.outbox WHERE published_at IS NULL";
        (count(pool, sql).await == 0).then_some(())
    })
    .await;
}

/// First tellings by key, in order; a repeated telling is no new one.
fn first_tellings(found: &[(String, String)]) -> BTreeMap<String, Vec<String>> {
    let mut tellings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, id) in found {
        let told = tellings.entry(key.clone()).or_default();
        if !told.contains(id) {
            told.push(id.clone());
        }
    }
    tellings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slower_transaction_with_a_smaller_id_is_not_forgotten() {
    let (_database, pool) = database().await;
    let options = kafka();
    ops::kafka::ensure_topics(&options, &[TOPIC]).await.unwrap();
    let stop = CancellationToken::new();
    let publisher = Publisher::new(pool.clone(), "probe", options.clone());
    let running = tokio::spawn(publisher.run(stop.clone()));

    let mut slow = pool.get().await.unwrap();
    let slow = slow.transaction().await.unwrap();
    append(&slow, "probe", &message("slow", 1)).await.unwrap();
    let quick = pool.get().await.unwrap();
    append(&quick, "probe", &message("quick", 1)).await.unwrap();
    published(&pool).await;
    slow.commit().await.unwrap();
    published(&pool).await;

    stop.cancel();
    running.await.unwrap().unwrap();
    let mut found = everything(&options).await;
    found.sort();
    let pair = |key: &str| (key.to_owned(), format!("{key}-1"));
    assert_eq!(found, [pair("quick"), pair("slow")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_cut_off_anywhere_lose_nothing_and_keep_each_keys_order() {
    const KEYS: usize = 5;
    const EVENTS: usize = 300;
    let (_database, pool) = database().await;
    let options = kafka();
    ops::kafka::ensure_topics(&options, &[TOPIC]).await.unwrap();
    let writer = {
        let pool = pool.clone();
        tokio::spawn(async move {
            for number in 0..EVENTS {
                let client = pool.get().await.unwrap();
                let all = (0..KEYS).map(|key| message(&format!("key{key}"), number));
                let all: Vec<Message> = all.collect();
                append_all(&client, "probe", &all).await.unwrap();
            }
        })
    };
    // Two publishers at all times; one after the other is dropped at an arbitrary await point.
    let start = || {
        let publisher = Publisher::new(pool.clone(), "probe", options.clone());
        tokio::spawn(publisher.run(CancellationToken::new()))
    };
    let mut running = [start(), start()];
    for round in 0..4_u64 {
        let so_far = count(
            &pool,
            "SELECT count(*) FROM probe.outbox WHERE published_at > '-infinity'",
        );
        let before = so_far.await;
        let stuck = || async {
            let sql = "SELECT count(*) FROM probe.outbox WHERE published_at > '-infinity'";
            let now = count(&pool, sql).await;
            (now > before || writer.is_finished()).then_some(())
        };
        eventually("some progress", DEADLINE, stuck).await;
        let victim = &mut running[usize::try_from(round).unwrap() % 2];
        victim.abort();
        *victim = start();
    }
    writer.await.unwrap();
    published(&pool).await;
    for task in &running {
        task.abort();
    }
    let tellings = first_tellings(&everything(&options).await);
    assert_eq!(tellings.len(), KEYS);
    for (key, told) in tellings {
        let wanted: Vec<String> = (0..EVENTS)
            .map(|number| format!("{key}-{number}"))
            .collect();
        assert_eq!(told, wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_the_producer_refuses_has_nothing_before_it_sent_twice() {
    let (_database, pool) = database().await;
    let options = kafka();
    ops::kafka::ensure_topics(&options, &[TOPIC]).await.unwrap();
    let client = pool.get().await.unwrap();
    let before: Vec<Message> = (0..3).map(|number| message("k", number)).collect();
    append_all(&client, "probe", &before).await.unwrap();
    // Past the check of `append`, as by a release that had a larger limit.
    let sql = "INSERT INTO probe.outbox (topic, key, ce_source, ce_id, ce_type, ce_time, value)\n\
               VALUES ($1, 'k', '/probe', 'huge', 'huge', now(),\n    \
               convert_to(repeat('x', 2000000), 'UTF8'))";
    client.execute(sql, &[&TOPIC]).await.unwrap();
    append(&client, "probe", &message("k", 4)).await.unwrap();
    let stop = CancellationToken::new();
    let running =
        tokio::spawn(Publisher::new(pool.clone(), "probe", options.clone()).run(stop.clone()));
    eventually("what stands before is marked", DEADLINE, || async {
        let sql = "SELECT count(*) FROM probe.outbox WHERE published_at IS NOT NULL";
        (count(&pool, sql).await == 3).then_some(())
    })
    .await;
    let sql = "DELETE FROM probe.outbox WHERE ce_id = 'huge'";
    client.execute(sql, &[]).await.unwrap();
    published(&pool).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    let pair = |number: usize| ("k".to_owned(), format!("k-{number}"));
    assert_eq!(everything(&options).await, [0, 1, 2, 4].map(pair));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_would_refuse_is_not_appended_and_the_largest_that_is_leaves() {
    let (_database, pool) = database().await;
    let options = kafka();
    ops::kafka::ensure_topics(&options, &[TOPIC]).await.unwrap();
    let client = pool.get().await.unwrap();
    let of = |bytes: usize| Message {
        value: vec![b'x'; bytes],
        ..message("k", 1)
    };
    let refused = append(&client, "probe", &of(MAX_RECORD_BYTES)).await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(&refused, AppendError::TooLarge { id, .. } if id == "k-1"),
        "{refused}"
    );
    append(&client, "probe", &of(MAX_RECORD_BYTES - 500))
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let running =
        tokio::spawn(Publisher::new(pool.clone(), "probe", options.clone()).run(stop.clone()));
    published(&pool).await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_hang_hold_up_the_publisher_only_for_a_while() {
    let (database, pool) = database().await;
    let options = kafka();
    ops::kafka::ensure_topics(&options, &[TOPIC]).await.unwrap();
    let stall = Stall::before(&database).await;
    let stop = CancellationToken::new();
    let publisher = Publisher::new(stall.pool(), "probe", options.clone());
    let running = tokio::spawn(publisher.run(stop.clone()));
    let client = pool.get().await.unwrap();
    append(&client, "probe", &message("k", 1)).await.unwrap();
    published(&pool).await;
    stall.freeze();
    append(&client, "probe", &message("k", 2)).await.unwrap();
    published(&pool).await;
    stop.cancel();
    running.await.unwrap().unwrap();
}
