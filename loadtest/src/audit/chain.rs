//! Promise 2: a job that asks for confirmation is confirmed on chain exactly once.

use std::collections::BTreeMap;

use contracts::{
    api::jobs::{ConfirmationStatus, JobStatus, JobView},
    id::JobId,
    registry::{BatchRef, LeafStatus, chain_job_id, salted_hash, tenant_hash},
};

use super::{
    Finding,
    facts::{CheckedProof, Facts},
};

/// What does not add up between the API, the proofs and the chain.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = contiguous(facts);
    let mut sequences: BTreeMap<u64, JobId> = BTreeMap::new();
    for view in facts
        .jobs
        .iter()
        .filter(|view| facts.has_to_be_sealed(view))
    {
        findings.extend(finalized(view));
        let checked = match facts.proofs.get(&view.job_id) {
            Some(Ok(checked)) => checked,
            refused => {
                let status = refused
                    .and_then(|proof| proof.as_ref().err())
                    .unwrap_or(&404);
                let detail = format!("the API gives no proof: status {status}");
                findings.push(Finding::new("proof_missing", view.job_id, detail));
                continue;
            }
        };
        findings.extend(proof(checked, view));
        findings.extend(leaf(facts, checked, view));
        findings.extend(on_chain(facts, checked, view));
        let sequence = checked.proof.leaf.sequence;
        let other = sequences
            .insert(sequence, view.job_id)
            .filter(|other| *other != view.job_id);
        if let Some(other) = other {
            let detail = format!("sequence {sequence} is also that of {other}");
            findings.push(Finding::new("sequence_shared", view.job_id, detail));
        }
    }
    findings
}

/// Batches and sequences follow one another on the chain, from 1 and without gaps.
fn contiguous(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut next = facts
        .batches
        .first()
        .map(|first| (first.batch.batchNumber, first.batch.firstSequence));
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

fn finalized(view: &JobView) -> Option<Finding> {
    let status = view.blockchain_confirmation.status;
    let is_final = status == ConfirmationStatus::Finalized;
    (!is_final).then(|| Finding::new("not_finalized", view.job_id, status.as_str()))
}

/// The registry accepts the proof, and the API says the same in both places.
fn proof(checked: &CheckedProof, view: &JobView) -> Vec<Finding> {
    let CheckedProof { proof, verified } = checked;
    let mut findings = Vec::new();
    if !verified {
        let detail = "JobsRegistry.verify says no";
        findings.push(Finding::new("proof_rejected", view.job_id, detail));
    }
    let shown = &view.blockchain_confirmation;
    let told = (shown.batch_number, shown.sequence, shown.transaction_hash);
    let proven = (
        Some(proof.batch.batch_number),
        Some(proof.leaf.sequence),
        Some(proof.transaction_hash),
    );
    if told != proven {
        let detail = "batch, sequence or transaction differ between the job and its proof";
        findings.push(Finding::new("proof_differs", view.job_id, detail));
    }
    findings
}

/// The leaf is of this job, this tenant, this payload, this outcome.
fn leaf(facts: &Facts, checked: &CheckedProof, view: &JobView) -> Vec<Finding> {
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
            "the tenant",
            facts
                .tenant
                .is_none_or(|tenant| leaf.tenant == tenant_hash(tenant)),
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
        .map(|(what, _)| Finding::new("leaf_differs", view.job_id, what))
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
        return vec![Finding::new("batch_not_once_on_chain", view.job_id, detail)];
    };
    let mut findings = Vec::new();
    if log.batch != claimed {
        let detail = format!("batch {number}: the chain's log has another root or range");
        findings.push(Finding::new("batch_differs", view.job_id, detail));
    }
    if log.transaction_hash != Some(checked.proof.transaction_hash) {
        let detail = format!("batch {number} was confirmed by another transaction");
        findings.push(Finding::new("transaction_differs", view.job_id, detail));
    }
    let end = log.batch.firstSequence + u64::from(log.batch.jobCount);
    if !(log.batch.firstSequence..end).contains(&checked.proof.leaf.sequence) {
        let detail = format!("its sequence is not in batch {number}");
        findings.push(Finding::new("sequence_outside_batch", view.job_id, detail));
    }
    findings
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;

    use super::*;
    use crate::audit::fixture::{facts, kinds};

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
        assert_eq!(kinds(&check(&facts)), ["leaf_differs"; 5]);
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
