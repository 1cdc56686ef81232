//! Everything the checks look at, collected beforehand: the checks themselves ask nobody.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use contracts::{
    api::{
        jobs::{ConfirmationStatus, JobStatus, JobView},
        proof::ProofResponse,
        usage::{InvoicePreview, Prices, UsageBucket, UsageEvent, UsageTotal},
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
    /// The aggregates, by the hour.
    pub(super) hours: Vec<UsageBucket>,
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

    /// Whether the job's proof is there, accepted, and of the transaction that the job shows: no
    /// other will come.
    pub(super) fn is_proven(&self, view: &JobView) -> bool {
        let shown = view.blockchain_confirmation.transaction_hash;
        let proof = self.proofs.get(&view.job_id);
        proof.is_some_and(|proof| {
            let accepted = proof.as_ref().is_ok_and(|checked| checked.verified);
            let transaction = proof.as_ref().map(|checked| checked.proof.transaction_hash);
            accepted && transaction.ok() == shown
        })
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

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;

    use crate::audit::fixture::facts;

    #[test]
    fn a_proof_is_asked_for_again_until_it_is_the_last() {
        let mut facts = facts();
        let view = facts.jobs[0].clone();
        assert!(facts.is_proven(&view));
        let mut moved = view.clone();
        moved.blockchain_confirmation.transaction_hash = Some(B256::ZERO);
        assert!(!facts.is_proven(&moved), "after a reorganisation, say");
        let proof = facts.proofs.get_mut(&view.job_id).unwrap();
        proof.as_mut().unwrap().verified = false;
        assert!(!facts.is_proven(&view));
        facts.proofs.insert(view.job_id, Err(404));
        assert!(!facts.is_proven(&view));
        facts.proofs.clear();
        assert!(!facts.is_proven(&view));
    }
}
