//! Promise 3, the sums: raw events, aggregates and invoice come to the same, and the invoice asks
//! for what the published prices make of that. Computed here anew, never by the code that bills.

use std::collections::{BTreeMap, BTreeSet};

use contracts::api::usage::{InvoiceLine, InvoiceTier, Meter, Price, Prices, Unit, UsageEvent};
use jiff::Timestamp;
use rust_decimal::{Decimal, RoundingStrategy};

use super::{
    Finding,
    facts::{Bill, Facts},
    month::Month,
};

/// Digits behind the point of the smallest coin of every currency that is billed in.
const COIN_DIGITS: u32 = 2;

/// The periods of the aggregates.
const HOUR_SECONDS: i64 = 3_600;

/// A meter, in a unit.
type Measure = (Meter, Unit);

/// Quantities with the number of their events.
type Sums = BTreeMap<Measure, (Decimal, u64)>;

/// What does not add up among the usage events, the aggregates and the invoices.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut raw: BTreeMap<Month, Sums> = BTreeMap::new();
    for event in &facts.usage {
        let month = raw.entry(Month::containing(event.occurred_at)).or_default();
        add(month, (event.meter, event.unit), (event.quantity, 1));
    }
    let mut findings = Vec::new();
    for bill in &facts.bills {
        let raw = raw.remove(&bill.month).unwrap_or_default();
        findings.extend(sums(bill, &raw));
        findings.extend(hours(bill, &facts.usage));
        findings.extend(facts.prices.iter().flat_map(|prices| money(bill, prices)));
    }
    findings.extend(raw.keys().map(|month| {
        let detail = "has usage events, and was not asked for";
        Finding::new("sums_differ", month, detail)
    }));
    findings
}

/// Raw events, aggregates and invoice of a month come to the same.
fn sums(bill: &Bill, raw: &Sums) -> Vec<Finding> {
    let (mut totals, mut invoice) = (Sums::new(), Sums::new());
    for total in &bill.totals {
        let sum = (total.quantity, total.events);
        add(&mut totals, (total.meter, total.unit), sum);
    }
    for line in &bill.invoice.lines {
        add(&mut invoice, (line.meter, line.unit), (line.quantity, 0));
    }
    let mut findings = Vec::new();
    for measure in Meter::ALL.into_iter().flat_map(in_every_unit) {
        let of = |sums: &Sums| sums.get(&measure).copied().unwrap_or_default();
        let ((events, count), (aggregate, counted)) = (of(raw), of(&totals));
        let (billed, _) = of(&invoice);
        if events != aggregate || aggregate != billed || count != counted {
            let detail = format!(
                "{count} events of {events}, aggregates {counted} of {aggregate}, invoice {billed}"
            );
            findings.push(Finding::new("sums_differ", id(bill, measure), detail));
        }
    }
    findings
}

/// Raw events and aggregates come to the same in each hour of a month.
fn hours(bill: &Bill, usage: &[UsageEvent]) -> Vec<Finding> {
    let mut hours: BTreeMap<(Timestamp, Measure), [(Decimal, u64); 2]> = BTreeMap::new();
    let mut add = |at, measure, side: usize, (quantity, events): (Decimal, u64)| {
        let (sum, count) = &mut hours.entry((at, measure)).or_default()[side];
        *sum = sum.saturating_add(quantity);
        *count = count.saturating_add(events);
    };
    for event in usage {
        if Month::containing(event.occurred_at) == bill.month {
            let measure = (event.meter, event.unit);
            add(hour_of(event.occurred_at), measure, 0, (event.quantity, 1));
        }
    }
    for bucket in &bill.hours {
        let measure = (bucket.meter, bucket.unit);
        let sum = (bucket.quantity, bucket.events);
        add(bucket.period_start, measure, 1, sum);
    }
    let differ = hours.into_iter().filter(|(_, [raw, sum])| raw != sum);
    let finding = |((hour, (meter, unit)), [raw, sum]): (_, [(Decimal, u64); 2])| {
        let id = format!("{hour} {}/{}", Meter::as_str(meter), Unit::as_str(unit));
        let ((events, count), (aggregate, counted)) = (raw, sum);
        let detail = format!("{count} events of {events}, aggregate {counted} of {aggregate}");
        Finding::new("hour_differs", id, detail)
    };
    differ.map(finding).collect()
}

