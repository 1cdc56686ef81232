//! What the client's log comes to: which jobs were asked for and accepted, and which requests are
//! to be billed.

use std::collections::{BTreeMap, BTreeSet};

use contracts::{
    api::{
        jobs::{JobEventType, JobView},
        usage::UsageEvent,
    },
    id::{EndpointId, JobId, RequestId},
    problem::Code,
};
use jiff::{SignedDuration, Timestamp};

use super::month::Month;
use crate::{
    client::REQUEST_TIMEOUT,
    log::{Actor, Answered, Exchange, Outcome, Submission},
    request::KEY_NOTE,
};

/// How much the difference between the target's clock and ours may change during a run.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(5);

/// What the client's log comes to.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// When the target received the first request, by its own clock: what it made before belongs to
    /// somebody else.
    pub(super) began: Option<Timestamp>,
    /// When it received the last one.
    pub(super) latest: Option<Timestamp>,
    /// How many requests the log holds.
    pub(super) requests: usize,
    /// Each submission of the tenant by its key.
    pub(super) submissions: BTreeMap<String, Fate>,
    /// The tenant's answered requests, and how each is to be billed.
    pub(super) answered: BTreeMap<RequestId, Charge>,
    /// The tenant's requests that may have been billed without our knowing their id.
    pub(super) unknown: Vec<Unanswered>,
    /// How many of the tenant's requests had no answer, or one with 5xx.
    pub(super) cut_off: usize,
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

/// How an answered request is to be billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Charge {
    /// Whether it is.
    pub(super) billable: Billable,
    /// As a request of this route.
    pub(super) endpoint: Option<&'static str>,
    /// With this answer.
    pub(super) status: Option<u16>,
}

