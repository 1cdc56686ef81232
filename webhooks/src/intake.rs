//! `jobs.events.v1` becomes deliveries: one row for each endpoint that asked for the event, in the
//! transaction that moves the offset.

use contracts::{
    api::{
        jobs::{Confirmation, ConfirmationStatus, JobFailure, JobStatus},
        webhooks::{EVENTS, WebhookBody, WebhookData},
    },
    event::{self, JobEvent, Kind},
};
use deadpool_postgres::Transaction;
use ops::{
    clock::Clock,
    inbox::{Event, Handler, Handling, Poison},
};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::store;

/// Takes in the events of jobs.
#[derive(Debug)]
pub struct Intake {
    /// The clock that dates deliveries.
    pub clock: Clock,
}

/// What is done with the events of jobs.
#[must_use]
pub fn handling(clock: Clock) -> Handling<Intake> {
    Handling {
        name: "webhooks",
        topics: &[event::JOBS_EVENTS],
        handler: Intake { clock },
    }
}

/// An event of a job, ready to be told.
#[derive(Debug)]
pub struct Telling {
    /// Whose endpoints are told.
    pub tenant: Uuid,
    /// Which job.
    pub job: Uuid,
    /// The event's identity.
    pub source: String,
    /// The event's identity.
    pub id: String,
    /// What happened.
    pub event_type: &'static str,
    /// What is told, to the byte.
    pub body: String,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
}

impl Handler for Intake {
    type Item = Telling;

    fn decode(&self, event: &Event) -> Result<Option<Telling>, Poison> {
        telling(event).map_err(|cause| Poison(format!("{cause:#}")))
    }

    async fn apply(&self, transaction: &Transaction<'_>, items: &[Telling]) -> anyhow::Result<()> {
        Ok(store::queue::queue(transaction, items, self.clock.now()).await?)
    }
}

fn telling(event: &Event) -> anyhow::Result<Option<Telling>> {
    let job_event = JobEvent::from_value(&event.value)?;
    let event_type = job_event.event_type()?;
    if !EVENTS.contains(&event_type) {
        return Ok(None);
    }
    let (job, tenant) = (job_event.job()?, job_event.tenant()?);
    let body = WebhookBody {
        event_type,
        timestamp: job_event.time()?,
        data: data_of(&job_event)?,
    };
    Ok(Some(Telling {
        tenant: tenant.uuid(),
        job: job.uuid(),
        source: event.source.clone(),
        id: event.id.clone(),
        event_type: event_type.as_str(),
        body: serde_json::to_string(&body)?,
        traceparent: event.traceparent.clone(),
    }))
}

fn data_of(event: &JobEvent) -> anyhow::Result<WebhookData> {
    let mut data = WebhookData {
        job_id: event.job()?,
        job_type: event.job_type.parse()?,
        status: JobStatus::Pending,
        tenant_id: event.tenant()?,
        result: None,
        error: None,
        blockchain_confirmation: None,
    };
    match event
        .kind
        .as_ref()
        .ok_or(event::EventError::Missing("kind"))?
    {
        Kind::Submitted(_) | Kind::Purged(_) => {}
        Kind::Started(_) => data.status = JobStatus::Processing,
        Kind::Completed(completed) => {
            data.status = JobStatus::Completed;
            if !completed.truncated {
                let text = String::from_utf8(completed.result_json.clone())?;
                data.result = Some(RawValue::from_string(text)?);
            }
        }
        Kind::Failed(failed) => {
            data.status = JobStatus::Failed;
            let (code, detail) = (failed.code.clone(), failed.detail.clone());
            data.error = Some(JobFailure { code, detail });
        }
        Kind::Cancelled(_) => data.status = JobStatus::Cancelled,
        Kind::Confirmed(confirmed) => {
            data.status = JobStatus::ALL
                .into_iter()
                .find(|status| status.as_str() == confirmed.job_status)
                .ok_or(event::EventError::Malformed("job_status"))?;
            data.blockchain_confirmation = Some(Confirmation {
                chain_id: Some(confirmed.chain_id),
                registry: Some(confirmed.registry.as_slice().try_into()?),
                batch_number: Some(confirmed.batch_number),
                sequence: Some(confirmed.sequence),
                transaction_hash: Some(confirmed.transaction_hash.as_slice().try_into()?),
                block_number: Some(confirmed.block_number),
                confirmed_at: Some(event.time()?),
                ..Confirmation::of(ConfirmationStatus::Finalized)
            });
        }
    }
    Ok(data)
}
