//! Nonces of the gas key, allotted from our own table and never from a node's pending count.

use std::fmt;

/// A transaction's number under its gas key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(u64);

impl Nonce {
    /// The nonce with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The nonce for new work: our own next one, unless someone used the key elsewhere and the
    /// chain has already gone past it.
    #[must_use]
    pub fn for_new_work(own_next: Self, chain_next: Self) -> Self {
        own_next.max(chain_next)
    }

    /// How many nonces the chain waits for before our `lowest` outstanding one: zero unless
    /// transactions of others were dropped that the key once sent.
    #[must_use]
    pub fn gap(chain_next: Self, lowest: Self) -> u64 {
        lowest.0.saturating_sub(chain_next.0)
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the chain's count moves, back included, no nonce is given out twice.
        #[test]
        fn a_nonce_is_given_once(counts in proptest::collection::vec(0u64..50, 1..50)) {
            let mut own = Nonce::new(0);
            let mut given = Vec::new();
            for count in counts {
                let nonce = Nonce::for_new_work(own, Nonce::new(count));
                prop_assert!(nonce >= Nonce::new(count));
                given.push(nonce);
                own = nonce.next();
            }
            prop_assert!(given.is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn a_gap_is_what_the_chain_waits_for() {
        assert_eq!(Nonce::gap(Nonce::new(5), Nonce::new(5)), 0);
        assert_eq!(Nonce::gap(Nonce::new(6), Nonce::new(5)), 0);
        assert_eq!(Nonce::gap(Nonce::new(5), Nonce::new(8)), 3);
    }
}
