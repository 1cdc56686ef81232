//! `loadtest audit`: whether everything adds up, seen from outside. It reads the client's log, the
//! webhook receipts, the public API and the chain, and names whatever does not fit.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use contracts::id::JobId;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    exit::{EXIT_CODES, Exit},
    log::Actor,
    report::{heading, line, table},
    request::Credential,
    session::{Target, TargetOptions},
};

mod billing;
mod chain;
mod collect;
mod deliveries;
mod facts;
#[cfg(test)]
mod fixture;
mod invoice;
mod jobs;
mod ledger;
mod month;
mod outcomes;
mod told;

use collect::Collector;
use facts::Facts;

/// How long facts that are still on their way (webhooks, usage events) are waited for at most.
const SETTLE: Duration = Duration::from_secs(90);
/// Findings that stay the same for this long are not on their way.
const QUIET: Duration = Duration::from_secs(6);
/// … unless the target itself says that something is still to come: what a killed process had taken
/// is taken by nobody else until its claim ends, after 30 seconds.
const QUIET_OPEN: Duration = Duration::from_secs(40);
/// How often facts are looked for meanwhile.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// Most findings that are printed; the JSON has all of them.
const PRINTED_MAX: usize = 100;

/// Checks from outside that nothing was lost, doubled or billed wrongly: by the client's log and
/// the webhook receipts of a work folder, the public API, and the chain. Prints each finding with
/// the id it is about.
///
/// Jobs: each accepted submission is one job of the list and each key made one, every job comes
/// from a request of the log, is of the type asked for and has ended as its payload has to: digest
/// and sleep jobs, sealed or not, with the result that their payloads in the log come to, fail jobs
/// without; none is cancelled, for nobody asked.
///
/// Chain: each ended job that asked for it, and no other, is FINALIZED, with a proof that
/// `JobsRegistry.verify` accepts and that is of the job, its tenant, the submitter it asked for,
/// its payload and outcome and of the chain and registry given here; batches and sequences follow
/// one another from 1; each batch has the root, range, transaction and block that the API says.
///
/// Bill: each fact is one usage event with the right quantity (a call is 1, computing is the job's
/// `compute_ms`, no more than from its start to its end), for the endpoint and status of the log,
/// and nothing else is billed; in every month from the log's first request to now, the raw events,
/// the aggregates of each hour with their event counts, and the invoice agree; what the invoice
/// asks for is computed again by /v1/prices.
///
/// Webhooks: each event has one delivery to each endpoint that asked for it, and no delivery is
/// without an event; DELIVERED ones arrived, FAILED ones did not, nothing is PENDING; each webhook
/// that arrived is signed, has one body, and tells the event and job of its delivery, with the
/// status, result or error, sequence and transaction of the job.
///
/// Billed as a call is each request that the gateway counted against the rate limits (its answer
/// has the header `RateLimit`), let pass, and did not answer 5xx. So a repetition with the same
/// idempotency key is billed although its answer is a replay, and so is a 4xx of a service behind
/// the gateway, 403 too; the gateway's own 401, 403 and `RATE_LIMIT_EXCEEDED` are free. Looking at
/// the bill is free.
///
/// The log has to hold every request of the tenant since its first one: a call or job of another
/// client of the same tenant is `usage_unexplained` or `job_unexplained`. The audit's own requests
/// (lists of jobs and deliveries, a proof for each job) are billed to the tenant like any others,
/// and are in the log.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct AuditOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// The first block to look for confirmed batches in; from block 0 on, batch 1 has to be the
    /// first.
    #[arg(long, default_value_t = 0, value_name = "BLOCK")]
    from_block: u64,
    /// Every job on the registry is of this tenant, or of one with --other-api-key-file: then
    /// each sequence on the chain has to be that of exactly one of them, so that a job sealed twice
    /// is found.
    #[arg(long, conflicts_with = "from_block")]
    sole_tenant: bool,
    /// A file that holds an API key, with the scope jobs:read, of another tenant with jobs on the
    /// registry. May be given several times.
    #[arg(
        long = "other-api-key-file",
        value_name = "FILE",
        requires = "sole_tenant"
    )]
    other_api_key_files: Vec<PathBuf>,
    /// Also write the verdict here, with every finding.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How much of the registry is known to the audit.
pub(crate) enum Share {
    /// The tenant's own jobs: other sequences may be anybody's.
    Part {
        /// The first block that is looked at.
        from_block: u64,
    },
    /// All of it: whatever is not the tenant's is one of these others'.
    Whole {
        /// Their credentials.
        others: Vec<Credential>,
    },
}

/// Something that does not add up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Finding {
    /// What kind of thing.
    pub(crate) kind: &'static str,
    /// The id of what it is about.
    pub(crate) id: String,
    /// The job it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) job_id: Option<JobId>,
    /// What is wrong.
    pub(crate) detail: String,
}

/// What the audit came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    /// Whether there is no finding.
    pub(crate) clean: bool,
    /// What does not add up.
    pub(crate) findings: Vec<Finding>,
    /// How much was looked at.
    pub(crate) checked: Checked,
}

