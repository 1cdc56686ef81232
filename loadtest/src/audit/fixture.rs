//! A small run in which everything adds up; tests doctor one thing of it at a time.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::{Address, B256};
use contracts::{
    api::{
        jobs::{Confirmation, ConfirmationStatus, JobEventType, JobStatus, JobView, Priority},
        proof::{BatchView, BlockRef, LeafView, ProofResponse},
        usage::{
            InvoiceLine, InvoicePreview, Meter, Price, PriceModel, PriceTier, Prices, Unit,
            UsageBucket, UsageEvent, UsageTotal,
        },
        webhooks::{DEFAULT_EVENTS, DeliveryStatus, DeliveryView},
    },
    assertion::sha256_hex,
    id::{EndpointId, JobId, MessageId, RequestId, TenantId},
    job_type::JobType,
    registry::{BatchRef, chain_job_id, salted_hash, tenant_hash},
};
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde_json::value::RawValue;

use super::{
    Finding,
    facts::{Bill, CheckedProof, Facts, Registry},
    invoice::{computed, hour_of},
    ledger::{Billable, Charge, Fate, Ledger},
    month::Month,
};
use crate::{
    chain::ConfirmedBatch,
    log::Submission,
    receiver::{Receipt, Told},
    request::{KEY_NOTE, submitter_of},
};

const SALT: B256 = B256::repeat_byte(7);
const TRANSACTION: B256 = B256::repeat_byte(8);
const BLOCK: u64 = 5;
const CHAIN: u64 = 31_337;
const REGISTRY: Address = Address::repeat_byte(9);
const PAYLOAD: &str = r#"{"text":"a"}"#;
const RESULT: &str = concat!(
    r#"{"sha256":"0xca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb","#,
    r#""keccak256":"0x3ac225168df54212a25c1c01fd35bebfea408fdac2e31ddd6f80a4bbf9a5f1cb","#,
    r#""bytes":1}"#
);

/// Three completed jobs: two sealed in one batch, one that asked for no confirmation.
pub(super) fn facts() -> Facts {
    let start: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
    let endpoint = EndpointId::generate(start);
    let ledger = Ledger {
        began: Some(start),
        latest: Some(start),
        requests: 1,
        endpoints: [(endpoint, DEFAULT_EVENTS.to_vec())].into(),
        ..Ledger::default()
    };
    let registry = Registry {
        chain_id: CHAIN,
        address: REGISTRY,
        from_the_first: true,
    };
    let mut facts = Facts::new(ledger, registry);
    facts.tenant = Some(TenantId::generate(start));
    facts.prices = Some(prices());
    facts.batches.push(ConfirmedBatch {
        batch: batch(),
        transaction_hash: Some(TRANSACTION),
        block_number: Some(BLOCK),
    });
    let request = RequestId::generate(start);
    let charge = Charge {
        billable: Billable::Yes,
        endpoint: Some("/v1/jobs"),
        status: Some(202),
    };
    facts.ledger.answered.insert(request, charge);
    let call = UsageEvent {
        request_id: Some(request),
        endpoint: charge.endpoint.map(str::to_owned),
        status_code: charge.status,
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
    settle_bills(&mut facts);
    facts
}

/// Makes the aggregates and the invoices what the raw events and the prices come to.
pub(super) fn settle_bills(facts: &mut Facts) {
    let prices = facts.prices.clone().unwrap_or_else(prices);
    let mut hours = Vec::new();
    let mut months: BTreeMap<Month, BTreeMap<(Meter, Unit), UsageTotal>> = BTreeMap::new();
    for event in &facts.usage {
        let (meter, unit) = (event.meter, event.unit);
        let month = months
            .entry(Month::containing(event.occurred_at))
            .or_default();
        let total = month.entry((meter, unit)).or_insert(UsageTotal {
            meter,
            unit,
            quantity: Decimal::ZERO,
            events: 0,
        });
        total.quantity += event.quantity;
        total.events += 1;
        hours.push(UsageBucket {
            period_start: hour_of(event.occurred_at),
            meter,
            unit,
            quantity: event.quantity,
            events: 1,
        });
    }
    let tenant = facts.tenant.unwrap();
    let bills = months.into_iter().map(|(month, totals)| Bill {
        month,
        hours: hours
            .iter()
            .filter(|bucket| Month::containing(bucket.period_start) == month)
            .cloned()
            .collect(),
        invoice: invoice(tenant, month, &totals, &prices),
        totals: totals.into_values().collect(),
    });
    facts.bills = bills.collect();
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
    let submitter = submitter_of(&submission);
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
    let told = Told {
        job_type: JobType::Digest,
        status: JobStatus::Completed,
        result_sha256: Some(sha256_hex(RESULT.as_bytes())),
        error: None,
        sequence: None,
        transaction_hash: None,
    };
    deliver(
        facts,
        job,
        (JobEventType::Completed, told.clone()),
        endpoint,
    );
    if let Some(sequence) = sequence {
        facts
            .usage
            .push(about(Meter::BlockchainConfirmation, Unit::Confirmation));
        let told = Told {
            result_sha256: None,
            sequence: Some(sequence),
            transaction_hash: Some(TRANSACTION),
            ..told
        };
        deliver(facts, job, (JobEventType::Confirmed, told), endpoint);
        let tenant = tenant_hash(facts.tenant.unwrap());
        let checked = CheckedProof {
            proof: proof(job, sequence, tenant, submitter),
            verified: true,
        };
        facts.proofs.insert(job, Ok(checked));
    }
}

fn deliver(
    facts: &mut Facts,
    job: JobId,
    (event, told): (JobEventType, Told),
    endpoint_id: EndpointId,
) {
    let at = job.timestamp();
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
        told: Some(told),
        verified: true,
        answered: 204,
        body_sha256: format!("body of {message_id}"),
    });
}

