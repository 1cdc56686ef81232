//! Promise 4: every subscribed endpoint is told at least once, or the delivery is visible as
//! failed.

use std::collections::{BTreeMap, BTreeSet};

use contracts::{
    api::{
        jobs::{JobEventType, JobStatus, JobView},
        webhooks::{DeliveryStatus, DeliveryView},
    },
    id::{EndpointId, JobId},
};

use super::{Finding, facts::Facts, told};
use crate::receiver::Receipt;

/// What an endpoint was answered with when it took a webhook.
const TAKEN: u16 = 204;

/// What a webhook is: its id, and what it tells of which job.
type Message = (String, Option<JobEventType>, Option<JobId>);

/// What does not add up between the events, the deliveries and the receipts.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut by_event: BTreeMap<(EndpointId, JobId, JobEventType), Vec<&DeliveryView>> =
        BTreeMap::new();
    for delivery in &facts.deliveries {
        if let (Some(job), Some(event)) = (delivery.job_id, delivery.event_type) {
            by_event
                .entry((delivery.endpoint_id, job, event))
                .or_default()
                .push(delivery);
        }
    }
    let taken = taken(facts);
    let mut findings = receipts(facts);
    findings.extend(bodies(facts));
    findings.extend(unexplained(facts));
    findings.extend(facts.deliveries.iter().filter_map(|d| denied(d, &taken)));
    for (endpoint, events) in &facts.ledger.endpoints {
        for view in facts
            .jobs
            .iter()
            .filter(|view| view.job_id.timestamp() >= endpoint.timestamp())
        {
            for event in happened(facts, view).filter(|event| events.contains(event)) {
                let key = (*endpoint, view.job_id, event);
                let deliveries = by_event.get(&key).map_or(&[][..], Vec::as_slice);
                findings.extend(delivery(view.job_id, event, deliveries, &taken));
            }
        }
    }
    findings
}

/// How many deliveries failed, visibly.
pub(super) fn failed_visibly(facts: &Facts) -> usize {
    let failed = |status| matches!(status, DeliveryStatus::Failed | DeliveryStatus::Held);
    facts
        .deliveries
        .iter()
        .filter(|delivery| failed(delivery.status))
        .count()
}

/// The messages that were received, verified and taken.
fn taken(facts: &Facts) -> BTreeSet<Message> {
    let taken = facts
        .receipts
        .iter()
        .filter(|r| r.verified && r.answered == TAKEN);
    taken.map(received).collect()
}

fn received(receipt: &Receipt) -> Message {
    let id = receipt.webhook_id.clone();
    (id, receipt.event_type, receipt.job_id)
}

fn sent(delivery: &DeliveryView) -> Message {
    let id = delivery.message_id.to_string();
    (id, delivery.event_type, delivery.job_id)
}

/// The events that surely happened to a job, of those an endpoint can ask for.
fn happened(facts: &Facts, view: &JobView) -> impl Iterator<Item = JobEventType> {
    let ended = match view.status {
        JobStatus::Completed => Some(JobEventType::Completed),
        JobStatus::Failed => Some(JobEventType::Failed),
        JobStatus::Cancelled => Some(JobEventType::Cancelled),
        JobStatus::Pending | JobStatus::Processing => None,
    };
    let confirmed = facts
        .has_to_be_sealed(view)
        .then_some(JobEventType::Confirmed);
    [Some(JobEventType::Submitted), ended, confirmed]
        .into_iter()
        .flatten()
}

fn delivery(
    job: JobId,
    event: JobEventType,
    deliveries: &[&DeliveryView],
    taken: &BTreeSet<Message>,
) -> Option<Finding> {
    let what = event.as_str();
    let delivery = match deliveries {
        [] => return Some(Finding::of_job("delivery_missing", job, what)),
        [delivery] => delivery,
        several => {
            let detail = format!("{what}: {} deliveries to one endpoint", several.len());
            return Some(Finding::of_job("delivery_doubled", job, detail));
        }
    };
    let id = delivery.message_id;
    let finding = match delivery.status {
        DeliveryStatus::Failed | DeliveryStatus::Held => return None,
        DeliveryStatus::Delivered if taken.contains(&sent(delivery)) => return None,
        DeliveryStatus::Delivered => {
            let detail = format!("{what} of {job} is said to be delivered, and did not arrive");
            Finding::new("receipt_missing", id, detail)
        }
        DeliveryStatus::Pending => {
            let detail = format!("{what} of {job}, tried {} times", delivery.attempts);
            Finding::new("delivery_pending", id, detail)
        }
    };
    Some(finding.about(Some(job)))
}

