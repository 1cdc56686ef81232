//! Time, in the three ways that billing cuts it: the window in which a fact is recognised as told
//! before, the hour of an aggregate, the month of an invoice. All in UTC.

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use thiserror::Error;

/// How long a fact may take to reach us. Its identity is kept at least as long, in the partition of
/// its id's day.
pub const WINDOW: SignedDuration = SignedDuration::from_hours(35 * 24);
/// How far ahead of ours a teller's clock may be.
pub const SKEW_MAX: SignedDuration = SignedDuration::from_hours(1);

/// Whether a fact may be counted, seen from the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Counted; its identity is looked for among those of this day.
    Counted(Date),
    /// Kept aside for an operator.
    Quarantined(Reason),
}

/// Why a fact is kept aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its id was made before the window: it may have been counted once, and we could not know.
    TooOld,
    /// Its id was made in our future.
    Ahead,
    /// It says it occurred before the window or in our future, as its id does not.
    OccurredOutside,
}

/// A calendar month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Month(Date);

/// The text is no month.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be a month from 2000 to 2999, such as 2026-11")]
pub struct MonthError;

impl Placement {
    /// Places a fact by the time inside its id and the time it says it occurred.
    #[must_use]
    pub fn of(id_time: Timestamp, occurred_at: Timestamp, now: Timestamp) -> Self {
        let age = now.duration_since(id_time);
        let since = now.duration_since(occurred_at);
        if age > WINDOW {
            Self::Quarantined(Reason::TooOld)
        } else if age < -SKEW_MAX {
            Self::Quarantined(Reason::Ahead)
        } else if since > WINDOW || since < -SKEW_MAX {
            Self::Quarantined(Reason::OccurredOutside)
        } else {
            Self::Counted(day(id_time))
        }
    }
}

impl Reason {
    /// The reason as it stands in the quarantine and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooOld => "id_older_than_35_days",
            Self::Ahead => "id_in_the_future",
            Self::OccurredOutside => "occurred_outside_the_window",
        }
    }
}

impl Month {
    /// The month of a time.
    #[must_use]
    pub fn containing(time: Timestamp) -> Self {
        Self(day(time).first_of_month())
    }

    /// Reads `2026-11`.
    ///
    /// # Errors
    /// When the text is not of that form, or far from any invoice.
    pub fn parse(text: &str) -> Result<Self, MonthError> {
        let (year, month) = text.split_once('-').ok_or(MonthError)?;
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if year.len() != 4 || month.len() != 2 || !digits(year) || !digits(month) {
            return Err(MonthError);
        }
        let year = year.parse().ok().filter(|year| (2000..3000).contains(year));
        let month = month.parse().map_err(|_| MonthError)?;
        let first = Date::new(year.ok_or(MonthError)?, month, 1);
        first.map(Self).map_err(|_| MonthError)
    }

    /// When the month begins.
    #[must_use]
    pub fn start(self) -> Timestamp {
        midnight(self.0)
    }

    /// When the next one begins.
    #[must_use]
    pub fn end(self) -> Timestamp {
        midnight(
            self.0
                .last_of_month()
                .saturating_add(jiff::Span::new().days(1)),
        )
    }
}

/// The day of a time.
#[must_use]
pub fn day(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}

/// When a day begins.
#[must_use]
pub fn midnight(day: Date) -> Timestamp {
    let start = day.to_zoned(TimeZone::UTC);
    start.map_or(Timestamp::MAX, |start| start.timestamp())
}

/// The beginning of the hour of a time.
#[must_use]
pub fn hour(time: Timestamp) -> Timestamp {
    let seconds = time.as_second();
    let second = seconds - seconds.rem_euclid(3_600);
    Timestamp::from_second(second).unwrap_or(Timestamp::MIN)
}

/// The beginning of the first hour that is not before a time.
#[must_use]
pub fn next_hour(time: Timestamp) -> Timestamp {
    let start = hour(time);
    if start == time {
        return start;
    }
    start
        .saturating_add(SignedDuration::from_hours(1))
        .unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_window_is_35_days_and_an_hour_ahead() {
        let now = at("2026-11-21T12:00:00Z");
        let first = at("2026-10-17T12:00:00Z");
        let moment = SignedDuration::from_micros(1);
        let counted = Placement::Counted("2026-10-17".parse().unwrap());
        assert_eq!(Placement::of(first, first, now), counted);
        assert_eq!(Placement::of(first, now, now), counted);
        let (before, ahead) = (first - moment, now + SKEW_MAX + moment);
        let outside = Placement::Quarantined(Reason::OccurredOutside);
        assert_eq!(
            Placement::of(before, now, now),
            Placement::Quarantined(Reason::TooOld)
        );
        assert_eq!(
            Placement::of(ahead, now, now),
            Placement::Quarantined(Reason::Ahead)
        );
        assert_eq!(Placement::of(now, before, now), outside);
        assert_eq!(Placement::of(now, ahead, now), outside);
    }

    #[test]
    fn months_are_read_and_have_their_ends() {
        let december = Month::parse("2026-12").unwrap();
        assert_eq!(december.start(), at("2026-12-01T00:00:00Z"));
        assert_eq!(december.end(), at("2027-01-01T00:00:00Z"));
        assert_eq!(Month::containing(at("2026-12-31T23:59:59.999Z")), december);
        for bad in [
            "",
            "2026",
            "2026-13",
            "2026-00",
            "2026-1",
            "26-01",
            "+026-01",
            "2026-01-01",
        ] {
            assert_eq!(Month::parse(bad), Err(MonthError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_time_lies_in_its_hour_day_and_month(second in 946_684_800_i64..32_503_680_000) {
            let time = Timestamp::from_second(second).unwrap();
            let length = time.duration_since(hour(time));
            prop_assert!((0..3_600).contains(&length.as_secs()));
            prop_assert!(next_hour(time) >= time);
            prop_assert_eq!(next_hour(hour(time)), hour(time));
            let length = time.duration_since(midnight(day(time)));
            prop_assert!((0..86_400).contains(&length.as_secs()));
            let month = Month::containing(time);
            prop_assert!(month.start() <= time && time < month.end());
            prop_assert_eq!(Month::containing(month.end()).start(), month.end());
        }
    }
}
