//! Whether an endpoint takes what it is sent: the circuit breaker. Its states and the moves between
//! them; no clock, no I/O.
//!
//! `Untried → Trusted` by one delivery that is accepted, `Untried → OnProbation` by one that is
//! not; `Trusted → OnProbation` by failures in a row, and back by one success.

use jiff::{SignedDuration, Timestamp};

use crate::delivery::Outcome;

/// Deliveries to a trusted endpoint that may be under way at a time.
pub const IN_FLIGHT_MAX: usize = 8;
/// Failures in a row by which an endpoint loses its trust, and from which on probes pause.
pub const FAILURES_MAX: u32 = 5;
/// The first pause between probes; each further failure doubles it.
pub const PROBE_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// The longest pause between probes, and so the latest that a recovery is noticed.
pub const PROBE_PAUSE_MAX: SignedDuration = SignedDuration::from_mins(1);

/// What is known of an endpoint from the attempts so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// New, or at a new address: it has yet to show that it answers.
    Untried,
    /// The circuit is closed: it accepted something, and failed fewer than [`FAILURES_MAX`] times
    /// in a row since.
    Trusted {
        /// Failures in a row.
        failures: u32,
    },
    /// The circuit is open: one delivery at a time goes out as a probe.
    OnProbation {
        /// Failures in a row.
        failures: u32,
        /// When the next probe may go out.
        probe_at: Timestamp,
    },
}

impl Health {
    /// What an attempt that ended at `now` tells. A refusal of ours tells nothing: the endpoint was
    /// not asked.
    #[must_use]
    pub fn attempted(self, outcome: &Outcome, now: Timestamp) -> Self {
        match outcome {
            Outcome::Accepted => Self::Trusted { failures: 0 },
            Outcome::Refused => self,
            Outcome::Gone | Outcome::Failed(_) => self.failed(now),
        }
    }

    fn failed(self, now: Timestamp) -> Self {
        let failures = self.failures().saturating_add(1);
        match self {
            Self::Trusted { .. } if failures < FAILURES_MAX => Self::Trusted { failures },
            Self::Untried | Self::Trusted { .. } | Self::OnProbation { .. } => Self::OnProbation {
                failures,
                probe_at: now
                    .saturating_add(pause(failures))
                    .unwrap_or(Timestamp::MAX),
            },
        }
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(self) -> u32 {
        match self {
            Self::Untried => 0,
            Self::Trusted { failures } | Self::OnProbation { failures, .. } => failures,
        }
    }

    /// When the next probe may go out; none unless the circuit is open.
    #[must_use]
    pub fn probe_at(self) -> Option<Timestamp> {
        match self {
            Self::Untried | Self::Trusted { .. } => None,
            Self::OnProbation { probe_at, .. } => Some(probe_at),
        }
    }

    /// Deliveries to the endpoint that may be under way at `now`.
    #[must_use]
    pub fn in_flight_max(self, now: Timestamp) -> usize {
        match self {
            Self::Untried => 1,
            Self::Trusted { .. } => IN_FLIGHT_MAX,
            Self::OnProbation { probe_at, .. } => usize::from(probe_at <= now),
        }
    }
}

/// How long to leave an endpoint alone after so many failures in a row.
fn pause(failures: u32) -> SignedDuration {
    match failures.checked_sub(FAILURES_MAX) {
        None => SignedDuration::ZERO,
        Some(further) => 2_i32
            .checked_pow(further)
            .and_then(|times| PROBE_PAUSE.checked_mul(times))
            .map_or(PROBE_PAUSE_MAX, |pause| pause.min(PROBE_PAUSE_MAX)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;
    const TRUSTED: Health = Health::Trusted { failures: 0 };

    fn after(health: Health, failures: u32) -> Health {
        (0..failures).fold(health, |health, _| {
            health.attempted(&Outcome::Failed(None), NOW)
        })
    }

    #[test]
    fn trust_is_lost_by_failures_in_a_row_and_won_by_one_success() {
        let shaken = after(TRUSTED, FAILURES_MAX - 1);
        assert_eq!(shaken, Health::Trusted { failures: 4 });
        let lost = after(TRUSTED, FAILURES_MAX);
        assert_eq!(lost.in_flight_max(NOW), 0);
        for health in [shaken, lost, Health::Untried] {
            assert_eq!(health.attempted(&Outcome::Accepted, NOW), TRUSTED);
        }
    }

    #[test]
    fn one_that_never_answered_is_probed_ever_more_rarely() {
        let mut health = Health::Untried;
        let mut pauses = Vec::new();
        for _ in 0..13 {
            health = health.attempted(&Outcome::Failed(None), NOW);
            let probe_at = health.probe_at().unwrap();
            assert_eq!(health.in_flight_max(probe_at), 1);
            pauses.push(probe_at.duration_since(NOW).as_secs());
        }
        assert_eq!(pauses, [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(health.in_flight_max(NOW), 0);
    }

    #[test]
    fn our_own_refusal_tells_nothing() {
        for health in [Health::Untried, TRUSTED, after(TRUSTED, 7)] {
            assert_eq!(health.attempted(&Outcome::Refused, NOW), health);
        }
    }

    proptest! {
        #[test]
        fn however_long_it_fails_the_pause_is_bounded(failures: u32) {
            let pause = pause(failures);
            prop_assert!(pause >= SignedDuration::ZERO && pause <= PROBE_PAUSE_MAX);
            let health = Health::OnProbation { failures, probe_at: NOW };
            prop_assert!(health.attempted(&Outcome::Gone, NOW).failures() >= failures);
        }
    }
}