/// A delivery that is said to have failed was not taken. (One that is held may have been, when the
/// endpoint was disabled before anybody noted that.)
fn denied(delivery: &DeliveryView, taken: &BTreeSet<Message>) -> Option<Finding> {
    let denied = delivery.status == DeliveryStatus::Failed && taken.contains(&sent(delivery));
    let detail = "is said to have failed, and was taken";
    denied.then(|| {
        Finding::new("delivery_denied", delivery.message_id, detail).about(delivery.job_id)
    })
}

/// Every delivery tells an endpoint what it asked for, of a job to which that happened.
fn unexplained(facts: &Facts) -> Vec<Finding> {
    let views = views(facts);
    let mut findings = Vec::new();
    for delivery in &facts.deliveries {
        let detail = match (delivery.event_type, delivery.job_id) {
            (Some(event), Some(job)) => {
                let asked = facts.ledger.endpoints.get(&delivery.endpoint_id);
                let asked = asked.is_some_and(|events| events.contains(&event));
                // What happened to jobs of before the log, nobody here can tell.
                let explained = match views.get(&job) {
                    Some(view) => may_have_happened(facts, view, event),
                    None => !facts.ledger.covers(job.timestamp()),
                };
                if asked && explained {
                    continue;
                }
                format!("nothing explains {} of {job}", event.as_str())
            }
            _ => "of no job's event".to_owned(),
        };
        let kind = "delivery_unexplained";
        findings.push(Finding::new(kind, delivery.message_id, detail).about(delivery.job_id));
    }
    findings
}

fn may_have_happened(facts: &Facts, view: &JobView, event: JobEventType) -> bool {
    let open = matches!(view.status, JobStatus::Pending | JobStatus::Processing);
    let started = event == JobEventType::Started && view.attempts > 0;
    // A job that has not ended is a finding already; what it is told to have come to may be true.
    open || started || happened(facts, view).any(|happened| happened == event)
}

/// Every webhook that arrived is signed, is what the delivery with its id was to tell, and tells of
/// the job what is true.
fn receipts(facts: &Facts) -> Vec<Finding> {
    let known: BTreeMap<_, _> = facts
        .deliveries
        .iter()
        .map(|delivery| (delivery.message_id.to_string(), delivery))
        .collect();
    let views = views(facts);
    let mut findings = Vec::new();
    for receipt in &facts.receipts {
        let id = &receipt.webhook_id;
        let (kind, detail) = match known.get(id) {
            _ if !receipt.verified => ("receipt_unverified", "the signature is wrong".to_owned()),
            None => {
                let detail = "received, and not among the deliveries";
                ("receipt_unexplained", detail.to_owned())
            }
            Some(delivery) if sent(delivery) != received(receipt) => {
                let event = delivery.event_type.map_or("a test", JobEventType::as_str);
                let job = delivery.job_id.map(|job| format!(" of {job}"));
                let detail = format!("was to tell {event}{}", job.unwrap_or_default());
                ("receipt_differs", detail)
            }
            Some(_) => match misled(receipt, &views) {
                Some(detail) => ("webhook_wrong", detail),
                None => continue,
            },
        };
        findings.push(Finding::new(kind, id, detail).about(receipt.job_id));
    }
    findings
}

/// What a webhook tells otherwise than its job shows. Of jobs of before the log, nobody here can
/// tell.
fn misled(receipt: &Receipt, views: &BTreeMap<JobId, &JobView>) -> Option<String> {
    let view = views.get(&receipt.job_id?)?;
    let wrong = match (receipt.event_type, &receipt.told) {
        (Some(event), Some(told)) => told::wrong(view, event, told),
        _ => vec!["all of it"],
    };
    (!wrong.is_empty()).then(|| format!("of {}: {}", view.job_id, wrong.join(", ")))
}

fn views(facts: &Facts) -> BTreeMap<JobId, &JobView> {
    let views = facts.jobs.iter().map(|view| (view.job_id, view));
    views.collect()
}

