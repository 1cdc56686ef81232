//! Promise 3: every billable fact is billed exactly once, with the right quantity.

use std::collections::{BTreeMap, BTreeSet};

use contracts::{
    api::{
        jobs::{JobStatus, JobView},
        usage::{Meter, Unit, UsageEvent},
    },
    id::JobId,
    job_type::compute_units,
};
use jiff::SignedDuration;
use rust_decimal::Decimal;

use super::{
    Finding,
    facts::Facts,
    ledger::{Billable, Charge, Unanswered},
};

/// How far the rounding of two times may be off.
const COMPUTE_SLACK: SignedDuration = SignedDuration::from_millis(10);

/// What does not add up between what happened and the usage events.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = jobs(facts);
    findings.extend(strangers(facts));
    findings.extend(calls(facts));
    findings
}

/// Each job's facts, once each, with the right quantity, and no others.
fn jobs(facts: &Facts) -> Vec<Finding> {
    let mut rows: BTreeMap<JobId, BTreeMap<(Meter, Unit), Vec<Decimal>>> = BTreeMap::new();
    for event in &facts.usage {
        if let Some(job) = event.job_id {
            let of_job = rows.entry(job).or_default();
            let of_measure = of_job.entry((event.meter, event.unit)).or_default();
            of_measure.push(event.quantity);
        }
    }
    let mut findings = Vec::new();
    for view in &facts.jobs {
        findings.extend(compute(view));
        let mut rows = rows.remove(&view.job_id).unwrap_or_default();
        for (measure, expected) in owed(facts, view) {
            let found = rows.remove(&measure).unwrap_or_default();
            findings.extend(row(view.job_id, measure, expected, &found));
        }
        for (measure, found) in rows {
            findings.extend(row(view.job_id, measure, Owed::Nothing, &found));
        }
    }
    findings
}

/// A job computes no longer than from its start to its end.
fn compute(view: &JobView) -> Option<Finding> {
    let (started, ended) = view.started_at.zip(view.ended_at)?;
    let took = ended.duration_since(started) + COMPUTE_SLACK;
    let computed = view.compute_ms?;
    (i128::from(computed) > took.as_millis()).then(|| {
        let detail = format!("{computed} ms, from {started} to {ended}");
        Finding::of_job("compute_too_long", view.job_id, detail)
    })
}

/// What a job owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    /// One row with this quantity.
    Exactly(Decimal),
    /// One row, whose quantity only the target knows.
    Some,
    /// No row.
    Nothing,
}

fn owed(facts: &Facts, view: &JobView) -> [((Meter, Unit), Owed); 4] {
    let one = Owed::Exactly(Decimal::ONE);
    let units = match facts.ledger.submission_of(view) {
        Some(submission) => Owed::Exactly(compute_units(submission.payload.len()).into()),
        None => Owed::Some,
    };
    let computed = Owed::Exactly(view.compute_ms.unwrap_or_default().into());
    let completed = view.status == JobStatus::Completed;
    let when = |owes, owed| if owes { owed } else { Owed::Nothing };
    let sealed = facts.has_to_be_sealed(view);
    [
        ((Meter::JobSubmission, Unit::ComputeUnit), units),
        ((Meter::JobCompletion, Unit::Job), when(completed, one)),
        (
            (Meter::JobCompletion, Unit::Millisecond),
            when(completed, computed),
        ),
        (
            (Meter::BlockchainConfirmation, Unit::Confirmation),
            when(sealed, one),
        ),
    ]
}

fn row(job: JobId, (meter, unit): (Meter, Unit), owed: Owed, found: &[Decimal]) -> Option<Finding> {
    let what = format!("{} in {}", meter.as_str(), unit.as_str());
    let (kind, detail) = match (owed, found) {
        (Owed::Nothing, []) | (Owed::Some, [_]) => return None,
        (Owed::Exactly(right), [quantity]) if right == *quantity => return None,
        (Owed::Exactly(right), [quantity]) => {
            let detail = format!("{what}: {quantity} instead of {right}");
            ("usage_wrong_quantity", detail)
        }
        (Owed::Exactly(_) | Owed::Some, []) => ("usage_missing", what),
        (Owed::Nothing, _) => ("usage_not_owed", what),
        (_, rows) => ("usage_doubled", format!("{what}: {} times", rows.len())),
    };
    Some(Finding::of_job(kind, job, detail))
}

