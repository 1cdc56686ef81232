//! A batch of outcomes and its life, without I/O.
//!
//! ```text
//! Sealed → Signed → Broadcast → Included → Finalized
//!  ↑  ↑       │       │ │ ↑         │          │
//!  │  └───────┴───────┘ │ └─────────┴──────────┘
//!  │  epoch over,       │     the block is gone
//!  │  reverted          │ reverted too often
//!  └────── Stalled ←────┘
//!    a person resumes
//! ```
//!
//! From Finalized there is also a way to Included, when the batch already stands in another block;
//! and from Stalled, when someone else confirms it.

use alloy::primitives::B256;
use contracts::registry::{BatchConfirmation, BatchRef};

use crate::{
    nonce::Nonce,
    sight::{Inclusion, Sighting},
};

/// After so many reverts while the contract waited for it, a batch stalls: each one costs gas, and
/// a cause that is still there now will be there next time.
pub const REVERTS_MAX: u32 = 5;

/// A sealed batch. Its content never changes, its state does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Counted from 1, without gaps.
    pub number: u64,
    /// The sequence of its first job.
    pub first_sequence: u64,
    /// How many jobs it holds.
    pub job_count: u32,
    /// The root of the tree of its jobs.
    pub jobs_root: B256,
    /// Once it was signed: no lower block holds it.
    pub signed_after: Option<u64>,
    /// How often it reverted while the contract waited for it.
    pub reverts: u32,
    /// Where it is in its life.
    pub state: State,
}

/// Where a batch is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// On its way to the chain.
    Pending(Pending),
    /// In a block that may still go.
    Included(Pending, Inclusion),
    /// In a block that stays.
    Finalized(Pending, Inclusion),
}

/// How far a batch is on its way to the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Nobody has signed for it in the present epoch.
    Sealed,
    /// Enough attesters have signed.
    Signed {
        /// The set of signers.
        epoch: u32,
    },
    /// A transaction with it is, or is about to be, in the nodes' pools.
    Broadcast {
        /// The set of signers.
        epoch: u32,
        /// The transaction's nonce.
        nonce: Nonce,
    },
    /// It reverted [`REVERTS_MAX`] times: nothing more is spent on it until a person resumes it.
    Stalled,
}

/// A move that is not in the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a batch cannot go from {from} by being {by}")]
pub struct IllegalMove {
    from: &'static str,
    by: &'static str,
}

/// What a look at the chain changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is in a block, or in another one than before.
    Included,
    /// Its block is final.
    Finalized,
    /// Its block is gone.
    Lost,
    /// Its block was final and is gone all the same, whether or not it stands in another one.
    FinalityViolated,
    /// Its nonce is spent, and it is not confirmed.
    Reverted,
    /// The same, once too often.
    Stalled,
}

impl Batch {
    /// The batch as its commitment names it.
    #[must_use]
    pub fn reference(&self) -> BatchRef {
        BatchRef {
            batchNumber: self.number,
            firstSequence: self.first_sequence,
            jobCount: self.job_count,
            jobsRoot: self.jobs_root,
        }
    }

    /// What the attesters of `epoch` sign.
    #[must_use]
    pub fn confirmation(&self, epoch: u32) -> BatchConfirmation {
        BatchConfirmation {
            batchNumber: self.number,
            firstSequence: self.first_sequence,
            jobCount: self.job_count,
            jobsRoot: self.jobs_root,
            signerEpoch: epoch,
        }
    }

    /// The batch after a look at the chain, and what that changed. A batch behind one that reverts
    /// reverts too, which is not held against it.
    #[must_use]
    pub fn seen(self, sighting: Sighting) -> (Self, Option<Change>) {
        let (state, change) = self.state.seen(sighting);
        let is_next = matches!(sighting, Sighting::Absent { is_next: true, .. });
        if change != Some(Change::Reverted) || !is_next {
            return (Self { state, ..self }, change);
        }
        let reverts = self.reverts + 1;
        let (state, change) = if reverts < REVERTS_MAX {
            (state, Change::Reverted)
        } else {
            (State::Pending(Pending::Stalled), Change::Stalled)
        };
        let after = Self {
            reverts,
            state,
            ..self
        };
        (after, Some(change))
    }
}

