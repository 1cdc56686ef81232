//! Everything the checks look at, collected beforehand: the checks themselves ask nobody.

use std::collections::{BTreeMap, BTreeSet};

use contracts::{
    api::{
        jobs::{ConfirmationStatus, JobEventType, JobStatus, JobView},
        proof::ProofResponse,
        usage::{Meter, Unit, UsageEvent},
        webhooks::DeliveryView,
    },
    id::{EndpointId, JobId, RequestId, TenantId},
    problem::Code,
};
use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::{
    chain::ConfirmedBatch,
    log::{Actor, Exchange, Outcome, Route, Submission},
    receiver::Receipt,
    request::KEY_NOTE,
};

/// What was collected.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// What the client's log comes to.
    pub(super) ledger: Ledger,
    /// Every webhook that arrived.
    pub(super) receipts: Vec<Receipt>,
    /// The tenant's jobs since the log's beginning, as listed.
    pub(super) jobs: Vec<JobView>,
    /// The proof of each ended job that asked for confirmation, or the status of its refusal.
    pub(super) proofs: BTreeMap<JobId, Result<CheckedProof, u16>>,
    /// Every batch on the chain, in its order.
    pub(super) batches: Vec<ConfirmedBatch>,
    /// The deliveries to the log's endpoints.
    pub(super) deliveries: Vec<DeliveryView>,
    /// Every raw usage event of the month.
    pub(super) usage: Vec<UsageEvent>,
    /// The sums of the aggregates.
    pub(super) totals: Quantities,
    /// The invoice's quantities.
    pub(super) invoice: Quantities,
    /// The tenant.
    pub(super) tenant: Option<TenantId>,
}

/// Quantities per meter and unit.
pub(super) type Quantities = BTreeMap<(Meter, Unit), Decimal>;

/// A proof, and what the registry said of it.
#[derive(Clone, Debug)]
pub(super) struct CheckedProof {
    /// As the API gave it.
    pub(super) proof: ProofResponse,
    /// Whether `JobsRegistry.verify` accepts it.
    pub(super) verified: bool,
}

/// What the client's log comes to.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// When the target received the first request, by its own clock: what it made before belongs to
    /// somebody else.
    pub(super) began: Option<Timestamp>,
    /// How many requests the log holds.
    pub(super) requests: usize,
    /// Each submission of the tenant by its key.
    pub(super) submissions: BTreeMap<String, Fate>,
    /// The tenant's answered requests, and whether each is to be billed.
    pub(super) answered: BTreeMap<RequestId, Billable>,
    /// The tenant's requests that may have been billed without our knowing their id.
    pub(super) unknown: usize,
    /// The registered endpoints, and what each asked to be told of.
    pub(super) endpoints: BTreeMap<EndpointId, Vec<JobEventType>>,
}

/// What became of a submission.
#[derive(Clone, Debug)]
pub(super) struct Fate {
    /// What was asked for: the body that was accepted, else the first one sent.
    pub(super) submission: Submission,
    /// The ids it was answered with; more than one is a fault.
    pub(super) accepted: BTreeSet<JobId>,
    /// Whether some try of it has an unknown outcome.
    pub(super) unknown: bool,
}

/// Whether an answered request is to be billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Billable {
    /// Once.
    Yes,
    /// Never.
    No,
}

impl Ledger {
    /// What `exchanges` come to.
    pub(super) fn of(exchanges: &[Exchange]) -> Self {
        // Request ids carry the time of the gateway's clock, so that clocks may differ.
        let received = exchanges
            .iter()
            .filter_map(|exchange| exchange.answer.as_ref()?.request_id);
        let began = received.map(RequestId::timestamp).next();
        let mut ledger = Self {
            began,
            requests: exchanges.len(),
            ..Self::default()
        };
        for exchange in exchanges.iter().filter(|e| e.intent.actor == Actor::Tenant) {
            ledger.add_answer(exchange);
            ledger.add_submission(exchange);
            ledger.add_endpoint(exchange);
        }
        ledger
    }

    /// Whether something of this time belongs to the log.
    pub(super) fn covers(&self, at: Timestamp) -> bool {
        self.began.is_some_and(|began| at >= began)
    }

    /// The jobs that were accepted.
    pub(super) fn accepted(&self) -> BTreeSet<JobId> {
        self.submissions
            .values()
            .flat_map(|fate| fate.accepted.iter().copied())
            .collect()
    }

    /// What was asked for with the job: known by its id, else by the key in its metadata.
    pub(super) fn submission_of(&self, view: &JobView) -> Option<&Submission> {
        let is_its = |fate: &&Fate| fate.accepted.contains(&view.job_id);
        let by_key = view
            .metadata
            .get(KEY_NOTE)
            .and_then(|key| self.submissions.get(key));
        let by_id = by_key
            .filter(is_its)
            .or_else(|| self.submissions.values().find(is_its));
        by_id.or(by_key).map(|fate| &fate.submission)
    }