/// Whatever is not a call is about a job, and every job that is billed is in the list.
fn strangers(facts: &Facts) -> Vec<Finding> {
    let listed: BTreeSet<_> = facts.jobs.iter().map(|view| view.job_id).collect();
    let known = |job: JobId| listed.contains(&job) || !facts.ledger.covers(job.timestamp());
    let mut findings = Vec::new();
    for event in &facts.usage {
        let meter = event.meter.as_str();
        if let Some(job) = event.job_id.filter(|job| !known(*job)) {
            let detail = format!("{meter}, for a job that is not in the list");
            findings.push(Finding::of_job("usage_unexplained", job, detail));
        } else if event.job_id.is_none()
            && event.meter != Meter::ApiUsage
            && facts.ledger.covers(event.occurred_at)
        {
            let detail = format!("{meter}, for no job");
            findings.push(Finding::new("usage_unexplained", &event.event_id, detail));
        }
    }
    findings
}

/// Every answered request once, for its endpoint and status; others only as far as requests of
/// unknown outcome explain them, one each. Each of them is one call.
fn calls(facts: &Facts) -> Vec<Finding> {
    let calls = facts
        .usage
        .iter()
        .filter(|event| event.meter == Meter::ApiUsage);
    let mut rows: BTreeMap<String, Vec<&UsageEvent>> = BTreeMap::new();
    for event in calls {
        let id = event
            .request_id
            .map_or_else(|| event.event_id.clone(), |id| id.to_string());
        rows.entry(id).or_default().push(event);
    }
    let mut findings = Vec::new();
    for (request, charge) in &facts.ledger.answered {
        let found = rows.remove(&request.to_string()).unwrap_or_default();
        let kind = match (charge.billable, found.as_slice()) {
            (Billable::No, []) => continue,
            (Billable::Yes, [event]) => {
                findings.extend(quantity(event));
                findings.extend(answer(event, charge));
                continue;
            }
            (Billable::Yes, []) => "usage_missing",
            (Billable::No, _) => "usage_not_owed",
            (Billable::Yes, _) => "usage_doubled",
        };
        let detail = format!("API_USAGE: {} rows", found.len());
        findings.push(Finding::new(kind, request, detail));
    }
    rows.retain(|_, events| {
        events
            .iter()
            .any(|event| facts.ledger.covers(event.occurred_at))
    });
    findings.extend(rows.values().flatten().filter_map(|event| quantity(event)));
    findings.extend(unexplained(&facts.ledger.unknown, &rows));
    findings
}

/// The rows that no request of unknown outcome explains. The first of those that explain a row and
/// end first is its: whoever ends later may explain a later one.
fn unexplained(unknown: &[Unanswered], rows: &BTreeMap<String, Vec<&UsageEvent>>) -> Vec<Finding> {
    let mut open = unknown.to_vec();
    open.sort_by_key(|request| request.to);
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by_key(|(_, events)| events.first().map(|event| event.occurred_at));
    let mut findings = Vec::new();
    for (id, events) in rows {
        if let [event] = events.as_slice()
            && let Some(index) = open.iter().position(|request| request.explains(event))
        {
            open.remove(index);
        } else {
            let detail = format!(
                "API_USAGE of no answered request, nor one of {} of unknown outcome",
                unknown.len()
            );
            findings.push(Finding::new("usage_unexplained", id, detail));
        }
    }
    findings
}

fn answer(event: &UsageEvent, charge: &Charge) -> Option<Finding> {
    let shown = |endpoint: Option<&str>, status: Option<u16>| {
        let status = status.map(|status| status.to_string());
        let status = status.as_deref().unwrap_or("no status");
        format!("{} with {status}", endpoint.unwrap_or("no route"))
    };
    let billed = shown(event.endpoint.as_deref(), event.status_code);
    let right = shown(charge.endpoint, charge.status);
    (billed != right).then(|| {
        let detail = format!("API_USAGE: {billed} instead of {right}");
        Finding::new("usage_differs", &event.event_id, detail)
    })
}

