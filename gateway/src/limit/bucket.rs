//! Token buckets: pure arithmetic, the same as `take.lua` does in Redis.

use crate::snapshot::Plan;

/// How many buckets a tenant has.
pub const POLICIES: usize = 2;

/// A rate limit as published: `quota` in `window_seconds`, with a bucket of `capacity`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Its name in headers and problems.
    pub name: &'static str,
    /// Requests in a window, sustained.
    pub quota: u32,
    /// The window.
    pub window_seconds: u32,
    /// Requests at once.
    pub capacity: f64,
    /// Tokens that come back in a millisecond.
    pub per_ms: f64,
}

/// A bucket as it was at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    tokens: f64,
    at_ms: u64,
}

/// What came of asking for tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How many were given; of several buckets all give the same number.
    pub granted: u32,
    /// When to ask again, if none was.
    pub retry_ms: u64,
    /// Which buckets had none.
    pub violated: [bool; POLICIES],
    /// Whole tokens left in each.
    pub remaining: [u32; POLICIES],
    /// When, by the clock of the buckets.
    pub at_ms: u64,
}

impl Policy {
    /// The policies of a plan: per minute with burst, and per hour.
    #[must_use]
    pub fn of(plan: &Plan) -> [Self; POLICIES] {
        [
            Self::new("minute", plan.per_minute, 60, plan.burst),
            Self::new("hour", plan.per_hour, 3_600, plan.per_hour),
        ]
    }

    /// One gateway's share of the policy, so that all shares together keep it.
    #[must_use]
    pub fn share(&self, gateways: u32) -> Self {
        let gateways = f64::from(gateways.max(1));
        // Less than one token could never be taken.
        let capacity = (self.capacity / gateways).max(1.0);
        Self {
            capacity,
            per_ms: self.per_ms / gateways,
            ..*self
        }
    }

    /// Seconds until a bucket with `remaining` tokens is full again, rounded up.
    #[must_use]
    pub fn seconds_to_full(&self, remaining: u32) -> u64 {
        let missing = (self.capacity - f64::from(remaining)).max(0.0);
        whole(missing / self.per_ms / 1_000.0)
    }

    /// Milliseconds in which an empty bucket fills.
    #[must_use]
    pub fn ms_to_fill(&self) -> u64 {
        whole(self.capacity / self.per_ms)
    }

    fn new(name: &'static str, quota: u32, window_seconds: u32, capacity: u32) -> Self {
        let per_ms = f64::from(quota) / (f64::from(window_seconds) * 1_000.0);
        Self {
            name,
            quota,
            window_seconds,
            capacity: f64::from(capacity),
            per_ms,
        }
    }
}

impl Bucket {
    /// A bucket with nothing in it.
    #[must_use]
    pub fn empty(now_ms: u64) -> Self {
        Self {
            tokens: 0.0,
            at_ms: now_ms,
        }
    }

    /// A bucket with everything in it.
    #[must_use]
    pub fn full(policy: &Policy, now_ms: u64) -> Self {
        Self {
            tokens: policy.capacity,
            at_ms: now_ms,
        }
    }

    fn refill(&mut self, policy: &Policy, now_ms: u64) {
        // A clock that went back must not give the same time's tokens twice.
        let now_ms = now_ms.max(self.at_ms);
        #[expect(
            clippy::cast_precision_loss,
            reason = "milliseconds between two requests"
        )]
        let elapsed = (now_ms - self.at_ms) as f64;
        self.tokens = (self.tokens + elapsed * policy.per_ms).min(policy.capacity);
        self.at_ms = now_ms;
    }
}

/// Takes up to `want` tokens from all buckets, the same number from each.
pub fn take(
    buckets: &mut [Bucket; POLICIES],
    policies: &[Policy; POLICIES],
    now_ms: u64,
    want: u32,
) -> Taken {
    let mut taken = Taken {
        granted: want,
        retry_ms: 0,
        violated: [false; POLICIES],
        remaining: [0; POLICIES],
        at_ms: now_ms,
    };
    for (index, (bucket, policy)) in buckets.iter_mut().zip(policies).enumerate() {
        bucket.refill(policy, now_ms);
        taken.granted = taken.granted.min(floor(bucket.tokens));
        if bucket.tokens < 1.0 {
            taken.violated[index] = true;
            taken.retry_ms = taken
                .retry_ms
                .max(whole((1.0 - bucket.tokens) / policy.per_ms));
        }
    }
    for (bucket, remaining) in buckets.iter_mut().zip(&mut taken.remaining) {
        bucket.tokens -= f64::from(taken.granted);
        *remaining = floor(bucket.tokens);
    }
    taken
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 to a capacity"
)]
fn floor(tokens: f64) -> u32 {
    tokens.max(0.0).floor() as u32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates"
)]
fn whole(value: f64) -> u64 {
    value.max(0.0).ceil() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limit::simulation::policies;

    #[test]
    fn an_empty_bucket_says_when_the_next_token_comes() {
        let policies = policies(60, 2, 10_000);
        let mut buckets = policies.map(|policy| Bucket::full(&policy, 0));
        assert_eq!(take(&mut buckets, &policies, 0, 5).granted, 2);
        let denied = take(&mut buckets, &policies, 400, 1);
        assert_eq!((denied.granted, denied.violated), (0, [true, false]));
        assert_eq!(denied.retry_ms, 600);
        assert_eq!(take(&mut buckets, &policies, 1_000, 1).granted, 1);
        // The clock goes back: no token comes of it.
        assert_eq!(take(&mut buckets, &policies, 500, 1).granted, 0);
        assert_eq!(take(&mut buckets, &policies, 1_500, 1).granted, 0);
    }

    proptest! {
        #[test]
        fn in_any_window_no_more_than_capacity_and_rate_allow(
            per_minute in 1u32..5_000,
            burst in 1u32..200,
            asks in prop::collection::vec((0u64..2_000, 1u32..20), 1..200),
        ) {
            let policies = policies(per_minute, burst, 100_000);
            let mut buckets = policies.map(|policy| Bucket::full(&policy, 0));
            let (mut now, mut grants) = (0, Vec::new());
            for (pause, want) in asks {
                now += pause;
                grants.push((now, take(&mut buckets, &policies, now, want).granted));
            }
            for (first, (from, _)) in grants.iter().enumerate() {
                let mut admitted = 0.0;
                for (to, granted) in &grants[first..] {
                    admitted += f64::from(*granted);
                    #[expect(clippy::cast_precision_loss, reason = "small")]
                    let window = (to - from) as f64;
                    let bound = policies[0].capacity + policies[0].per_ms * window;
                    prop_assert!(admitted <= bound + 1e-6, "{admitted} > {bound}");
                }
            }
        }

        #[test]
        fn who_waits_as_told_is_given(per_minute in 1u32..5_000, burst in 1u32..50) {
            let policies = policies(per_minute, burst, 100_000);
            let mut buckets = policies.map(|policy| Bucket::full(&policy, 0));
            take(&mut buckets, &policies, 0, burst);
            let denied = take(&mut buckets, &policies, 0, 1);
            prop_assert_eq!(denied.granted, 0);
            prop_assert_eq!(take(&mut buckets, &policies, denied.retry_ms + 1, 1).granted, 1);
        }
    }
}
