//! How somebody stands: what they did wrong, what of it is forgotten, and how long they must wait.
//! Arithmetic only; time is an argument.

/// Demerits: a refused credential weighs most, since it is the surest sign.
const OF_FAILURE: f64 = 3.0;
const OF_MALFORMED: f64 = 2.0;
const OF_MISS: f64 = 1.0;
/// What a good answer takes off the misses: below one miss in five answers, none adds up.
const AMENDS: f64 = 0.25;
/// Half of the demerits are forgotten in this time.
const HALF_LIFE_MS: f64 = 600_000.0;
const MINUTE_MS: f64 = 60_000.0;
/// Longest wait that is told, in milliseconds.
const WAIT_MAX_MS: f64 = 3_600_000.0;

/// What may be done wrong; 0 does not count it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Refused credentials a minute.
    pub failures: u32,
    /// Answers 404 and 403 a minute.
    pub misses: u32,
    /// Demerits.
    pub demerits: u32,
}

/// What somebody did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Presented a credential that is refused.
    Failure,
    /// Asked for what is not there, or not for them.
    Miss,
    /// Did so with a credential that was accepted: a proof that is not there yet is asked for
    /// again and again, which is no demerit.
    KnownMiss,
    /// Sent what is no request.
    Malformed,
    /// Got a good answer.
    Good,
}

/// How somebody stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    failures: f64,
    misses: f64,
    demerits: f64,
    /// Shut out until half of the demerits are forgotten.
    out: bool,
    as_of_ms: u64,
}

impl Standing {
    /// Nothing was done wrong yet.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self {
            failures: 0.0,
            misses: 0.0,
            demerits: 0.0,
            out: false,
            as_of_ms: now_ms,
        }
    }

    /// Notes what was done.
    pub fn note(&mut self, deed: Deed, limits: &Limits, now_ms: u64) {
        self.forget(limits, now_ms);
        match deed {
            Deed::Failure => {
                self.failures = (self.failures + 1.0).min(f64::from(limits.failures));
                self.demerits += OF_FAILURE;
            }
            Deed::Miss | Deed::KnownMiss => {
                self.misses = (self.misses + 1.0).min(f64::from(limits.misses));
                if deed == Deed::Miss {
                    self.demerits += OF_MISS;
                }
            }
            Deed::Malformed => self.demerits += OF_MALFORMED,
            Deed::Good => {
                self.misses = (self.misses - AMENDS).max(0.0);
                self.demerits = (self.demerits - AMENDS).max(0.0);
            }
        }
        let most = f64::from(limits.demerits);
        self.demerits = self.demerits.min(most);
        self.out |= limits.demerits > 0 && self.demerits >= most;
    }

    /// How long to wait before the next request is looked at; `None` when it is now.
    pub fn wait_ms(&mut self, limits: &Limits, now_ms: u64) -> Option<u64> {
        self.forget(limits, now_ms);
        let over = |level: f64, limit: u32| {
            let most = f64::from(limit);
            let excess = level + 1.0 - most;
            (limit > 0 && excess > 0.0).then(|| excess * MINUTE_MS / most)
        };
        let shunned = self.out.then(|| {
            let half = f64::from(limits.demerits) / 2.0;
            HALF_LIFE_MS * (self.demerits / half).log2()
        });
        let waits = [
            over(self.failures, limits.failures),
            over(self.misses, limits.misses),
            shunned,
        ];
        let longest = waits.into_iter().flatten().fold(0.0, f64::max);
        (longest > 0.0).then(|| whole(longest))
    }

    /// Takes off what the time since the last look forgets.
    fn forget(&mut self, limits: &Limits, now_ms: u64) {
        let elapsed = u32::try_from(now_ms.saturating_sub(self.as_of_ms)).unwrap_or(u32::MAX);
        let elapsed = f64::from(elapsed);
        self.as_of_ms = self.as_of_ms.max(now_ms);
        let minutes = elapsed / MINUTE_MS;
        self.failures = (self.failures - minutes * f64::from(limits.failures)).max(0.0);
        self.misses = (self.misses - minutes * f64::from(limits.misses)).max(0.0);
        self.demerits *= (-elapsed / HALF_LIFE_MS).exp2();
        self.out &= self.demerits * 2.0 > f64::from(limits.demerits);
    }
}

