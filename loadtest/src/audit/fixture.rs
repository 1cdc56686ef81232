//! A small run in which everything adds up; tests doctor one thing of it at a time.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::{Address, B256};
use contracts::{
    api::{
        jobs::{Confirmation, ConfirmationStatus, JobEventType, JobStatus, JobView, Priority},
        proof::{BatchView, BlockRef, LeafView, ProofResponse},
        usage::{Meter, Unit, UsageEvent},
        webhooks::{DeliveryStatus, DeliveryView},
    },
    id::{EndpointId, JobId, MessageId, RequestId, TenantId},
    job_type::JobType,
    registry::{BatchRef, chain_job_id, salted_hash, tenant_hash},
};
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde_json::value::RawValue;

use super::{
    Finding,
    facts::{Billable, CheckedProof, Facts, Fate, Ledger, Quantities},
};
use crate::{chain::ConfirmedBatch, log::Submission, receiver::Receipt, request::KEY_NOTE};

const SALT: B256 = B256::repeat_byte(7);
const TRANSACTION: B256 = B256::repeat_byte(8);
const PAYLOAD: &str = r#"{"text":"a"}"#;
const RESULT: &str = r#"{"bytes":1}"#;

/// Three completed jobs: two sealed in one batch, one that asked for no confirmation.
pub(super) fn facts() -> Facts {
    let start: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
    let tenant = TenantId::generate(start);
    let endpoint = EndpointId::generate(start);
    let events = contracts::api::webhooks::DEFAULT_EVENTS.to_vec();
    let mut facts = Facts {
        ledger: Ledger {
            began: Some(start),
            requests: 1,
            submissions: BTreeMap::new(),
            answered: BTreeMap::new(),
            unknown: 0,
            endpoints: [(endpoint, events)].into(),
        },
        receipts: Vec::new(),
        jobs: Vec::new(),
        proofs: BTreeMap::new(),
        batches: vec![ConfirmedBatch {
            batch: batch(),
            transaction_hash: Some(TRANSACTION),
        }],
        deliveries: Vec::new(),
        usage: Vec::new(),
        totals: Quantities::new(),
        invoice: Quantities::new(),
        tenant: Some(tenant),
    };
    let request = RequestId::generate(start);
    facts.ledger.answered.insert(request, Billable::Yes);
    let call = UsageEvent {
        request_id: Some(request),
        ..row(start, Meter::ApiUsage, Unit::Call)
    };
    facts.usage.push(call);
    for n in 0..3 {
        let at = start + SignedDuration::from_secs(2 + n);
        add_job(
            &mut facts,
            at,
            (n < 2).then(|| 1 + u64::try_from(n).unwrap()),
            endpoint,
        );
    }
    settle_sums(&mut facts);
    facts
}

/// Makes the aggregates and the invoice what the raw events come to.
pub(super) fn settle_sums(facts: &mut Facts) {
    let mut sums = Quantities::new();
    for event in &facts.usage {
        *sums.entry((event.meter, event.unit)).or_default() += event.quantity;
    }
    facts.totals = sums.clone();
    facts.invoice = sums;
}

/// The findings' kinds, in order.
pub(super) fn kinds(findings: &[Finding]) -> Vec<&'static str> {
    let mut kinds: Vec<_> = findings.iter().map(|finding| finding.kind).collect();
    kinds.sort_unstable();
    kinds
}