/// How much an audit looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Checked {
    /// Requests in the client's log.
    pub(crate) requests: usize,
    /// Requests whose outcome nobody knows.
    pub(crate) unknown_outcomes: usize,
    /// Requests that were under way when something failed: no answer, or one with 5xx.
    pub(crate) cut_off: usize,
    /// Jobs that a worker began more than once.
    pub(crate) jobs_taken_again: usize,
    /// Jobs in the tenant's list.
    pub(crate) jobs: usize,
    /// Proofs that the registry accepted.
    pub(crate) proofs_verified: usize,
    /// Batches on the chain.
    pub(crate) batches: usize,
    /// Raw usage events of the tenant.
    pub(crate) usage_events: usize,
    /// Deliveries to the endpoints of the log.
    pub(crate) deliveries: usize,
    /// Webhooks received.
    pub(crate) receipts: usize,
    /// Deliveries that failed, visibly, and can be replayed.
    pub(crate) failed_visibly: usize,
}

/// Waits for facts that are on their way, no longer than it helps.
struct Settling {
    began: Instant,
    changed: Instant,
    findings: Option<Vec<Finding>>,
}

impl Settling {
    fn begin(now: Instant) -> Self {
        Self {
            began: now,
            changed: now,
            findings: None,
        }
    }

    /// Whether to look no more: nothing is found, nothing changes, or it took too long.
    fn ended(&mut self, findings: Vec<Finding>, now: Instant) -> bool {
        let clean = findings.is_empty();
        if self.findings.as_ref() != Some(&findings) {
            self.changed = now;
            self.findings = Some(findings);
        }
        let open = self.findings.iter().flatten().any(Finding::is_open);
        let quiet = if open { QUIET_OPEN } else { QUIET };
        clean || now >= self.changed + quiet || now >= self.began + SETTLE
    }
}

impl Finding {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "an id is a reference, or copied anyway"
    )]
    fn new(kind: &'static str, id: impl ToString, detail: impl Into<String>) -> Self {
        Self {
            kind,
            id: id.to_string(),
            job_id: None,
            detail: detail.into(),
        }
    }

    fn of_job(kind: &'static str, job: JobId, detail: impl Into<String>) -> Self {
        Self::new(kind, job, detail).about(Some(job))
    }

    fn about(self, job_id: Option<JobId>) -> Self {
        Self { job_id, ..self }
    }

    /// Whether the target says that it is still at it.
    fn is_open(&self) -> bool {
        ["delivery_pending", "job_unfinished", "not_finalized"].contains(&self.kind)
    }
}

impl Share {
    fn first_block(&self) -> u64 {
        match self {
            Self::Part { from_block } => *from_block,
            Self::Whole { .. } => 0,
        }
    }
}

impl AuditOptions {
    fn share(&self) -> anyhow::Result<Share> {
        if !self.sole_tenant {
            let from_block = self.from_block;
            return Ok(Share::Part { from_block });
        }
        let files = self.other_api_key_files.iter();
        let others = files.map(|file| Credential::from_file(file, Actor::Other));
        let others = others.collect::<anyhow::Result<_>>()?;
        Ok(Share::Whole { others })
    }
}

/// `loadtest audit`.
pub(crate) async fn run(options: &AuditOptions) -> anyhow::Result<Exit> {
    // Both logs have to be there before the gateway is spoken to.
    options.target.require_logs()?;
    let share = options.share()?;
    let target = options.target.connect().await?;
    let verdict = audit(&target, &share).await?;
    show(&verdict);
    if let Some(file) = &options.json {
        crate::report::write_json(file, &verdict)?;
    }
    Ok(if verdict.clean {
        Exit::Clean
    } else {
        Exit::Findings
    })
}

/// Collects the facts and judges them; what is still on its way is waited for.
pub(crate) async fn audit(target: &Target, share: &Share) -> anyhow::Result<Verdict> {
    let collector = Collector::new(target, share);
    let mut facts = collector.begin().await?;
    let jobs = async |facts: &mut Facts| collector.jobs(facts).await;
    settle(&mut facts, jobs, seal).await?;
    let deliveries = async |facts: &mut Facts| collector.deliveries(facts).await;
    settle(&mut facts, deliveries, deliveries::check).await?;
    // Reading the bill is free, so from here on nothing adds to it.
    let billing = async |facts: &mut Facts| collector.billing(facts).await;
    settle(&mut facts, billing, bill).await?;
    Ok(judge(&facts))
}

/// Collects again and again, until nothing is found or nothing more can be expected.
async fn settle(
    facts: &mut Facts,
    collect: impl AsyncFn(&mut Facts) -> anyhow::Result<()>,
    check: impl Fn(&Facts) -> Vec<Finding>,
) -> anyhow::Result<()> {
    let mut settling = Settling::begin(Instant::now());
    loop {
        collect(facts).await?;
        if settling.ended(check(facts), Instant::now()) {
            return Ok(());
        }
        sleep(SETTLE_EVERY).await;
    }
}

