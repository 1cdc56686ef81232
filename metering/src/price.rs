//! What a quantity costs: graduated prices with included units, in exact decimals.
//!
//! The included units come off first and cost nothing. Each unit beyond them costs what the tier
//! it falls into says, so a larger quantity never makes the earlier units cheaper or dearer. Lines
//! of an invoice are exact, to the last digit; only the total is rounded, once, half to even, to
//! the currency's smallest coin. Nothing here is ever a float, and what would lose a digit is
//! refused.

use rust_decimal::{Decimal, RoundingStrategy};
use thiserror::Error;

use crate::meter::Measure;

/// Digits behind the point of every currency we bill in.
pub const CURRENCY_DIGITS: u32 = 2;
/// Largest quantity of one line, counted in its last digit.
const QUANTITY_MAX: i128 = 1_000_000_000_000_000_000;
/// Largest price of a unit, counted in its last digit; times the largest quantity it still fits
/// the 96 bits of a [`Decimal`].
const UNIT_PRICE_MAX: i128 = 10_000_000_000;
/// Most tiers of a price.
pub const TIERS_MAX: usize = 16;

/// One step of a graduated price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// The last unit at this price, counted beyond the included ones; `None` for the last tier.
    pub up_to: Option<Decimal>,
    /// What one unit costs.
    pub unit_price: Decimal,
}

/// The price of one measure: at least one tier, rising, the last without end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    measure: Measure,
    included: Decimal,
    tiers: Vec<Tier>,
}

/// The prices a tenant is charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// ISO 4217.
    pub currency: String,
    /// At most one price a measure, in the order of an invoice's lines.
    pub prices: Vec<Price>,
}

/// One line of an invoice: a quantity of one measure, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What was counted.
    pub measure: Measure,
    /// How much was used.
    pub quantity: Decimal,
    /// How much of it costs nothing.
    pub included: Decimal,
    /// The rest, tier by tier; tiers without a unit in them are left out.
    pub tiers: Vec<Part>,
    /// The exact sum of the tiers.
    pub amount: Decimal,
}

/// The part of a line that falls into one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// How much.
    pub quantity: Decimal,
    /// What one unit costs.
    pub unit_price: Decimal,
    /// Their exact product.
    pub amount: Decimal,
}

/// Why there is no price, or no exact amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PriceError {
    /// No tiers, too many, not rising, or the last one ends.
    #[error("tiers must rise to a last one without end, at most {TIERS_MAX} of them")]
    Tiers,
    /// A price or quantity is negative.
    #[error("prices and quantities are not negative")]
    Negative,
    /// An exact amount would need more digits than a decimal has.
    #[error("too many digits for an exact amount")]
    Digits,
}

impl Price {
    /// A price whose every amount is exact.
    ///
    /// # Errors
    /// When the tiers are no price.
    pub fn new(measure: Measure, included: Decimal, tiers: Vec<Tier>) -> Result<Self, PriceError> {
        bounded(included, QUANTITY_MAX)?;
        let (last, rising) = tiers.split_last().ok_or(PriceError::Tiers)?;
        if last.up_to.is_some() || tiers.len() > TIERS_MAX {
            return Err(PriceError::Tiers);
        }
        let mut floor = Decimal::ZERO;
        for tier in rising {
            let up_to = tier
                .up_to
                .filter(|up_to| *up_to > floor)
                .ok_or(PriceError::Tiers)?;
            bounded(up_to, QUANTITY_MAX)?;
            floor = up_to;
        }
        for tier in &tiers {
            bounded(tier.unit_price, UNIT_PRICE_MAX)?;
        }
        Ok(Self {
            measure,
            included,
            tiers,
        })
    }

    /// What is priced.
    #[must_use]
    pub fn measure(&self) -> Measure {
        self.measure
    }

    /// Units that cost nothing.
    #[must_use]
    pub fn included(&self) -> Decimal {
        self.included
    }

    /// The steps, lowest first.
    #[must_use]
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The invoice's line for a quantity.
    ///
    /// # Errors
    /// When the quantity is negative or no amount could be exact.
    pub fn line(&self, quantity: Decimal) -> Result<Line, PriceError> {
        bounded(quantity, QUANTITY_MAX)?;
        let included = quantity.min(self.included);
        let charged = quantity - included;
        let mut parts = Vec::with_capacity(self.tiers.len());
        let mut amount = Decimal::ZERO;
        let mut floor = Decimal::ZERO;
        for tier in &self.tiers {
            let ceiling = tier.up_to.map_or(charged, |up_to| up_to.min(charged));
            if ceiling <= floor {
                break;
            }
            let part = Part::new(ceiling - floor, tier.unit_price)?;
            amount = amount.checked_add(part.amount).ok_or(PriceError::Digits)?;
            parts.push(part);
            floor = ceiling;
        }
        Ok(Line {
            measure: self.measure,
            quantity,
            included,
            tiers: parts,
            amount,
        })
    }
}

