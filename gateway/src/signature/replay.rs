//! Signatures that were seen: each is believed once, by all gateways together.
//!
//! Redis remembers them for as long as they are good. While it cannot be asked, each gateway
//! remembers only what it saw by itself: a signature could then be shown once to each gateway, and
//! what stops a repeated change is its idempotency key.

use std::time::Duration;

use contracts::{
    id::TenantId,
    problem::{Code, Problem},
};
use fred::types::Value;
use jiff::Timestamp;
use quick_cache::sync::{Cache, GuardResult};

use super::Signed;
use crate::redis::{Redis, Script};

/// Signatures that one gateway remembers by itself; beyond it, the oldest are forgotten.
const SEEN_MAX: usize = 65_536;

const FIRST: &str = "\
if redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return 1 end
return 0";

/// What was seen.
pub struct Replays {
    redis: Redis,
    first: Script,
    seen: Cache<[u8; 32], ()>,
}

impl std::fmt::Debug for Replays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replays").finish_non_exhaustive()
    }
}

impl Replays {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        Self {
            redis,
            first: Script::new(FIRST),
            seen: Cache::new(SEEN_MAX),
        }
    }

    /// Refuses what was seen before, and remembers what was not.
    ///
    /// # Errors
    /// The problem to answer with.
    pub(crate) async fn require_first(
        &self,
        tenant: TenantId,
        signed: &Signed,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let again = || {
            let detail = "This signature or nonce was used before: sign each request anew, \
                          with a nonce where several are made in a second.";
            Problem::new(Code::InvalidToken, detail)
        };
        let seconds = signed.until.saturating_sub(now.as_second()).max(1);
        // Without waiting: whoever else holds the place shows the same signature.
        match self
            .seen
            .get_value_or_guard(&signed.once, Some(Duration::ZERO))
        {
            GuardResult::Guard(place) => drop(place.insert(())),
            GuardResult::Value(()) | GuardResult::Timeout => return Err(again()),
        }
        let place = format!(":{}", const_hex::encode(signed.once));
        let key = self.redis.key("signed", tenant, &place);
        let arguments = vec![Value::from(seconds.saturating_mul(1_000))];
        match self.redis.run::<i64>(&self.first, key, arguments).await {
            Ok(0) => Err(again()),
            Ok(_) => Ok(()),
            Err(_) => {
                metrics::counter!("gateway_signatures_unshared_total").increment(1);
                Ok(())
            }
        }
    }
}
