//! What may be believed of what several RPC endpoints say, purely.
//!
//! Presence is believed from any endpoint that is not behind us, with the block's hash. Absence is
//! believed only when every one of them says so, by its logs and by the contract's own cursor.
//! What cannot be taken back easily (finality, absence, a nonce past our own, a stranger's batch
//! under our number) takes a quorum: two, wherever two endpoints are configured. New work begins
//! from what a quorum says alike, so that of three endpoints one that lies holds up nothing.

use std::collections::BTreeMap;

use alloy::primitives::B256;

use crate::{fees::Market, nonce::Nonce};

/// How many endpoints must say what cannot be taken back easily, where so many are configured.
const QUORUM: usize = 2;

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
    /// What every batch must fit.
    pub terms: Terms,
}

/// What the contract wants of every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
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

/// Which batches' logs are looked for, and how deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought {
    /// The first batch.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// The lowest block that may hold any of them.
    pub from_block: u64,
}

/// The reports of the endpoints that may be believed, highest head first; never empty.
#[derive(Clone, Debug)]
pub struct View {
    reports: Vec<Report>,
    quorum: usize,
}

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
        /// Whether the contract waits for this very batch.
        is_next: bool,
    },
    /// Another batch stands under its number: for a person to look at.
    Foreign,
    /// The endpoints do not agree, or not yet.
    Unknown,
}

impl View {
    /// What these reports show together; `None` when there are none, since then nothing can be
    /// said.
    #[must_use]
    pub fn new(mut reports: Vec<Report>, quorum: usize) -> Option<Self> {
        reports.sort_by_key(|report| std::cmp::Reverse(report.head.number));
        (!reports.is_empty()).then_some(Self { reports, quorum })
    }

    /// The report of the highest head.
    #[must_use]
    pub fn best(&self) -> &Report {
        &self.reports[0]
    }

    /// The gas key's next nonce, the smallest that any endpoint says: what is below is spent.
    #[must_use]
    pub fn spent_below(&self) -> Nonce {
        let nonces = self.reports.iter().map(|report| report.nonce);
        nonces.min().unwrap_or_default()
    }

    /// From which nonce on transactions are sent, where the lowest of a pending batch is `pending`:
    /// where a quorum waits, or at that batch, whichever is lower; below what everyone calls spent
    /// there is nothing to do. One endpoint alone moves it neither down nor past our work.
    #[must_use]
    pub fn unspent_from(&self, pending: Option<Nonce>) -> Nonce {
        let mut nonces: Vec<Nonce> = self.reports.iter().map(|report| report.nonce).collect();
        nonces.sort_unstable();
        let waited_for = nonces[self.last_of_quorum()];
        let from = pending.map_or(waited_for, |pending| pending.min(waited_for));
        from.max(self.spent_below())
    }

    /// Below this nonce every pool has a transaction.
    #[must_use]
    pub fn pooled_below(&self) -> Nonce {
        let nonces = self.reports.iter().map(|report| report.pending_nonce);
        nonces.min().unwrap_or_default()
    }

    /// Whether some endpoint waits for this nonce next.
    #[must_use]
    pub fn waits_for(&self, nonce: Nonce) -> bool {
        self.reports.iter().any(|report| report.nonce == nonce)
    }

    /// The gas key's next nonce, where a quorum answers and nobody differs.
    #[must_use]
    pub fn agreed_nonce(&self) -> Option<Nonce> {
        let nonce = self.best().nonce;
        let agreed = self.reports.iter().all(|report| report.nonce == nonce);
        (agreed && self.reports.len() >= self.quorum).then_some(nonce)
    }

    /// The number of the next batch, to which a quorum has come, or past it.
    #[must_use]
    pub fn next_batch(&self) -> u64 {
        let cursors = self.reports.iter().map(|report| report.cursor.next_batch);
        let mut numbers: Vec<u64> = cursors.collect();
        numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
        numbers[self.last_of_quorum()]
    }

    /// What a quorum says that every batch must fit; `None` where each says something else. With
    /// two that differ, as during a change, the highest head counts.
    #[must_use]
    pub fn terms(&self) -> Option<Terms> {
        let terms: Vec<Terms> = self.reports.iter().map(|it| it.cursor.terms).collect();
        let named = |it: &&Terms| terms.iter().filter(|other| other == it).count();
        let most = most(&terms)?;
        (terms.len() <= self.quorum || named(&most) >= self.quorum).then_some(*most)
    }