impl Plan {
    /// The lines of an invoice, one for each price of the plan, used or not. `quantity_of` says how
    /// much of a measure was used.
    ///
    /// # Errors
    /// When an amount could not be exact.
    pub fn lines(&self, quantity_of: impl Fn(Measure) -> Decimal) -> Result<Vec<Line>, PriceError> {
        self.prices
            .iter()
            .map(|price| price.line(quantity_of(price.measure)))
            .collect()
    }
}

impl Part {
    fn new(quantity: Decimal, unit_price: Decimal) -> Result<Self, PriceError> {
        let (quantity, unit_price) = (quantity.normalize(), unit_price.normalize());
        // Both were bounded, except that a difference of two scales can have more digits.
        bounded(quantity, QUANTITY_MAX)?;
        let amount = quantity
            .checked_mul(unit_price)
            .ok_or(PriceError::Digits)?
            .normalize();
        Ok(Self {
            quantity,
            unit_price,
            amount,
        })
    }
}

/// What an invoice asks for: the exact sum of its lines, rounded once, half to even.
///
/// # Errors
/// When the sum has more digits than a decimal.
pub fn total(lines: &[Line]) -> Result<Decimal, PriceError> {
    let mut sum = Decimal::ZERO;
    for line in lines {
        sum = sum.checked_add(line.amount).ok_or(PriceError::Digits)?;
    }
    let mut total =
        sum.round_dp_with_strategy(CURRENCY_DIGITS, RoundingStrategy::MidpointNearestEven);
    total.rescale(CURRENCY_DIGITS);
    Ok(total)
}

