//! Open-loop arrivals: when each request is meant to start is fixed before the run, whatever the
//! target does, so that a slow answer never hides the requests it would have delayed.

use std::{fmt, ops::Range, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::stages::{Latencies, Summary};

/// Fastest rate that is accepted, in arrivals per second.
const RATE_MAX: f64 = 100_000.0;
/// A start this much later than intended is counted as late.
const LATE: Duration = Duration::from_millis(50);

/// Arrivals per second, to the thousandth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub(crate) struct Rate {
    millihertz: u32,
}

/// The text or number is no [`Rate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be a number of arrivals per second from 0.001 to 100000")]
pub(crate) struct RateError;

/// The intended starts, as time since the run's beginning. The n-th is computed from n alone: an
/// absolute schedule, which cannot drift.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    rate: Rate,
    next: u64,
    count: u64,
    bursts: Bursts,
}

/// Arrivals that come together, by their numbers from 0 on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bursts(Vec<Range<u64>>);

/// What the generator itself did to the schedule.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generator {
    lag: Latencies,
    late_starts: u64,
    skipped: u64,
}

/// [`Generator`], to be read.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GeneratorReport {
    /// Time from the intended start to the generator getting to it.
    pub(crate) lag: Summary,
    /// Starts that came more than 50 ms late.
    pub(crate) late_starts: u64,
    /// Arrivals that were never sent, because too many were in flight: the target's doing, and
    /// counted as jobs that were not accepted.
    pub(crate) skipped: u64,
    /// Whether the generator kept up, so that the run says something about the target.
    pub(crate) valid: bool,
}

impl Rate {
    /// The rate as a number.
    pub(crate) fn per_second(self) -> f64 {
        f64::from(self.millihertz) / 1_000.0
    }

    /// Arrivals in `duration`.
    pub(crate) fn count_in(self, duration: Duration) -> u64 {
        let milliarrivals = u128::from(self.millihertz) * duration.as_millis();
        u64::try_from(milliarrivals / 1_000_000).unwrap_or(u64::MAX)
    }

    fn offset(self, n: u64) -> Duration {
        let nanoseconds = u128::from(n) * 1_000_000_000_000 / u128::from(self.millihertz);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

impl TryFrom<f64> for Rate {
    type Error = RateError;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked before"
    )]
    fn try_from(per_second: f64) -> Result<Self, RateError> {
        if !(0.001..=RATE_MAX).contains(&per_second) {
            return Err(RateError);
        }
        Ok(Self {
            millihertz: (per_second * 1_000.0).round() as u32,
        })
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        text.parse::<f64>().map_err(|_| RateError)?.try_into()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.per_second())
    }
}

impl Arrivals {
    /// `count` arrivals at `rate`, the first one at once.
    pub(crate) fn new(rate: Rate, count: u64) -> Self {
        Self {
            rate,
            next: 0,
            count,
            bursts: Bursts::default(),
        }
    }

    /// The same arrivals, but those of a burst all come when its last one is due.
    pub(crate) fn in_bursts(self, bursts: Bursts) -> Self {
        Self { bursts, ..self }
    }
}

impl Bursts {
    /// Bursts of `size` arrivals, or less where they follow one another closely, each ending before
    /// one of `ends`.
    pub(crate) fn before(ends: impl IntoIterator<Item = u64>, size: u64) -> Self {
        let mut bursts = Vec::new();
        let mut last = 0;
        for end in ends {
            bursts.push(end.saturating_sub(size).max(last)..end);
            last = end;
        }
        Self(bursts)
    }

    /// How many arrivals of its burst follow the `n`-th one; `None` where it is in no burst.
    pub(crate) fn following(&self, n: u64) -> Option<u64> {
        let burst = self.0.iter().find(|burst| burst.contains(&n))?;
        Some(burst.end - 1 - n)
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let n = (self.next < self.count).then_some(self.next)?;
        self.next += 1;
        let following = self.bursts.following(n).unwrap_or_default();
        Some(self.rate.offset(n + following))
    }
}

impl Generator {
    /// The generator got to an arrival `lag` after its intended start.
    pub(crate) fn started(&mut self, lag: Duration) {
        self.lag.record(lag);
        if lag > LATE {
            self.late_starts += 1;
        }
    }

    /// An arrival was not sent, because too many requests were in flight.
    pub(crate) fn skipped(&mut self) {
        self.skipped += 1;
    }

    /// The figures; the run is valid if 99 % of the starts lagged by no more than `lag_max`.
    pub(crate) fn report(&self, lag_max: Duration) -> GeneratorReport {
        let valid = self.lag.quantile(0.99) <= lag_max;
        let lag = self.lag.summary();
        GeneratorReport {
            lag,
            late_starts: self.late_starts,
            skipped: self.skipped,
            valid,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_is_a_positive_number() {
        assert_eq!("2.5".parse::<Rate>().unwrap().to_string(), "2.5/s");
        for wrong in ["0", "-1", "NaN", "inf", "100001", "fast", ""] {
            assert_eq!(wrong.parse::<Rate>(), Err(RateError), "{wrong}");
        }
    }

    #[test]
    fn the_arrivals_of_a_burst_come_when_its_last_one_is_due() {
        let bursts = Bursts::before([3, 8], 4);
        let following: Vec<_> = (0..9).map(|n| bursts.following(n)).collect();
        let (two, one, last) = (Some(2), Some(1), Some(0));
        let expected = [two, one, last, None, Some(3), two, one, last, None];
        assert_eq!(following, expected);
        let arrivals = Arrivals::new("1".parse().unwrap(), 9).in_bursts(bursts);
        let seconds: Vec<_> = arrivals.map(|at| at.as_secs()).collect();
        assert_eq!(seconds, [2, 2, 2, 3, 7, 7, 7, 7, 8]);
    }

    #[test]
    fn a_run_is_invalid_when_the_generator_lagged() {
        let mut generator = Generator::default();
        (0..100).for_each(|_| generator.started(Duration::from_millis(1)));
        assert!(generator.report(Duration::from_millis(100)).valid);
        (0..10).for_each(|_| generator.started(Duration::from_millis(400)));
        let report = generator.report(Duration::from_millis(100));
        assert!(!report.valid);
        assert_eq!((report.late_starts, report.skipped), (10, 0));
    }

    proptest! {
        #[test]
        fn arrivals_are_evenly_spaced_and_do_not_drift(
            millihertz in 1_u32..=100_000_000, count in 1_u64..2_000,
        ) {
            let rate = Rate { millihertz };
            let arrivals: Vec<_> = Arrivals::new(rate, count).collect();
            prop_assert_eq!(arrivals.len() as u64, count);
            prop_assert_eq!(arrivals[0], Duration::ZERO);
            for (n, offset) in (0_u128..).zip(&arrivals) {
                // Compared in whole numbers: less than a nanosecond off.
                let millihertz = u128::from(millihertz);
                let error = (n * 1_000_000_000_000).abs_diff(offset.as_nanos() * millihertz);
                prop_assert!(error < millihertz);
            }
        }

        #[test]
        fn a_duration_holds_its_arrivals(millihertz in 1_u32..=1_000_000, seconds in 1_u64..100) {
            let rate = Rate { millihertz };
            let count = rate.count_in(Duration::from_secs(seconds));
            prop_assert!(rate.offset(count) <= Duration::from_secs(seconds));
            prop_assert!(rate.offset(count + 1) > Duration::from_secs(seconds));
        }
    }
}
