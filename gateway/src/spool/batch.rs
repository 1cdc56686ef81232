//! Sends spooled records to Kafka a batch at a time. Only failures are told one by one: what is not
//! told, once nothing is under way, was acknowledged. A report and a future for each record would
//! cost more than sending it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use contracts::event::{EventError, UsageRecorded};
use ops::{
    config::{BadConfig, KafkaOptions},
    kafka,
};
use prost::Message as _;
use rdkafka::{
    ClientContext,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
};
use tracing::warn;

/// How often it is looked whether a batch is through; about a broker's time for one.
const LOOK: Duration = Duration::from_millis(2);

/// Headers of a record.
const HEADERS: usize = 6;

/// A producer of batches, one at a time.
pub(crate) struct Batches {
    producer: BaseProducer<Failures>,
    topic: String,
}

/// What became of a batch.
pub(crate) struct Sent {
    /// So many of the first records are in Kafka.
    pub(crate) acknowledged: usize,
    /// What kept the others out.
    pub(crate) failure: Option<KafkaError>,
}

/// The first record of the present batch that failed, by its number.
#[derive(Default)]
struct Failures(Mutex<Option<(usize, KafkaError)>>);

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((error, _)) = result {
            self.note(number, error.clone());
        }
    }
}

impl Failures {
    fn note(&self, number: usize, error: KafkaError) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(before, _)| number < *before) {
            *first = Some((number, error));
        }
    }

    fn take(&self) -> Option<(usize, KafkaError)> {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.take()
    }
}

impl Batches {
    /// Connects in the background.
    pub(crate) fn new(options: &KafkaOptions, topic: String) -> Result<Self, BadConfig> {
        let producer = kafka::batch_producer(options, Failures::default())?;
        Ok(Self { producer, topic })
    }

    /// Sends records and waits until each is acknowledged or has failed. After a failure the
    /// producer refuses all that follow and must be made anew.
    pub(crate) async fn send(&self, records: &[(&[u8], usize)]) -> Sent {
        // In memory that the next record uses again.
        let mut event = UsageRecorded::default();
        for (number, (bytes, _)) in records.iter().enumerate() {
            if let Err(error) = self.enqueue(number, bytes, &mut event) {
                self.producer.context().note(number, error);
                break;
            }
        }
        loop {
            self.producer.poll(Duration::ZERO);
            // Counts what waits to be told, too; each record ends by its own timeout.
            if self.producer.in_flight_count() == 0 {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let failed = self.producer.context().take();
        Sent {
            acknowledged: failed.as_ref().map_or(records.len(), |(number, _)| *number),
            failure: failed.map(|(_, error)| error),
        }
    }

    fn enqueue(
        &self,
        number: usize,
        bytes: &[u8],
        event: &mut UsageRecorded,
    ) -> Result<(), KafkaError> {
        let headers = match describe(bytes, event) {
            Ok(headers) => headers,
            // It was not written by us: shipping must not end by it.
            Err(error) => {
                warn!(%error, "a spooled record is no usage record");
                return Ok(());
            }
        };
        let record = BaseRecord::with_opaque_to(&self.topic, number)
            .key(&event.tenant_id)
            .payload(bytes)
            .headers(headers);
        self.producer.send(record).map_err(|(error, _)| error)
    }
}

/// The headers of a record, which is read into `event`; its key is the tenant, its value the bytes
/// as they are.
fn describe(bytes: &[u8], event: &mut UsageRecorded) -> Result<OwnedHeaders, EventError> {
    event.clear();
    event.merge(bytes)?;
    let mut headers = Some(OwnedHeaders::new_with_capacity(HEADERS));
    event.attributes()?.each_header(|key, value| {
        let value = Some(value);
        headers = headers.take().map(|all| all.insert(Header { key, value }));
    });
    Ok(headers.unwrap_or_default())
}
