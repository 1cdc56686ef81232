//! EIP-1559 fees: the first offer, and the raise of a transaction that does not get in.
//!
//! A node replaces a transaction only when both fields rise by at least a tenth. The cap cannot
//! deadlock: where a raise would pass it there is none, and the same bytes are sent again.

/// What a transaction offers for a unit of gas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fees {
    /// The most it pays, in wei.
    pub max_fee: u128,
    /// What of it goes to the proposer, in wei.
    pub tip: u128,
}

/// What a unit of gas costs now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Market {
    /// The head block's base fee, in wei.
    pub base_fee: u128,
    /// The tip the node suggests, in wei.
    pub tip: u128,
}

impl Fees {
    /// The first offer: room for the base fee to double, within the cap.
    #[must_use]
    pub fn first(market: Market, cap: u128) -> Self {
        let max_fee = market
            .base_fee
            .saturating_mul(2)
            .saturating_add(market.tip)
            .min(cap);
        Self {
            max_fee,
            tip: market.tip.min(max_fee),
        }
    }

    /// An offer that replaces this one and follows the market, or `None` when the cap forbids it.
    #[must_use]
    pub fn raised(self, market: Market, cap: u128) -> Option<Self> {
        let least = Self {
            max_fee: tenth_more(self.max_fee),
            tip: tenth_more(self.tip),
        };
        if least.max_fee > cap {
            return None;
        }
        let wanted = Self::first(market, cap);
        let max_fee = wanted.max_fee.max(least.max_fee);
        Some(Self {
            max_fee,
            tip: wanted.tip.max(least.tip).min(max_fee),
        })
    }
}

fn tenth_more(fee: u128) -> u128 {
    fee.saturating_add(fee.div_ceil(10).max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn market() -> impl Strategy<Value = Market> {
        let wei = 0u128..1_000_000_000_000_000;
        (wei.clone(), wei).prop_map(|(base_fee, tip)| Market { base_fee, tip })
    }

    proptest! {
        #[test]
        fn a_raise_is_a_tenth_on_both_fields_and_within_the_cap(
            first in market(),
            later in market(),
            cap in 1u128..1_000_000_000_000_000,
        ) {
            let offer = Fees::first(first, cap);
            prop_assert!(offer.tip <= offer.max_fee && offer.max_fee <= cap);
            match offer.raised(later, cap) {
                Some(raised) => {
                    prop_assert!(raised.max_fee * 10 >= offer.max_fee * 11);
                    prop_assert!(raised.tip * 10 >= offer.tip * 11);
                    prop_assert!(raised.tip <= raised.max_fee && raised.max_fee <= cap);
                    prop_assert!(raised.max_fee >= Fees::first(later, cap).max_fee);
                }
                None => prop_assert!(offer.max_fee * 11 > cap * 10),
            }
        }

        #[test]
        fn raising_ends_at_the_cap(first in market(), cap in 1u128..1_000_000_000_000_000) {
            let mut offer = Fees::first(first, cap);
            let mut raises = 0;
            while let Some(raised) = offer.raised(first, cap) {
                offer = raised;
                raises += 1;
            }
            prop_assert!(raises < 500);
            prop_assert!(offer.max_fee <= cap);
        }
    }
}
