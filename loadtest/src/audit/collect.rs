//! Asks the API and the chain for everything the checks look at. Requests that are billed come
//! first: they are part of what is audited.

use std::collections::BTreeMap;

use contracts::{
    api::{
        Page,
        jobs::JobView,
        proof::ProofResponse,
        usage::{InvoicePreview, UsageResponse},
        webhooks::DeliveryView,
    },
    id::JobId,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::de::DeserializeOwned;
use tokio::time::{Duration, Instant};

use super::facts::{CheckedProof, Facts, Ledger, Quantities};
use crate::{
    exit::Unreachable,
    log::{self, Route, read_lines},
    poll::{paged, usage_events},
    receiver::RECEIPTS,
    request::Answer,
    session::Target,
};

/// How long one proof is tried: where one is broken, many may be.
const PROOF_PATIENCE: Duration = Duration::from_secs(3);
/// How long any other request is tried.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many proofs are fetched and verified at a time.
const PROOFS_AT_ONCE: usize = 8;
/// Most pages of a list that are read.
const PAGES_MAX: usize = 100_000;

/// Collects the facts about a target.
pub(super) struct Collector<'a> {
    target: &'a Target,
}

impl<'a> Collector<'a> {
    /// A collector of facts about `target`.
    pub(super) fn new(target: &'a Target) -> Self {
        Self { target }
    }

    /// The jobs with their proofs, and the chain's batches.
    pub(super) async fn jobs_and_chain(&self, from_block: u64) -> anyhow::Result<Facts> {
        let ledger = self.ledger()?;
        let listed: Vec<JobView> = self.list(Route::ListJobs, "/v1/jobs").await?;
        let jobs = listed
            .into_iter()
            .filter(|view| ledger.covers(view.job_id.timestamp()));
        let mut facts = Facts {
            jobs: jobs.collect(),
            ledger,
            receipts: Vec::new(),
            proofs: BTreeMap::new(),
            batches: Vec::new(),
            deliveries: Vec::new(),
            usage: Vec::new(),
            totals: Quantities::new(),
            invoice: Quantities::new(),
            tenant: None,
        };
        let sealed: Vec<_> = facts
            .jobs
            .iter()
            .filter(|view| facts.has_to_be_sealed(view))
            .collect();
        let proofs = stream::iter(sealed.into_iter().map(|view| self.proof(view.job_id)));
        facts.proofs = proofs
            .buffer_unordered(PROOFS_AT_ONCE)
            .try_collect()
            .await?;
        let head = self.target.chain.head().await?;
        facts.batches = self.target.chain.batches(from_block, head).await?;
        Ok(facts)
    }

    /// The deliveries and receipts, anew.
    pub(super) async fn deliveries(&self, facts: &mut Facts) -> anyhow::Result<()> {
        facts.receipts = read_lines(&self.target.work_dir.join(RECEIPTS))?;
        facts.deliveries.clear();
        for endpoint in facts.ledger.endpoints.keys() {
            let path = format!("/v1/webhooks/deliveries?endpoint_id={endpoint}");
            let deliveries: Vec<DeliveryView> = self.list(Route::Deliveries, &path).await?;
            facts.deliveries.extend(deliveries);
        }
        Ok(())
    }

    /// The usage events, aggregates and invoice, anew; and the log, which has grown meanwhile.
    pub(super) async fn billing(&self, facts: &mut Facts) -> anyhow::Result<()> {
        facts.ledger = self.ledger()?;
        let events = self.get(Route::Billing, "/v1/usage/events").await?;
        facts.usage = usage_events(&events.body)?;
        let usage: UsageResponse = self.get(Route::Billing, "/v1/usage").await?.json()?;
        let invoice = self.get(Route::Billing, "/v1/invoices/preview").await?;
        let invoice: InvoicePreview = invoice.json()?;
        facts.tenant = Some(usage.tenant_id);
        let totals = usage
            .totals
            .iter()
            .map(|total| ((total.meter, total.unit), total.quantity));
        facts.totals = totals.collect();
        let lines = invoice
            .lines
            .iter()
            .map(|line| ((line.meter, line.unit), line.quantity));
        facts.invoice = lines.collect();
        Ok(())
    }

    fn ledger(&self) -> anyhow::Result<Ledger> {
        Ok(Ledger::of(&log::read(&self.target.work_dir)?))
    }

    async fn proof(&self, job: JobId) -> anyhow::Result<(JobId, Result<CheckedProof, u16>)> {
        let path = format!("/v1/jobs/{job}/proof");
        let answer = self.fetch(Route::Proof, &path, PROOF_PATIENCE).await?;
        // None, or one that cannot be made any more.
        if matches!(answer.status, 404 | 500) {
            return Ok((job, Err(answer.status)));
        }
        let proof: ProofResponse = done(answer, &path)?.json()?;
        let verified = self.target.chain.verify(&proof).await?;
        Ok((job, Ok(CheckedProof { proof, verified })))
    }

    async fn list<T: DeserializeOwned>(&self, route: Route, path: &str) -> anyhow::Result<Vec<T>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let page: Page<T> = self
                .get(route, &paged(path, cursor.as_deref()))
                .await?
                .json()?;
            items.extend(page.data);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(items);
            }
        }
        anyhow::bail!("{path} has more than {PAGES_MAX} pages")
    }

    async fn get(&self, route: Route, path: &str) -> anyhow::Result<Answer> {
        done(self.fetch(route, path, PATIENCE).await?, path)
    }

    async fn fetch(&self, route: Route, path: &str, patience: Duration) -> anyhow::Result<Answer> {
        let Target {
            api, credential, ..
        } = self.target;
        api.fetch(route, path, Some(credential), Instant::now() + patience)
            .await
    }
}

fn done(answer: Answer, path: &str) -> anyhow::Result<Answer> {
    match answer.status {
        200 => Ok(answer),
        status @ 500.. => Err(Unreachable(format!("GET {path}: status {status}")).into()),
        status => anyhow::bail!("GET {path}: status {status}"),
    }
}
