//! How high the chain is known to be, purely. Endpoints below that are behind and are not heard;
//! endpoints far above what another has reached, or what the chain can have grown to since, are
//! not believed, so that one answer that is wrong once stalls nothing.

use jiff::Timestamp;

/// More blocks a second than any chain makes.
const GROWTH_PER_SECOND: u64 = 100;
/// How far a head may be ahead of the others' all the same.
const LEAD_MAX: u64 = 256;

/// How high the chain is known to be.
#[derive(Clone, Copy, Debug)]
pub struct Horizon {
    /// How many endpoints must have reached a block before it is known to exist.
    quorum: usize,
    /// The highest block that is known to exist.
    floor: u64,
    /// What the last look found, and when: the chain grows only so fast from there.
    last: Option<(u64, Timestamp)>,
}

impl Horizon {
    /// Nothing is known yet.
    #[must_use]
    pub const fn new(quorum: usize) -> Self {
        Self {
            quorum,
            floor: 0,
            last: None,
        }
    }

    /// The block is known to exist.
    pub fn remember(&mut self, block: u64) {
        self.floor = self.floor.max(block);
    }

    /// Which of these heads may be believed, in their order.
    #[must_use]
    pub fn believes(&self, heads: &[u64], now: Timestamp) -> Vec<bool> {
        let ceiling = self.ceiling(heads, now);
        heads
            .iter()
            .map(|head| (self.floor..=ceiling).contains(head))
            .collect()
    }

    /// Takes in the heads that were believed. A first look proves nothing where there is only one
    /// endpoint to ask: the second one does.
    pub fn advance(&mut self, believed: &[u64], now: Timestamp) {
        let Some(reached) = nth_highest(believed, self.quorum) else {
            return;
        };
        if self.quorum > 1 || self.last.is_some() {
            self.remember(reached);
        }
        self.last = Some((reached, now));
    }

    fn ceiling(&self, heads: &[u64], now: Timestamp) -> u64 {
        let grown = self.last.map(|(head, at)| {
            let seconds = now.duration_since(at).as_secs();
            let seconds = u64::try_from(seconds).unwrap_or_default();
            head.saturating_add(seconds.saturating_mul(GROWTH_PER_SECOND))
        });
        // Nothing is known, and nobody to compare with: everything is believed, for now.
        let reached = grown.max(nth_highest(heads, 2)).unwrap_or(u64::MAX);
        reached.saturating_add(LEAD_MAX)
    }
}

fn nth_highest(heads: &[u64], nth: usize) -> Option<u64> {
    let mut sorted = heads.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.get(nth - 1).copied()
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;

    const LIE: u64 = 1 << 40;

    fn at(second: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + second.seconds()
    }

    /// One look at these heads; says which were believed.
    fn look(horizon: &mut Horizon, heads: &[u64], second: i64) -> Vec<bool> {
        let believed = horizon.believes(heads, at(second));
        let kept: Vec<u64> = heads
            .iter()
            .zip(&believed)
            .filter_map(|(head, believed)| believed.then_some(*head))
            .collect();
        horizon.advance(&kept, at(second));
        believed
    }

    #[test]
    fn an_endpoint_behind_what_is_known_is_not_heard() {
        let mut horizon = Horizon::new(1);
        horizon.remember(10);
        assert_eq!(look(&mut horizon, &[9, 10], 0), [false, true]);
    }

    #[test]
    fn one_absurd_head_is_not_believed_and_moves_nothing() {
        let mut horizon = Horizon::new(2);
        assert_eq!(
            look(&mut horizon, &[LIE, 1_000, 1_001], 0),
            [false, true, true]
        );
        assert_eq!(
            look(&mut horizon, &[1_002, LIE, 1_003], 1),
            [true, false, true]
        );
        assert_eq!(look(&mut horizon, &[1_004, 1_004], 2), [true, true]);
    }

    #[test]
    fn an_only_endpoint_that_lies_once_is_heard_again() {
        for liar in 0..3 {
            let mut horizon = Horizon::new(1);
            for second in 0..6 {
                let told = if second == liar { LIE } else { 1_000 };
                let believed = look(&mut horizon, &[told], second)[0];
                assert!(believed || second == liar, "{liar} {second}");
            }
        }
    }

    #[test]
    fn a_plausible_lead_of_one_of_two_does_not_put_the_other_behind() {
        let mut horizon = Horizon::new(2);
        assert_eq!(look(&mut horizon, &[1_000, 1_000], 0), [true, true]);
        assert_eq!(look(&mut horizon, &[1_200, 1_001], 1), [true, true]);
        assert_eq!(look(&mut horizon, &[1_002, 1_002], 2), [true, true]);
    }

    #[test]
    fn after_an_outage_the_chain_may_be_far_ahead() {
        let mut horizon = Horizon::new(1);
        look(&mut horizon, &[1_000], 0);
        assert_eq!(look(&mut horizon, &[350_000], 3_600), [true]);
        let mut horizon = Horizon::new(2);
        look(&mut horizon, &[1_000, 1_000], 0);
        assert_eq!(
            look(&mut horizon, &[LIE, LIE + 1], 1),
            [true, true],
            "two say so"
        );
    }
}
