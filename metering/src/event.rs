//! A record of Kafka becomes facts: what was used, by whom, how much, when. No I/O.
//!
//! A fact's identity follows from what happened, and so does the time inside its id; a repeat with
//! other fields is still the same fact. What cannot be charged without guessing is poison.

use std::collections::BTreeMap;

use contracts::{
    event::{self, EventError, GATEWAY_SOURCE, JOBS_SOURCE, JobEvent, Kind, UsageRecorded},
    id::{JobId, RequestId, TenantId},
};
use jiff::Timestamp;
use ops::inbox::{Event, Poison};
use rust_decimal::Decimal;

use crate::meter::Measure;

/// Largest quantity of one fact: a job cannot have computed for longer than 31 years. A negative
/// number that was written as an unsigned one lies far above.
pub const QUANTITY_MAX: u64 = 1_000_000_000_000;
/// Longest route template and dimension, in bytes.
pub const TEXT_MAX_BYTES: usize = 256;

/// One billable fact. An event's facts differ in their measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Who told of it; with `event_id` and `measure`, its identity.
    pub source: &'static str,
    /// The event's id, unique within its source.
    pub event_id: String,
    /// The time inside the event's id.
    pub id_time: Timestamp,
    /// What was counted.
    pub measure: Measure,
    /// How much.
    pub quantity: Decimal,
    /// Whose bill it is on.
    pub tenant: TenantId,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// What it is about.
    pub about: About,
    /// What usage can be told apart by.
    pub dimensions: BTreeMap<&'static str, String>,
}

/// What a fact is about.
#[derive(Clone, Debug, PartialEq)]
pub enum About {
    /// A request that the gateway let pass.
    Request {
        /// The request.
        request: RequestId,
        /// Its route template.
        endpoint: String,
        /// The answer's status.
        status_code: u16,
    },
    /// A job.
    Job(JobId),
}

impl About {
    /// The job, if it is about one.
    #[must_use]
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::Job(job) => Some(*job),
            Self::Request { .. } => None,
        }
    }

    /// The request, if it is about one.
    #[must_use]
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Self::Request { request, .. } => Some(*request),
            Self::Job(_) => None,
        }
    }
}

/// The facts of a record of `usage.recorded.v1`: the call, if the gateway calls it billable.
///
/// # Errors
/// [`Poison`] when the record is malformed or contradicts itself.
pub fn of_usage(event: &Event) -> Result<Vec<Fact>, Poison> {
    from_source(event, GATEWAY_SOURCE)?;
    let usage = UsageRecorded::from_value(&event.value).map_err(poison)?;
    let (tenant, request) = (
        usage.tenant().map_err(poison)?,
        usage.request().map_err(poison)?,
    );
    let occurred_at = usage.time().map_err(poison)?;
    if event.id != usage.request_id {
        return Err(Poison("ce_id is not the request_id".to_owned()));
    }
    let status_code = u16::try_from(usage.status_code)
        .ok()
        .filter(|code| (100..600).contains(code));
    let status_code = status_code.ok_or_else(|| Poison("status_code is no status".to_owned()))?;
    let endpoint = bounded("endpoint", usage.endpoint)?;
    if !usage.billable {
        return Ok(Vec::new());
    }
    Ok(vec![Fact {
        source: GATEWAY_SOURCE,
        event_id: usage.request_id,
        id_time: request.timestamp(),
        measure: Measure::Calls,
        quantity: Decimal::ONE,
        tenant,
        occurred_at,
        about: About::Request {
            request,
            endpoint,
            status_code,
        },
        dimensions: dimensions([("method", usage.method), ("subject", usage.subject)])?,
    }])
}

