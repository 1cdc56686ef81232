//! The circuit breaker of one address: closed, open, half-open, with moves that consume it. Pure:
//! what happened and when are arguments.

use std::time::Duration;

/// So many failures to connect, one after another, open it.
pub const UNREACHABLE_MAX: u32 = 3;
/// Answers are judged over this long.
pub const WINDOW: Duration = Duration::from_secs(10);
/// With fewer answers than this no share is told.
pub const ANSWERS_MIN: u32 = 20;
/// It opens when one in so many answers, or more, is a failure.
pub const SICK_ONE_IN: u32 = 2;
/// How long it stays open the first time; twice as long each time after.
pub const PAUSE: Duration = Duration::from_secs(1);
/// And at most so long.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Whether an address is given requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// It is.
    Closed(Tally),
    /// It is not.
    Open(Outage),
    /// It is given one request at a time, on trial.
    HalfOpen(Outage),
}

/// What became of requests lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    since: Duration,
    answers: u32,
    sick: u32,
    /// Failures to connect since the last answer.
    unreachable: u32,
}

/// Why and for how long an address is not given requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    cause: Cause,
    until: Duration,
    /// How often it opened without closing in between.
    times: u32,
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It accepts no connections.
    Unreachable,
    /// It accepts them, and answers with failures or not at all.
    Sick,
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed(Tally::default())
    }
}

impl Breaker {
    /// So many requests were answered well.
    #[must_use]
    pub fn answered(self, count: u32, now: Duration) -> Self {
        match self {
            Self::Closed(tally) => {
                let mut tally = tally.at(now);
                tally.answers = tally.answers.saturating_add(count);
                if count > 0 {
                    tally.unreachable = 0;
                }
                Self::Closed(tally)
            }
            Self::HalfOpen(_) if count > 0 => Self::default(),
            // What was sent before it opened says nothing new.
            other => other,
        }
    }

    /// A request was answered with a failure, or not answered once it was sent.
    #[must_use]
    pub fn sick(self, now: Duration) -> Self {
        match self {
            Self::Closed(tally) => {
                let mut tally = tally.at(now);
                tally.answers = tally.answers.saturating_add(1);
                tally.sick = tally.sick.saturating_add(1);
                tally.unreachable = 0;
                let many = tally.answers >= ANSWERS_MIN;
                if many && tally.sick.saturating_mul(SICK_ONE_IN) >= tally.answers {
                    return Self::Open(Outage::new(Cause::Sick, 1, now));
                }
                Self::Closed(tally)
            }
            Self::HalfOpen(outage) => Self::Open(outage.again(Cause::Sick, now)),
            Self::Open(outage) => Self::Open(outage),
        }
    }

    /// No connection could be made.
    #[must_use]
    pub fn unreachable(self, now: Duration) -> Self {
        match self {
            Self::Closed(mut tally) => {
                tally.unreachable += 1;
                if tally.unreachable >= UNREACHABLE_MAX {
                    return Self::Open(Outage::new(Cause::Unreachable, 1, now));
                }
                Self::Closed(tally)
            }
            Self::HalfOpen(outage) => Self::Open(outage.again(Cause::Unreachable, now)),
            Self::Open(outage) => Self::Open(outage),
        }
    }

    /// A check showed that it can be reached again, which ends what unreachability began.
    #[must_use]
    pub fn reachable(self) -> Self {
        match self {
            Self::Open(outage) | Self::HalfOpen(outage) if outage.cause == Cause::Unreachable => {
                Self::default()
            }
            other => other,
        }
    }

    /// Time has passed.
    #[must_use]
    pub fn wait(self, now: Duration) -> Self {
        match self {
            Self::Open(outage) if now >= outage.until => Self::HalfOpen(outage),
            other => other,
        }
    }

    /// Whether a failure to connect is remembered, which an answer would end.
    #[must_use]
    pub fn doubts(&self) -> bool {
        match self {
            Self::Closed(tally) => tally.unreachable > 0,
            Self::Open(_) | Self::HalfOpen(_) => true,
        }
    }

    /// Why it opened, if it is not closed again.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Open(outage) | Self::HalfOpen(outage) => Some(outage.cause),
            Self::Closed(_) => None,
        }
    }

    /// Why it is open, if it is.
    #[must_use]
    pub fn open_for(&self) -> Option<Cause> {
        match self {
            Self::Open(outage) => Some(outage.cause),
            Self::Closed(_) | Self::HalfOpen(_) => None,
        }
    }
}

