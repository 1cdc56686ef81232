//! A tenant's share of the connections to Postgres: whoever floods `/v1/api-keys` waits for nobody,
//! and nobody waits for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use contracts::{
    id::TenantId,
    problem::{Code, Problem},
};

/// Calls of a tenant that may be under way at a time, on one gateway: half of the connections that
/// it has by default.
const TENANT_MAX: u32 = 4;
/// Seconds after which one of them has ended.
const RETRY_AFTER_SECONDS: u64 = 1;

/// The calls under way. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares(Arc<Mutex<HashMap<TenantId, u32>>>);

/// The right to one call, for as long as this lives.
#[derive(Debug)]
pub(super) struct Share {
    of: Shares,
    tenant: TenantId,
}

impl Shares {
    /// One more call of `tenant`, if there may be one.
    pub(super) fn take(&self, tenant: TenantId) -> Result<Share, Problem> {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = calls.entry(tenant).or_default();
        if *own >= TENANT_MAX {
            let detail = "As many calls of your tenant to its API keys are under way as may be.";
            let problem = Problem::new(Code::RateLimitExceeded, detail);
            return Err(problem.with_retry_after(RETRY_AFTER_SECONDS));
        }
        *own += 1;
        let of = self.clone();
        Ok(Share { of, tenant })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut calls = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = calls.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                calls.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_its_share_and_leaves_the_others_theirs() {
        let tenant = |second| TenantId::generate(jiff::Timestamp::from_second(second).unwrap());
        let (shares, greedy) = (Shares::default(), tenant(1));
        let held: Vec<_> = (0..TENANT_MAX).map(|_| shares.take(greedy)).collect();
        let refused = shares.take(greedy).unwrap_err();
        assert_eq!(refused.code(), Code::RateLimitExceeded);
        assert!(shares.take(tenant(2)).is_ok());
        drop(held);
        assert!(shares.take(greedy).is_ok());
        assert!(shares.0.lock().unwrap().is_empty());
    }
}
