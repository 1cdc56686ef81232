//! Promise 1: an accepted job is never lost and never created twice.

use std::collections::{BTreeMap, BTreeSet};

use contracts::{api::jobs::JobStatus, id::JobId};

use super::{Finding, facts::Facts};
use crate::request::KEY_NOTE;

/// What does not add up between the client's log and the tenant's list.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = answers(facts);
    findings.extend(lost(facts));
    findings.extend(doubled(facts));
    findings.extend(unexplained(facts));
    findings.extend(unfinished(facts));
    findings
}

/// One key, one job.
fn answers(facts: &Facts) -> Vec<Finding> {
    let mut keys: BTreeMap<JobId, Vec<&str>> = BTreeMap::new();
    let mut findings = Vec::new();
    for (key, fate) in &facts.ledger.submissions {
        fate.accepted
            .iter()
            .for_each(|job| keys.entry(*job).or_default().push(key));
        if fate.accepted.len() > 1 {
            let ids: Vec<_> = fate.accepted.iter().map(ToString::to_string).collect();
            findings.push(Finding::new("key_with_two_jobs", key, ids.join(", ")));
        }
    }
    for (job, keys) in keys.into_iter().filter(|(_, keys)| keys.len() > 1) {
        findings.push(Finding::of_job("job_of_two_keys", job, keys.join(", ")));
    }
    findings
}

/// Every accepted job is in the list.
fn lost(facts: &Facts) -> Vec<Finding> {
    let listed: BTreeSet<_> = facts.jobs.iter().map(|view| view.job_id).collect();
    let accepted = facts.ledger.accepted();
    let lost = accepted.difference(&listed);
    lost.map(|job| Finding::of_job("job_lost", *job, "accepted with 202, and not in the list"))
        .collect()
}

/// No job is in the list twice, and no key made two.
fn doubled(facts: &Facts) -> Vec<Finding> {
    let mut ids: BTreeSet<JobId> = BTreeSet::new();
    let mut keys: BTreeMap<&str, JobId> = BTreeMap::new();
    let mut findings = Vec::new();
    for view in &facts.jobs {
        if !ids.insert(view.job_id) {
            findings.push(Finding::of_job(
                "job_doubled",
                view.job_id,
                "in the list twice",
            ));
        } else if let Some(key) = view.metadata.get(KEY_NOTE)
            && let Some(other) = keys.insert(key, view.job_id)
        {
            let detail = format!("same idempotency key as {other}");
            findings.push(Finding::of_job("job_doubled", view.job_id, detail));
        }
    }
    findings
}

/// Every job of the list came from a request that was accepted, or whose outcome is unknown.
fn unexplained(facts: &Facts) -> Vec<Finding> {
    let accepted = facts.ledger.accepted();
    let mut findings = Vec::new();
    for view in facts
        .jobs
        .iter()
        .filter(|view| !accepted.contains(&view.job_id))
    {
        let key = view.metadata.get(KEY_NOTE);
        let fate = key.and_then(|key| facts.ledger.submissions.get(key));
        let detail = match fate {
            Some(fate) if fate.unknown => continue,
            Some(_) => "its request was refused",
            None => "no request of the log submitted it",
        };
        findings.push(Finding::of_job("job_unexplained", view.job_id, detail));
    }
    findings
}

/// Every job ends.
fn unfinished(facts: &Facts) -> Vec<Finding> {
    let open = |status| matches!(status, JobStatus::Pending | JobStatus::Processing);
    let unfinished = facts.jobs.iter().filter(|view| open(view.status));
    unfinished
        .map(|view| Finding::of_job("job_unfinished", view.job_id, view.status.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::{facts, kinds};

    #[test]
    fn a_lost_job_is_found() {
        let mut facts = facts();
        let job = facts.jobs.remove(0).job_id;
        assert_eq!(check(&facts)[0].id, job.to_string());
        assert_eq!(kinds(&check(&facts)), ["job_lost"]);
    }

    #[test]
    fn a_doubled_job_is_found() {
        let mut twice = facts();
        twice.jobs.push(twice.jobs[0].clone());
        assert_eq!(kinds(&check(&twice)), ["job_doubled"]);

        let mut same_key = facts();
        let mut copy = same_key.jobs[0].clone();
        copy.job_id = JobId::generate(copy.created_at);
        same_key.jobs.push(copy);
        assert_eq!(kinds(&check(&same_key)), ["job_doubled", "job_unexplained"]);
    }

    #[test]
    fn a_key_answered_with_two_jobs_is_found() {
        let mut facts = facts();
        let other = facts.jobs[1].job_id;
        let fate = facts.ledger.submissions.values_mut().next().unwrap();
        fate.accepted.insert(other);
        assert_eq!(
            kinds(&check(&facts)),
            ["job_of_two_keys", "key_with_two_jobs"]
        );
    }

    #[test]
    fn a_job_of_an_unknown_outcome_is_explained_and_others_are_not() {
        let mut facts = facts();
        let fate = facts.ledger.submissions.values_mut().next().unwrap();
        fate.accepted.clear();
        fate.unknown = true;
        assert_eq!(check(&facts), []);
        facts
            .ledger
            .submissions
            .values_mut()
            .next()
            .unwrap()
            .unknown = false;
        assert_eq!(kinds(&check(&facts)), ["job_unexplained"]);
        facts.jobs[0].metadata.clear();
        assert_eq!(kinds(&check(&facts)), ["job_unexplained"]);
    }

    #[test]
    fn an_unfinished_job_is_found() {
        let mut facts = facts();
        facts.jobs[0].status = JobStatus::Processing;
        assert_eq!(kinds(&check(&facts)), ["job_unfinished"]);
    }
}
