//! Promise 2: a job that asks for confirmation is confirmed on chain exactly once.

use std::collections::BTreeMap;

use contracts::{
    api::jobs::{ConfirmationStatus, JobStatus, JobView},
    id::{JobId, TenantId},
    registry::{BatchRef, LeafStatus, chain_job_id, salted_hash, tenant_hash},
};

use super::{
    Finding,
    facts::{CheckedProof, Facts},
};
use crate::request::submitter_of;

/// What does not add up between the API, the proofs and the chain.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = contiguous(facts);
    findings.extend(unasked(facts));
    let mut sequences: BTreeMap<u64, JobId> = BTreeMap::new();
    for (view, tenant) in facts.sealed() {
        findings.extend(finalized(view));
        let checked = match facts.proofs.get(&view.job_id) {
            Some(Ok(checked)) => checked,
            refused => {
                let status = refused
                    .and_then(|proof| proof.as_ref().err())
                    .unwrap_or(&404);
                let detail = format!("the API gives no proof: status {status}");
                findings.push(Finding::of_job("proof_missing", view.job_id, detail));
                continue;
            }
        };
        findings.extend(proof(facts, checked, view));
        findings.extend(leaf(facts, checked, view, tenant));
        findings.extend(on_chain(facts, checked, view));
        let sequence = checked.proof.leaf.sequence;
        let other = sequences
            .insert(sequence, view.job_id)
            .filter(|other| *other != view.job_id);
        if let Some(other) = other {
            let detail = format!("sequence {sequence} is also that of {other}");
            findings.push(Finding::of_job("sequence_shared", view.job_id, detail));
        }
    }
    findings.extend(unexplained(facts, sequences));
    findings
}

/// Batches and sequences follow one another on the chain without gaps: from 1, where the chain is
/// looked at from its beginning.
fn contiguous(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let first = facts.batches.first().map(|first| &first.batch);
    let mut next = if facts.registry.from_the_first {
        Some((1, 1))
    } else {
        first.map(|first| (first.batchNumber, first.firstSequence))
    };
    for BatchRef {
        batchNumber,
        firstSequence,
        jobCount,
        ..
    } in facts.batches.iter().map(|confirmed| &confirmed.batch)
    {
        if next.is_some_and(|next| next != (*batchNumber, *firstSequence)) {
            let (batch, sequence) = next.unwrap_or_default();
            let detail = format!(
                "begins with sequence {firstSequence}; batch {batch} from sequence {sequence} \
                 was due"
            );
            findings.push(Finding::new("batches_not_contiguous", batchNumber, detail));
        }
        next = Some((batchNumber + 1, firstSequence + u64::from(*jobCount)));
    }
    findings
}

/// Who did not ask for a confirmation has none.
fn unasked(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for view in &facts.jobs {
        let status = view.blockchain_confirmation.status;
        let submission = facts.ledger.submission_of(view);
        if status != ConfirmationStatus::NotRequired
            && submission.is_some_and(|submission| !submission.requires_confirmation)
        {
            let kind = "confirmation_unasked";
            findings.push(Finding::of_job(kind, view.job_id, status.as_str()));
        }
    }
    findings
}

/// Where all jobs of the registry are known, each of its sequences is that of one of them: no job
/// was sealed twice. `sequences` are those with a proof; a job whose proof is missing has been
/// named for that, and its sequence is believed here.
fn unexplained(facts: &Facts, mut sequences: BTreeMap<u64, JobId>) -> Vec<Finding> {
    if facts.others.is_none() {
        return Vec::new();
    }
    for (view, _) in facts.sealed() {
        let proven = matches!(facts.proofs.get(&view.job_id), Some(Ok(_)));
        if let Some(sequence) = view.blockchain_confirmation.sequence.filter(|_| !proven) {
            sequences.entry(sequence).or_insert(view.job_id);
        }
    }
    let mut findings = Vec::new();
    for batch in facts.batches.iter().map(|confirmed| &confirmed.batch) {
        let end = batch.firstSequence + u64::from(batch.jobCount);
        for sequence in batch.firstSequence..end {
            if !sequences.contains_key(&sequence) {
                let detail = format!("in batch {}, and of no job", batch.batchNumber);
                findings.push(Finding::new("sequence_unexplained", sequence, detail));
            }
        }
    }
    findings
}

