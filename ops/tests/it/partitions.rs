//! Partitions as they come and go: added later, expired at their beginning, expired past what was
//! taken in.

use std::time::Duration;

use ops::{
    admin::Flag,
    config::KafkaOptions,
    inbox::{Consumer, Handling},
    postgres::Pool,
    testing::eventually,
};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    config::ClientConfig,
    message::{Header, OwnedHeaders},
    producer::FutureRecord,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    DEADLINE, count,
    inbox::{TOPICS, Write, reaches, setup},
    outbox::TOPIC,
};

const EFFECTS: &str = "SELECT count(*) FROM probe.effects";

fn admin(options: &KafkaOptions) -> AdminClient<DefaultClientContext> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &options.kafka_brokers);
    config.create().unwrap()
}

/// Puts events `numbers` on one partition.
async fn put(options: &KafkaOptions, partition: i32, numbers: std::ops::Range<usize>) {
    let producer = ops::kafka::producer(options).unwrap();
    let topic = options.topic(TOPIC);
    for number in numbers {
        let text = format!("{partition}-{number}");
        let headers = [
            ("ce_specversion", "1.0"),
            ("ce_source", "/probe"),
            ("ce_id", &text),
            ("ce_type", "probe.happened"),
            ("ce_time", "2026-11-21T00:00:00Z"),
        ];
        let add = |all: OwnedHeaders, (key, value): (&str, &str)| {
            all.insert(Header {
                key,
                value: Some(value),
            })
        };
        let record = FutureRecord::<str, str>::to(&topic)
            .partition(partition)
            .payload(&text)
            .headers(headers.into_iter().fold(OwnedHeaders::new(), add));
        producer
            .send(record, Duration::from_secs(10))
            .await
            .unwrap();
    }
}

/// As retention does: partition 0 no longer has what stands before `offset`.
async fn expire(options: &KafkaOptions, offset: i64) {
    let mut places = TopicPartitionList::new();
    let topic = options.topic(TOPIC);
    places
        .add_partition_offset(&topic, 0, Offset::Offset(offset))
        .unwrap();
    let deleted = admin(options).delete_records(&places, &AdminOptions::new());
    deleted.await.unwrap();
}

struct Started {
    ready: Flag,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Started {
    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn start(pool: &Pool, options: &KafkaOptions) -> Started {
    let (ready, stop) = (Flag::default(), CancellationToken::new());
    let consumer = Consumer {
        pool: pool.clone(),
        schema: "probe",
        kafka: options.clone(),
        handling: Handling {
            name: "writer",
            topics: TOPICS,
            handler: Write,
        },
        ready: ready.clone(),
    };
    let running = tokio::spawn(consumer.run(stop.clone()));
    Started {
        ready,
        stop,
        running,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_are_read_from_their_beginning() {
    let (_database, pool, options) = setup().await;
    put(&options, 0, 0..1).await;
    let started = start(&pool, &options);
    reaches(&pool, EFFECTS, 1).await;
    let topic = options.topic(TOPIC);
    let more = [NewPartitions::new(&topic, 8)];
    let grown = admin(&options).create_partitions(&more, &AdminOptions::new());
    grown.await.unwrap()[0].as_ref().unwrap();
    put(&options, 7, 0..2).await;
    put(&options, 0, 1..2).await;
    reaches(&pool, EFFECTS, 4).await;
    started.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_beginning_is_passed_over_but_never_a_record_that_was_next() {
    let (_database, pool, options) = setup().await;
    put(&options, 0, 0..5).await;
    expire(&options, 3).await;
    let started = start(&pool, &options);
    reaches(&pool, EFFECTS, 2).await;
    started.end().await;
    put(&options, 0, 5..8).await;
    expire(&options, 7).await;
    let started = start(&pool, &options);
    let until_ready = eventually("ready", DEADLINE, || async {
        started.ready.is_set().then_some(())
    });
    let early = tokio::time::timeout(Duration::from_secs(2), until_ready).await;
    assert!(early.is_err(), "ready though records are lost");
    assert_eq!(count(&pool, EFFECTS).await, 2);
    // What the error says to do.
    let sql = "UPDATE probe.inbox_offsets SET next_offset = 7 WHERE consumer = 'writer' \
               AND topic = 'probe.v1' AND partition = 0";
    pool.get().await.unwrap().execute(sql, &[]).await.unwrap();
    reaches(&pool, EFFECTS, 3).await;
    eventually("ready", DEADLINE, || async {
        started.ready.is_set().then_some(())
    })
    .await;
    started.end().await;
}