/// A request that may have been billed without our knowing its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unanswered {
    /// Its route.
    pub(super) endpoint: &'static str,
    /// The earliest time it can have arrived, by the target's clock.
    pub(super) from: Timestamp,
    /// The latest.
    pub(super) to: Timestamp,
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
        let mut received = exchanges
            .iter()
            .filter_map(|exchange| exchange.answer.as_ref()?.request_id)
            .map(RequestId::timestamp);
        let began = received.next();
        let apart = apart(exchanges);
        let mut ledger = Self {
            began,
            latest: received.max().max(began),
            requests: exchanges.len(),
            ..Self::default()
        };
        for exchange in exchanges.iter().filter(|e| e.intent.actor == Actor::Tenant) {
            ledger.add_answer(exchange, apart);
            ledger.add_submission(exchange);
            ledger.add_endpoint(exchange);
        }
        ledger
    }

    /// Whether something of this time belongs to the log.
    pub(super) fn covers(&self, at: Timestamp) -> bool {
        self.began.is_some_and(|began| at >= began)
    }

    /// The jobs of the log, and those of before it. A job that was accepted is the log's whatever
    /// the clock says that named it.
    pub(super) fn divide(&self, listed: Vec<JobView>) -> (Vec<JobView>, Vec<JobView>) {
        let accepted = self.accepted();
        let is_ours = |job: JobId| self.covers(job.timestamp()) || accepted.contains(&job);
        listed.into_iter().partition(|view| is_ours(view.job_id))
    }

    /// The months in which the target received the requests.
    pub(super) fn months(&self) -> Vec<Month> {
        match (self.began, self.latest) {
            (Some(began), Some(latest)) => Month::between(began, latest),
            _ => Vec::new(),
        }
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

    /// `apart` is how far the target's clock is ahead of ours.
    fn add_answer(&mut self, exchange: &Exchange, apart: SignedDuration) {
        let (intent, answer) = (&exchange.intent, exchange.answer.as_ref());
        let outcome = answer.map_or(Outcome::Unknown, |answer| answer.outcome);
        self.cut_off += usize::from(outcome == Outcome::Unknown);
        let endpoint = intent.route.billed_as();
        if let Some(id) = answer.and_then(|answer| answer.request_id) {
            let charge = Charge {
                billable: billable(exchange),
                endpoint,
                status: answer.and_then(|answer| answer.status),
            };
            self.answered.insert(id, charge);
        } else if let Some(endpoint) = endpoint.filter(|_| outcome != Outcome::Unsent) {
            let longest = intent.at + REQUEST_TIMEOUT;
            let to = answer.map_or(longest, |answer| answer.at);
            self.unknown.push(Unanswered {
                endpoint,
                from: intent.at + apart - CLOCK_SLACK,
                to: to + apart + CLOCK_SLACK,
            });
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

impl Unanswered {
    /// Whether the event may be of this request.
    pub(super) fn explains(&self, event: &UsageEvent) -> bool {
        event.endpoint.as_deref() == Some(self.endpoint)
            && (self.from..=self.to).contains(&event.occurred_at)
    }
}

/// How far the target's clock is ahead of ours: what the first request's id tells.
fn apart(exchanges: &[Exchange]) -> SignedDuration {
    let both = exchanges.iter().find_map(|exchange| {
        let id = exchange.answer.as_ref()?.request_id?;
        Some(id.timestamp().duration_since(exchange.intent.at))
    });
    both.unwrap_or_default()
}

/// The gateway bills what it counted against the tenant's limits, let pass and did not fail at;
/// looking at the bill is free. Which requests it counted, its answers tell: so an answer 403 is
/// billed when a service behind the gateway gave it, and free when the gateway did.
fn billable(exchange: &Exchange) -> Billable {
    let free_route = exchange.intent.route.billed_as().is_none();
    let admitted = |answer: &Answered| {
        answer.counted
            && answer.code != Some(Code::RateLimitExceeded)
            && answer.status.is_some_and(|status| status < 500)
    };
    if !free_route && exchange.answer.as_ref().is_some_and(admitted) {
        Billable::Yes
    } else {
        Billable::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::fixture,
        clock,
        log::{Intent, Route},
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
            code: None,
            counted: false,
            request_id: status.map(|_| RequestId::generate(now)),
            job_id: None,
            endpoint_id: None,
        };
        Exchange {
            intent,
            answer: Some(answer),
        }
    }

    fn counted(route: Route, status: u16, code: Option<Code>) -> Exchange {
        let mut exchange = exchange(route, Outcome::of_status(status), Some(status));
        let answer = exchange.answer.as_mut().unwrap();
        answer.counted = true;
        answer.code = code;
        exchange
    }

    #[test]
    fn what_is_counted_let_pass_and_answered_is_billed() {
        let of = |route, status| billable(&counted(route, status, None));
        for status in [202, 400, 403, 404, 409, 413, 422] {
            assert_eq!(of(Route::SubmitJob, status), Billable::Yes, "{status}");
        }
        for status in [500, 502, 503] {
            assert_eq!(of(Route::SubmitJob, status), Billable::No, "{status}");
        }
        assert_eq!(of(Route::Billing, 200), Billable::No);
        let limited = |code| billable(&counted(Route::SubmitJob, 429, Some(code)));
        assert_eq!(limited(Code::RateLimitExceeded), Billable::No);
        assert_eq!(limited(Code::ActiveJobsExceeded), Billable::Yes);
    }

    #[test]
    fn what_the_gateway_refused_before_counting_it_is_free() {
        for status in [400, 401, 403, 404] {
            let refused = exchange(Route::SubmitJob, Outcome::Refused, Some(status));
            assert_eq!(billable(&refused), Billable::No, "{status}");
        }
    }

    #[test]
    fn a_log_covers_the_months_of_its_requests() {
        let at = |time: &str| {
            let mut exchange = exchange(Route::Health, Outcome::Ok, Some(200));
            let id = RequestId::generate(time.parse().unwrap());
            exchange.answer.as_mut().unwrap().request_id = Some(id);
            exchange
        };
        let ledger = Ledger::of(&[at("2026-01-31T23:59:59Z"), at("2026-02-01T00:00:01Z")]);
        let months: Vec<_> = ledger.months().iter().map(ToString::to_string).collect();
        assert_eq!(months, ["2026-01", "2026-02"]);
        assert_eq!(Ledger::of(&[]).months(), []);
    }

    #[test]
    fn only_what_left_and_was_not_answered_is_unknown() {
        let exchanges = [
            exchange(Route::ListJobs, Outcome::Unknown, None),
            exchange(Route::Billing, Outcome::Unknown, None),
            exchange(Route::ListJobs, Outcome::Unsent, None),
            exchange(Route::ListJobs, Outcome::Unknown, Some(502)),
            Exchange {
                answer: None,
                ..exchange(Route::ListJobs, Outcome::Ok, None)
            },
        ];
        let ledger = Ledger::of(&exchanges);
        let unknown: Vec<_> = ledger.unknown.iter().map(|u| u.endpoint).collect();
        assert_eq!(unknown, ["/v1/jobs"; 2], "what is free is never billed");
        let counts = (ledger.answered.len(), ledger.cut_off, ledger.requests);
        assert_eq!(counts, (1, 4, 5));
    }

    #[test]
    fn an_unanswered_request_explains_calls_of_its_route_and_time_by_the_targets_clock() {
        let ahead = SignedDuration::from_mins(20);
        let mut answered = exchange(Route::Health, Outcome::Ok, Some(200));
        let sent = answered.intent.at;
        let id = RequestId::generate(sent + ahead);
        answered.answer.as_mut().unwrap().request_id = Some(id);
        let mut cut_off = exchange(Route::Proof, Outcome::Unknown, None);
        cut_off.intent.at = sent;
        cut_off.answer = None;
        let ledger = Ledger::of(&[answered, cut_off]);
        let explains = |endpoint: &str, seconds| {
            let mut event = fixture::facts().usage.remove(0);
            event.endpoint = Some(endpoint.into());
            event.occurred_at = sent + ahead + SignedDuration::from_secs(seconds);
            ledger.unknown[0].explains(&event)
        };
        let proof = "/v1/jobs/{job_id}/proof";
        assert_eq!(
            [-9, 0, 15, 30].map(|at| explains(proof, at)),
            [false, true, true, false]
        );
        assert!(!explains("/v1/jobs", 0));
    }

    #[test]
    fn an_accepted_job_is_the_logs_even_if_the_targets_clock_lags() {
        let facts = fixture::facts();
        let mut listed = facts.jobs.clone();
        listed[2].job_id = JobId::generate(Timestamp::UNIX_EPOCH);
        let mut ledger = facts.ledger;
        ledger.began = Some(Timestamp::MAX);
        let ids = |views: &[JobView]| views.iter().map(|v| v.job_id).collect::<Vec<_>>();
        let (ours, older) = ledger.divide(listed.clone());
        assert_eq!(
            (ids(&ours), ids(&older)),
            (ids(&listed[..2]), ids(&listed[2..]))
        );
    }
}
