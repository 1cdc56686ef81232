//! What is sealed of a job, without I/O: a leaf of its batch's tree.

use alloy::primitives::{Address, B256};
use contracts::{
    event::{EventError, JobEvent, Kind},
    id::{JobId, Subject, TenantId},
    merkle::JobsTree,
    registry::{Leaf, LeafStatus, chain_job_id, tenant_hash},
};

/// A job's outcome that waits for the chain, or is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The job.
    pub job_id: JobId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Who may prove it, or zero.
    pub submitter: Address,
    /// Keccak-256 of salt and payload.
    pub content_hash: B256,
    /// Keccak-256 of salt and result or error.
    pub result_hash: B256,
    /// How it ended.
    pub status: LeafStatus,
}

/// What an event of a job asks of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Confirm its outcome.
    Confirm(Box<NewConfirmation>),
    /// Forget what its hashes were made with.
    Forget(JobId),
}

/// An outcome as it comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewConfirmation {
    /// What is sealed.
    pub confirmation: Confirmation,
    /// Who submitted the job.
    pub subject: Subject,
    /// Their team.
    pub team: Option<Subject>,
    /// Whether it goes at once, in a batch of its own.
    pub individual: bool,
    /// What the hashes were made with.
    pub salt: B256,
}

impl Confirmation {
    /// The leaf under this sequence.
    #[must_use]
    pub fn leaf(&self, sequence: u64) -> Leaf {
        Leaf {
            sequence,
            jobId: chain_job_id(self.job_id),
            submitter: self.submitter,
            tenant: tenant_hash(self.tenant_id),
            contentHash: self.content_hash,
            resultHash: self.result_hash,
            status: self.status.as_u8(),
        }
    }
}

/// The tree of a batch that begins at `first_sequence`, or `None` without jobs.
#[must_use]
pub fn tree(confirmations: &[Confirmation], first_sequence: u64) -> Option<JobsTree> {
    let leaves: Vec<B256> = confirmations
        .iter()
        .zip(first_sequence..)
        .map(|(confirmation, sequence)| confirmation.leaf(sequence).hash())
        .collect();
    JobsTree::new(&leaves)
}

/// What an event asks of us, if anything.
///
/// # Errors
/// When a member of the event is missing or malformed.
pub fn request(event: &JobEvent) -> Result<Option<Request>, EventError> {
    let status = match event.kind {
        Some(Kind::Purged(_)) => return Ok(Some(Request::Forget(event.job()?))),
        Some(Kind::Completed(_)) => LeafStatus::Completed,
        Some(Kind::Failed(_)) => LeafStatus::Failed,
        _ => return Ok(None),
    };
    let Some(seal) = event.seal() else {
        return Ok(None);
    };
    let (content_hash, result_hash, salt) = seal.hashes()?;
    let named = |name, text: &str| text.parse().map_err(|_| EventError::Malformed(name));
    let team = event.team.as_deref().map(|team| named("team", team));
    Ok(Some(Request::Confirm(Box::new(NewConfirmation {
        confirmation: Confirmation {
            job_id: event.job()?,
            tenant_id: event.tenant()?,
            submitter: seal.submitter_address()?,
            content_hash,
            result_hash,
            status,
        },
        subject: named("subject", &event.subject)?,
        team: team.transpose()?,
        individual: seal.individual,
        salt,
    }))))
}

#[cfg(test)]
mod tests {
    use contracts::{
        event::{Completed, Purged, Seal, Started},
        merkle::verify_job_proof,
    };
    use proptest::prelude::*;

    use super::*;

    fn event(kind: Kind) -> JobEvent {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        JobEvent {
            tenant_id: TenantId::generate(now).to_string(),
            job_id: JobId::generate(now).to_string(),
            event_number: 3,
            subject: "user_1".to_owned(),
            kind: Some(kind),
            ..JobEvent::default()
        }
    }

    fn completed(seal: Option<Seal>) -> JobEvent {
        event(Kind::Completed(Completed {
            seal,
            ..Completed::default()
        }))
    }

    fn seal() -> Seal {
        Seal {
            individual: true,
            submitter: vec![1; 20],
            content_hash: vec![2; 32],
            result_hash: vec![3; 32],
            salt: vec![4; 32],
        }
    }

    #[test]
    fn only_sealed_outcomes_and_erasures_are_of_concern() {
        assert_eq!(
            request(&event(Kind::Started(Started { attempt: 1 }))),
            Ok(None)
        );
        assert_eq!(request(&completed(None)), Ok(None));
        let erased = request(&event(Kind::Purged(Purged {}))).unwrap();
        assert!(matches!(erased, Some(Request::Forget(_))));
        let Some(Request::Confirm(new)) = request(&completed(Some(seal()))).unwrap() else {
            panic!("a sealed completion asks for confirmation");
        };
        assert!(new.individual);
        assert_eq!(new.confirmation.status, LeafStatus::Completed);
        assert_eq!(new.salt, B256::repeat_byte(4));
    }

    #[test]
    fn a_malformed_seal_is_refused() {
        let short = Seal {
            salt: vec![4; 31],
            ..seal()
        };
        assert_eq!(
            request(&completed(Some(short))),
            Err(EventError::Malformed("salt"))
        );
    }

    proptest! {
        #[test]
        fn every_job_of_a_batch_has_a_proof_under_its_own_sequence(
            hashes in proptest::collection::vec(any::<[u8; 32]>(), 1..40),
            first in 1u64..1_000_000,
        ) {
            let now = "2026-01-01T00:00:00Z".parse().unwrap();
            let jobs: Vec<Confirmation> = hashes
                .iter()
                .map(|hash| Confirmation {
                    job_id: JobId::generate(now),
                    tenant_id: TenantId::generate(now),
                    submitter: Address::ZERO,
                    content_hash: B256::from(*hash),
                    result_hash: B256::from(*hash),
                    status: LeafStatus::Failed,
                })
                .collect();
            let tree = tree(&jobs, first).unwrap();
            for (index, (job, sequence)) in jobs.iter().zip(first..).enumerate() {
                let proof = tree.proof(index).unwrap();
                prop_assert!(verify_job_proof(tree.root(), job.leaf(sequence).hash(), &proof));
                let other = job.leaf(sequence + 1).hash();
                prop_assert!(!verify_job_proof(tree.root(), other, &proof));
            }
        }
    }
}
