//! One job shown in full, the webhook it caused, and what the tenant owes.

use anyhow::Context as _;
use contracts::{
    api::{
        jobs::JobView,
        proof::ProofResponse,
        usage::{InvoicePreview, UsageResponse},
    },
    id::JobId,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    log::Route,
    receiver::Sample,
    report::{heading, line, table},
    session::Target,
};

/// Longest body of a webhook that is shown whole.
const BODY_SHOWN_MAX: usize = 1_500;
/// The headers of a webhook that are shown, in this order.
const HEADERS: [&str; 6] = [
    "content-type",
    "user-agent",
    "traceparent",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// The job that is shown, for the JSON.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ShownJob {
    /// As the API shows it.
    pub(crate) job: JobView,
    /// Its proof.
    pub(crate) proof: ProofResponse,
    /// What `JobsRegistry.verify` said of the proof.
    pub(crate) proof_verified: bool,
}

/// What the tenant owes, for the JSON.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Bill {
    /// The aggregates.
    pub(crate) usage: UsageResponse,
    /// The invoice.
    pub(crate) invoice: InvoicePreview,
}

/// Fetches and shows the job with its proof.
pub(crate) async fn job(target: &Target, id: JobId, deadline: Instant) -> anyhow::Result<ShownJob> {
    let credential = Some(&target.credential);
    let path = format!("/v1/jobs/{id}");
    let job: JobView = target
        .api
        .fetch(Route::GetJob, &path, credential, deadline)
        .await?
        .json()?;
    let path = format!("/v1/jobs/{id}/proof");
    let proof: ProofResponse = target
        .api
        .fetch(Route::Proof, &path, credential, deadline)
        .await?
        .json()?;
    let proof_verified = target.chain.verify(&proof).await?;
    heading("One job in full");
    let result = job
        .result
        .as_ref()
        .or(job.error.as_ref())
        .map_or("", |json| json.get());
    let rows = [
        ("job", id.to_string()),
        (
            "type, status",
            format!("{}, {}", job.job_type, job.status.as_str()),
        ),
        ("result", result.to_owned()),
        (
            "batch",
            format!(
                "{} ({} jobs from sequence {})",
                proof.batch.batch_number, proof.batch.job_count, proof.batch.first_sequence,
            ),
        ),
        ("sequence", proof.leaf.sequence.to_string()),
        ("transaction", proof.transaction_hash.to_string()),
        (
            "registry",
            format!("{} on chain {}", proof.registry, proof.chain_id),
        ),
        ("content hash", proof.leaf.content_hash.to_string()),
        ("result hash", proof.leaf.result_hash.to_string()),
        (
            "proof",
            format!(
                "JobsRegistry.verify: {proof_verified} ({} siblings to the root, {} to the peak)",
                proof.job_proof.len(),
                proof.batch_proof.len(),
            ),
        ),
    ];
    for (name, value) in rows {
        line(format_args!("  {name:<14}{value}"));
    }
    Ok(ShownJob {
        job,
        proof,
        proof_verified,
    })
}

/// Shows a webhook whose signature was verified when it arrived.
pub(crate) fn webhook(sample: &Sample) {
    heading("The webhook it caused");
    for name in HEADERS {
        if let Some(value) = sample
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
        {
            line(format_args!("  {name}: {value}"));
        }
    }
    let body = String::from_utf8_lossy(&sample.body);
    let shown: String = body.chars().take(BODY_SHOWN_MAX).collect();
    line(format_args!("  {shown}"));
    line(format_args!(
        "  signature verified by the crate standardwebhooks: true"
    ));
}

/// Fetches and shows usage and invoice.
pub(crate) async fn bill(target: &Target, deadline: Instant) -> anyhow::Result<Bill> {
    let credential = Some(&target.credential);
    let usage = target
        .api
        .fetch(Route::Billing, "/v1/usage", credential, deadline)
        .await?;
    let usage: UsageResponse = usage.json().context("reading the usage")?;
    let path = "/v1/invoices/preview";
    let invoice = target
        .api
        .fetch(Route::Billing, path, credential, deadline)
        .await?;
    let invoice: InvoicePreview = invoice.json().context("reading the invoice")?;
    heading("The tenant's usage and invoice preview");
    table(
        ["meter", "unit", "used", "included", "amount"],
        invoice.lines.iter().map(|line| {
            [
                line.meter.as_str().to_owned(),
                line.unit.as_str().to_owned(),
                line.quantity.normalize().to_string(),
                line.included.normalize().to_string(),
                line.amount.normalize().to_string(),
            ]
        }),
    );
    line(format_args!(
        "  total {} {}, plan {}, {} raw events",
        invoice.total,
        invoice.currency,
        invoice.plan,
        usage.totals.iter().map(|total| total.events).sum::<u64>(),
    ));
    Ok(Bill { usage, invoice })
}