impl Tally {
    fn at(self, now: Duration) -> Self {
        if now.saturating_sub(self.since) < WINDOW {
            return self;
        }
        let unreachable = self.unreachable;
        Self {
            since: now,
            unreachable,
            ..Self::default()
        }
    }
}

impl Outage {
    fn new(cause: Cause, times: u32, now: Duration) -> Self {
        let pause = PAUSE.saturating_mul(1 << times.saturating_sub(1).min(16));
        Self {
            cause,
            until: now + pause.min(PAUSE_MAX),
            times,
        }
    }

    fn again(self, cause: Cause, now: Duration) -> Self {
        Self::new(cause, self.times.saturating_add(1), now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Answered,
        Sick,
        Unreachable,
        Reachable,
        Wait(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            Just(Event::Answered),
            Just(Event::Sick),
            Just(Event::Unreachable),
            Just(Event::Reachable),
            (0u64..40_000).prop_map(Event::Wait),
        ];
        vec(event, 0..200)
    }

    fn apply(breaker: Breaker, event: Event, now: &mut Duration) -> Breaker {
        match event {
            Event::Answered => breaker.answered(1, *now),
            Event::Sick => breaker.sick(*now),
            Event::Unreachable => breaker.unreachable(*now),
            Event::Reachable => breaker.reachable(),
            Event::Wait(ms) => {
                *now += Duration::from_millis(ms);
                breaker.wait(*now)
            }
        }
    }

    proptest! {
        #[test]
        fn it_opens_for_a_reason_and_never_for_ever(events in events()) {
            let (mut breaker, mut now) = (Breaker::default(), Duration::ZERO);
            for event in events {
                let before = breaker;
                breaker = apply(before, event, &mut now);
                match (before, breaker) {
                    // Only failures open it.
                    (Breaker::Closed(_) | Breaker::HalfOpen(_), Breaker::Open(outage)) => {
                        prop_assert!(matches!(event, Event::Sick | Event::Unreachable));
                        prop_assert!(outage.until > now);
                        prop_assert!(outage.until <= now + PAUSE_MAX);
                    }
                    // Only time, or a check that passed, ends that.
                    (Breaker::Open(_), Breaker::HalfOpen(_)) => {
                        prop_assert!(matches!(event, Event::Wait(_)));
                    }
                    (Breaker::Open(outage), Breaker::Closed(_)) => {
                        prop_assert!(matches!(event, Event::Reachable));
                        prop_assert_eq!(outage.cause, Cause::Unreachable);
                    }
                    (Breaker::Closed(_), Breaker::HalfOpen(_)) => prop_assert!(false),
                    _ => {}
                }
            }
            let later = breaker.wait(now + PAUSE_MAX);
            prop_assert!(later.open_for().is_none());
            let well = later.answered(1, now + PAUSE_MAX);
            prop_assert!(matches!(well, Breaker::Closed(_)));
        }

        #[test]
        fn answers_keep_it_closed(sick in 0u32..ANSWERS_MIN, well in 0u32..1_000) {
            let now = Duration::ZERO;
            let mut breaker = Breaker::default().answered(well.max(sick + 1), now);
            for _ in 0..sick {
                breaker = breaker.sick(now).unreachable(now).unreachable(now).answered(1, now);
            }
            prop_assert!(matches!(breaker, Breaker::Closed(_)));
        }
    }

    #[test]
    fn pauses_grow_while_trials_fail() {
        let mut now = Duration::ZERO;
        let mut breaker = Breaker::default();
        for _ in 0..UNREACHABLE_MAX {
            breaker = breaker.unreachable(now);
        }
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            let just_before = now + Duration::from_millis(seconds * 1_000 - 1);
            assert!(breaker.wait(just_before).open_for().is_some());
            now += Duration::from_secs(seconds);
            breaker = breaker.wait(now);
            assert!(matches!(breaker, Breaker::HalfOpen(_)));
            breaker = breaker.unreachable(now);
        }
    }

    #[test]
    fn half_of_the_answers_failing_opens_it_once_there_are_enough() {
        let mut breaker = Breaker::default().answered(ANSWERS_MIN / 2, WINDOW);
        for _ in 1..ANSWERS_MIN / 2 {
            breaker = breaker.sick(WINDOW);
        }
        assert_eq!(breaker.open_for(), None);
        assert_eq!(breaker.sick(WINDOW).open_for(), Some(Cause::Sick));
        // What was long ago does not count.
        assert_eq!(breaker.sick(3 * WINDOW).open_for(), None);
    }
}
