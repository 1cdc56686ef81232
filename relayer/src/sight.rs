//! What may be believed of what several RPC endpoints say, purely.
//!
//! Presence is believed from any endpoint that is not behind us, with the block's hash. Absence is
//! believed only when every one of them says so, by its logs and by the contract's own cursor.

use std::collections::BTreeMap;

use alloy::primitives::B256;

use crate::{fees::Market, nonce::Nonce};

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
}

/// Where on the chain a batch is confirmed, whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inclusion {
    /// The block.
    pub block: Block,
    /// The transaction.
    pub transaction: B256,
}

/// The contract's cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The number the next batch must have.
    pub next_batch: u64,
    /// The sequence its first job must have.
    pub next_sequence: u64,
    /// The set of signers.
    pub signer_epoch: u32,
    /// How many of them must sign.
    pub threshold: u16,
    /// Whether confirmations are stopped.
    pub paused: bool,
}

/// A `BatchConfirmed` log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// What was confirmed.
    pub commitment: B256,
    /// Where.
    pub at: Inclusion,
}

/// What one endpoint says, all of it read at or before its `head`.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its newest block.
    pub head: Block,
    /// The highest block that stays.
    pub final_number: u64,
    /// The gas key's next nonce at `head`.
    pub nonce: Nonce,
    /// The same with the endpoint's pool counted in.
    pub pending_nonce: Nonce,
    /// The contract's cursor at `head`.
    pub cursor: Cursor,
    /// What gas costs.
    pub market: Market,
    /// The logs up to `head`, by batch number.
    pub confirmed: BTreeMap<u64, Confirmed>,
}

/// The reports of the endpoints that are not behind us, highest head first; never empty.
#[derive(Clone, Debug)]
pub struct View(Vec<Report>);

/// What is known of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// Its commitment stands on the chain.
    Confirmed {
        /// Where.
        at: Inclusion,
        /// Whether that block stays.
        is_final: bool,
    },
    /// It is not on the chain, where the gas key's next nonce is this.
    Absent {
        /// The smallest any endpoint says.
        next_nonce: Nonce,
    },
    /// Another batch stands under its number: for a person to look at.
    Foreign,
    /// The endpoints do not agree, or not yet.
    Unknown,
}

impl View {
    /// The reports with a head at or above `watermark`, the highest block we ever saw; `None`
    /// when there are none, since then nothing can be said.
    #[must_use]
    pub fn new(reports: Vec<Report>, watermark: u64) -> Option<Self> {
        let mut reports: Vec<Report> = reports
            .into_iter()
            .filter(|report| report.head.number >= watermark)
            .collect();
        reports.sort_by_key(|report| std::cmp::Reverse(report.head.number));
        (!reports.is_empty()).then_some(Self(reports))
    }

    /// The report of the highest head.
    #[must_use]
    pub fn best(&self) -> &Report {
        &self.0[0]
    }

    /// Whether the endpoints at one height name different blocks.
    #[must_use]
    pub fn disagrees(&self) -> bool {
        self.0.windows(2).any(|two| {
            two[0].head.number == two[1].head.number && two[0].head.hash != two[1].head.hash
        })
    }

    /// What is known of the batch with this number and commitment.
    #[must_use]
    pub fn sighting(&self, number: u64, commitment: B256) -> Sighting {
        for report in &self.0 {
            if let Some(log) = report.confirmed.get(&number) {
                if log.commitment != commitment {
                    return Sighting::Foreign;
                }
                let is_final = log.at.block.number <= report.final_number;
                return Sighting::Confirmed {
                    at: log.at,
                    is_final,
                };
            }
        }
        if self
            .0
            .iter()
            .any(|report| report.cursor.next_batch > number)
        {
            return Sighting::Unknown;
        }
        let next_nonce = self.0.iter().map(|report| report.nonce).min();
        Sighting::Absent {
            next_nonce: next_nonce.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: B256 = B256::repeat_byte(1);

    fn report(head: u64, nonce: u64) -> Report {
        Report {
            head: Block {
                number: head,
                hash: B256::repeat_byte(9),
            },
            final_number: head.saturating_sub(2),
            nonce: Nonce::new(nonce),
            pending_nonce: Nonce::new(nonce),
            cursor: Cursor {
                next_batch: 1,
                next_sequence: 1,
                signer_epoch: 4,
                threshold: 2,
                paused: false,
            },
            market: Market::default(),
            confirmed: BTreeMap::new(),
        }
    }

    fn with_batch(mut report: Report, number: u64, block: u64, commitment: B256) -> Report {
        let hash = B256::repeat_byte(7);
        let at = Inclusion {
            block: Block {
                number: block,
                hash,
            },
            transaction: hash,
        };
        report
            .confirmed
            .insert(number, Confirmed { commitment, at });
        report.cursor.next_batch = number + 1;
        report
    }

    #[test]
    fn an_endpoint_behind_us_is_not_heard() {
        assert!(View::new(vec![report(9, 0)], 10).is_none());
        let view = View::new(vec![report(9, 0), report(10, 3)], 10).unwrap();
        assert_eq!(
            view.sighting(1, OURS),
            Sighting::Absent {
                next_nonce: Nonce::new(3)
            }
        );
    }

    #[test]
    fn presence_is_believed_from_any_absence_only_from_all() {
        let seen = with_batch(report(10, 1), 1, 9, OURS);
        let view = View::new(vec![report(11, 1), seen], 10).unwrap();
        assert!(matches!(
            view.sighting(1, OURS),
            Sighting::Confirmed {
                is_final: false,
                ..
            }
        ));
        let view = View::new(vec![report(11, 1), report(10, 0)], 10).unwrap();
        assert_eq!(
            view.sighting(1, OURS),
            Sighting::Absent {
                next_nonce: Nonce::new(0)
            }
        );
    }

    #[test]
    fn a_cursor_past_the_batch_without_its_log_proves_nothing() {
        let mut quiet = report(10, 1);
        quiet.cursor.next_batch = 2;
        let view = View::new(vec![quiet], 0).unwrap();
        assert_eq!(view.sighting(1, OURS), Sighting::Unknown);
    }

    #[test]
    fn final_is_by_the_clock_of_the_endpoint_that_saw_it() {
        let view = View::new(vec![with_batch(report(10, 1), 1, 8, OURS)], 0).unwrap();
        assert!(matches!(
            view.sighting(1, OURS),
            Sighting::Confirmed { is_final: true, .. }
        ));
    }

    #[test]
    fn another_content_under_our_number_is_foreign() {
        let theirs = B256::repeat_byte(2);
        let view = View::new(vec![with_batch(report(10, 1), 1, 8, theirs)], 0).unwrap();
        assert_eq!(view.sighting(1, OURS), Sighting::Foreign);
    }
}