fn finalized(view: &JobView) -> Option<Finding> {
    let status = view.blockchain_confirmation.status;
    let is_final = status == ConfirmationStatus::Finalized;
    (!is_final).then(|| Finding::of_job("not_finalized", view.job_id, status.as_str()))
}

/// The registry accepts the proof, and the API says the same in both places: of this registry.
fn proof(facts: &Facts, checked: &CheckedProof, view: &JobView) -> Vec<Finding> {
    let CheckedProof { proof, verified } = checked;
    let mut findings = Vec::new();
    if !verified {
        let detail = "JobsRegistry.verify says no";
        findings.push(Finding::of_job("proof_rejected", view.job_id, detail));
    }
    let shown = &view.blockchain_confirmation;
    let (batch, sequence) = (proof.batch.batch_number, proof.leaf.sequence);
    let same = [
        ("batch", shown.batch_number == Some(batch)),
        ("sequence", shown.sequence == Some(sequence)),
        (
            "transaction",
            shown.transaction_hash == Some(proof.transaction_hash),
        ),
        ("chain", shown.chain_id == Some(proof.chain_id)),
        ("registry", shown.registry == Some(proof.registry)),
    ];
    let differ: Vec<_> = same.iter().filter(|(_, same)| !same).collect();
    if !differ.is_empty() {
        let names: Vec<_> = differ.iter().map(|(name, _)| *name).collect();
        let detail = format!("between the job and its proof: {}", names.join(", "));
        findings.push(Finding::of_job("proof_differs", view.job_id, detail));
    }
    let asked = (facts.registry.chain_id, facts.registry.address);
    if (proof.chain_id, proof.registry) != asked {
        let (chain, registry) = asked;
        let detail = format!("its proof is not for {registry} on chain {chain}");
        findings.push(Finding::of_job("registry_differs", view.job_id, detail));
    }
    findings
}

/// The leaf is of this job, this tenant and submitter (if known), this payload, this outcome.
fn leaf(
    facts: &Facts,
    checked: &CheckedProof,
    view: &JobView,
    tenant: Option<TenantId>,
) -> Vec<Finding> {
    let (leaf, salt) = (&checked.proof.leaf, checked.proof.salt);
    let outcome = view.result.as_ref().or(view.error.as_ref());
    // Of an erased job neither salt nor outcome is left to compare.
    let erased = salt.is_none() && outcome.is_none();
    let hash = |bytes: &str| salt.map(|salt| salted_hash(salt, bytes.as_bytes()));
    let result_hash = outcome.and_then(|json| hash(json.get()));
    let submission = facts.ledger.submission_of(view);
    let same_content = |payload: &str| hash(payload) == Some(leaf.content_hash);
    let status = match view.status {
        JobStatus::Completed => LeafStatus::Completed,
        _ => LeafStatus::Failed,
    };
    let checks = [
        ("the job id", leaf.job_id == chain_job_id(view.job_id)),
        (
            "the submitter",
            submission.is_none_or(|s| leaf.submitter == submitter_of(s)),
        ),
        (
            "the tenant",
            tenant.is_none_or(|tenant| leaf.tenant == tenant_hash(tenant)),
        ),
        (
            "the content hash",
            erased || submission.is_none_or(|s| same_content(&s.payload)),
        ),
        (
            "the result hash",
            erased || result_hash == Some(leaf.result_hash),
        ),
        ("the status", leaf.status == status.as_u8()),
    ];
    let wrong = checks.into_iter().filter(|(_, right)| !right);
    wrong
        .map(|(what, _)| Finding::of_job("leaf_differs", view.job_id, what))
        .collect()
}

