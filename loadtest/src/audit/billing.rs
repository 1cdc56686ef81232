//! Promise 3: every billable fact is billed exactly once, and the sums agree.

use std::collections::{BTreeMap, BTreeSet};

use contracts::{
    api::{
        jobs::{JobStatus, JobView},
        usage::{Meter, Unit, UsageEvent},
    },
    id::JobId,
    job_type::compute_units,
};
use rust_decimal::Decimal;

use super::{
    Finding,
    facts::{Billable, Facts, Quantities},
};

/// What does not add up among the usage events, the aggregates and the invoice.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = jobs(facts);
    findings.extend(strangers(facts));
    findings.extend(calls(facts));
    findings.extend(sums(facts));
    findings
}

/// Each job's facts, once each, with the right quantity.
fn jobs(facts: &Facts) -> Vec<Finding> {
    let mut rows: BTreeMap<(JobId, Meter, Unit), Vec<Decimal>> = BTreeMap::new();
    for event in &facts.usage {
        if let Some(job) = event.job_id {
            rows.entry((job, event.meter, event.unit))
                .or_default()
                .push(event.quantity);
        }
    }
    let mut findings = Vec::new();
    for view in &facts.jobs {
        for (meter, unit, expected) in owed(facts, view) {
            let found = rows
                .get(&(view.job_id, meter, unit))
                .map_or(&[][..], Vec::as_slice);
            findings.extend(row(view.job_id, (meter, unit), expected, found));
        }
    }
    findings
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

fn owed(facts: &Facts, view: &JobView) -> [(Meter, Unit, Owed); 4] {
    let one = Owed::Exactly(Decimal::ONE);
    let units = match facts.ledger.submission_of(view) {
        Some(submission) => Owed::Exactly(compute_units(submission.payload.len()).into()),
        None => Owed::Some,
    };
    let completed = view.status == JobStatus::Completed;
    let when = |owes, owed| if owes { owed } else { Owed::Nothing };
    let sealed = facts.has_to_be_sealed(view);
    [
        (Meter::JobSubmission, Unit::ComputeUnit, units),
        (Meter::JobCompletion, Unit::Job, when(completed, one)),
        (
            Meter::JobCompletion,
            Unit::Millisecond,
            when(completed, Owed::Some),
        ),
        (
            Meter::BlockchainConfirmation,
            Unit::Confirmation,
            when(sealed, one),
        ),
    ]
}

fn row(job: JobId, (meter, unit): (Meter, Unit), owed: Owed, found: &[Decimal]) -> Option<Finding> {
    let what = format!("{} in {}", meter.as_str(), unit.as_str());
    match (owed, found) {
        (Owed::Nothing, []) | (Owed::Some, [_]) => None,
        (Owed::Exactly(right), [quantity]) if right == *quantity => None,
        (Owed::Exactly(right), [quantity]) => {
            let detail = format!("{what}: {quantity} instead of {right}");
            Some(Finding::new("usage_wrong_quantity", job, detail))
        }
        (Owed::Exactly(_) | Owed::Some, []) => Some(Finding::new("usage_missing", job, what)),
        (Owed::Nothing, _) => Some(Finding::new("usage_not_owed", job, what)),
        (_, rows) => Some(Finding::new(
            "usage_doubled",
            job,
            format!("{what}: {} times", rows.len()),
        )),
    }
}

/// Every job that is billed is in the list.
fn strangers(facts: &Facts) -> Vec<Finding> {
    let listed: BTreeSet<_> = facts.jobs.iter().map(|view| view.job_id).collect();
    let known = |job: JobId| listed.contains(&job) || !facts.ledger.covers(job.timestamp());
    let mut findings = Vec::new();
    for event in &facts.usage {
        if let Some(job) = event.job_id.filter(|job| !known(*job)) {
            let detail = format!(
                "{}, for a job that is not in the list",
                event.meter.as_str()
            );
            findings.push(Finding::new("usage_unexplained", job, detail));
        }
    }
    findings
}

/// Every answered request once; others only as far as requests of unknown outcome explain them.
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
    for (request, billable) in &facts.ledger.answered {
        let found = rows.remove(&request.to_string()).unwrap_or_default();
        let kind = match (billable, found.len()) {
            (Billable::Yes, 1) | (Billable::No, 0) => continue,
            (Billable::Yes, 0) => "usage_missing",
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
    if rows.len() > facts.ledger.unknown || rows.values().any(|events| events.len() > 1) {
        let unknown = facts.ledger.unknown;
        let detail = format!("API_USAGE of no answered request; {unknown} outcomes are unknown");
        findings.extend(
            rows.keys()
                .map(|id| Finding::new("usage_unexplained", id, &*detail)),
        );
    }
    findings
}

/// Raw events, aggregates and invoice come to the same.
fn sums(facts: &Facts) -> Vec<Finding> {
    let mut raw = Quantities::new();
    for event in &facts.usage {
        *raw.entry((event.meter, event.unit)).or_default() += event.quantity;
    }
    let mut findings = Vec::new();
    for meter in Meter::ALL {
        for unit in Unit::ALL {
            let of = |sums: &Quantities| sums.get(&(meter, unit)).copied().unwrap_or_default();
            let (events, totals, invoice) = (of(&raw), of(&facts.totals), of(&facts.invoice));
            if events != totals || totals != invoice {
                let id = format!("{}/{}", meter.as_str(), unit.as_str());
                let detail = format!("events {events}, aggregates {totals}, invoice {invoice}");
                findings.push(Finding::new("sums_differ", id, detail));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use contracts::id::RequestId;

    use super::*;
    use crate::audit::fixture::{facts, kinds, settle_sums};

    fn position(facts: &Facts, meter: Meter) -> usize {
        facts
            .usage
            .iter()
            .position(|event| event.meter == meter)
            .unwrap()
    }

    #[test]
    fn a_missing_row_is_found_for_each_meter() {
        for meter in Meter::ALL {
            let mut facts = facts();
            let row = facts.usage.remove(position(&facts, meter));
            let findings = check(&facts);
            assert_eq!(
                kinds(&findings),
                ["sums_differ", "usage_missing"],
                "{meter:?}"
            );
            settle_sums(&mut facts);
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
            settle_sums(&mut facts);
            assert_eq!(kinds(&check(&facts)), ["usage_doubled"], "{meter:?}");
        }
    }

    #[test]
    fn wrong_compute_units_are_found() {
        let mut facts = facts();
        let row = position(&facts, Meter::JobSubmission);
        facts.usage[row].quantity += Decimal::ONE;
        settle_sums(&mut facts);
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
        *facts.ledger.answered.values_mut().next().unwrap() = Billable::No;
        assert_eq!(kinds(&check(&facts)), ["usage_not_owed"]);
    }

    #[test]
    fn a_call_nobody_made_is_found_unless_an_unknown_outcome_explains_it() {
        let mut facts = facts();
        let mut row = facts.usage[position(&facts, Meter::ApiUsage)].clone();
        row.request_id = Some(RequestId::generate(row.occurred_at));
        facts.usage.push(row);
        settle_sums(&mut facts);
        assert_eq!(kinds(&check(&facts)), ["usage_unexplained"]);
        facts.ledger.unknown = 1;
        assert_eq!(check(&facts), []);
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
    fn an_invoice_that_differs_is_found() {
        let mut facts = facts();
        *facts
            .invoice
            .get_mut(&(Meter::ApiUsage, Unit::Call))
            .unwrap() += Decimal::ONE;
        assert_eq!(kinds(&check(&facts)), ["sums_differ"]);
    }
}