    /// What gas costs, the middle of what the endpoints say; of two the higher one, since an offer
    /// that is too low gets nowhere, and one that is too high ends at the cap.
    #[must_use]
    pub fn market(&self) -> Market {
        let middle = |of: fn(&Market) -> u128| {
            let mut prices: Vec<u128> = self.reports.iter().map(|it| of(&it.market)).collect();
            prices.sort_unstable();
            prices[prices.len() / 2]
        };
        Market {
            base_fee: middle(|market| market.base_fee),
            tip: middle(|market| market.tip),
        }
    }

    /// The number of the next batch, the greatest that any endpoint says: no endpoint has a log
    /// from there on.
    #[must_use]
    pub fn uncovered_from(&self) -> u64 {
        let cursors = self.reports.iter().map(|report| report.cursor.next_batch);
        cursors.max().unwrap_or_default()
    }

    /// Whether endpoints name different terms, or at one height different things.
    #[must_use]
    pub fn disagrees(&self) -> bool {
        let says = |report: &Report| (report.head, report.nonce, report.cursor);
        self.reports.windows(2).any(|two| {
            let differs =
                two[0].head.number == two[1].head.number && says(&two[0]) != says(&two[1]);
            differs || two[0].cursor.terms != two[1].cursor.terms
        })
    }

    /// Where, of answers in order, the last one stands that makes a quorum.
    fn last_of_quorum(&self) -> usize {
        self.quorum.min(self.reports.len()) - 1
    }

    /// What is known of the batch with this number and commitment.
    #[must_use]
    pub fn sighting(&self, number: u64, commitment: B256) -> Sighting {
        let logs = self
            .reports
            .iter()
            .filter_map(|report| Some((report, report.confirmed.get(&number)?)));
        let (ours, foreign): (Vec<_>, Vec<_>) =
            logs.partition(|(_, log)| log.commitment == commitment);
        if foreign.len() >= self.quorum {
            return Sighting::Foreign;
        }
        let holders = |at: Inclusion| ours.iter().filter(move |(_, log)| log.at == at);
        // Of places that equally many name, the last maximum is the one of the highest head.
        let places = ours.iter().rev().map(|(_, log)| log.at);
        if let Some(at) = places.max_by_key(|at| holders(*at).count()) {
            let is_final = |(report, _): &&(&Report, _)| at.block.number <= report.final_number;
            let is_final = holders(at).filter(is_final).count() >= self.quorum;
            return Sighting::Confirmed { at, is_final };
        }
        let next_batch = self.uncovered_from();
        if !foreign.is_empty() || next_batch > number || self.reports.len() < self.quorum {
            return Sighting::Unknown;
        }
        Sighting::Absent {
            next_nonce: self.spent_below(),
            is_next: next_batch == number,
        }
    }
}

/// What most of these say, the earliest among equals.
#[must_use]
pub fn most<T: PartialEq>(answers: &[T]) -> Option<&T> {
    let named = |it: &&T| answers.iter().filter(|other| other == it).count();
    answers.iter().rev().max_by_key(named)
}