/// Milliseconds, rounded up.
fn whole(milliseconds: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and an hour"
    )]
    let whole = milliseconds.ceil().clamp(1.0, WAIT_MAX_MS) as u64;
    whole
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        failures: 10,
        misses: 20,
        demerits: 200,
    };

    #[test]
    fn ten_failures_are_looked_at_and_then_one_in_six_seconds() {
        let mut standing = Standing::new(0);
        for _ in 0..10 {
            assert_eq!(standing.wait_ms(&LIMITS, 0), None);
            standing.note(Deed::Failure, &LIMITS, 0);
        }
        assert_eq!(standing.wait_ms(&LIMITS, 0), Some(6_000));
        assert!(standing.wait_ms(&LIMITS, 5_990).is_some());
        assert_eq!(standing.wait_ms(&LIMITS, 6_001), None);
    }

    #[test]
    fn one_miss_in_five_answers_never_adds_up_and_misses_alone_do() {
        let (mut mixed, mut bad) = (Standing::new(0), Standing::new(0));
        for _ in 0..1_000 {
            mixed.note(Deed::Miss, &LIMITS, 0);
            for _ in 0..4 {
                mixed.note(Deed::Good, &LIMITS, 0);
            }
            bad.note(Deed::Miss, &LIMITS, 0);
        }
        assert_eq!(mixed.wait_ms(&LIMITS, 0), None);
        assert!(bad.wait_ms(&LIMITS, 0).is_some());
    }

    #[test]
    fn who_goes_on_and_on_is_shut_out_until_half_is_forgotten() {
        let mut standing = Standing::new(0);
        for _ in 0..100 {
            standing.note(Deed::Malformed, &LIMITS, 0);
        }
        assert_eq!(standing.wait_ms(&LIMITS, 0), Some(600_000));
        assert!(standing.wait_ms(&LIMITS, 599_000).is_some());
        assert_eq!(standing.wait_ms(&LIMITS, 600_001), None);
    }

    #[test]
    fn a_limit_of_zero_counts_nothing() {
        let off = Limits {
            failures: 0,
            misses: 0,
            demerits: 0,
        };
        let mut standing = Standing::new(0);
        for deed in [Deed::Failure, Deed::Miss, Deed::Malformed].repeat(100) {
            standing.note(deed, &off, 0);
        }
        assert_eq!(standing.wait_ms(&off, 0), None);
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            Just(Deed::Failure),
            Just(Deed::Miss),
            Just(Deed::KnownMiss),
            Just(Deed::Malformed),
            Just(Deed::Good),
        ]
    }

    proptest! {
        #[test]
        fn waiting_as_told_is_enough_and_levels_stay_in_bounds(
            deeds in proptest::collection::vec((deed(), 0_u64..20_000), 0..400),
        ) {
            let (mut standing, mut now) = (Standing::new(0), 0);
            for (deed, pause) in deeds {
                now += pause;
                standing.note(deed, &LIMITS, now);
                prop_assert!((0.0..=10.0).contains(&standing.failures));
                prop_assert!((0.0..=20.0).contains(&standing.misses));
                prop_assert!((0.0..=200.0).contains(&standing.demerits));
                let mut waited = standing;
                if let Some(wait) = waited.wait_ms(&LIMITS, now) {
                    prop_assert_eq!(waited.wait_ms(&LIMITS, now + wait + 1), None);
                }
            }
        }

        #[test]
        fn no_window_sees_more_failures_than_the_budget_and_its_share(
            pauses in proptest::collection::vec(0_u64..3_000, 1..300),
        ) {
            let (mut standing, mut now) = (Standing::new(0), 0);
            let mut looked_at = Vec::new();
            for pause in pauses {
                now += pause;
                if standing.wait_ms(&LIMITS, now).is_none() {
                    looked_at.push(now);
                    standing.note(Deed::Failure, &LIMITS, now);
                }
            }
            for (index, from) in looked_at.iter().enumerate() {
                for (count, to) in looked_at[index..].iter().enumerate() {
                    let allowed = 10 + (to - from) / 6_000 + 1;
                    prop_assert!((count as u64) < allowed, "{} in {}", count + 1, to - from);
                }
            }
        }

        #[test]
        fn a_good_answer_and_time_only_ever_help(
            deeds in proptest::collection::vec(deed(), 0..100), pause in 0_u64..1_000_000,
        ) {
            let mut standing = Standing::new(0);
            for deed in deeds {
                standing.note(deed, &LIMITS, 0);
            }
            let before = standing.wait_ms(&LIMITS, 0).unwrap_or(0);
            let (mut later, mut better) = (standing, standing);
            prop_assert!(later.wait_ms(&LIMITS, pause).unwrap_or(0) <= before);
            better.note(Deed::Good, &LIMITS, 0);
            prop_assert!(better.wait_ms(&LIMITS, 0).unwrap_or(0) <= before);
        }
    }
}
