//! `loadtest audit`: whether everything adds up, seen from outside. It reads the client's log, the
//! webhook receipts, the public API and the chain, and names whatever does not fit.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    exit::Exit,
    report::{heading, line, table},
    session::{Target, TargetOptions},
};

mod billing;
mod chain;
mod collect;
mod deliveries;
mod facts;
#[cfg(test)]
mod fixture;
mod jobs;

use collect::Collector;
use facts::{Facts, Ledger};

/// How long facts that are still on their way (webhooks, usage events) are waited for at most.
const SETTLE: Duration = Duration::from_secs(30);
/// Findings that stay the same for this long are not on their way.
const QUIET: Duration = Duration::from_secs(6);
/// How often facts are looked for meanwhile.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// Most findings that are printed; the JSON has all of them.
const PRINTED_MAX: usize = 100;

/// Checks from outside that nothing was lost, doubled or billed wrongly: by the client's log and
/// the webhook receipts of a work folder, the public API, and the chain. Prints each finding with
/// the id it is about.
#[derive(Args, Debug)]
pub(crate) struct AuditOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// The first block to look for confirmed batches in.
    #[arg(long, default_value_t = 0, value_name = "BLOCK")]
    from_block: u64,
    /// Also write the verdict here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Something that does not add up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Finding {
    /// What kind of thing.
    pub(crate) kind: &'static str,
    /// The id of what it is about.
    pub(crate) id: String,
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
        clean || now >= self.changed + QUIET || now >= self.began + SETTLE
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
            detail: detail.into(),
        }
    }
}

/// `loadtest audit`.
pub(crate) async fn run(options: &AuditOptions) -> anyhow::Result<Exit> {
    // Both logs have to be there before the gateway is spoken to.
    options.target.require_logs()?;
    let target = options.target.connect().await?;
    let verdict = audit(&target, options.from_block).await?;
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
pub(crate) async fn audit(target: &Target, from_block: u64) -> anyhow::Result<Verdict> {
    let collector = Collector::new(target);
    let mut facts = collector.jobs_and_chain(from_block).await?;
    let mut settling = Settling::begin(Instant::now());
    loop {
        collector.deliveries(&mut facts).await?;
        if settling.ended(deliveries::check(&facts), Instant::now()) {
            break;
        }
        sleep(SETTLE_EVERY).await;
    }
    // Reading the bill is free, so from here on nothing adds to it.
    let mut settling = Settling::begin(Instant::now());
    loop {
        collector.billing(&mut facts).await?;
        if settling.ended(billing::check(&facts), Instant::now()) {
            break;
        }
        sleep(SETTLE_EVERY).await;
    }
    Ok(judge(&facts))
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
        ..
    } = verdict.checked;
    line(format_args!(
        "  {requests} requests ({unknown_outcomes} of unknown outcome), {jobs} jobs, \
         {proofs_verified} proofs accepted by the registry, {batches} batches on chain,\n  \
         {usage_events} usage events, {deliveries} deliveries ({failed_visibly} failed visibly), \
         {receipts} webhooks received",
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
    let mut findings = jobs::check(facts);
    findings.extend(chain::check(facts));
    findings.extend(billing::check(facts));
    findings.extend(deliveries::check(facts));
    findings.sort();
    findings.dedup();
    let Ledger { unknown, .. } = &facts.ledger;
    let checked = Checked {
        requests: facts.ledger.requests,
        unknown_outcomes: *unknown,
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
        assert!(settling.ended(one(3), at(31)), "too long");
        assert!(Settling::begin(start).ended(Vec::new(), start), "clean");
    }

    #[test]
    fn facts_that_add_up_are_clean() {
        let verdict = judge(&fixture::facts());
        assert_eq!(verdict.findings, []);
        assert!(verdict.clean);
        assert_eq!(verdict.checked.proofs_verified, 2);
    }
}