/// The facts of a record of `jobs.events.v1`: none for what costs nothing.
///
/// # Errors
/// [`Poison`] when the record is malformed or contradicts itself.
pub fn of_job(event: &Event) -> Result<Vec<Fact>, Poison> {
    from_source(event, JOBS_SOURCE)?;
    let told = JobEvent::from_value(&event.value).map_err(poison)?;
    let (tenant, job) = (told.tenant().map_err(poison)?, told.job().map_err(poison)?);
    let occurred_at = told.time().map_err(poison)?;
    if event.id != event::job_event_id(job, told.event_number) {
        return Err(Poison(
            "ce_id is not the job_id and event_number".to_owned(),
        ));
    }
    let dimensions = dimensions([("job_type", told.job_type), ("subject", told.subject)])?;
    let quantities = quantities(told.kind.as_ref())?;
    Ok(quantities
        .into_iter()
        .map(|(measure, quantity)| Fact {
            source: JOBS_SOURCE,
            event_id: event.id.clone(),
            id_time: job.timestamp(),
            measure,
            quantity: quantity.into(),
            tenant,
            occurred_at,
            about: About::Job(job),
            dimensions: dimensions.clone(),
        })
        .collect())
}

/// What an event of a job is charged for.
fn quantities(kind: Option<&Kind>) -> Result<Vec<(Measure, u64)>, Poison> {
    let quantities = match kind.ok_or_else(|| poison(EventError::Missing("kind")))? {
        Kind::Submitted(submitted) => vec![(Measure::ComputeUnits, submitted.compute_units)],
        Kind::Completed(completed) => vec![
            (Measure::CompletedJobs, 1),
            (Measure::ComputeMilliseconds, completed.compute_ms),
        ],
        Kind::Confirmed(_) => vec![(Measure::Confirmations, 1)],
        Kind::Started(_) | Kind::Failed(_) | Kind::Cancelled(_) | Kind::Purged(_) => Vec::new(),
    };
    for (measure, quantity) in &quantities {
        // A job may compute for less than a millisecond; nothing else is counted by zeros.
        let least = u64::from(*measure != Measure::ComputeMilliseconds);
        if !(least..=QUANTITY_MAX).contains(quantity) {
            let unit = measure.unit().as_str();
            return Err(Poison(format!(
                "{quantity} {unit} is not a quantity that can be used"
            )));
        }
    }
    Ok(quantities)
}

fn from_source(event: &Event, source: &str) -> Result<(), Poison> {
    if event.source == source {
        return Ok(());
    }
    Err(Poison(format!(
        "ce_source is {:?}, not {source:?}",
        event.source
    )))
}

fn dimensions<const N: usize>(
    given: [(&'static str, String); N],
) -> Result<BTreeMap<&'static str, String>, Poison> {
    given
        .into_iter()
        .map(|(name, text)| Ok((name, bounded(name, text)?)))
        .collect()
}

fn bounded(name: &str, text: String) -> Result<String, Poison> {
    if text.len() > TEXT_MAX_BYTES || text.contains('\0') {
        return Err(Poison(format!(
            "{name} is longer than {TEXT_MAX_BYTES} bytes, or holds NUL"
        )));
    }
    Ok(text)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "used as a function in map_err"
)]
fn poison(error: EventError) -> Poison {
    Poison(error.to_string())
}

#[cfg(test)]
mod tests {
    use contracts::event::{Completed, Record, Submitted, proto_time};

    use super::*;

