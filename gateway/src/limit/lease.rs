//! One tenant's tokens on this gateway: a lease of some, taken from the shared buckets at once and
//! spent one by one; what was denied, until when; and buckets of our own for when Redis is away.
//! Pure: the time is an argument, in milliseconds of a monotonic clock.

use crate::limit::bucket::{Bucket, POLICIES, Policy, Taken, take};

/// A lease not spent by then is void: another gateway may need the tokens.
pub const LEASE_LIFE_MS: u64 = 1_000;
/// A lease is this much traffic, by the observed rate.
const LEASE_TRAFFIC_MS: f64 = 50.0;
/// All gateways' leases together are at most this part of a bucket.
pub(super) const LEASE_PART: f64 = 0.02;
/// Below this part of a bucket tokens are taken one by one.
const NEAR_LIMIT_PART: f64 = 0.1;

/// One tenant's tokens on this gateway.
#[derive(Debug)]
pub struct Tokens {
    policies: [Policy; POLICIES],
    gateways: u32,
    left: u32,
    void_at_ms: u64,
    /// What was last seen of the shared buckets, and until when they remember it.
    seen: [u32; POLICIES],
    seen_ms: u64,
    kept_until_ms: u64,
    /// Requests let through while the shared buckets could not be asked, which they shall pay.
    owed: u32,
    denied: Option<Denied>,
    remaining: [u32; POLICIES],
    traffic: Traffic,
    own: Option<[Bucket; POLICIES]>,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// This, without a trip.
    Known(Outcome),
    /// The shared buckets must be asked for this many tokens.
    Ask(u32),
}

/// What was decided on a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// It may go on.
    Admit(Standing),
    /// It may not, before the time said.
    Deny(Standing, Denied),
}

/// How a tenant stands after a decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// The limits.
    pub policies: [Policy; POLICIES],
    /// Tokens left of each, as far as known here.
    pub remaining: [u32; POLICIES],
}

/// That there was no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// When there will be one.
    pub until_ms: u64,
    /// Which limits it was.
    pub violated: [bool; POLICIES],
}

/// What the shared buckets need to know of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// When it last saw them, by their clock; 0 if it never did, or long ago.
    pub seen_ms: u64,
    /// Tokens it saw in them.
    pub seen: [u32; POLICIES],
    /// Requests it let through while it could not ask.
    pub owed: u32,
}

/// How fast requests come.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    since_ms: u64,
    seen: u32,
    per_ms: f64,
}

impl Tokens {
    /// Nothing is leased yet.
    #[must_use]
    pub fn new(policies: [Policy; POLICIES], gateways: u32, now_ms: u64) -> Self {
        let traffic = Traffic {
            since_ms: now_ms,
            seen: 0,
            per_ms: 0.0,
        };
        Self {
            policies,
            gateways,
            left: 0,
            void_at_ms: 0,
            seen: [0; POLICIES],
            seen_ms: 0,
            kept_until_ms: 0,
            owed: 0,
            denied: None,
            remaining: [0; POLICIES],
            traffic,
            own: None,
        }
    }

    /// Whether these are still the tenant's limits.
    #[must_use]
    pub fn follows(&self, policies: &[Policy; POLICIES]) -> bool {
        self.policies == *policies
    }

    /// The limits.
    #[must_use]
    pub fn policies(&self) -> &[Policy; POLICIES] {
        &self.policies
    }

    /// What the shared buckets are told of us now. What is owed is told once, since nobody knows
    /// whether a trip without an answer was in vain; [`Tokens::owe`] takes it back.
    #[must_use]
    pub fn past(&mut self, now_ms: u64) -> Past {
        // What they have forgotten because they were full, we forget too.
        let remembered = now_ms < self.kept_until_ms;
        Past {
            seen_ms: if remembered { self.seen_ms } else { 0 },
            seen: self.seen,
            owed: std::mem::take(&mut self.owed),
        }
    }

    /// The shared buckets were certainly not told of these requests.
    pub fn owe(&mut self, requests: u32) {
        self.owed = self.owed.saturating_add(requests);
    }

    /// Decides on a request, without a trip if possible.
    pub fn decide(&mut self, now_ms: u64) -> Decision {
        self.traffic.seen = self.traffic.seen.saturating_add(1);
        self.spend(now_ms)
    }

    /// As [`Tokens::decide`], for a request that waited while others asked.
    pub fn spend(&mut self, now_ms: u64) -> Decision {
        if let Some(denied) = self.denied {
            if now_ms < denied.until_ms {
                return Decision::Known(Outcome::Deny(self.standing(), denied));
            }
            self.denied = None;
        }
        if self.left > 0 && now_ms < self.void_at_ms {
            self.left -= 1;
            return Decision::Known(Outcome::Admit(self.standing()));
        }
        self.left = 0;
        Decision::Ask(self.lease_size(now_ms))
    }

    /// The shared buckets gave this, having been asked at `asked_ms`; the request that asked is
    /// the first to spend it.
    pub fn granted(&mut self, taken: &Taken, asked_ms: u64) -> Outcome {
        self.own = None;
        (self.seen, self.seen_ms) = (taken.remaining, taken.at_ms);
        let kept = self.policies.iter().map(Policy::ms_to_fill).max();
        self.kept_until_ms = asked_ms + kept.unwrap_or(0);
        let outcome = self.receive(taken, asked_ms);
        if let Outcome::Deny(_, denied) = outcome {
            self.denied = Some(denied);
        }
        outcome
    }

