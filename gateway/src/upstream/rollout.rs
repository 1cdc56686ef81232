//! A second version of an upstream that takes over by steps: which share of the tenants it has is a
//! matter of the clock, and which tenants those are is fixed. Pure.

use contracts::{assertion::Audience, id::TenantId};
use jiff::Timestamp;
use url::Url;

/// Shares are decided in so many parts.
const PARTS: u64 = 10_000;

/// A version on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Of which upstream.
    pub upstream: Audience,
    /// Its name, which is its label in metrics.
    pub version: String,
    /// Its `host:port`.
    pub host: String,
    /// The steps, in the order of their times.
    pub steps: Vec<Step>,
    /// Whether it was called back.
    pub rolled_back: bool,
}

/// From when on which share of the tenants goes to the new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// From when on.
    pub starts_at: Timestamp,
    /// The share, in per cent.
    pub percent: u8,
}

/// The `host:port` of a URL of the form `http://host:port`.
#[must_use]
pub fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{host}:{}", url.port_or_known_default().unwrap_or(80))
}

impl Rollout {
    /// The share of the tenants that goes to the new version now, in per cent.
    #[must_use]
    pub fn percent(&self, now: Timestamp) -> u8 {
        if self.rolled_back {
            return 0;
        }
        let begun = self.steps.iter().filter(|step| step.starts_at <= now);
        begun.map(|step| step.percent).next_back().unwrap_or(0)
    }

    /// What makes other tenants the first ones of another rollout.
    #[must_use]
    pub fn salt(&self) -> u64 {
        let name = self.upstream.as_str().bytes().chain(self.version.bytes());
        hash(SEED, name)
    }
}

/// Whether a tenant is among the first `percent` of a rollout with this salt. Who is, is also among
/// the first of any larger share.
#[must_use]
pub fn is_among(tenant: TenantId, salt: u64, percent: u8) -> bool {
    let place = hash(salt, tenant.uuid().into_bytes()) % PARTS;
    place < u64::from(percent) * (PARTS / 100)
}

/// Where a hash begins.
const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, with its bits mixed once more: the low ones decide.
fn hash(start: u64, bytes: impl IntoIterator<Item = u8>) -> u64 {
    let sum = bytes.into_iter().fold(start, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (sum ^ (sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn tenant(number: u128) -> TenantId {
        TenantId::from_uuid(Uuid::from_u128(number))
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn rollout() -> Rollout {
        let steps = [(100, 10), (200, 50), (300, 90), (400, 100)];
        Rollout {
            upstream: Audience::Jobs,
            version: "v2".to_owned(),
            host: "jobs-v2:80".to_owned(),
            steps: steps
                .map(|(at, percent)| Step {
                    starts_at: second(at),
                    percent,
                })
                .into(),
            rolled_back: false,
        }
    }

    #[test]
    fn shares_follow_the_clock_and_a_rollback_is_at_once() {
        let mut rollout = rollout();
        let at = |rollout: &Rollout, at| rollout.percent(second(at));
        let shares = [99, 100, 199, 200, 300, 399, 400, 9_999].map(|time| at(&rollout, time));
        assert_eq!(shares, [0, 10, 10, 50, 90, 90, 100, 100]);
        rollout.rolled_back = true;
        assert_eq!(at(&rollout, 400), 0);
    }

    #[test]
    fn shares_are_about_what_they_say_and_differ_between_rollouts() {
        let salt = rollout().salt();
        let other = Rollout {
            version: "v3".to_owned(),
            ..rollout()
        };
        let all = || (0..10_000).map(|number| tenant(number << 64 | number));
        for percent in [10, 50, 90] {
            let count = all().filter(|id| is_among(*id, salt, percent)).count();
            assert!(count.abs_diff(usize::from(percent) * 100) < 200, "{count}");
        }
        let both = |id: &TenantId| is_among(*id, salt, 10) && is_among(*id, other.salt(), 10);
        let both = all().filter(both).count();
        assert!((50..200).contains(&both), "{both}");
    }

    proptest! {
        #[test]
        fn nobody_moves_back_and_forth(number: u128, salt: u64) {
            let mut was = false;
            for percent in 0..=100 {
                let is = is_among(tenant(number), salt, percent);
                prop_assert!(is || !was, "moved back at {percent}");
                was = is;
            }
            prop_assert!(was, "everybody is in at last");
            prop_assert!(!is_among(tenant(number), salt, 0));
        }
    }
}