fn seal(facts: &Facts) -> Vec<Finding> {
    let mut findings = jobs::check(facts);
    findings.extend(outcomes::check(facts));
    findings.extend(chain::check(facts));
    findings
}

fn bill(facts: &Facts) -> Vec<Finding> {
    let mut findings = billing::check(facts);
    findings.extend(invoice::check(facts));
    findings
}

/// Prints the verdict.
pub(crate) fn show(verdict: &Verdict) {
    heading("Audit");
    let Checked {
        requests,
        unknown_outcomes,
        jobs,
        proofs_verified,
        batches,
        ..
    } = verdict.checked;
    let Checked {
        usage_events,
        deliveries,
        receipts,
        failed_visibly,
        cut_off,
        jobs_taken_again,
        ..
    } = verdict.checked;
    line(format_args!(
        "  {requests} requests ({unknown_outcomes} of unknown outcome), {jobs} jobs, \
         {proofs_verified} proofs accepted by the registry, {batches} batches on chain,\n  \
         {usage_events} usage events, {deliveries} deliveries ({failed_visibly} failed visibly), \
         {receipts} webhooks received,\n  \
         hit by faults: {cut_off} requests cut off, {jobs_taken_again} jobs taken again",
    ));
    if verdict.clean {
        line(format_args!("  clean: everything adds up"));
        return;
    }
    line(format_args!("  {} findings", verdict.findings.len()));
    table(
        ["kind", "id", "detail"],
        verdict.findings.iter().take(PRINTED_MAX).map(|finding| {
            [
                finding.kind.to_owned(),
                finding.id.clone(),
                finding.detail.clone(),
            ]
        }),
    );
    if verdict.findings.len() > PRINTED_MAX {
        line(format_args!("  … the first {PRINTED_MAX} of them"));
    }
}

fn judge(facts: &Facts) -> Verdict {
    let mut findings = seal(facts);
    findings.extend(bill(facts));
    findings.extend(deliveries::check(facts));
    findings.sort();
    findings.dedup();
    let checked = Checked {
        requests: facts.ledger.requests,
        unknown_outcomes: facts.ledger.unknown.len(),
        cut_off: facts.ledger.cut_off,
        jobs_taken_again: facts.jobs.iter().filter(|view| view.attempts > 1).count(),
        jobs: facts.jobs.len(),
        proofs_verified: facts
            .proofs
            .values()
            .flatten()
            .filter(|proof| proof.verified)
            .count(),
        batches: facts.batches.len(),
        usage_events: facts.usage.len(),
        deliveries: facts.deliveries.len(),
        receipts: facts.receipts.len(),
        failed_visibly: deliveries::failed_visibly(facts),
    };
    Verdict {
        clean: findings.is_empty(),
        findings,
        checked,
    }
}

#[cfg(test)]
mod tests {
    use contracts::api::jobs::ConfirmationStatus;

    use super::*;

    #[test]
    fn findings_are_waited_for_as_long_as_they_change() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let one = |id: u64| vec![Finding::new("kind", id, "")];
        let mut settling = Settling::begin(start);
        assert!(!settling.ended(one(1), at(1)));
        assert!(!settling.ended(one(2), at(6)));
        assert!(!settling.ended(one(2), at(11)));
        assert!(settling.ended(one(2), at(12)), "unchanged");
        assert!(settling.ended(one(3), at(91)), "too long");
        assert!(Settling::begin(start).ended(Vec::new(), start), "clean");
    }

    #[test]
    fn what_is_still_to_come_is_waited_for_until_a_dead_claim_has_ended() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for kind in ["delivery_pending", "job_unfinished", "not_finalized"] {
            let open = || vec![Finding::new(kind, 1, "")];
            let mut settling = Settling::begin(start);
            assert!(!settling.ended(open(), at(1)));
            assert!(!settling.ended(open(), at(35)), "{kind}");
            assert!(settling.ended(open(), at(41)), "{kind}");
        }
    }

    #[tokio::test]
    async fn jobs_that_are_not_final_yet_are_listed_again() {
        let (right, listed) = (fixture::facts(), std::cell::Cell::new(0));
        let collect = async |facts: &mut Facts| {
            facts.jobs.clone_from(&right.jobs);
            if listed.replace(listed.get() + 1) == 0 {
                let shown = &mut facts.jobs[0].blockchain_confirmation;
                shown.status = ConfirmationStatus::Included;
                shown.block_number = None;
            }
            anyhow::Ok(())
        };
        let mut facts = right.clone();
        settle(&mut facts, collect, seal).await.unwrap();
        assert_eq!(listed.get(), 2);
        assert_eq!(judge(&facts).findings, []);
    }

    #[test]
    fn facts_that_add_up_are_clean() {
        let verdict = judge(&fixture::facts());
        assert_eq!(verdict.findings, []);
        assert!(verdict.clean);
        assert_eq!(verdict.checked.proofs_verified, 2);
    }
}