impl Pending {
    /// Enough attesters of `epoch` signed.
    pub fn signed(self, epoch: u32) -> Result<Self, IllegalMove> {
        match self {
            Self::Sealed => Ok(Self::Signed { epoch }),
            Self::Signed { .. } | Self::Broadcast { .. } | Self::Stalled => {
                Err(self.illegal("signed"))
            }
        }
    }

    /// The signers changed before anything was sent.
    pub fn voided(self) -> Result<Self, IllegalMove> {
        match self {
            Self::Signed { .. } => Ok(Self::Sealed),
            Self::Sealed | Self::Broadcast { .. } | Self::Stalled => Err(self.illegal("voided")),
        }
    }

    /// A transaction with it was written down under `nonce`.
    pub fn sent(self, nonce: Nonce) -> Result<Self, IllegalMove> {
        match self {
            Self::Signed { epoch } => Ok(Self::Broadcast { epoch, nonce }),
            Self::Sealed | Self::Broadcast { .. } | Self::Stalled => Err(self.illegal("sent")),
        }
    }

    fn illegal(self, by: &'static str) -> IllegalMove {
        IllegalMove {
            from: State::Pending(self).name(),
            by,
        }
    }
}

impl State {
    /// The state's name, as stored and as metrics show it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pending(Pending::Sealed) => "sealed",
            Self::Pending(Pending::Signed { .. }) => "signed",
            Self::Pending(Pending::Broadcast { .. }) => "broadcast",
            Self::Pending(Pending::Stalled) => "stalled",
            Self::Included(..) => "included",
            Self::Finalized(..) => "finalized",
        }
    }

    /// The state after a look at the chain, and what that changed; how often it reverted is for
    /// [`Batch::seen`] to count.
    fn seen(self, sighting: Sighting) -> (Self, Option<Change>) {
        match (self, sighting) {
            (Self::Pending(from), Sighting::Confirmed { at, .. }) => {
                (Self::Included(from, at), Some(Change::Included))
            }
            (
                Self::Pending(Pending::Broadcast { nonce, .. }),
                Sighting::Absent { next_nonce, .. },
            ) if nonce < next_nonce => (Self::Pending(Pending::Sealed), Some(Change::Reverted)),
            (Self::Included(from, was), Sighting::Confirmed { at, .. }) if at != was => {
                (Self::Included(from, at), Some(Change::Included))
            }
            (Self::Included(from, at), Sighting::Confirmed { is_final: true, .. }) => {
                (Self::Finalized(from, at), Some(Change::Finalized))
            }
            (Self::Finalized(from, was), Sighting::Confirmed { at, .. }) if at != was => {
                (Self::Included(from, at), Some(Change::FinalityViolated))
            }
            (Self::Included(from, _), Sighting::Absent { .. }) => {
                (Self::Pending(from), Some(Change::Lost))
            }
            (Self::Finalized(from, _), Sighting::Absent { .. }) => {
                (Self::Pending(from), Some(Change::FinalityViolated))
            }
            (Self::Pending(_) | Self::Included(..) | Self::Finalized(..), _) => (self, None),
        }
    }
}

impl Change {
    /// The change's name, for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Included => "included",
            Self::Finalized => "finalized",
            Self::Lost => "lost",
            Self::FinalityViolated => "finality_violated",
            Self::Reverted => "reverted",
            Self::Stalled => "stalled",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sight::Block;

    fn inclusion(block: u8) -> Inclusion {
        let hash = B256::repeat_byte(block);
        Inclusion {
            block: Block {
                number: u64::from(block),
                hash,
            },
            transaction: hash,
        }
    }

    fn sightings() -> impl Strategy<Value = Sighting> {
        prop_oneof![
            Just(Sighting::Unknown),
            (0u64..6).prop_map(|n| Sighting::Absent {
                next_nonce: Nonce::new(n),
                is_next: false,
            }),
            (0u8..4, any::<bool>()).prop_map(|(b, is_final)| Sighting::Confirmed {
                at: inclusion(b),
                is_final
            }),
        ]
    }