    fn add_answer(&mut self, exchange: &Exchange) {
        let Some(answer) = &exchange.answer else {
            self.unknown += 1;
            return;
        };
        match (answer.request_id, answer.outcome) {
            (Some(id), _) => {
                self.answered.insert(id, billable(exchange));
            }
            (None, Outcome::Unsent) => {}
            (None, _) => self.unknown += 1,
        }
    }

    fn add_submission(&mut self, exchange: &Exchange) {
        let Some(submission) = &exchange.intent.submission else {
            return;
        };
        let fate = self
            .submissions
            .entry(submission.key.clone())
            .or_insert_with(|| Fate {
                submission: submission.clone(),
                accepted: BTreeSet::new(),
                unknown: false,
            });
        let outcome = exchange
            .answer
            .as_ref()
            .map_or(Outcome::Unknown, |answer| answer.outcome);
        match (
            outcome,
            exchange.answer.as_ref().and_then(|answer| answer.job_id),
        ) {
            (Outcome::Ok, Some(job)) => {
                fate.accepted.insert(job);
                fate.submission = submission.clone();
            }
            (Outcome::Unknown, _) => fate.unknown = true,
            _ => {}
        }
    }

    fn add_endpoint(&mut self, exchange: &Exchange) {
        if let Some(events) = &exchange.intent.events
            && let Some(answer) = &exchange.answer
            && let Some(endpoint) = answer.endpoint_id
        {
            self.endpoints.insert(endpoint, events.clone());
        }
    }
}

impl Facts {
    /// Whether the job's outcome has to be on the chain: it asked for it, and ended.
    pub(super) fn has_to_be_sealed(&self, view: &JobView) -> bool {
        let asked = match self.ledger.submission_of(view) {
            Some(submission) => submission.requires_confirmation,
            None => view.blockchain_confirmation.status != ConfirmationStatus::NotRequired,
        };
        asked && matches!(view.status, JobStatus::Completed | JobStatus::Failed)
    }
}

/// Design §9 and the gateway's promise: a request of a known tenant that was admitted by the rate
/// limit and answered below 500 is billed, but looking at the bill is free.
fn billable(exchange: &Exchange) -> Billable {
    let free_route = matches!(exchange.intent.route, Route::Billing | Route::Health);
    let answer = exchange.answer.as_ref();
    let limited = answer.and_then(|answer| answer.code) == Some(Code::RateLimitExceeded);
    let admitted = match answer.and_then(|answer| answer.status) {
        Some(401 | 403) | None => false,
        Some(status) => status < 500 && !limited,
    };
    if admitted && !free_route {
        Billable::Yes
    } else {
        Billable::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        log::{Answered, Intent},
    };

    fn exchange(route: Route, outcome: Outcome, status: Option<u16>) -> Exchange {
        let now = clock::now();
        let intent = Intent {
            n: 1,
            at: now,
            actor: Actor::Tenant,
            route,
            method: String::new(),
            path: String::new(),
            submission: None,
            events: None,
        };
        let answer = Answered {
            n: 1,
            at: now,
            outcome,
            latency_ms: 0.0,
            status,
            code: (status == Some(429)).then_some(Code::RateLimitExceeded),
            request_id: status.map(|_| RequestId::generate(now)),
            job_id: None,
            endpoint_id: None,
        };
        Exchange {
            intent,
            answer: Some(answer),
        }
    }

    #[test]
    fn what_is_admitted_and_answered_is_billed() {
        let of = |route, status| billable(&exchange(route, Outcome::Ok, Some(status)));
        for status in [202, 400, 404, 409, 413, 422] {
            assert_eq!(of(Route::SubmitJob, status), Billable::Yes, "{status}");
        }
        for status in [401, 403, 429, 500, 503] {
            assert_eq!(of(Route::SubmitJob, status), Billable::No, "{status}");
        }
        assert_eq!(of(Route::Billing, 200), Billable::No);
    }

    #[test]
    fn only_what_left_and_was_not_answered_is_unknown() {
        let exchanges = [
            exchange(Route::ListJobs, Outcome::Unknown, None),
            exchange(Route::ListJobs, Outcome::Unsent, None),
            exchange(Route::ListJobs, Outcome::Unknown, Some(502)),
            Exchange {
                answer: None,
                ..exchange(Route::ListJobs, Outcome::Ok, None)
            },
        ];
        let ledger = Ledger::of(&exchanges);
        assert_eq!(
            (ledger.unknown, ledger.answered.len(), ledger.requests),
            (2, 1, 4)
        );
    }
}