    /// The shared buckets cannot be asked: our own share, which starts empty, decides. What it
    /// denies is not remembered, since Redis may be back before its time.
    pub fn without_redis(&mut self, now_ms: u64) -> Outcome {
        let shares = self.policies.map(|policy| policy.share(self.gateways));
        let own = self.own.get_or_insert([Bucket::empty(now_ms); POLICIES]);
        let taken = take(own, &shares, now_ms, 1);
        self.owe(taken.granted);
        self.receive(&taken, now_ms)
    }

    /// Takes back what is leased and not spent, to return it.
    pub fn surrender(&mut self, now_ms: u64) -> u32 {
        let left = std::mem::take(&mut self.left);
        if now_ms < self.void_at_ms && self.own.is_none() {
            left
        } else {
            0
        }
    }

    fn receive(&mut self, taken: &Taken, asked_ms: u64) -> Outcome {
        self.remaining = taken.remaining;
        // Counted from before the trip, so that it never lives longer than its life.
        self.void_at_ms = asked_ms + LEASE_LIFE_MS;
        if let Some(left) = taken.granted.checked_sub(1) {
            self.left = left;
            return Outcome::Admit(self.standing());
        }
        let until_ms = asked_ms + taken.retry_ms.max(1);
        let denied = Denied {
            until_ms,
            violated: taken.violated,
        };
        Outcome::Deny(self.standing(), denied)
    }

    fn standing(&self) -> Standing {
        let remaining = self
            .remaining
            .map(|shared| shared.saturating_add(self.left));
        Standing {
            policies: self.policies,
            remaining,
        }
    }

    /// How many tokens to ask for: some traffic's worth, bounded so that what gateways hold stays
    /// negligible, and one near a limit, where it matters.
    fn lease_size(&mut self, now_ms: u64) -> u32 {
        let per_ms = self.traffic.measure(now_ms);
        let mut most = f64::INFINITY;
        for (policy, remaining) in self.policies.iter().zip(self.remaining) {
            if f64::from(remaining) < policy.capacity * NEAR_LIMIT_PART {
                return 1;
            }
            most = most.min(policy.capacity * LEASE_PART / f64::from(self.gateways));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates"
        )]
        let size = (per_ms * LEASE_TRAFFIC_MS).min(most).floor() as u32;
        size.max(1)
    }
}

impl Traffic {
    /// The rate since the last measure, smoothed; begins a new measure.
    fn measure(&mut self, now_ms: u64) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "milliseconds between two leases"
        )]
        let elapsed = now_ms.saturating_sub(self.since_ms).max(1) as f64;
        let rate = f64::from(self.seen) / elapsed;
        let per_ms = f64::midpoint(self.per_ms, rate);
        *self = Self {
            since_ms: now_ms,
            seen: 0,
            per_ms,
        };
        per_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::simulation::policies;

    #[test]
    fn a_denial_is_remembered_until_its_time_and_a_lease_is_void_after_its_life() {
        let mut tokens = Tokens::new(policies(60, 10, 10_000_000), 1, 0);
        assert_eq!(tokens.decide(0), Decision::Ask(1));
        let given = Taken {
            granted: 3,
            retry_ms: 0,
            violated: [false; 2],
            remaining: [5, 9],
            at_ms: 0,
        };
        assert!(matches!(tokens.granted(&given, 0), Outcome::Admit(_)));
        let Decision::Known(Outcome::Admit(standing)) = tokens.decide(10) else {
            panic!()
        };
        assert_eq!(standing.remaining, [6, 10]);
        assert!(matches!(tokens.decide(LEASE_LIFE_MS), Decision::Ask(_)));
        let none = Taken {
            granted: 0,
            retry_ms: 700,
            violated: [true, false],
            remaining: [0, 9],
            at_ms: 1_000,
        };
        assert!(matches!(tokens.granted(&none, 1_000), Outcome::Deny(..)));
        let Decision::Known(Outcome::Deny(_, denied)) = tokens.decide(1_699) else {
            panic!()
        };
        assert_eq!(
            denied,
            Denied {
                until_ms: 1_700,
                violated: [true, false]
            }
        );
        assert!(matches!(tokens.decide(1_700), Decision::Ask(_)));
    }

    #[test]
    fn without_redis_the_share_starts_empty_and_comes_at_its_part_of_the_rate() {
        let mut tokens = Tokens::new(policies(60, 10, 10_000_000), 4, 0);
        assert_eq!(tokens.decide(0), Decision::Ask(1));
        assert!(matches!(tokens.without_redis(0), Outcome::Deny(..)));
        // 60 a minute by four gateways: one every four seconds.
        assert!(matches!(tokens.decide(3_999), Decision::Ask(_)));
        let Outcome::Deny(_, denied) = tokens.without_redis(3_999) else {
            panic!()
        };
        assert_eq!(denied.until_ms, 4_000);
        assert!(matches!(tokens.without_redis(4_000), Outcome::Admit(_)));
    }
}
