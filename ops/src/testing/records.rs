//! Records as tests put them on topics and find them there.

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::{Header, OwnedHeaders},
    producer::FutureRecord,
};

use crate::{
    config::KafkaOptions,
    kafka::{self, Topics},
};

/// A record to put on a topic.
#[derive(Clone, Debug)]
pub struct Told<'a> {
    /// The topic, without the prefix.
    pub topic: &'a str,
    /// What must stay in order.
    pub key: &'a str,
    /// The headers, by name.
    pub headers: Vec<(&'static str, String)>,
    /// The value.
    pub value: &'a [u8],
}

/// Puts records on their topics, in this order, which Kafka has acknowledged at the end.
///
/// # Panics
/// When Kafka refuses one.
pub async fn produce<'a>(options: &KafkaOptions, records: impl IntoIterator<Item = Told<'a>>) {
    let producer = kafka::producer(options).expect("the configuration is a test's own");
    let send = |told: Told<'a>| {
        let topic = options.topic(told.topic);
        let add = |headers: OwnedHeaders, (key, value): &(&str, String)| {
            headers.insert(Header {
                key,
                value: Some(value),
            })
        };
        let record = FutureRecord::to(&topic)
            .key(told.key)
            .payload(told.value)
            .headers(told.headers.iter().fold(OwnedHeaders::new(), add));
        let sent = producer.send_result(record).map_err(|(error, _)| error);
        sent.expect("a test sends fewer records than the producer holds")
    };
    let acknowledgements: Vec<_> = records.into_iter().map(send).collect();
    for acknowledgement in acknowledgements {
        let kept = acknowledgement.await.expect("the producer lives");
        kept.map_err(|(error, _)| error)
            .expect("Kafka keeps the record");
    }
}

/// A consumer of all partitions of `topic` from their beginnings.
///
/// # Panics
/// When the topic cannot be looked up.
pub async fn from_the_start(options: &KafkaOptions, topic: &str) -> BaseConsumer {
    let topics = Topics::new(options).expect("the configuration is a test's own");
    let partitions = topics.partitions(topic).await.expect("the topic exists");
    let consumer: BaseConsumer = kafka::client(options)
        .set("group.id", "nobody commits")
        .set("enable.auto.commit", "false")
        .create()
        .expect("the configuration is a test's own");
    let name = options.topic(topic);
    let mut places = TopicPartitionList::new();
    for partition in partitions {
        places
            .add_partition_offset(&name, partition, Offset::Beginning)
            .expect("the beginning is an offset");
    }
    consumer
        .assign(&places)
        .expect("the partitions are the topic's");
    consumer
}