/// How many of `endpoints` must say what cannot be taken back easily.
#[must_use]
pub fn quorum(endpoints: usize) -> usize {
    endpoints.clamp(1, QUORUM)
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
                terms: Terms {
                    signer_epoch: 4,
                    threshold: 2,
                    paused: false,
                },
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

    fn absent(next_nonce: u64, is_next: bool) -> Sighting {
        let next_nonce = Nonce::new(next_nonce);
        Sighting::Absent {
            next_nonce,
            is_next,
        }
    }

    fn is_final(sighting: Sighting) -> Option<bool> {
        match sighting {
            Sighting::Confirmed { is_final, .. } => Some(is_final),
            _ => None,
        }
    }

    #[test]
    fn presence_is_believed_from_any_absence_only_from_all() {
        let seen = with_batch(report(10, 1), 1, 9, OURS);
        let view = View::new(vec![report(11, 1), seen], 2).unwrap();
        assert_eq!(is_final(view.sighting(1, OURS)), Some(false));
        let view = View::new(vec![report(11, 1), report(10, 0)], 2).unwrap();
        assert_eq!(view.sighting(1, OURS), absent(0, true));
        assert_eq!(view.sighting(2, OURS), absent(0, false));
    }

    #[test]
    fn what_only_one_of_two_says_is_neither_final_nor_absent_nor_foreign() {
        let seen = || with_batch(report(10, 1), 1, 8, OURS);
        let view = View::new(vec![report(11, 1), seen()], 2).unwrap();
        assert_eq!(is_final(view.sighting(1, OURS)), Some(false));
        let view = View::new(vec![seen()], 2).unwrap();
        assert_eq!(is_final(view.sighting(1, OURS)), Some(false));
        let view = View::new(vec![seen(), seen()], 2).unwrap();
        assert_eq!(is_final(view.sighting(1, OURS)), Some(true));
        let view = View::new(vec![report(10, 1)], 2).unwrap();
        assert_eq!(view.sighting(1, OURS), Sighting::Unknown);
        let theirs = with_batch(report(10, 1), 1, 8, B256::repeat_byte(2));
        let view = View::new(vec![theirs.clone(), report(9, 1)], 2).unwrap();
        assert_eq!(view.sighting(1, OURS), Sighting::Unknown);
        let view = View::new(vec![theirs.clone(), theirs], 2).unwrap();
        assert_eq!(view.sighting(1, OURS), Sighting::Foreign);
    }

    #[test]
    fn of_two_places_the_one_that_more_endpoints_name_counts() {
        let honest = || with_batch(report(10, 1), 1, 8, OURS);
        let mut liar = with_batch(report(12, 1), 1, 3, OURS);
        liar.final_number = 12;
        let view = View::new(vec![liar, honest(), honest()], 2).unwrap();
        let sighting = view.sighting(1, OURS);
        assert!(matches!(
            sighting,
            Sighting::Confirmed { at, is_final: true } if at.block.number == 8
        ));
    }

    #[test]
    fn a_nonce_is_agreed_when_a_quorum_answers_and_nobody_differs() {
        let view = |reports| View::new(reports, 2).unwrap();
        let agreed = view(vec![report(10, 3), report(10, 3)]).agreed_nonce();
        assert_eq!(agreed, Some(Nonce::new(3)));
        let differing = view(vec![report(10, 3), report(10, 3), report(11, 1 << 40)]);
        assert_eq!(differing.agreed_nonce(), None);
        assert_eq!(differing.spent_below(), Nonce::new(3));
        assert!(differing.waits_for(Nonce::new(3)));
        assert_eq!(view(vec![report(10, 3)]).agreed_nonce(), None, "one of two");
    }

    #[test]
    fn of_three_one_that_lies_decides_nothing() {
        let honest = report(10, 200);
        for high in [true, false] {
            let told = |high_lie| if high { high_lie } else { 0 };
            let mut liar = report(11, told(1 << 40));
            liar.cursor.next_batch = told(99);
            liar.cursor.terms.paused = true;
            liar.market.tip = told(1 << 50).into();
            let view = View::new(vec![liar.clone(), honest.clone(), honest.clone()], 2).unwrap();
            assert_eq!(view.next_batch(), 1);
            assert_eq!(view.terms(), Some(honest.cursor.terms));
            assert_eq!(view.market(), Market::default());
            assert!(view.disagrees());
            assert_eq!(view.unspent_from(None), Nonce::new(200));
            // A batch before that may have been taken back where the others have not seen it yet.
            let lowest = Some(Nonce::new(190));
            let expected = if high { 200 } else { 190 };
            assert_eq!(view.unspent_from(lowest), Nonce::new(expected));
            let two = View::new(vec![liar, honest.clone()], 2).unwrap();
            assert_eq!(two.unspent_from(Some(Nonce::new(200))), Nonce::new(200));
        }
    }

    #[test]
    fn where_each_of_three_says_something_else_nothing_new_begins() {
        let of_epoch = |signer_epoch| {
            let mut report = report(10, 1);
            report.cursor.terms.signer_epoch = signer_epoch;
            report
        };
        let terms = |epochs: &[u32]| {
            let reports = epochs.iter().map(|epoch| of_epoch(*epoch)).collect();
            let terms = View::new(reports, 2).unwrap().terms();
            terms.map(|terms| terms.signer_epoch)
        };
        assert_eq!(terms(&[5, 4, 3]), None);
        assert_eq!(terms(&[5, 4, 4]), Some(4));
        assert_eq!(terms(&[5, 4]), Some(5), "the first of two");
        assert_eq!(terms(&[4]), Some(4));
    }

    #[test]
    fn a_cursor_past_the_batch_without_its_log_proves_nothing() {
        let mut quiet = report(10, 1);
        quiet.cursor.next_batch = 2;
        let view = View::new(vec![quiet], 1).unwrap();
        assert_eq!(view.sighting(1, OURS), Sighting::Unknown);
    }

    #[test]
    fn an_only_endpoint_is_believed_alone() {
        assert_eq!((quorum(1), quorum(2), quorum(5)), (1, 2, 2));
        let view = View::new(vec![with_batch(report(10, 1), 1, 8, OURS)], 1).unwrap();
        assert_eq!(is_final(view.sighting(1, OURS)), Some(true));
        let theirs = B256::repeat_byte(2);
        let view = View::new(vec![with_batch(report(10, 1), 1, 8, theirs)], 1).unwrap();
        assert_eq!(view.sighting(1, OURS), Sighting::Foreign);
    }
}