fn add_job(facts: &mut Facts, at: Timestamp, sequence: Option<u64>, endpoint: EndpointId) {
    let job = JobId::generate(at);
    let key = format!("key-{}", facts.jobs.len());
    let submission = Submission {
        key: key.clone(),
        job_type: JobType::Digest,
        payload: PAYLOAD.into(),
        requires_confirmation: sequence.is_some(),
    };
    let accepted = BTreeSet::from([job]);
    facts.ledger.submissions.insert(
        key.clone(),
        Fate {
            submission,
            accepted,
            unknown: false,
        },
    );
    facts.jobs.push(view(job, at, key, sequence));
    let about = |meter, unit| UsageEvent {
        job_id: Some(job),
        ..row(at, meter, unit)
    };
    facts.usage.extend([
        about(Meter::JobSubmission, Unit::ComputeUnit),
        about(Meter::JobCompletion, Unit::Job),
        about(Meter::JobCompletion, Unit::Millisecond),
    ]);
    deliver(facts, job, JobEventType::Completed, at, endpoint);
    if let Some(sequence) = sequence {
        facts
            .usage
            .push(about(Meter::BlockchainConfirmation, Unit::Confirmation));
        deliver(facts, job, JobEventType::Confirmed, at, endpoint);
        let tenant = tenant_hash(facts.tenant.unwrap());
        let checked = CheckedProof {
            proof: proof(job, sequence, tenant),
            verified: true,
        };
        facts.proofs.insert(job, Ok(checked));
    }
}

fn deliver(
    facts: &mut Facts,
    job: JobId,
    event: JobEventType,
    at: Timestamp,
    endpoint_id: EndpointId,
) {
    let message_id = MessageId::generate(at);
    facts.deliveries.push(DeliveryView {
        message_id,
        endpoint_id,
        event_type: Some(event),
        job_id: Some(job),
        status: DeliveryStatus::Delivered,
        attempts: 1,
        created_at: at,
        next_attempt_at: None,
        delivered_at: Some(at),
        last_error: None,
    });
    facts.receipts.push(Receipt {
        at,
        webhook_id: message_id.to_string(),
        webhook_timestamp: at.as_second().to_string(),
        event_type: Some(event),
        job_id: Some(job),
        verified: true,
        answered: 204,
        body_sha256: String::new(),
    });
}

fn view(job_id: JobId, at: Timestamp, key: String, sequence: Option<u64>) -> JobView {
    let mut confirmation = Confirmation::of(ConfirmationStatus::NotRequired);
    if sequence.is_some() {
        confirmation = Confirmation {
            sequence,
            batch_number: Some(1),
            transaction_hash: Some(TRANSACTION),
            ..Confirmation::of(ConfirmationStatus::Finalized)
        };
    }
    JobView {
        job_id,
        job_type: JobType::Digest,
        status: JobStatus::Completed,
        subject: "user_demo".parse().unwrap(),
        team: None,
        priority: Priority::try_from(5).unwrap(),
        attempts: 1,
        max_attempts: 3,
        created_at: at,
        updated_at: at,
        estimated_completion: at,
        started_at: Some(at),
        ended_at: Some(at),
        compute_ms: Some(1),
        metadata: [(KEY_NOTE.to_owned(), key)].into(),
        result: Some(RawValue::from_string(RESULT.to_owned()).unwrap()),
        error: None,
        blockchain_confirmation: confirmation,
    }
}

fn batch() -> BatchRef {
    let jobs_root = B256::repeat_byte(6);
    BatchRef {
        batchNumber: 1,
        firstSequence: 1,
        jobCount: 2,
        jobsRoot: jobs_root,
    }
}

fn proof(job: JobId, sequence: u64, tenant: B256) -> ProofResponse {
    ProofResponse {
        job_id: job,
        leaf: LeafView {
            sequence,
            job_id: chain_job_id(job),
            submitter: Address::ZERO,
            tenant,
            content_hash: salted_hash(SALT, PAYLOAD.as_bytes()),
            result_hash: salted_hash(SALT, RESULT.as_bytes()),
            status: 1,
        },
        job_proof: Vec::new(),
        batch: BatchView::from(&batch()),
        batch_proof: Vec::new(),
        at_block: BlockRef {
            number: 1,
            hash: B256::ZERO,
        },
        chain_id: 31_337,
        registry: Address::ZERO,
        transaction_hash: TRANSACTION,
        salt: Some(SALT),
    }
}

fn row(at: Timestamp, meter: Meter, unit: Unit) -> UsageEvent {
    UsageEvent {
        event_id: String::new(),
        source: "/jobs".into(),
        meter,
        quantity: Decimal::ONE,
        unit,
        occurred_at: at,
        job_id: None,
        request_id: None,
        endpoint: None,
        status_code: None,
    }
}