/// A message has the same body whenever it is sent.
fn bodies(facts: &Facts) -> Vec<Finding> {
    let mut of_message: BTreeMap<&str, &str> = BTreeMap::new();
    let mut findings = Vec::new();
    for receipt in facts.receipts.iter().filter(|receipt| receipt.verified) {
        let (id, body) = (&receipt.webhook_id, receipt.body_sha256.as_str());
        if *of_message.entry(id).or_insert(body) != body {
            let finding = Finding::new("receipt_body_differs", id, "came with two bodies");
            findings.push(finding.about(receipt.job_id));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use contracts::id::MessageId;
    use jiff::Timestamp;

    use super::*;
    use crate::audit::fixture::{facts, kinds};

    #[test]
    fn a_missing_delivery_is_found() {
        let mut facts = facts();
        let gone = facts.deliveries.remove(0);
        facts
            .receipts
            .retain(|receipt| receipt.webhook_id != gone.message_id.to_string());
        let findings = check(&facts);
        assert_eq!(kinds(&findings), ["delivery_missing"]);
        assert_eq!(findings[0].id, gone.job_id.unwrap().to_string());
    }

    #[test]
    fn a_doubled_delivery_is_found() {
        let mut facts = facts();
        facts.deliveries.push(facts.deliveries[0].clone());
        assert_eq!(kinds(&check(&facts)), ["delivery_doubled"]);
    }

    #[test]
    fn a_delivery_that_never_arrived_is_found() {
        let mut facts = facts();
        let id = facts.receipts[0].webhook_id.clone();
        facts.receipts[0].answered = 500;
        assert_eq!(check(&facts)[0].id, id);
        assert_eq!(kinds(&check(&facts)), ["receipt_missing"]);
    }

    #[test]
    fn a_failed_delivery_is_no_finding_and_a_pending_one_is() {
        let mut facts = facts();
        facts.receipts.remove(0);
        facts.deliveries[0].status = DeliveryStatus::Failed;
        assert_eq!(check(&facts), []);
        assert_eq!(failed_visibly(&facts), 1);
        facts.deliveries[0].status = DeliveryStatus::Pending;
        assert_eq!(kinds(&check(&facts)), ["delivery_pending"]);
    }

    #[test]
    fn a_delivery_said_to_have_failed_although_it_was_taken_is_found() {
        let mut facts = facts();
        facts.deliveries[0].status = DeliveryStatus::Failed;
        let findings = check(&facts);
        assert_eq!(kinds(&findings), ["delivery_denied"]);
        assert_eq!(findings[0].job_id, facts.deliveries[0].job_id);
        facts.deliveries[0].status = DeliveryStatus::Held;
        assert_eq!(check(&facts), [], "the endpoint was disabled meanwhile");
    }

    #[test]
    fn a_receipt_that_tells_something_else_than_its_delivery_is_found() {
        let mut facts = facts();
        let other = facts.receipts[4].clone();
        facts.receipts[0].job_id = other.job_id;
        let expected = ["receipt_differs", "receipt_missing"];
        assert_eq!(kinds(&check(&facts)), expected);
        facts.receipts[0].job_id = facts.deliveries[0].job_id;
        assert_eq!(check(&facts), []);
        facts.receipts[0].event_type = Some(JobEventType::Failed);
        assert_eq!(kinds(&check(&facts)), expected);
    }

    #[test]
    fn a_body_that_changes_between_attempts_is_found() {
        let mut facts = facts();
        let mut again = facts.receipts[0].clone();
        facts.receipts.push(again.clone());
        assert_eq!(check(&facts), [], "told twice");
        again.body_sha256 = "another".into();
        facts.receipts.push(again);
        assert_eq!(kinds(&check(&facts)), ["receipt_body_differs"]);
    }

    #[test]
    fn a_delivery_that_nothing_explains_is_found() {
        let with = |change: fn(&mut DeliveryView)| {
            let mut facts = facts();
            let mut stranger = facts.deliveries[0].clone();
            stranger.message_id = MessageId::generate(stranger.created_at);
            stranger.status = DeliveryStatus::Failed;
            change(&mut stranger);
            facts.deliveries.push(stranger);
            kinds(&check(&facts))
        };
        let unexplained = ["delivery_unexplained"];
        let cancelled = with(|delivery| delivery.event_type = Some(JobEventType::Cancelled));
        assert_eq!(cancelled, unexplained);
        let unasked = with(|delivery| delivery.event_type = Some(JobEventType::Submitted));
        assert_eq!(unasked, unexplained);
        let unlisted = with(|d| d.job_id = Some(JobId::generate(d.created_at)));
        assert_eq!(unlisted, unexplained);
        let test = with(|delivery| (delivery.event_type, delivery.job_id) = (None, None));
        assert_eq!(test, unexplained);
        let before =
            with(|delivery| delivery.job_id = Some(JobId::generate(Timestamp::UNIX_EPOCH)));
        assert_eq!(before, [""; 0], "submitted before the log began");
    }

    #[test]
    fn an_unsigned_or_unknown_webhook_is_found() {
        let mut facts = facts();
        let mut stranger = facts.receipts[0].clone();
        stranger.webhook_id = "msg_unknown".into();
        facts.receipts.push(stranger.clone());
        facts.receipts.push(Receipt {
            verified: false,
            ..stranger
        });
        assert_eq!(
            kinds(&check(&facts)),
            ["receipt_unexplained", "receipt_unverified"]
        );
    }

    #[test]
    fn what_was_not_subscribed_or_happened_before_is_not_owed() {
        let mut facts = facts();
        facts.deliveries.clear();
        facts.receipts.clear();
        let events = facts.ledger.endpoints.values_mut().next().unwrap();
        *events = vec![JobEventType::Cancelled];
        assert_eq!(check(&facts), []);
    }
}
