//! Time as an argument: the wall clock in production, a hand-set one in tests.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::{SignedDuration, Timestamp};

/// Where the present comes from. Cloning shares a manual clock's hands.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The machine's wall clock.
    #[must_use]
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands at `start` until it is moved with [`Clock::advance`].
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Self(Some(Arc::new(AtomicI64::new(start.as_microsecond()))))
    }

    /// The present, in UTC, to the microsecond (what Postgres keeps).
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    pub fn now(&self) -> Timestamp {
        let microseconds = match &self.0 {
            Some(hands) => hands.load(Ordering::SeqCst),
            None => Timestamp::now().as_microsecond(),
        };
        Timestamp::from_microsecond(microseconds).expect("the year is between -9999 and 9999")
    }

    /// Moves a manual clock; the system clock stays as it is.
    pub fn advance(&self, by: SignedDuration) {
        if let Some(hands) = &self.0 {
            let microseconds = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            hands.fetch_add(microseconds, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
        let before = clock.now();
        assert_eq!(before, clock.now());
        clock.clone().advance(SignedDuration::from_secs(5));
        assert_eq!(
            clock.now().duration_since(before),
            SignedDuration::from_secs(5)
        );
    }
}
