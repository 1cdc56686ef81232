//! The APIs behind the gateway: which version of each a tenant has, which of its addresses a
//! request goes to, and what it is told about who asks.
//!
//! To pick costs no look-up of a name and no lock: versions, addresses and their state are kept
//! ready in the background (`upkeep`).

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use contracts::{
    assertion::{Asked, Audience, LIFETIME_MAX_SECONDS, Signer},
    id::{RequestId, TenantId},
};
use jiff::Timestamp;
use pingora::connectors::TransportConnector;
use tokio::sync::Notify;

use crate::{
    auth::Principal,
    config::UpstreamOptions,
    upstream::{rollout::is_among, version::Version},
};

pub mod breaker;
mod exchange;
mod pool;
pub mod rollout;
mod upkeep;
mod version;

pub use exchange::{Answer, Begun, Failure, Order};
pub use version::Pick;

/// An assertion lives this much shorter than it may, for clocks that disagree.
const CLOCK_SKEW_SECONDS: i64 = 5;
/// The name of the version that the configuration names.
const STABLE: &str = "stable";

/// One API.
#[derive(Debug)]
pub struct Upstream {
    /// Which one.
    pub audience: Audience,
    signer: Signer,
    stable: Arc<Version>,
    canary: ArcSwapOption<Canary>,
}

/// All APIs.
pub struct Upstreams {
    all: Vec<Upstream>,
    connector: TransportConnector,
    check_path: Option<String>,
    /// Wakes who looks names up.
    news: Notify,
}

/// A version on its way in, and who has it.
#[derive(Debug)]
struct Canary {
    version: Arc<Version>,
    salt: u64,
    percent: u8,
}

/// What an assertion says about one request.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// SHA-256 of the body, in hexadecimal.
    pub body_sha256: &'a str,
    /// The client's address.
    pub address: IpAddr,
    /// The request.
    pub request_id: RequestId,
    /// The trace.
    pub traceparent: &'a str,
}

impl Upstreams {
    /// The APIs of the configuration, none of them found yet.
    #[must_use]
    pub fn new(options: &UpstreamOptions) -> Self {
        let all = options.all().map(|(audience, url, key)| {
            let host = rollout::host(url);
            Upstream {
                audience,
                signer: Signer::new(key.expose()),
                stable: Arc::new(Version::new(audience.as_str(), STABLE, &host)),
                canary: ArcSwapOption::empty(),
            }
        });
        Self {
            all: all.into(),
            connector: TransportConnector::new(None),
            check_path: options.upstream_check_path.clone(),
            news: Notify::new(),
        }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, audience: Audience) -> &Upstream {
        let found = self
            .all
            .iter()
            .find(|upstream| upstream.audience == audience);
        found.expect("the configuration names every audience")
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Upstream] {
        &self.all
    }
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.all).finish()
    }
}

impl Upstream {
    /// An address of the version that the tenant has, and not the one that `failed` to be reached.
    /// A version on its way in that has none that is well sends its tenants back; an address that
    /// is sick is better than none, since what one tenant can cause must not shut the door on the
    /// others.
    ///
    /// # Errors
    /// When there is none that can be reached.
    pub fn pick(&self, tenant: TenantId, failed: Option<&Pick>) -> Result<Pick, Failure> {
        let canary = self.canary.load();
        let canary = canary
            .as_ref()
            .filter(|canary| is_among(tenant, canary.salt, canary.percent));
        let version = canary.map_or(&self.stable, |canary| &canary.version);
        version
            .pick(failed)
            .or_else(|| canary.and_then(|_| self.stable.pick(failed)))
            .or_else(|| version.pick(None))
            .or_else(|| version.pick_sick())
            .ok_or(Failure::Unreachable)
    }

    /// The statement about who asks, bound to one request to this upstream.
    #[must_use]
    pub fn assertion(&self, principal: &Principal, facts: &Facts<'_>, now: Timestamp) -> String {
        let asked = Asked {
            address: facts.address,
            request_id: facts.request_id,
            traceparent: Some(facts.traceparent),
            method: facts.method,
            path: facts.target,
            body_sha256: facts.body_sha256,
            expires_at: now.as_second() + LIFETIME_MAX_SECONDS - CLOCK_SKEW_SECONDS,
        };
        let about = principal.stated(self.audience);
        self.signer.sign_for(&about, &asked)
    }
}
