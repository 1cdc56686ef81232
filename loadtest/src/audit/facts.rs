//! Everything the checks look at, collected beforehand: the checks themselves ask nobody.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use contracts::{
    api::{
        jobs::{ConfirmationStatus, JobStatus, JobView},
        proof::ProofResponse,
        usage::{InvoicePreview, Prices, UsageEvent, UsageTotal},
        webhooks::DeliveryView,
    },
    id::{JobId, TenantId},
};

use super::{ledger::Ledger, month::Month};
use crate::{chain::ConfirmedBatch, receiver::Receipt};

/// What was collected.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// What the client's log comes to.
    pub(super) ledger: Ledger,
    /// Every webhook that arrived.
    pub(super) receipts: Vec<Receipt>,
    /// The tenant's jobs since the log's beginning, as listed.
    pub(super) jobs: Vec<JobView>,
    /// The sealed jobs of all the others on the registry; absent where those are not known.
    pub(super) others: Option<Vec<JobView>>,
    /// The proof of each ended job that asked for confirmation, or the status of its refusal.
    pub(super) proofs: BTreeMap<JobId, Result<CheckedProof, u16>>,
    /// The chain, and the registry on it.
    pub(super) registry: Registry,
    /// The batches on the chain, in its order.
    pub(super) batches: Vec<ConfirmedBatch>,
    /// The deliveries to the log's endpoints.
    pub(super) deliveries: Vec<DeliveryView>,
    /// Every raw usage event of the log's months.
    pub(super) usage: Vec<UsageEvent>,
    /// The log's months, as they are billed.
    pub(super) bills: Vec<Bill>,
    /// What the tenant is charged by.
    pub(super) prices: Option<Prices>,
    /// The tenant.
    pub(super) tenant: Option<TenantId>,
}

/// Where outcomes are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registry {
    /// The chain's number.
    pub(super) chain_id: u64,
    /// The contract on it.
    pub(super) address: Address,
    /// Whether its batches are looked at from the very first one.
    pub(super) from_the_first: bool,
}

/// A month as it is billed.
#[derive(Clone, Debug)]
pub(super) struct Bill {
    /// The month.
    pub(super) month: Month,
    /// The sums of the aggregates.
    pub(super) totals: Vec<UsageTotal>,
    /// What has to be paid.
    pub(super) invoice: InvoicePreview,
}

/// A proof, and what the registry said of it.
#[derive(Clone, Debug)]
pub(super) struct CheckedProof {
    /// As the API gave it.
    pub(super) proof: ProofResponse,
    /// Whether `JobsRegistry.verify` accepts it.
    pub(super) verified: bool,
}

impl Facts {
    /// What is known before anything is asked for.
    pub(super) fn new(ledger: Ledger, registry: Registry) -> Self {
        Self {
            ledger,
            receipts: Vec::new(),
            jobs: Vec::new(),
            others: None,
            proofs: BTreeMap::new(),
            registry,
            batches: Vec::new(),
            deliveries: Vec::new(),
            usage: Vec::new(),
            bills: Vec::new(),
            prices: None,
            tenant: None,
        }
    }

    /// Whether the job's outcome has to be on the chain: it asked for it, and ended.
    pub(super) fn has_to_be_sealed(&self, view: &JobView) -> bool {
        let asked = match self.ledger.submission_of(view) {
            Some(submission) => submission.requires_confirmation,
            None => view.blockchain_confirmation.status != ConfirmationStatus::NotRequired,
        };
        asked && matches!(view.status, JobStatus::Completed | JobStatus::Failed)
    }

    /// The jobs whose outcome has to be on the chain, each with its tenant if that is the one under
    /// audit.
    pub(super) fn sealed(&self) -> impl Iterator<Item = (&JobView, Option<TenantId>)> {
        let ours = self.jobs.iter().map(|view| (view, self.tenant));
        let others = self.others.iter().flatten().map(|view| (view, None));
        ours.chain(others)
            .filter(|(view, _)| self.has_to_be_sealed(view))
    }
}
