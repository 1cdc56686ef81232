//! Completions from Kafka become confirmations, in the inbox's transaction: once, whatever is
//! redelivered.

use contracts::event::{JOBS_EVENTS, JobEvent};
use deadpool_postgres::Transaction;
use ops::{
    clock::Clock,
    inbox::{Event, Handler, Handling, Poison},
};
use uuid::Uuid;

use crate::{
    confirmation::{self, NewConfirmation, Request},
    store::confirmations,
};

/// The topics to take in.
pub const TOPICS: &[&str] = &[JOBS_EVENTS];
/// The consumer's name.
pub const CONSUMER: &str = "relayer";

/// Takes in the events of jobs.
#[derive(Clone, Debug)]
pub struct Intake {
    /// The present.
    pub clock: Clock,
}

/// What is done with the events of jobs.
#[must_use]
pub fn handling(clock: Clock) -> Handling<Intake> {
    Handling {
        name: CONSUMER,
        topics: TOPICS,
        handler: Intake { clock },
    }
}

impl Handler for Intake {
    type Item = Request;

    fn decode(&self, event: &Event) -> Result<Option<Request>, Poison> {
        let understood =
            JobEvent::from_value(&event.value).and_then(|event| confirmation::request(&event));
        understood.map_err(|error| Poison(error.to_string()))
    }

    async fn apply(&self, transaction: &Transaction<'_>, items: &[Request]) -> anyhow::Result<()> {
        let mut new: Vec<&NewConfirmation> = Vec::new();
        let mut erased: Vec<Uuid> = Vec::new();
        for item in items {
            match item {
                Request::Confirm(confirmation) => new.push(confirmation),
                Request::Forget(job) => erased.push(job.uuid()),
            }
        }
        // Erasures last: one may follow its own job's completion within the chunk.
        let inserted = confirmations::insert(transaction, &new, self.clock.now()).await?;
        if !erased.is_empty() {
            confirmations::forget(transaction, &erased).await?;
        }
        metrics::counter!("relayer_jobs_received_total").increment(inserted);
        Ok(())
    }
}