/// The beginning of the hour of a time, in UTC.
pub(super) fn hour_of(at: Timestamp) -> Timestamp {
    let second = at.as_second();
    let begin = second - second.rem_euclid(HOUR_SECONDS);
    Timestamp::from_second(begin).unwrap_or(at)
}

/// The invoice is what the prices make of its quantities.
fn money(bill: &Bill, prices: &Prices) -> Vec<Finding> {
    let invoice = &bill.invoice;
    let wrong = |id: String, detail: String| Finding::new("invoice_wrong", id, detail);
    let mut findings = Vec::new();
    let head = (invoice.period_start, invoice.period_end);
    if head != (bill.month.start(), bill.month.end()) {
        findings.push(wrong(bill.month.to_string(), "is of another time".into()));
    }
    if (&invoice.plan, &invoice.currency) != (&prices.plan, &prices.currency) {
        let detail = format!("by the plan {} in {}", invoice.plan, invoice.currency);
        findings.push(wrong(bill.month.to_string(), detail));
    }
    let mut seen = BTreeSet::new();
    for line in &invoice.lines {
        let measure = (line.meter, line.unit);
        let is_its = |price: &&Price| (price.meter, price.unit) == measure;
        let detail = match prices.data.iter().find(is_its) {
            None => Some("has no price".to_owned()),
            Some(_) if !seen.insert(measure) => Some("stands there twice".to_owned()),
            Some(price) => compare(line, price),
        };
        findings.extend(detail.map(|detail| wrong(id(bill, measure), detail)));
    }
    for price in &prices.data {
        let measure = (price.meter, price.unit);
        if !seen.contains(&measure) {
            findings.push(wrong(id(bill, measure), "has no line".into()));
        }
    }
    let sum = invoice
        .lines
        .iter()
        .try_fold(Decimal::ZERO, |sum, line| sum.checked_add(line.amount));
    let even = RoundingStrategy::MidpointNearestEven;
    let total = sum.map(|sum| sum.round_dp_with_strategy(COIN_DIGITS, even));
    if total != Some(invoice.total) {
        let detail = format!("total {} instead of {}", invoice.total, shown(total));
        findings.push(wrong(bill.month.to_string(), detail));
    }
    findings
}

/// What is wrong with a line, if anything.
fn compare(line: &InvoiceLine, price: &Price) -> Option<String> {
    let right = computed(line, price);
    if right.as_ref() == Some(line) {
        return None;
    }
    let amount = right.map(|line| line.amount);
    Some(format!(
        "{} for {}, {} of them included, in {} tiers, instead of {}",
        line.amount,
        line.quantity,
        line.included,
        line.tiers.len(),
        shown(amount),
    ))
}

/// The line that the price makes of the quantity: the included units are free, and each further
/// one costs what the tier it falls into says. `None` where that needs more digits than there are.
pub(super) fn computed(line: &InvoiceLine, price: &Price) -> Option<InvoiceLine> {
    let included = line.quantity.min(price.included);
    let charged = line.quantity.checked_sub(included)?;
    // How many of the charged units lie below a tier's end.
    let below = |end: Option<Decimal>| end.map_or(charged, |end| end.min(charged));
    let ends = price.tiers.iter().map(|tier| below(tier.up_to));
    let begins = std::iter::once(Decimal::ZERO).chain(ends.clone());
    let mut tiers = Vec::new();
    let mut amount = Decimal::ZERO;
    for (tier, (begin, end)) in price.tiers.iter().zip(begins.zip(ends)) {
        let quantity = end.checked_sub(begin)?;
        if quantity > Decimal::ZERO {
            let part = InvoiceTier {
                quantity,
                unit_price: tier.unit_price,
                amount: quantity.checked_mul(tier.unit_price)?,
            };
            amount = amount.checked_add(part.amount)?;
            tiers.push(part);
        }
    }
    Some(InvoiceLine {
        included,
        tiers,
        amount,
        ..line.clone()
    })
}

