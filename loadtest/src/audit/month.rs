//! A calendar month in UTC, the period of an invoice.

use std::fmt;

use jiff::{Timestamp, civil::Date, tz::TimeZone};

/// A month, by its first day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Month(Date);

impl Month {
    /// The month of a time.
    pub(super) fn containing(at: Timestamp) -> Self {
        Self(at.to_zoned(TimeZone::UTC).date().first_of_month())
    }

    /// Every month from that of `first` to that of `last`.
    pub(super) fn between(first: Timestamp, last: Timestamp) -> Vec<Self> {
        let last = Self::containing(last);
        let months = std::iter::successors(Some(Self::containing(first)), |month| month.next());
        months.take_while(|month| *month <= last).collect()
    }

    /// When it begins.
    pub(super) fn start(self) -> Timestamp {
        let midnight = self.0.to_zoned(TimeZone::UTC);
        midnight.map_or(Timestamp::MAX, |midnight| midnight.timestamp())
    }

    /// When it ends, exclusive.
    pub(super) fn end(self) -> Timestamp {
        self.next().map_or(Timestamp::MAX, Self::start)
    }

    fn next(self) -> Option<Self> {
        self.0.last_of_month().tomorrow().ok().map(Self)
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0.year(), self.0.month())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(first: &str, last: &str) -> Vec<String> {
        let months = Month::between(first.parse().unwrap(), last.parse().unwrap());
        months.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_run_across_the_end_of_a_month_has_both() {
        let before = "2025-12-31T23:59:59.999Z";
        assert_eq!(between(before, before), ["2025-12"]);
        assert_eq!(
            between(before, "2026-01-01T00:00:00Z"),
            ["2025-12", "2026-01"]
        );
        let long = between("2025-11-30T00:00:00Z", "2026-02-01T00:00:00Z");
        assert_eq!(long, ["2025-11", "2025-12", "2026-01", "2026-02"]);
    }

    #[test]
    fn a_month_ends_where_the_next_begins() {
        let february = Month::containing("2028-02-29T12:00:00Z".parse().unwrap());
        assert_eq!(february.start(), "2028-02-01T00:00:00Z".parse().unwrap());
        assert_eq!(february.end(), "2028-03-01T00:00:00Z".parse().unwrap());
    }
}
