//! A delivery: one event for one endpoint. Its states, the moves between them, and the schedule of
//! its retries; no clock, no I/O.
//!
//! `Pending → Delivered | Failed | Pending (later)` by an attempt, `Pending ↔ Held` as the endpoint
//! is disabled and enabled, `Pending | Held → Failed` when it is deleted, and `Pending` by replay.

use jiff::{SignedDuration, Timestamp};

/// Pauses before the second attempt, the third, and so on; after the last one it is given up.
pub const RETRY_PAUSES: [SignedDuration; 7] = [
    SignedDuration::from_secs(5),
    SignedDuration::from_mins(5),
    SignedDuration::from_mins(30),
    SignedDuration::from_hours(2),
    SignedDuration::from_hours(5),
    SignedDuration::from_hours(10),
    SignedDuration::from_hours(10),
];
/// A pause is stretched or shortened by up to this part, so that retries do not come in herds.
pub const JITTER: f64 = 0.2;
/// The longest `Retry-After` that is honoured; a longer one counts as this.
pub const RETRY_AFTER_MAX: SignedDuration = SignedDuration::from_hours(24);

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx: the endpoint took it.
    Accepted,
    /// 410: the endpoint wants no more of anything.
    Gone,
    /// Another answer, or none: it may work later. With the endpoint's `Retry-After`, if any.
    Failed(Option<SignedDuration>),
    /// Refused by us in a way that no retry changes: a forbidden address, an impossible URL.
    Refused,
}

/// Whether an endpoint is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Enabled,
    /// Not now: what it is owed is kept.
    Disabled,
    /// Never again.
    Deleted,
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To be tried at `due`, after `tries` tries on the present schedule.
    Pending {
        /// Tries so far.
        tries: u32,
        /// When to try next.
        due: Timestamp,
    },
    /// The endpoint took it at this time.
    Delivered(Timestamp),
    /// Given up.
    Failed,
    /// Kept while the endpoint is disabled.
    Held,
}

impl Standing {
    /// That of an endpoint which is not deleted.
    #[must_use]
    pub fn of(enabled: bool) -> Self {
        if enabled {
            Self::Enabled
        } else {
            Self::Disabled
        }
    }
}

impl Delivery {
    /// A new delivery, due at once if its endpoint is sent to.
    #[must_use]
    pub fn queue(now: Timestamp, endpoint: Standing) -> Self {
        Self::Pending { tries: 0, due: now }.follow(endpoint, now)
    }

    /// Where a delivery is once its endpoint stands so: what waits is kept while the endpoint is
    /// disabled, due when it is enabled, and given up when it is deleted.
    #[must_use]
    pub fn follow(self, endpoint: Standing, now: Timestamp) -> Self {
        match (self, endpoint) {
            (Self::Pending { .. }, Standing::Disabled) => Self::Held,
            (Self::Held, Standing::Enabled) => Self::Pending { tries: 0, due: now },
            (Self::Pending { .. } | Self::Held, Standing::Deleted) => Self::Failed,
            (same, _) => same,
        }
    }

    /// Where an attempt that ended at `now` leads. `jitter` is uniform in -1..=1. Only a pending
    /// delivery is attempted; any other stays as it is.
    #[must_use]
    pub fn attempted(self, outcome: &Outcome, now: Timestamp, jitter: f64) -> Self {
        let Self::Pending { tries, .. } = self else {
            return self;
        };
        match outcome {
            Outcome::Accepted => Self::Delivered(now),
            Outcome::Gone | Outcome::Refused => Self::Failed,
            Outcome::Failed(retry_after) => match RETRY_PAUSES.get(tries as usize) {
                None => Self::Failed,
                Some(pause) => {
                    let jittered = pause.mul_f64(1.0 + JITTER * jitter.clamp(-1.0, 1.0));
                    let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
                    let due = now
                        .saturating_add(jittered.max(asked))
                        .unwrap_or(Timestamp::MAX);
                    Self::Pending {
                        tries: tries + 1,
                        due,
                    }
                }
            },
        }
    }

    /// Begins the schedule anew, whatever the delivery came to before; its id stays the same.
    #[must_use]
    pub fn replay(self, now: Timestamp) -> Self {
        Self::Pending { tries: 0, due: now }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn failing_until_given_up(jitter: f64) -> Vec<SignedDuration> {
        let mut pauses = Vec::new();
        let (mut delivery, mut now) = (Delivery::queue(NOW, Standing::Enabled), NOW);
        while let Delivery::Pending { .. } = delivery {
            delivery = delivery.attempted(&Outcome::Failed(None), now, jitter);
            if let Delivery::Pending { due, .. } = delivery {
                pauses.push(due.duration_since(now));
                now = due;
            }
        }
        assert_eq!(delivery, Delivery::Failed);
        pauses
    }

    #[test]
    fn the_schedule_is_the_published_one_and_ends() {
        assert_eq!(failing_until_given_up(0.0), RETRY_PAUSES);
    }

    #[test]
    fn a_refusal_and_a_410_are_not_retried_and_a_replay_starts_anew() {
        for outcome in [Outcome::Refused, Outcome::Gone] {
            let ended = Delivery::queue(NOW, Standing::Enabled).attempted(&outcome, NOW, 0.0);
            assert_eq!(ended, Delivery::Failed);
            assert_eq!(ended.replay(NOW), Delivery::queue(NOW, Standing::Enabled));
        }
        let held = Delivery::queue(NOW, Standing::Disabled);
        assert_eq!(held.attempted(&Outcome::Accepted, NOW, 0.0), Delivery::Held);
    }

    #[test]
    fn what_waits_goes_where_its_endpoint_goes_and_what_ended_stays() {
        let pending = Delivery::queue(NOW, Standing::Enabled);
        let held = pending.follow(Standing::Disabled, NOW);
        assert_eq!(held, Delivery::Held);
        assert_eq!(held.follow(Standing::Enabled, NOW), pending);
        for waiting in [pending, held] {
            assert_eq!(waiting.follow(Standing::Deleted, NOW), Delivery::Failed);
        }
        for ended in [Delivery::Failed, Delivery::Delivered(NOW)] {
            for standing in [Standing::Enabled, Standing::Disabled, Standing::Deleted] {
                assert_eq!(ended.follow(standing, NOW), ended);
            }
        }
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_part(jitter in -3.0..3.0_f64) {
            for (pause, base) in failing_until_given_up(jitter).iter().zip(RETRY_PAUSES) {
                prop_assert!(*pause >= base.mul_f64(0.79) && *pause <= base.mul_f64(1.21));
            }
        }

        #[test]
        fn retry_after_only_lengthens_a_pause(seconds in 0..200_000_i64) {
            let asked = SignedDuration::from_secs(seconds);
            let outcome = Outcome::Failed(Some(asked));
            let next = Delivery::queue(NOW, Standing::Enabled).attempted(&outcome, NOW, 0.0);
            let Delivery::Pending { due, .. } = next else { panic!("{next:?}") };
            let wanted = asked.min(RETRY_AFTER_MAX).max(RETRY_PAUSES[0]);
            prop_assert_eq!(due.duration_since(NOW), wanted);
        }
    }
}