fn quantity(event: &UsageEvent) -> Option<Finding> {
    let (quantity, unit) = (event.quantity, event.unit);
    let is_one_call = quantity == Decimal::ONE && unit == Unit::Call;
    let detail = format!("API_USAGE: {quantity} {} instead of 1 CALL", unit.as_str());
    (!is_one_call).then(|| Finding::new("usage_wrong_quantity", &event.event_id, detail))
}

#[cfg(test)]
mod tests {
    use contracts::id::RequestId;
    use jiff::Timestamp;

    use super::*;
    use crate::audit::fixture::{facts, kinds};

    fn position(facts: &Facts, meter: Meter) -> usize {
        facts
            .usage
            .iter()
            .position(|event| event.meter == meter)
            .unwrap()
    }

    /// A request of unknown outcome at the time of the fixture's call.
    fn unanswered(facts: &Facts) -> Unanswered {
        let at = facts.usage[position(facts, Meter::ApiUsage)].occurred_at;
        Unanswered {
            endpoint: "/v1/jobs",
            from: at - SignedDuration::from_secs(5),
            to: at + SignedDuration::from_secs(5),
        }
    }

    #[test]
    fn a_missing_row_is_found_for_each_meter() {
        for meter in Meter::ALL {
            let mut facts = facts();
            let row = facts.usage.remove(position(&facts, meter));
            assert_eq!(kinds(&check(&facts)), ["usage_missing"], "{meter:?}");
            let id = row.job_id.map(|id| id.to_string());
            let id = id.or(row.request_id.map(|id| id.to_string()));
            assert_eq!(Some(&check(&facts)[0].id), id.as_ref());
        }
    }

    #[test]
    fn a_doubled_row_is_found_for_each_meter() {
        for meter in Meter::ALL {
            let mut facts = facts();
            let row = facts.usage[position(&facts, meter)].clone();
            facts.usage.push(row);
            assert_eq!(kinds(&check(&facts)), ["usage_doubled"], "{meter:?}");
        }
    }

    #[test]
    fn wrong_compute_units_are_found() {
        let mut facts = facts();
        let row = position(&facts, Meter::JobSubmission);
        facts.usage[row].quantity += Decimal::ONE;
        assert_eq!(kinds(&check(&facts)), ["usage_wrong_quantity"]);
    }

    #[test]
    fn a_failed_job_owes_no_completion() {
        let mut facts = facts();
        facts.jobs[0].status = JobStatus::Failed;
        assert_eq!(kinds(&check(&facts)), ["usage_not_owed", "usage_not_owed"]);
    }

    #[test]
    fn a_refused_request_owes_nothing() {
        let mut facts = facts();
        let charge = facts.ledger.answered.values_mut().next().unwrap();
        charge.billable = Billable::No;
        assert_eq!(kinds(&check(&facts)), ["usage_not_owed"]);
    }

    #[test]
    fn a_call_nobody_made_is_found_unless_an_unknown_outcome_explains_it() {
        let mut facts = facts();
        let mut row = facts.usage[position(&facts, Meter::ApiUsage)].clone();
        row.request_id = Some(RequestId::generate(row.occurred_at));
        facts.usage.push(row);
        assert_eq!(kinds(&check(&facts)), ["usage_unexplained"]);
        facts.ledger.unknown = vec![unanswered(&facts)];
        assert_eq!(check(&facts), []);
        facts.ledger.unknown[0].endpoint = "/v1/jobs/{job_id}/proof";
        assert_eq!(
            kinds(&check(&facts)),
            ["usage_unexplained"],
            "another route"
        );
        let mut later = unanswered(&facts);
        later.from += SignedDuration::from_mins(1);
        later.to += SignedDuration::from_mins(1);
        facts.ledger.unknown = vec![later];
        assert_eq!(kinds(&check(&facts)), ["usage_unexplained"], "another time");
    }