    const NOW: &str = "2026-11-21T09:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn usage() -> UsageRecorded {
        UsageRecorded {
            tenant_id: TenantId::generate(now()).to_string(),
            request_id: RequestId::generate(now()).to_string(),
            subject: "user_1".to_owned(),
            endpoint: "/v1/jobs/{job_id}".to_owned(),
            method: "GET".to_owned(),
            status_code: 404,
            occurred_at: Some(proto_time(now())),
            billable: true,
            ..UsageRecorded::default()
        }
    }

    fn job(kind: Option<Kind>) -> JobEvent {
        JobEvent {
            tenant_id: TenantId::generate(now()).to_string(),
            job_id: JobId::generate(now()).to_string(),
            event_number: 3,
            occurred_at: Some(proto_time(now())),
            job_type: "digest".to_owned(),
            subject: "user_1".to_owned(),
            team: None,
            kind,
        }
    }

    fn event(record: Record) -> Event {
        Event {
            topic: record.topic,
            source: record.attributes.source,
            id: record.attributes.id,
            kind: record.attributes.event_type,
            time: record.attributes.time,
            traceparent: None,
            value: record.value,
        }
    }

    fn refusal(outcome: Result<Vec<Fact>, Poison>) -> String {
        outcome.unwrap_err().0
    }

    #[test]
    fn a_billable_call_is_one_fact_and_another_call_none() {
        let facts = of_usage(&event(usage().record().unwrap())).unwrap();
        let [fact] = facts.as_slice() else {
            panic!("{facts:?}")
        };
        assert_eq!(
            (fact.measure, fact.quantity),
            (Measure::Calls, Decimal::ONE)
        );
        assert_eq!((fact.id_time, fact.source), (now(), "/gateway"));
        assert_eq!(
            fact.about.request().map(|id| id.to_string()),
            Some(fact.event_id.clone())
        );
        let free = UsageRecorded {
            billable: false,
            ..usage()
        };
        assert_eq!(of_usage(&event(free.record().unwrap())).unwrap(), []);
    }

    #[test]
    fn a_completion_is_a_job_and_its_milliseconds() {
        let told = job(Some(Kind::Completed(Completed::new(2, 0, "{}", None))));
        let facts = of_job(&event(told.record().unwrap())).unwrap();
        let found: Vec<_> = facts
            .iter()
            .map(|fact| (fact.measure, fact.quantity))
            .collect();
        let zero = Decimal::ZERO;
        let expected = [
            (Measure::CompletedJobs, Decimal::ONE),
            (Measure::ComputeMilliseconds, zero),
        ];
        assert_eq!(found, expected);
        assert!(
            facts
                .iter()
                .all(|fact| fact.id_time == now() && fact.event_id.ends_with("-3"))
        );
    }

    #[test]
    fn what_cannot_be_charged_without_guessing_is_poison() {
        let submitted = |compute_units| {
            let told = Submitted {
                compute_units,
                ..Submitted::default()
            };
            of_job(&event(job(Some(Kind::Submitted(told))).record().unwrap()))
        };
        assert_eq!(submitted(7).unwrap()[0].quantity, Decimal::from(7));
        assert!(refusal(submitted(0)).contains("not a quantity"));
        assert!(refusal(submitted(u64::MAX)).contains("not a quantity"));

        let valid = event(
            job(Some(Kind::Confirmed(event::Confirmed::default())))
                .record()
                .unwrap(),
        );
        assert_eq!(of_job(&valid).unwrap()[0].measure, Measure::Confirmations);
        let mut bare = valid.clone();
        let mut told = JobEvent::from_value(&bare.value).unwrap();
        told.kind = None;
        bare.value = prost::Message::encode_to_vec(&told);
        assert!(refusal(of_job(&bare)).contains("kind is missing"));
        let other = Event {
            id: "other".to_owned(),
            ..valid.clone()
        };
        assert!(refusal(of_job(&other)).contains("ce_id"));
        let other = Event {
            source: "/else".to_owned(),
            ..valid
        };
        assert!(refusal(of_job(&other)).contains("ce_source"));

        let tenant = UsageRecorded {
            tenant_id: "acme".to_owned(),
            ..usage()
        };
        assert!(refusal(of_usage(&event(tenant.record().unwrap()))).contains("tenant_id"));
        let status = UsageRecorded {
            status_code: 77,
            ..usage()
        };
        assert!(refusal(of_usage(&event(status.record().unwrap()))).contains("status_code"));
        let long = UsageRecorded {
            endpoint: "/".repeat(257),
            ..usage()
        };
        assert!(refusal(of_usage(&event(long.record().unwrap()))).contains("endpoint"));
        let garbage = Event {
            value: vec![0xff; 9],
            ..event(usage().record().unwrap())
        };
        assert!(refusal(of_usage(&garbage)).contains("protobuf"));
    }
}
