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

use super::{Finding, facts::Facts};

/// What an endpoint was answered with when it took a webhook.
const TAKEN: u16 = 204;

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
    let received = received(facts);
    let mut findings = receipts(facts);
    for (endpoint, events) in &facts.ledger.endpoints {
        for view in facts
            .jobs
            .iter()
            .filter(|view| view.job_id.timestamp() >= endpoint.timestamp())
        {
            for event in happened(facts, view).filter(|event| events.contains(event)) {
                let key = (*endpoint, view.job_id, event);
                let deliveries = by_event.get(&key).map_or(&[][..], Vec::as_slice);
                findings.extend(delivery(view.job_id, event, deliveries, &received));
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
fn received(facts: &Facts) -> BTreeSet<&str> {
    let taken = facts
        .receipts
        .iter()
        .filter(|r| r.verified && r.answered == TAKEN);
    taken.map(|receipt| receipt.webhook_id.as_str()).collect()
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
    received: &BTreeSet<&str>,
) -> Option<Finding> {
    let what = event.as_str();
    let delivery = match deliveries {
        [] => return Some(Finding::new("delivery_missing", job, what)),
        [delivery] => delivery,
        several => {
            let detail = format!("{what}: {} deliveries to one endpoint", several.len());
            return Some(Finding::new("delivery_doubled", job, detail));
        }
    };
    let id = delivery.message_id.to_string();
    match delivery.status {
        DeliveryStatus::Failed | DeliveryStatus::Held => None,
        DeliveryStatus::Delivered if received.contains(id.as_str()) => None,
        DeliveryStatus::Delivered => {
            let detail = format!("{what} of {job} is said to be delivered, and did not arrive");
            Some(Finding::new("receipt_missing", id, detail))
        }
        DeliveryStatus::Pending => {
            let detail = format!("{what} of {job}, tried {} times", delivery.attempts);
            Some(Finding::new("delivery_pending", id, detail))
        }
    }
}

/// Every webhook that arrived is signed, and is one of the deliveries.
fn receipts(facts: &Facts) -> Vec<Finding> {
    let known: BTreeSet<_> = facts
        .deliveries
        .iter()
        .map(|delivery| delivery.message_id.to_string())
        .collect();
    let mut findings = Vec::new();
    for receipt in &facts.receipts {
        let id = &receipt.webhook_id;
        if !receipt.verified {
            findings.push(Finding::new(
                "receipt_unverified",
                id,
                "the signature is wrong",
            ));
        } else if !known.contains(id) {
            let detail = "received, and not among the deliveries";
            findings.push(Finding::new("receipt_unexplained", id, detail));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
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
    fn an_unsigned_or_unknown_webhook_is_found() {
        let mut facts = facts();
        let mut stranger = facts.receipts[0].clone();
        stranger.webhook_id = "msg_unknown".into();
        facts.receipts.push(stranger.clone());
        facts.receipts.push(crate::receiver::Receipt {
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