/// The chain's log of the batch says the same, and the sequence lies in it.
fn on_chain(facts: &Facts, checked: &CheckedProof, view: &JobView) -> Vec<Finding> {
    let claimed = BatchRef::from(&checked.proof.batch);
    let number = claimed.batchNumber;
    let logs: Vec<_> = facts
        .batches
        .iter()
        .filter(|confirmed| confirmed.batch.batchNumber == number)
        .collect();
    let [log] = logs.as_slice() else {
        let detail = format!(
            "batch {number} was confirmed {} times on the chain",
            logs.len()
        );
        let kind = "batch_not_once_on_chain";
        return vec![Finding::of_job(kind, view.job_id, detail)];
    };
    let end = log.batch.firstSequence + u64::from(log.batch.jobCount);
    let sequences = log.batch.firstSequence..end;
    let checks = [
        (
            "batch_differs",
            log.batch == claimed,
            "the chain's log has another root or range",
        ),
        (
            "transaction_differs",
            log.transaction_hash == Some(checked.proof.transaction_hash),
            "it was confirmed by another transaction",
        ),
        (
            "block_differs",
            log.block_number == view.blockchain_confirmation.block_number,
            "it was confirmed in another block",
        ),
        (
            "sequence_outside_batch",
            sequences.contains(&checked.proof.leaf.sequence),
            "the job's sequence is not in it",
        ),
    ];
    let wrong = checks.into_iter().filter(|(_, right, _)| !right);
    wrong
        .map(|(kind, _, detail)| {
            Finding::of_job(kind, view.job_id, format!("batch {number}: {detail}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{Address, B256};
    use contracts::api::jobs::Confirmation;

    use super::*;
    use crate::{
        audit::fixture::{facts, kinds},
        chain::ConfirmedBatch,
    };

    fn proof_of(facts: &mut Facts, index: usize) -> &mut CheckedProof {
        let job = facts.jobs[index].job_id;
        facts.proofs.get_mut(&job).unwrap().as_mut().unwrap()
    }

    #[test]
    fn a_missing_confirmation_is_found() {
        let mut facts = facts();
        let job = facts.jobs[0].job_id;
        facts.proofs.insert(job, Err(404));
        facts.jobs[0].blockchain_confirmation.status = ConfirmationStatus::Submitted;
        let findings = check(&facts);
        assert_eq!(kinds(&findings), ["not_finalized", "proof_missing"]);
        assert!(findings.iter().all(|finding| finding.id == job.to_string()));
    }

    #[test]
    fn a_wrong_root_is_found() {
        let mut facts = facts();
        facts.batches[0].batch.jobsRoot = B256::repeat_byte(9);
        assert_eq!(kinds(&check(&facts)), ["batch_differs", "batch_differs"]);
    }

    #[test]
    fn a_proof_the_registry_rejects_is_found() {
        let mut facts = facts();
        proof_of(&mut facts, 0).verified = false;
        assert_eq!(kinds(&check(&facts)), ["proof_rejected"]);
    }

    #[test]
    fn a_leaf_of_another_payload_result_or_outcome_is_found() {
        let mut facts = facts();
        let leaf = &mut proof_of(&mut facts, 0).proof.leaf;
        leaf.content_hash = B256::ZERO;
        leaf.result_hash = B256::ZERO;
        leaf.status = 2;
        leaf.tenant = B256::ZERO;
        leaf.job_id = B256::ZERO;
        leaf.submitter = Address::ZERO;
        assert_eq!(kinds(&check(&facts)), ["leaf_differs"; 6]);
    }

    #[test]
    fn a_sequence_given_twice_is_found() {
        let mut facts = facts();
        let first = proof_of(&mut facts, 0).proof.leaf.sequence;
        proof_of(&mut facts, 1).proof.leaf.sequence = first;
        assert_eq!(kinds(&check(&facts)), ["proof_differs", "sequence_shared"]);
    }

    #[test]
    fn a_batch_that_is_missing_doubled_or_out_of_turn_is_found() {
        let mut missing = facts();
        missing.batches.clear();
        assert_eq!(kinds(&check(&missing)), ["batch_not_once_on_chain"; 2]);
        let mut doubled = facts();
        doubled.batches.push(doubled.batches[0].clone());
        let once = "batch_not_once_on_chain";
        assert_eq!(
            kinds(&check(&doubled)),
            [once, once, "batches_not_contiguous"]
        );
        let mut gap = facts();
        let mut later = gap.batches[0].clone();
        later.batch.batchNumber += 1;
        later.batch.firstSequence += 7;
        gap.batches.push(later);
        assert_eq!(kinds(&check(&gap)), ["batches_not_contiguous"]);
    }

    #[test]
    fn a_chain_that_does_not_begin_with_the_first_batch_is_found() {
        let mut facts = facts();
        let later = |confirmed: &mut ConfirmedBatch| confirmed.batch.batchNumber = 2;
        facts.batches.iter_mut().for_each(later);
        let in_second = |facts: &mut Facts, index: usize| {
            proof_of(facts, index).proof.batch.batch_number = 2;
            facts.jobs[index].blockchain_confirmation.batch_number = Some(2);
        };
        in_second(&mut facts, 0);
        in_second(&mut facts, 1);
        assert_eq!(kinds(&check(&facts)), ["batches_not_contiguous"]);
        facts.registry.from_the_first = false;
        assert_eq!(check(&facts), []);
    }

    #[test]
    fn a_job_sealed_twice_is_found_where_all_jobs_are_known() {
        let mut facts = facts();
        facts.others = Some(Vec::new());
        let mut second = facts.batches[0].clone();
        second.batch.batchNumber = 2;
        second.batch.firstSequence = 3;
        second.batch.jobCount = 1;
        facts.batches.push(second);
        let findings = check(&facts);
        assert_eq!(kinds(&findings), ["sequence_unexplained"]);
        assert_eq!(findings[0].id, "3");
        facts.others = None;
        assert_eq!(check(&facts), [], "it may be somebody else's");
    }

    #[test]
    fn the_sequences_of_others_are_explained_by_their_proofs() {
        let mut facts = facts();
        facts.others = Some(Vec::new());
        assert_eq!(check(&facts), []);
        let job = facts.jobs.remove(1);
        assert_eq!(kinds(&check(&facts)), ["sequence_unexplained"]);
        let proof = facts.proofs.remove(&job.job_id);
        facts.others = Some(vec![job.clone()]);
        assert_eq!(kinds(&check(&facts)), ["proof_missing"]);
        facts.proofs.extend(proof.map(|proof| (job.job_id, proof)));
        assert_eq!(check(&facts), []);
    }

    #[test]
    fn a_job_shown_on_another_chain_registry_or_block_is_found() {
        let confirmation = |change: fn(&mut Confirmation)| {
            let mut facts = facts();
            change(&mut facts.jobs[0].blockchain_confirmation);
            kinds(&check(&facts))
        };
        assert_eq!(confirmation(|c| c.chain_id = Some(1)), ["proof_differs"]);
        let elsewhere = Address::repeat_byte(1);
        assert_eq!(confirmation(|c| c.registry = None), ["proof_differs"]);
        assert_eq!(
            confirmation(|c| c.block_number = Some(9)),
            ["block_differs"]
        );

        let mut both = facts();
        both.jobs[0].blockchain_confirmation.registry = Some(elsewhere);
        proof_of(&mut both, 0).proof.registry = elsewhere;
        assert_eq!(kinds(&check(&both)), ["registry_differs"]);
        let mut both = facts();
        both.jobs[0].blockchain_confirmation.chain_id = Some(1);
        proof_of(&mut both, 0).proof.chain_id = 1;
        assert_eq!(kinds(&check(&both)), ["registry_differs"]);
    }

    #[test]
    fn a_confirmation_nobody_asked_for_is_found() {
        let mut facts = facts();
        facts.jobs[2].blockchain_confirmation.status = ConfirmationStatus::Queued;
        assert_eq!(kinds(&check(&facts)), ["confirmation_unasked"]);
    }

    #[test]
    fn a_transaction_or_sequence_of_another_batch_is_found() {
        let mut facts = facts();
        let proof = &mut proof_of(&mut facts, 0).proof;
        proof.transaction_hash = B256::ZERO;
        proof.leaf.sequence = 99;
        let expected = [
            "proof_differs",
            "sequence_outside_batch",
            "transaction_differs",
        ];
        assert_eq!(kinds(&check(&facts)), expected);
    }
}