    proptest! {
        /// A model of the lane's whole loop: whatever the chain shows and however often it takes
        /// it back, a batch is announced only from a final block, leaves finality only with an
        /// alarm, and asks for a fresh nonce only when its last one is spent.
        #[test]
        fn whatever_is_seen_the_drawing_holds(
            steps in proptest::collection::vec(sightings(), 1..60),
        ) {
            let mut state = State::Pending(Pending::Sealed);
            let mut spent_below = Nonce::new(0);
            let mut next = Nonce::new(0);
            for sighting in steps {
                if let State::Pending(Pending::Sealed) = state {
                    prop_assert!(next <= spent_below, "a fresh nonce while the old one may count");
                    let sent = Pending::Sealed.signed(1).unwrap().sent(next).unwrap();
                    state = State::Pending(sent);
                    next = next.next();
                }
                if let Sighting::Absent { next_nonce, .. } = sighting {
                    spent_below = spent_below.max(next_nonce);
                }
                let before = state;
                let (after, change) = state.seen(sighting);
                prop_assert_eq!(change.is_some(), before != after);
                match change {
                    Some(Change::Finalized) => {
                        let final_here = matches!(
                            (before, sighting),
                            (State::Included(_, was), Sighting::Confirmed { at, is_final: true })
                                if was == at
                        );
                        prop_assert!(final_here);
                    }
                    Some(Change::FinalityViolated) => {
                        prop_assert!(matches!(before, State::Finalized(..)));
                    }
                    _ => prop_assert!(
                        !matches!(before, State::Finalized(..)) || before == after
                    ),
                }
                state = after;
            }
        }

        #[test]
        fn what_is_unknown_changes_nothing(nonce in 0u64..9, block in 0u8..4) {
            let broadcast = Pending::Broadcast { epoch: 1, nonce: Nonce::new(nonce) };
            for state in [
                State::Pending(Pending::Sealed),
                State::Pending(broadcast),
                State::Pending(Pending::Stalled),
                State::Included(broadcast, inclusion(block)),
                State::Finalized(broadcast, inclusion(block)),
            ] {
                prop_assert_eq!(state.seen(Sighting::Unknown), (state, None));
            }
        }
    }

    #[test]
    fn finality_is_violated_also_where_another_block_has_the_batch_already() {
        let from = Pending::Broadcast {
            epoch: 1,
            nonce: Nonce::new(0),
        };
        let again = Sighting::Confirmed {
            at: inclusion(2),
            is_final: true,
        };
        let (state, change) = State::Finalized(from, inclusion(1)).seen(again);
        assert_eq!(state, State::Included(from, inclusion(2)));
        assert_eq!(change, Some(Change::FinalityViolated));
        assert_eq!(state.seen(again).1, Some(Change::Finalized));
    }

    #[test]
    fn a_batch_that_reverts_too_often_while_it_is_next_stalls_and_may_still_be_confirmed() {
        let mut batch = Batch {
            number: 1,
            first_sequence: 1,
            job_count: 1,
            jobs_root: B256::ZERO,
            signed_after: None,
            reverts: 0,
            state: State::Pending(Pending::Sealed),
        };
        let mut revert = |round: u64, is_next| {
            let sent = Pending::Sealed.signed(1).unwrap().sent(Nonce::new(round));
            batch.state = State::Pending(sent.unwrap());
            let change;
            (batch, change) = batch.seen(Sighting::Absent {
                next_nonce: Nonce::new(round + 1),
                is_next,
            });
            (batch, change)
        };
        for round in 0..20 {
            assert_eq!(
                revert(round, false).1,
                Some(Change::Reverted),
                "behind another"
            );
        }
        for round in 1..REVERTS_MAX {
            let (batch, change) = revert(round.into(), true);
            assert_eq!(change, Some(Change::Reverted));
            assert_eq!(batch.state, State::Pending(Pending::Sealed));
        }
        let (stalled, change) = revert(40, true);
        assert_eq!(change, Some(Change::Stalled));
        assert_eq!(stalled.state, State::Pending(Pending::Stalled));
        assert!(
            Pending::Stalled.signed(1).is_err(),
            "nothing more is spent on it"
        );
        let at = inclusion(1);
        let (included, _) = stalled.seen(Sighting::Confirmed {
            at,
            is_final: false,
        });
        assert_eq!(included.state, State::Included(Pending::Stalled, at));
    }

    #[test]
    fn moves_that_are_not_drawn_are_refused() {
        let signed = Pending::Sealed.signed(3).unwrap();
        let broadcast = signed.sent(Nonce::new(7)).unwrap();
        assert!(Pending::Sealed.sent(Nonce::new(7)).is_err());
        assert!(signed.signed(3).is_err());
        assert!(
            broadcast.sent(Nonce::new(8)).is_err(),
            "a second nonce beside the first"
        );
        assert!(broadcast.voided().is_err());
        assert_eq!(signed.voided(), Ok(Pending::Sealed));
    }
}