fn view(job_id: JobId, at: Timestamp, key: String, sequence: Option<u64>) -> JobView {
    let mut confirmation = Confirmation::of(ConfirmationStatus::NotRequired);
    if sequence.is_some() {
        confirmation = Confirmation {
            sequence,
            batch_number: Some(1),
            transaction_hash: Some(TRANSACTION),
            chain_id: Some(CHAIN),
            registry: Some(REGISTRY),
            block_number: Some(BLOCK),
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

fn proof(job: JobId, sequence: u64, tenant: B256, submitter: Address) -> ProofResponse {
    ProofResponse {
        job_id: job,
        leaf: LeafView {
            sequence,
            job_id: chain_job_id(job),
            submitter,
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
        chain_id: CHAIN,
        registry: REGISTRY,
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

/// Some units are free, and every charged quantity may reach into a second tier. The last one is a
/// price of something nobody used.
fn prices() -> Prices {
    let measures = [
        (Meter::ApiUsage, Unit::Call, 0),
        (Meter::JobSubmission, Unit::ComputeUnit, 0),
        (Meter::JobCompletion, Unit::Job, 1),
        (Meter::JobCompletion, Unit::Millisecond, 10),
        (Meter::BlockchainConfirmation, Unit::Confirmation, 0),
        (Meter::BlockchainConfirmation, Unit::Job, 0),
    ];
    let tier = |up_to: Option<i64>, cents| PriceTier {
        up_to: up_to.map(Decimal::from),
        unit_price: Decimal::new(cents, 2),
    };
    let price = |(meter, unit, included): (Meter, Unit, i64)| Price {
        meter,
        unit,
        model: PriceModel::Graduated,
        included: included.into(),
        tiers: vec![tier(Some(1), 5), tier(None, 3)],
    };
    Prices {
        plan: "standard".into(),
        currency: "USD".into(),
        data: measures.map(price).to_vec(),
    }
}

fn invoice(
    tenant_id: TenantId,
    month: Month,
    totals: &BTreeMap<(Meter, Unit), UsageTotal>,
    prices: &Prices,
) -> InvoicePreview {
    let line = |price: &Price| {
        let used = totals.get(&(price.meter, price.unit));
        let bare = InvoiceLine {
            meter: price.meter,
            unit: price.unit,
            quantity: used.map(|total| total.quantity).unwrap_or_default(),
            included: Decimal::ZERO,
            tiers: Vec::new(),
            amount: Decimal::ZERO,
        };
        computed(&bare, price).unwrap()
    };
    let lines: Vec<_> = prices.data.iter().map(line).collect();
    let sum: Decimal = lines.iter().map(|line| line.amount).sum();
    InvoicePreview {
        tenant_id,
        period_start: month.start(),
        period_end: month.end(),
        as_of: None,
        plan: prices.plan.clone(),
        currency: prices.currency.clone(),
        total: sum.round_dp(2),
        lines,
    }
}