    #[test]
    fn each_request_of_unknown_outcome_explains_one_call() {
        let mut facts = facts();
        let call = facts.usage[position(&facts, Meter::ApiUsage)].clone();
        let early = unanswered(&facts);
        let late = Unanswered {
            to: early.to + SignedDuration::from_mins(1),
            ..early
        };
        facts.ledger.unknown = vec![late, early];
        for seconds in [0, 40] {
            let mut row = call.clone();
            row.occurred_at += SignedDuration::from_secs(seconds);
            row.request_id = Some(RequestId::generate(row.occurred_at));
            facts.usage.push(row);
        }
        assert_eq!(check(&facts), []);
        facts.ledger.unknown.pop();
        assert_eq!(kinds(&check(&facts)), ["usage_unexplained"]);
    }

    #[test]
    fn a_call_billed_for_another_endpoint_or_status_is_found() {
        let changes: [fn(&mut UsageEvent); 2] = [
            |row| row.endpoint = Some("/v1/jobs/{job_id}".into()),
            |row| row.status_code = Some(500),
        ];
        for change in changes {
            let mut facts = facts();
            let row = position(&facts, Meter::ApiUsage);
            change(&mut facts.usage[row]);
            assert_eq!(kinds(&check(&facts)), ["usage_differs"]);
        }
    }

    #[test]
    fn computing_longer_than_the_job_took_is_found() {
        let mut facts = facts();
        facts.jobs[0].compute_ms = Some(1_000_001);
        let milliseconds = |event: &&mut UsageEvent| event.unit == Unit::Millisecond;
        let row = facts.usage.iter_mut().find(milliseconds).unwrap();
        row.quantity = 1_000_001.into();
        assert_eq!(kinds(&check(&facts)), ["compute_too_long"]);
    }

    #[test]
    fn a_billed_job_that_is_not_listed_is_found() {
        let mut facts = facts();
        facts.jobs.pop();
        let findings = check(&facts);
        assert!(
            findings
                .iter()
                .all(|finding| finding.kind == "usage_unexplained")
        );
        assert!(!findings.is_empty());
    }

    #[test]
    fn a_call_is_one_call_however_it_is_explained() {
        for change in [
            |row: &mut UsageEvent| row.quantity = 500.into(),
            |row: &mut UsageEvent| row.unit = Unit::Job,
        ] {
            let mut facts = facts();
            let row = position(&facts, Meter::ApiUsage);
            change(&mut facts.usage[row]);
            let id = facts.usage[row].request_id.unwrap();
            facts.usage[row].event_id = id.to_string();
            let findings = check(&facts);
            assert_eq!(kinds(&findings), ["usage_wrong_quantity"]);
            assert_eq!(findings[0].id, id.to_string());
            facts.ledger.answered.clear();
            facts.ledger.unknown = vec![unanswered(&facts)];
            assert_eq!(kinds(&check(&facts)), ["usage_wrong_quantity"]);
        }
    }

    #[test]
    fn computing_is_billed_as_the_job_shows_it() {
        let mut facts = facts();
        let milliseconds = |event: &&mut UsageEvent| event.unit == Unit::Millisecond;
        let row = facts.usage.iter_mut().find(milliseconds).unwrap();
        row.quantity += Decimal::from(1_000_000);
        let job = row.job_id;
        let findings = check(&facts);
        assert_eq!(kinds(&findings), ["usage_wrong_quantity"]);
        assert_eq!(findings[0].job_id, job);
    }

    #[test]
    fn a_charge_for_no_job_or_of_a_kind_no_job_has_is_found() {
        let charge = |change: fn(&mut UsageEvent)| {
            let mut facts = facts();
            let mut row = facts.usage[position(&facts, Meter::JobSubmission)].clone();
            row.event_id = "stray".into();
            row.quantity = 1_000.into();
            change(&mut row);
            facts.usage.push(row);
            check(&facts)
        };
        let stray = charge(|row| row.job_id = None);
        assert_eq!(kinds(&stray), ["usage_unexplained"]);
        assert_eq!(stray[0].id, "stray");
        let odd = charge(|row| row.unit = Unit::Confirmation);
        assert_eq!(kinds(&odd), ["usage_not_owed"]);
        let before = charge(|row| {
            row.job_id = None;
            row.occurred_at = Timestamp::UNIX_EPOCH;
        });
        assert_eq!(before, [], "somebody else's");
    }
}