/// Refuses what is negative or has more digits than an exact product can hold.
fn bounded(value: Decimal, most: i128) -> Result<(), PriceError> {
    let value = value.normalize();
    if value < Decimal::ZERO {
        return Err(PriceError::Negative);
    }
    if value.mantissa() > most {
        return Err(PriceError::Digits);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decimal(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    fn tier(up_to: Option<&str>, unit_price: &str) -> Tier {
        Tier {
            up_to: up_to.map(decimal),
            unit_price: decimal(unit_price),
        }
    }

    fn calls(included: &str, tiers: &[Tier]) -> Result<Price, PriceError> {
        Price::new(Measure::Calls, decimal(included), tiers.to_vec())
    }

    #[test]
    fn a_line_is_what_one_computes_by_hand() {
        let tiers = [
            tier(Some("100"), "0.05"),
            tier(Some("1000"), "0.03"),
            tier(None, "0.0101"),
        ];
        let line = calls("10", &tiers).unwrap().line(decimal("1015")).unwrap();
        let parts: Vec<_> = line
            .tiers
            .iter()
            .map(|part| (part.quantity.to_string(), part.amount.to_string()))
            .collect();
        let expected = [("100", "5"), ("900", "27"), ("5", "0.0505")];
        let expected = expected.map(|(quantity, amount)| (quantity.to_owned(), amount.to_owned()));
        assert_eq!(parts, expected);
        assert_eq!(
            (line.included, line.amount),
            (decimal("10"), decimal("32.0505"))
        );
        assert_eq!(total(&[line]).unwrap().to_string(), "32.05");
    }

    #[test]
    fn only_the_total_is_rounded_and_half_goes_to_even() {
        for (quantity, expected) in [
            ("5", "0.00"),
            ("15", "0.02"),
            ("25", "0.02"),
            ("35", "0.04"),
        ] {
            let price = calls("0", &[tier(None, "0.001")]).unwrap();
            let line = price.line(decimal(quantity)).unwrap();
            assert_eq!(total(&[line]).unwrap().to_string(), expected, "{quantity}");
        }
        let price = calls("0", &[tier(None, "0.001")]).unwrap();
        let lines = [
            price.line(decimal("4")).unwrap(),
            price.line(decimal("4")).unwrap(),
        ];
        assert_eq!(total(&lines).unwrap().to_string(), "0.01");
        assert_eq!(total(&[]).unwrap().to_string(), "0.00");
    }

    #[test]
    fn what_is_no_price_or_cannot_be_exact_is_refused() {
        let (low, high, end) = (tier(Some("5"), "1"), tier(Some("9"), "1"), tier(None, "1"));
        assert_eq!(calls("0", &[]), Err(PriceError::Tiers));
        assert_eq!(calls("0", &[low, high]), Err(PriceError::Tiers));
        assert_eq!(calls("0", &[high, low, end]), Err(PriceError::Tiers));
        assert_eq!(calls("0", &[low, low, end]), Err(PriceError::Tiers));
        assert_eq!(calls("0", &[end, end]), Err(PriceError::Tiers));
        assert_eq!(calls("-1", &[end]), Err(PriceError::Negative));
        assert_eq!(calls("0", &[tier(None, "-0.1")]), Err(PriceError::Negative));
        assert_eq!(
            calls("0", &[tier(None, "1.0000000001")]),
            Err(PriceError::Digits)
        );
        let price = calls("0", &[tier(None, "0.9999999999")]).unwrap();
        assert_eq!(price.line(decimal("-1")), Err(PriceError::Negative));
        assert_eq!(
            price.line(decimal("1000000000000000001")),
            Err(PriceError::Digits)
        );
        let most = price.line(decimal("999999999999999999")).unwrap();
        assert_eq!(most.amount, decimal("999999999899999999.0000000001"));
    }

    prop_compose! {
        /// A price with up to five tiers that end at small whole numbers.
        fn prices()(
            included in 0_u32..20,
            steps in prop::collection::vec((1_u32..30, 0_i64..2_000), 0..5),
            last in 0_i64..2_000,
        ) -> Price {
            let mut end = 0;
            let mut tiers: Vec<Tier> = Vec::new();
            for (width, price) in steps {
                end += width;
                let up_to = Some(Decimal::from(end));
                tiers.push(Tier { up_to, unit_price: Decimal::new(price, 4) });
            }
            tiers.push(Tier { up_to: None, unit_price: Decimal::new(last, 4) });
            Price::new(Measure::Calls, included.into(), tiers).unwrap()
        }
    }

    /// What the `n`th unit costs, by looking.
    fn unit_price(price: &Price, n: u32) -> Decimal {
        let beyond = Decimal::from(n) - price.included;
        if beyond <= Decimal::ZERO {
            return Decimal::ZERO;
        }
        let fits = |tier: &&Tier| tier.up_to.is_none_or(|up_to| beyond <= up_to);
        price.tiers.iter().find(fits).unwrap().unit_price
    }

    proptest! {
        #[test]
        fn a_line_costs_what_its_units_cost_one_by_one(price in prices(), quantity in 0_u32..200) {
            let line = price.line(quantity.into()).unwrap();
            let units: Decimal = (1..=quantity).map(|n| unit_price(&price, n)).sum();
            prop_assert_eq!(line.amount, units);
            let parts: Decimal = line.tiers.iter().map(|part| part.quantity).sum();
            prop_assert_eq!(parts + line.included, line.quantity);
            let amounts: Decimal = line.tiers.iter().map(|part| part.amount).sum();
            prop_assert_eq!(amounts, line.amount);
        }

        #[test]
        fn more_never_costs_less_and_nothing_costs_nothing(
            price in prices(), less in 0_u32..200, more in 0_u32..200,
        ) {
            let cost = |quantity: u32| price.line(quantity.into()).unwrap().amount;
            prop_assert!(cost(less) <= cost(less + more));
            prop_assert_eq!(cost(0), Decimal::ZERO);
        }

        #[test]
        fn splitting_a_tier_changes_no_amount(
            price in prices(), quantity in 0_u32..200, at in 0_usize..5, width in 1_i64..30,
        ) {
            let mut tiers = price.tiers.clone();
            let at = at % tiers.len();
            let floor = at.checked_sub(1).map_or(Decimal::ZERO, |below| {
                tiers[below].up_to.unwrap()
            });
            let up_to = floor + Decimal::new(width, 1);
            prop_assume!(tiers[at].up_to.is_none_or(|end| up_to < end));
            tiers.insert(at, Tier { up_to: Some(up_to), ..tiers[at] });
            let split = Price::new(price.measure, price.included, tiers).unwrap();
            let amount = |price: &Price| price.line(quantity.into()).unwrap().amount;
            prop_assert_eq!(amount(&split), amount(&price));
        }
    }
}
