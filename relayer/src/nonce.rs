//! Nonces of the gas key, allotted from our own table and never from a node's pending count.

use std::fmt;

/// Most nonces of the gas key that others may have used behind our back.
const SKIP_MAX: u64 = 64;

/// A transaction's number under its gas key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(u64);

/// The chain is said to be further ahead of our table than is plausible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the chain is said to be at nonce {chain} of the gas key, this database at {own}: either the \
     endpoints are wrong, or the key was used elsewhere; then give the relayer another one"
)]
pub struct TooFarAhead {
    own: Nonce,
    chain: Nonce,
}

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
    /// endpoints agree that the chain has already gone past it, by not too much.
    pub fn for_new_work(own_next: Self, agreed: Option<Self>) -> Result<Self, TooFarAhead> {
        match agreed {
            Some(chain) if chain.0.saturating_sub(own_next.0) > SKIP_MAX => Err(TooFarAhead {
                own: own_next,
                chain,
            }),
            Some(chain) => Ok(own_next.max(chain)),
            None => Ok(own_next),
        }
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
        fn a_nonce_is_given_once(
            counts in proptest::collection::vec(proptest::option::of(0u64..50), 1..50),
        ) {
            let mut own = Nonce::new(0);
            let mut given = Vec::new();
            for count in counts {
                let agreed = count.map(Nonce::new);
                let nonce = Nonce::for_new_work(own, agreed).unwrap();
                prop_assert!(agreed.is_none_or(|agreed| nonce >= agreed));
                given.push(nonce);
                own = nonce.next();
            }
            prop_assert!(given.is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn a_nonce_far_ahead_of_our_own_is_refused() {
        let own = Nonce::new(7);
        let after = |chain| Nonce::for_new_work(own, Some(Nonce::new(chain)));
        assert_eq!(after(7 + SKIP_MAX), Ok(Nonce::new(7 + SKIP_MAX)));
        assert!(after(8 + SKIP_MAX).is_err());
        assert!(after(1 << 40).is_err());
        assert_eq!(Nonce::for_new_work(own, None), Ok(own));
    }

    #[test]
    fn a_gap_is_what_the_chain_waits_for() {
        assert_eq!(Nonce::gap(Nonce::new(5), Nonce::new(5)), 0);
        assert_eq!(Nonce::gap(Nonce::new(6), Nonce::new(5)), 0);
        assert_eq!(Nonce::gap(Nonce::new(5), Nonce::new(8)), 3);
    }
}