fn add(sums: &mut Sums, measure: Measure, (quantity, events): (Decimal, u64)) {
    let (sum, count) = sums.entry(measure).or_default();
    *sum = sum.saturating_add(quantity);
    *count = count.saturating_add(events);
}

fn in_every_unit(meter: Meter) -> impl Iterator<Item = Measure> {
    Unit::ALL.into_iter().map(move |unit| (meter, unit))
}

fn id(bill: &Bill, (meter, unit): Measure) -> String {
    format!("{} {}/{}", bill.month, meter.as_str(), unit.as_str())
}

fn shown(amount: Option<Decimal>) -> String {
    amount.map_or_else(
        || "an amount with too many digits".to_owned(),
        |amount| amount.normalize().to_string(),
    )
}

#[cfg(test)]
mod tests {
    use contracts::api::usage::{PriceModel, PriceTier};
    use jiff::SignedDuration;

    use super::*;
    use crate::audit::fixture::{facts, kinds, settle_bills};

    fn decimal(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    fn price(included: &str, tiers: &[(Option<&str>, &str)]) -> Price {
        let tier = |(up_to, unit_price): &(Option<&str>, &str)| PriceTier {
            up_to: up_to.map(decimal),
            unit_price: decimal(unit_price),
        };
        Price {
            meter: Meter::ApiUsage,
            unit: Unit::Call,
            model: PriceModel::Graduated,
            included: decimal(included),
            tiers: tiers.iter().map(tier).collect(),
        }
    }

    fn line_of(quantity: &str, price: &Price) -> InvoiceLine {
        let line = InvoiceLine {
            meter: Meter::ApiUsage,
            unit: Unit::Call,
            quantity: decimal(quantity),
            included: Decimal::ZERO,
            tiers: Vec::new(),
            amount: Decimal::ZERO,
        };
        computed(&line, price).unwrap()
    }

    #[test]
    fn a_line_is_what_one_computes_by_hand() {
        let tiers = [
            (Some("100"), "0.05"),
            (Some("1000"), "0.03"),
            (None, "0.0101"),
        ];
        let price = price("10", &tiers);
        let line = line_of("1015", &price);
        let parts: Vec<_> = line
            .tiers
            .iter()
            .map(|part| (part.quantity, part.amount))
            .collect();
        let expected = [("100", "5"), ("900", "27"), ("5", "0.0505")];
        assert_eq!(parts, expected.map(|(q, a)| (decimal(q), decimal(a))));
        assert_eq!(
            (line.included, line.amount),
            (decimal("10"), decimal("32.0505"))
        );
        for (quantity, tiers, amount) in [
            ("0", 0, "0"),
            ("10", 0, "0"),
            ("11", 1, "0.05"),
            ("110", 1, "5"),
            ("110.5", 2, "5.015"),
        ] {
            let line = line_of(quantity, &price);
            assert_eq!(
                (line.tiers.len(), line.amount),
                (tiers, decimal(amount)),
                "{quantity}"
            );
        }
    }

    #[test]
    fn an_invoice_line_that_differs_from_the_prices_is_found() {
        let changes: [fn(&mut InvoiceLine); 5] = [
            |line| line.amount += Decimal::new(1, 6),
            |line| line.included -= Decimal::ONE,
            |line| line.tiers.clear(),
            |line| line.tiers[0].unit_price += Decimal::ONE,
            |line| line.tiers[0].quantity += Decimal::ONE,
        ];
        for change in changes {
            let mut facts = facts();
            assert_eq!(check(&facts), []);
            let lines = &mut facts.bills[0].invoice.lines;
            let charged = lines.iter_mut().find(|line| !line.tiers.is_empty());
            change(charged.unwrap());
            let findings = check(&facts);
            assert!(!findings.is_empty());
            assert!(
                findings
                    .iter()
                    .all(|finding| finding.kind == "invoice_wrong")
            );
        }
    }

    #[test]
    fn a_wrong_total_time_plan_or_set_of_lines_is_found() {
        let changes: [fn(&mut Bill); 8] = [
            |bill| bill.invoice.total += Decimal::new(1, 2),
            |bill| bill.invoice.total += Decimal::new(1, 3),
            |bill| bill.invoice.period_end = bill.invoice.period_start,
            |bill| bill.invoice.currency = "EUR".into(),
            |bill| bill.invoice.plan = "dear".into(),
            |bill| {
                bill.invoice
                    .lines
                    .retain(|line| line.quantity > Decimal::ZERO);
            },
            |bill| {
                let mut twice = bill.invoice.lines[0].clone();
                twice.quantity = Decimal::ZERO;
                twice.tiers.clear();
                twice.amount = Decimal::ZERO;
                bill.invoice.lines.push(twice);
            },
            |bill| {
                let mut stray = bill.invoice.lines.last().unwrap().clone();
                stray.unit = Unit::Millisecond;
                bill.invoice.lines.push(stray);
            },
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut facts = facts();
            change(&mut facts.bills[0]);
            assert_eq!(kinds(&check(&facts)), ["invoice_wrong"], "change {index}");
        }
    }

    #[test]
    fn only_the_total_is_rounded_and_half_goes_to_even() {
        let mut facts = facts();
        let prices = facts.prices.as_mut().unwrap();
        for price in &mut prices.data {
            price.included = Decimal::ZERO;
            price.tiers.truncate(1);
            price.tiers[0].up_to = None;
            price.tiers[0].unit_price = Decimal::ZERO;
        }
        prices.data[0].tiers[0].unit_price = decimal("0.025");
        settle_bills(&mut facts);
        assert_eq!(check(&facts), []);
        facts.bills[0].invoice.total = decimal("0.03");
        assert_eq!(kinds(&check(&facts)), ["invoice_wrong"]);
    }

    #[test]
    fn quantities_that_differ_are_found() {
        let mut invoice = facts();
        let prices = invoice.prices.take();
        invoice.bills[0].invoice.lines[0].quantity += Decimal::ONE;
        assert_eq!(kinds(&check(&invoice)), ["sums_differ"]);
        invoice.prices = prices;
        let mut aggregate = facts();
        aggregate.bills[0].totals[0].quantity += Decimal::ONE;
        assert_eq!(kinds(&check(&aggregate)), ["sums_differ"]);
        let mut count = facts();
        count.bills[0].totals[0].events += 7;
        assert_eq!(kinds(&check(&count)), ["sums_differ"]);
        let mut row = facts();
        row.usage.pop();
        assert_eq!(kinds(&check(&row)), ["hour_differs", "sums_differ"]);
    }

    #[test]
    fn aggregates_of_another_time_are_found() {
        let mut facts = facts();
        for bucket in &mut facts.bills[0].hours {
            bucket.period_start -= SignedDuration::from_hours(1);
        }
        let findings = check(&facts);
        let measures = facts.bills[0].totals.len();
        assert_eq!(kinds(&findings), vec!["hour_differs"; 2 * measures]);
    }

    #[test]
    fn each_month_is_summed_for_itself() {
        let mut facts = facts();
        let last = facts.usage.last_mut().unwrap();
        last.occurred_at = facts.bills[0].month.start() - SignedDuration::from_secs(1);
        let sums = |findings: Vec<Finding>| -> Vec<Finding> {
            let of_month = findings.into_iter();
            of_month.filter(|f| f.kind == "sums_differ").collect()
        };
        assert_eq!(sums(check(&facts)).len(), 2);
        settle_bills(&mut facts);
        assert_eq!(facts.bills.len(), 2);
        assert_eq!(check(&facts), []);
        facts.bills[0].totals.clear();
        let findings = sums(check(&facts));
        assert_eq!(kinds(&findings), ["sums_differ"]);
        assert!(findings[0].id.starts_with("2025-12 "), "{}", findings[0].id);
    }
}
