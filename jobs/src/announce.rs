//! Domain events as the outside knows them: a job's event becomes a record of `jobs.events.v1`.

use contracts::{
    api::jobs::ConfirmationMode,
    event::{
        Cancelled, Completed, Confirmed, Failed, JOBS_EVENTS, JOBS_SOURCE, JobEvent, Kind, Seal,
        Started, Submitted, job_event_id, proto_time,
    },
    job_type::compute_units,
};
use ops::outbox::Message;
use prost::Message as _;

use crate::job::{Event, Facts, Finality, Happening, Job, Outcome};

/// The outbox row that tells `event` of `job`.
#[must_use]
pub fn message(job: &Job, event: &Event) -> Message {
    let facts = &job.facts;
    let value = JobEvent {
        tenant_id: facts.tenant.to_string(),
        job_id: facts.id.to_string(),
        event_number: event.number,
        occurred_at: Some(proto_time(event.at)),
        job_type: facts.job_type.to_string(),
        subject: facts.subject.to_string(),
        team: facts.team.as_ref().map(ToString::to_string),
        kind: Some(kind(job, &event.what)),
    };
    Message {
        topic: JOBS_EVENTS,
        key: value.job_id.clone().into_bytes(),
        source: JOBS_SOURCE.to_owned(),
        id: job_event_id(facts.id, event.number),
        kind: event.what.event_type().as_str(),
        time: event.at,
        traceparent: facts.traceparent.clone(),
        value: value.encode_to_vec(),
    }
}

fn kind(job: &Job, what: &Happening) -> Kind {
    let Job {
        facts, attempts, ..
    } = job;
    match what {
        Happening::Submitted => Kind::Submitted(Submitted {
            payload_bytes: facts.payload_bytes,
            compute_units: compute_units(
                usize::try_from(facts.payload_bytes).unwrap_or(usize::MAX),
            ),
            requires_confirmation: facts.mode.is_some(),
            priority: u32::from(facts.priority.get()),
        }),
        Happening::Started => Kind::Started(Started { attempt: *attempts }),
        Happening::Completed(outcome) => Kind::Completed(Completed::new(
            *attempts,
            compute_ms(outcome),
            &outcome.text,
            seal(facts, outcome),
        )),
        Happening::Failed(failure, outcome) => Kind::Failed(Failed {
            attempts: *attempts,
            code: failure.code.clone(),
            detail: failure.detail.clone(),
            compute_ms: compute_ms(outcome),
            seal: seal(facts, outcome),
        }),
        Happening::Cancelled => Kind::Cancelled(Cancelled {}),
        Happening::Confirmed(finality) => Kind::Confirmed(confirmed(job, finality)),
    }
}

fn seal(facts: &Facts, outcome: &Outcome) -> Option<Seal> {
    facts.mode.map(|mode| Seal {
        individual: mode == ConfirmationMode::Individual,
        submitter: facts.submitter.to_vec(),
        content_hash: facts.content_hash.to_vec(),
        result_hash: outcome.hash.to_vec(),
        salt: facts.salt.to_vec(),
    })
}

fn confirmed(job: &Job, finality: &Finality) -> Confirmed {
    Confirmed {
        chain_id: finality.chain_id,
        registry: finality.registry.to_vec(),
        batch_number: finality.batch_number,
        sequence: finality.sequence,
        transaction_hash: finality.transaction_hash.to_vec(),
        block_number: finality.block_number,
        job_status: job.status().as_str().to_owned(),
    }
}

/// The attempt's time in whole milliseconds.
#[must_use]
pub fn compute_ms(outcome: &Outcome) -> u64 {
    u64::try_from(outcome.compute.as_millis()).unwrap_or(u64::MAX)
}
