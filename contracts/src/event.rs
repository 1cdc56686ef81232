//! What processes tell each other over Kafka: topics, protobuf values, and the CloudEvents 1.0
//! attributes in the headers (binary mode).
//!
//! An event's identity is `(ce_source, ce_id)`. Both follow from what happened, so that telling it
//! twice is telling it once.

use std::str::FromStr;

use alloy::primitives::{Address, B256};
use jiff::Timestamp;
use prost::Message;
use thiserror::Error;
use uuid::Uuid;

pub use crate::generated::{
    BatchConfirmed, Cancelled, Completed, Confirmed, ConfirmedJob, Failed, JobEvent, Purged, Seal,
    Started, Submitted, UsageRecorded, job_event, job_event::Kind,
};
use crate::{
    api::jobs::JobEventType,
    id::{Id, IdError, JobId},
};

/// Events of jobs, in order per job; published by `jobs`.
pub const JOBS_EVENTS: &str = "jobs.events.v1";
/// Requests; published by the gateway.
pub const USAGE_RECORDED: &str = "usage.recorded.v1";
/// Final batches; published by the relayer.
pub const RELAYER_CONFIRMED: &str = "relayer.confirmed.v1";
/// Every topic.
pub const TOPICS: [&str; 3] = [JOBS_EVENTS, USAGE_RECORDED, RELAYER_CONFIRMED];

/// `ce_source` of `jobs`.
pub const JOBS_SOURCE: &str = "/jobs";
/// `ce_source` of the gateway.
pub const GATEWAY_SOURCE: &str = "/gateway";
/// `ce_type` on [`USAGE_RECORDED`].
pub const USAGE_RECORDED_TYPE: &str = "usage.recorded";
/// `ce_type` on [`RELAYER_CONFIRMED`].
pub const BATCH_CONFIRMED_TYPE: &str = "relayer.batch.confirmed";
/// Largest result a completion carries, in bytes of JSON.
pub const RESULT_MAX_BYTES: usize = 16 * 1_024;
/// The media type of values.
pub const CONTENT_TYPE: &str = "application/protobuf";

/// The CloudEvents attributes of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// `ce_id`
    pub id: String,
    /// `ce_source`
    pub source: String,
    /// `ce_type`
    pub event_type: String,
    /// `ce_time`
    pub time: Timestamp,
}

/// An event ready for the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The topic, without the deployment's prefix.
    pub topic: &'static str,
    /// The record's key, which chooses the partition.
    pub key: String,
    /// What the headers say.
    pub attributes: Attributes,
    /// The encoded message.
    pub value: Vec<u8>,
}

