//! Asks the API and the chain for everything the checks look at. Requests that are billed come
//! first: they are part of what is audited.

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

use super::{
    Share,
    facts::{Bill, CheckedProof, Facts, Registry},
    ledger::Ledger,
    month::Month,
};
use crate::{
    exit::Unreachable,
    log::{self, Route, read_lines},
    poll::{paged, usage_events, usage_path},
    receiver::RECEIPTS,
    request::{Answer, Credential},
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
    share: &'a Share,
}

impl<'a> Collector<'a> {
    /// A collector of facts about `target`, whose share of the registry is `share`.
    pub(super) fn new(target: &'a Target, share: &'a Share) -> Self {
        Self { target, share }
    }

    /// What is known before anything is listed.
    pub(super) async fn begin(&self) -> anyhow::Result<Facts> {
        let chain = &self.target.chain;
        let registry = Registry {
            chain_id: chain.id().await?,
            address: chain.registry(),
            from_the_first: self.share.first_block() == 0,
        };
        Ok(Facts::new(self.ledger()?, registry))
    }

    /// The tenant's jobs with their proofs, the batches on the chain and, where they are known, the
    /// jobs of the others in them, anew. To those belong the tenant's own of before the log.
    pub(super) async fn jobs(&self, facts: &mut Facts) -> anyhow::Result<()> {
        facts.ledger = self.ledger()?;
        let credential = &self.target.credential;
        let listed = self.list(credential, Route::ListJobs, "/v1/jobs").await?;
        let (ours, mut older) = facts.ledger.divide(listed);
        self.proofs(facts, credential, &ours).await?;
        facts.jobs = ours;
        if let Share::Whole { others } = self.share {
            self.proofs(facts, credential, &older).await?;
            for other in others {
                let of_other: Vec<JobView> = self.list(other, Route::ListJobs, "/v1/jobs").await?;
                self.proofs(facts, other, &of_other).await?;
                older.extend(of_other);
            }
            facts.others = Some(older);
        }
        let chain = &self.target.chain;
        facts.batches = chain
            .batches(self.share.first_block(), chain.head().await?)
            .await?;
        Ok(())
    }

    /// The deliveries and receipts, anew.
    pub(super) async fn deliveries(&self, facts: &mut Facts) -> anyhow::Result<()> {
        facts.receipts = read_lines(&self.target.work_dir.join(RECEIPTS))?;
        facts.deliveries.clear();
        for endpoint in facts.ledger.endpoints.keys() {
            let path = format!("/v1/webhooks/deliveries?endpoint_id={endpoint}");
            let deliveries: Vec<DeliveryView> = self
                .list(&self.target.credential, Route::Deliveries, &path)
                .await?;
            facts.deliveries.extend(deliveries);
        }
        Ok(())
    }

    /// The usage events, aggregates and invoice of each month, anew; and the log, which has grown
    /// meanwhile.
    pub(super) async fn billing(&self, facts: &mut Facts) -> anyhow::Result<()> {
        facts.ledger = self.ledger()?;
        facts.prices = Some(self.get(Route::Billing, "/v1/prices").await?.json()?);
        facts.usage.clear();
        facts.bills.clear();
        for month in facts.ledger.months() {
            let bill = self.bill(month, facts).await?;
            facts.bills.push(bill);
        }
        Ok(())
    }

    async fn bill(&self, month: Month, facts: &mut Facts) -> anyhow::Result<Bill> {
        let (from, to) = (month.start(), Some(month.end()));
        let path = usage_path("/v1/usage/events", from, to);
        let events = self.get(Route::Billing, &path).await?;
        facts.usage.extend(usage_events(&events.body)?);
        let path = format!("{}&granularity=hour", usage_path("/v1/usage", from, to));
        let usage: UsageResponse = self.get(Route::Billing, &path).await?.json()?;
        facts.tenant = Some(usage.tenant_id);
        let path = format!("/v1/invoices/preview?month={month}");
        let invoice: InvoicePreview = self.get(Route::Billing, &path).await?.json()?;
        Ok(Bill {
            month,
            hours: usage.data,
            totals: usage.totals,
            invoice,
        })
    }

    fn ledger(&self) -> anyhow::Result<Ledger> {
        Ok(Ledger::of(&log::read(&self.target.work_dir)?))
    }

    /// Adds the proofs of those of `jobs` that have to have one, and do not have it yet.
    async fn proofs(
        &self,
        facts: &mut Facts,
        credential: &Credential,
        jobs: &[JobView],
    ) -> anyhow::Result<()> {
        let sealed = jobs
            .iter()
            .filter(|view| facts.has_to_be_sealed(view) && !facts.is_proven(view));
        let wanted: Vec<_> = sealed
            .map(|view| self.proof(credential, view.job_id))
            .collect();
        let proofs: Vec<_> = stream::iter(wanted)
            .buffer_unordered(PROOFS_AT_ONCE)
            .try_collect()
            .await?;
        facts.proofs.extend(proofs);
        Ok(())
    }

    async fn proof(
        &self,
        credential: &Credential,
        job: JobId,
    ) -> anyhow::Result<(JobId, Result<CheckedProof, u16>)> {
        let path = format!("/v1/jobs/{job}/proof");
        let answer = self
            .fetch(credential, Route::Proof, &path, PROOF_PATIENCE)
            .await?;
        // None, or one that cannot be made any more.
        if matches!(answer.status, 404 | 500) {
            return Ok((job, Err(answer.status)));
        }
        let proof: ProofResponse = done(answer, &path)?.json()?;
        let verified = self.target.chain.verify(&proof).await?;
        Ok((job, Ok(CheckedProof { proof, verified })))
    }

    async fn list<T: DeserializeOwned>(
        &self,
        credential: &Credential,
        route: Route,
        path: &str,
    ) -> anyhow::Result<Vec<T>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let path = paged(path, cursor.as_deref());
            let answer = self.fetch(credential, route, &path, PATIENCE).await?;
            let page: Page<T> = done(answer, &path)?.json()?;
            items.extend(page.data);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(items);
            }
        }
        anyhow::bail!("{path} has more than {PAGES_MAX} pages")
    }

    async fn get(&self, route: Route, path: &str) -> anyhow::Result<Answer> {
        let credential = &self.target.credential;
        done(self.fetch(credential, route, path, PATIENCE).await?, path)
    }

    async fn fetch(
        &self,
        credential: &Credential,
        route: Route,
        path: &str,
        patience: Duration,
    ) -> anyhow::Result<Answer> {
        let deadline = Instant::now() + patience;
        let api = &self.target.api;
        api.fetch(route, path, Some(credential), deadline).await
    }
}

fn done(answer: Answer, path: &str) -> anyhow::Result<Answer> {
    match answer.status {
        200 => Ok(answer),
        status @ 500.. => Err(Unreachable(format!("GET {path}: status {status}")).into()),
        status => anyhow::bail!("GET {path}: status {status}"),
    }
}
