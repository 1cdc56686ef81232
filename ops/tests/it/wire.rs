//! A record put on a topic by Kafka's own bytes, since the client library refuses to send what it
//! cannot read: a header whose name is not UTF-8.

use ops::config::KafkaOptions;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Puts a record with one header on partition 0 of `topic`, acknowledged.
pub(crate) async fn produce(
    options: &KafkaOptions,
    topic: &str,
    (name, text): (&[u8], &[u8]),
    value: &[u8],
) {
    let topic = options.topic(topic);
    let mut record = vec![0, 0, 0]; // attributes, time and offset after the batch's
    varint(&mut record, -1); // no key
    for_bytes(&mut record, value);
    varint(&mut record, 1);
    for_bytes(&mut record, name);
    for_bytes(&mut record, text);
    let batch = batch(&record);
    // Produce, version 3, correlation 1, no client id; no transaction, all acknowledge, 10 s.
    let mut request = vec![0, 0, 0, 3, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    request.extend(10_000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(i16::try_from(topic.len()).unwrap().to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(0_i32.to_be_bytes());
    request.extend(length(&batch));
    request.extend(batch);
    let answer = ask(options, &request).await;
    // Correlation, topics, the topic's name, its partitions, the partition: then its error.
    let place = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[place..place + 2], [0, 0], "Kafka keeps the record");
}

async fn ask(options: &KafkaOptions, request: &[u8]) -> Vec<u8> {
    let broker = options.kafka_brokers.split(',').next().unwrap();
    let mut stream = TcpStream::connect(broker).await.unwrap();
    stream.write_all(&length(request)).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = vec![0; stream.read_u32().await.unwrap() as usize];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

/// A batch (magic 2) that holds one record and no producer's identity.
fn batch(record: &[u8]) -> Vec<u8> {
    let mut checked = vec![0; 2 + 4 + 8 + 8]; // attributes, last offset, first and last time
    checked.extend([0xff; 8 + 2 + 4]); // no producer: id, epoch, sequence
    checked.extend(1_i32.to_be_bytes());
    for_bytes(&mut checked, record);
    let mut batch = vec![0; 8]; // first offset
    batch.extend(
        i32::try_from(4 + 1 + 4 + checked.len())
            .unwrap()
            .to_be_bytes(),
    );
    batch.extend([0xff, 0xff, 0xff, 0xff, 2]); // no leader's epoch; magic
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    batch
}

fn length(bytes: &[u8]) -> [u8; 4] {
    i32::try_from(bytes.len()).unwrap().to_be_bytes()
}

fn for_bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    varint(into, i64::try_from(bytes.len()).unwrap());
    into.extend(bytes);
}

/// Zigzag, seven bits at a time.
fn varint(into: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while rest >= 0x80 {
        into.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    into.push(u8::try_from(rest).unwrap());
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0x82f6_3b78 * (sum & 1));
        }
    }
    !sum
}