/// Why a record is none of ours. The reason of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EventError {
    /// The value is not the topic's message.
    #[error("the value is not protobuf of the topic's message: {0}")]
    Value(#[from] prost::DecodeError),
    /// A member that is always there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A member is not of its form.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// An id is not of its form.
    #[error("{0} {1}")]
    Id(&'static str, IdError),
}

impl Attributes {
    /// The headers of a record, `traceparent` excepted.
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        self.each_header(|name, value| headers.push((name, value.to_owned())));
        headers
    }

    /// The same, one after another.
    pub fn each_header(&self, mut put: impl FnMut(&'static str, &str)) {
        put("ce_specversion", "1.0");
        put("ce_id", &self.id);
        put("ce_source", &self.source);
        put("ce_type", &self.event_type);
        put("ce_time", &self.time.to_string());
        put("content-type", CONTENT_TYPE);
    }

    /// The attributes that a record's headers hold, whatever else is among them.
    pub fn from_headers<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, EventError> {
        let (mut id, mut source, mut event_type, mut time) = (None, None, None, None);
        for (name, value) in headers {
            let slot = match name {
                "ce_id" => &mut id,
                "ce_source" => &mut source,
                "ce_type" => &mut event_type,
                "ce_time" => &mut time,
                _ => continue,
            };
            *slot = std::str::from_utf8(value).ok();
        }
        let time = time.ok_or(EventError::Missing("ce_time"))?;
        Ok(Self {
            id: id.ok_or(EventError::Missing("ce_id"))?.to_owned(),
            source: source.ok_or(EventError::Missing("ce_source"))?.to_owned(),
            event_type: event_type.ok_or(EventError::Missing("ce_type"))?.to_owned(),
            time: time.parse().map_err(|_| EventError::Malformed("ce_time"))?,
        })
    }
}

impl JobEvent {
    /// The event ready for the outbox.
    pub fn record(&self) -> Result<Record, EventError> {
        let job = self.job()?;
        let attributes = Attributes {
            id: job_event_id(job, self.event_number),
            source: JOBS_SOURCE.to_owned(),
            event_type: self.event_type()?.as_str().to_owned(),
            time: self.time()?,
        };
        let value = self.encode_to_vec();
        Ok(Record {
            topic: JOBS_EVENTS,
            key: self.job_id.clone(),
            attributes,
            value,
        })
    }

    /// The event that a record's value is.
    pub fn from_value(value: &[u8]) -> Result<Self, EventError> {
        Ok(Self::decode(value)?)
    }

    /// The job.
    pub fn job(&self) -> Result<JobId, EventError> {
        parse_id("job_id", &self.job_id)
    }

    /// Whose job it is.
    pub fn tenant(&self) -> Result<crate::id::TenantId, EventError> {
        parse_id("tenant_id", &self.tenant_id)
    }

    /// When it happened.
    pub fn time(&self) -> Result<Timestamp, EventError> {
        time("occurred_at", self.occurred_at.as_ref())
    }

    /// What happened. An event of a newer kind than this program knows has none.
    pub fn event_type(&self) -> Result<JobEventType, EventError> {
        Ok(
            match self.kind.as_ref().ok_or(EventError::Missing("kind"))? {
                Kind::Submitted(_) => JobEventType::Submitted,
                Kind::Started(_) => JobEventType::Started,
                Kind::Completed(_) => JobEventType::Completed,
                Kind::Failed(_) => JobEventType::Failed,
                Kind::Cancelled(_) => JobEventType::Cancelled,
                Kind::Confirmed(_) => JobEventType::Confirmed,
                Kind::Purged(_) => JobEventType::Purged,
            },
        )
    }

    /// What to seal, if the job ended and asked for it.
    #[must_use]
    pub fn seal(&self) -> Option<&Seal> {
        match self.kind.as_ref()? {
            Kind::Completed(completed) => completed.seal.as_ref(),
            Kind::Failed(failed) => failed.seal.as_ref(),
            _ => None,
        }
    }
}

impl Completed {
    /// A completion with this result, left out when it is too large to be carried.
    #[must_use]
    pub fn new(attempts: u32, compute_ms: u64, result_json: &str, seal: Option<Seal>) -> Self {
        let truncated = result_json.len() > RESULT_MAX_BYTES;
        let carried = if truncated { "" } else { result_json };
        Self {
            attempts,
            compute_ms,
            result_json: carried.into(),
            truncated,
            seal,
        }
    }
}

impl Seal {
    /// The address that may prove the job, or zero.
    pub fn submitter_address(&self) -> Result<Address, EventError> {
        address("submitter", &self.submitter)
    }

    /// Content hash, result hash and salt.
    pub fn hashes(&self) -> Result<(B256, B256, B256), EventError> {
        Ok((
            word("content_hash", &self.content_hash)?,
            word("result_hash", &self.result_hash)?,
            word("salt", &self.salt)?,
        ))
    }
}

impl UsageRecorded {
    /// The event ready for Kafka.
    pub fn record(&self) -> Result<Record, EventError> {
        Ok(Record {
            topic: USAGE_RECORDED,
            key: self.tenant_id.clone(),
            attributes: self.attributes()?,
            value: self.encode_to_vec(),
        })
    }

    /// The attributes of the event.
    pub fn attributes(&self) -> Result<Attributes, EventError> {
        Ok(Attributes {
            id: self.request_id.clone(),
            source: GATEWAY_SOURCE.to_owned(),
            event_type: USAGE_RECORDED_TYPE.to_owned(),
            time: self.time()?,
        })
    }

    /// The event that a record's value is.
    pub fn from_value(value: &[u8]) -> Result<Self, EventError> {
        Ok(Self::decode(value)?)
    }

    /// Who asked.
    pub fn tenant(&self) -> Result<crate::id::TenantId, EventError> {
        parse_id("tenant_id", &self.tenant_id)
    }

    /// The request.
    pub fn request(&self) -> Result<crate::id::RequestId, EventError> {
        parse_id("request_id", &self.request_id)
    }

    /// When the request arrived.
    pub fn time(&self) -> Result<Timestamp, EventError> {
        time("occurred_at", self.occurred_at.as_ref())
    }
}

impl BatchConfirmed {
    /// The event ready for the outbox.
    pub fn record(&self) -> Result<Record, EventError> {
        let registry = self.registry_address()?;
        let lane = format!("{}/{}", self.chain_id, const_hex::encode_prefixed(registry));
        let attributes = Attributes {
            id: format!("batch-{}", self.batch_number),
            source: format!("/relayer/{lane}"),
            event_type: BATCH_CONFIRMED_TYPE.to_owned(),
            time: self.time()?,
        };
        let value = self.encode_to_vec();
        Ok(Record {
            topic: RELAYER_CONFIRMED,
            key: lane,
            attributes,
            value,
        })
    }

    /// The event that a record's value is.
    pub fn from_value(value: &[u8]) -> Result<Self, EventError> {
        Ok(Self::decode(value)?)
    }

    /// The contract.
    pub fn registry_address(&self) -> Result<Address, EventError> {
        address("registry", &self.registry)
    }

    /// When it was seen to be final.
    pub fn time(&self) -> Result<Timestamp, EventError> {
        time("finalized_at", self.finalized_at.as_ref())
    }
}

/// `ce_id` of a job's event.
#[must_use]
pub fn job_event_id(job: JobId, event_number: u64) -> String {
    format!("{}-{event_number}", job.uuid().simple())
}

/// The job and event number that a `ce_id` of [`JOBS_EVENTS`] holds.
#[must_use]
pub fn parse_job_event_id(id: &str) -> Option<(JobId, u64)> {
    let (uuid, number) = id.split_once('-')?;
    let uuid = Uuid::try_parse(uuid).ok()?;
    Some((JobId::from_uuid(uuid), number.parse().ok()?))
}

/// A time as protobuf writes it.
#[must_use]
pub fn proto_time(time: Timestamp) -> prost_types::Timestamp {
    let mut written = prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    };
    // Before 1970 jiff counts the fraction backwards, protobuf never does.
    written.normalize();
    written
}

/// A time that protobuf wrote; `None` beyond the years -9999 to 9999.
#[must_use]
pub fn from_proto_time(written: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(written.seconds, written.nanos).ok()
}

fn time(
    name: &'static str,
    written: Option<&prost_types::Timestamp>,
) -> Result<Timestamp, EventError> {
    let written = written.ok_or(EventError::Missing(name))?;
    from_proto_time(written).ok_or(EventError::Malformed(name))
}

fn parse_id<K: crate::id::Kind>(name: &'static str, text: &str) -> Result<Id<K>, EventError> {
    Id::from_str(text).map_err(|error| EventError::Id(name, error))
}

fn address(name: &'static str, bytes: &[u8]) -> Result<Address, EventError> {
    Address::try_from(bytes).map_err(|_| EventError::Malformed(name))
}

fn word(name: &'static str, bytes: &[u8]) -> Result<B256, EventError> {
    B256::try_from(bytes).map_err(|_| EventError::Malformed(name))
}
