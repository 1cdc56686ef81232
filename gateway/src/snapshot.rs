//! What the gateway believes about tenants: one immutable snapshot, loaded from Postgres, swapped
//! whole, and trusted only for so long after Postgres was last heard.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use alloy::primitives::Address;
use arc_swap::{ArcSwap, Guard};
use contracts::{
    assertion::{Role, Scope},
    id::{KeyId, Subject, TenantId},
    problem::{Code, Problem},
};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    auth::stated::Ready, keys::uses::LastUse, limit::quota::Quota, rule::Rule, sight::PlanLabel,
    signature::Signing, upstream::rollout::Rollout,
};

/// Everything at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows with every change in the database.
    pub version: i64,
    /// Tenants by id.
    pub tenants: HashMap<TenantId, Arc<Tenant>>,
    /// API keys by id, revoked ones left out.
    pub keys: HashMap<KeyId, Arc<ApiKey>>,
    /// What may not be believed any more.
    pub revoked: Revocations,
    /// Versions of upstreams on their way in.
    pub rollouts: Vec<Rollout>,
    /// What is said about routes, by their numbers; empty where nothing was ever loaded.
    pub rules: Vec<Option<Arc<Rule>>>,
    /// How often an operator has asked for the issuer's keys to be read again.
    pub jwks_refreshes: i64,
}

/// Who pays.
#[derive(Debug)]
pub struct Tenant {
    /// Which one.
    pub id: TenantId,
    /// What they bought.
    pub plan: Arc<Plan>,
    /// Whether a second job with the same content within a day is refused.
    pub unique_content: bool,
    /// From where they may ask; from anywhere if empty.
    pub allowed: Vec<IpNet>,
    /// With what their requests must be signed, if they must.
    pub signing: Option<Signing>,
}

/// What a tenant may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// Requests a minute, sustained.
    pub per_minute: u32,
    /// Requests at once on top of that.
    pub burst: u32,
    /// Requests an hour.
    pub per_hour: u32,
    /// Compute units a month, if they are bounded.
    pub quota: Option<Quota>,
    /// Unfinished jobs.
    pub active_jobs: u32,
    /// How early its jobs' turn comes, 1 to 9.
    pub priority: u8,
    /// How its requests are labelled in metrics.
    pub label: PlanLabel,
}

/// A credential of ours.
#[derive(Debug)]
pub struct ApiKey {
    /// Which one.
    pub id: KeyId,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// When it ends.
    pub expires_at: Timestamp,
    /// Whom it speaks for.
    pub identity: Identity,
    /// When it was last used.
    pub last_use: LastUse,
    /// What is stated about whom it speaks for.
    pub ready: Ready,
}

/// Whom a credential speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose data is asked for.
    pub tenant: TenantId,
    /// Who asks.
    pub subject: Subject,
    /// Their team.
    pub team: Option<Subject>,
    /// Their EVM address.
    pub submitter: Option<Address>,
    /// What they are.
    pub role: Role,
    /// What they may do.
    pub scopes: Vec<Scope>,
}

/// What may not be believed any more.
#[derive(Debug, Default)]
pub struct Revocations {
    /// Tokens, by `jti`.
    pub tokens: HashSet<String>,
    /// Subjects of each tenant.
    pub subjects: HashMap<TenantId, HashSet<String>>,
    /// Tenants.
    pub tenants: HashSet<String>,
}

/// Holds the present snapshot. A request loads it once.
#[derive(Debug)]
pub struct Snapshots {
    current: ArcSwap<Snapshot>,
    started: Instant,
    /// Milliseconds from `started` to the last word from Postgres; 0 while there was none.
    confirmed: AtomicU64,
    news: watch::Sender<()>,
}

impl Tenant {
    /// Whether requests may come from `address`.
    ///
    /// # Errors
    /// The problem that names the address, which is the one to allow.
    pub fn require_address(&self, address: IpAddr) -> Result<(), Problem> {
        let allowed = &self.allowed;
        if allowed.is_empty() || allowed.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        let detail = format!("The tenant does not allow requests from {address}.");
        Err(Problem::new(Code::AccessDenied, detail))
    }
}

impl Revocations {
    /// Whether a credential of this identity, and this `jti` if it is a token, is revoked.
    #[must_use]
    pub fn cover(&self, identity: &Identity, jti: Option<&str>) -> bool {
        let Identity {
            tenant, subject, ..
        } = identity;
        jti.is_some_and(|jti| self.tokens.contains(jti))
            || (!self.subjects.is_empty() && self.covers_subject(tenant, subject))
            || (!self.tenants.is_empty() && self.tenants.contains(&tenant.to_string()))
    }

    /// As whom a subject of a tenant is revoked.
    #[must_use]
    pub fn subject_value(tenant: TenantId, subject: &Subject) -> String {
        format!("{tenant}/{subject}")
    }

    /// The tenant and the subject that a revoked subject's value names.
    #[must_use]
    pub fn subject_of(value: &str) -> Option<(TenantId, &str)> {
        let (tenant, subject) = value.split_once('/')?;
        Some((tenant.parse().ok()?, subject))
    }

    fn covers_subject(&self, tenant: &TenantId, subject: &Subject) -> bool {
        let subjects = self.subjects.get(tenant);
        subjects.is_some_and(|subjects| subjects.contains(subject.as_str()))
    }
}

impl Snapshots {
    /// Nothing is known yet.
    #[must_use]
    pub fn empty(now: Instant) -> Self {
        Self {
            current: ArcSwap::default(),
            started: now,
            confirmed: AtomicU64::new(0),
            news: watch::Sender::new(()),
        }
    }

    /// The present snapshot.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The present snapshot, for whoever keeps it for longer than a request.
    #[must_use]
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the snapshot, which was true at `now`.
    pub fn swap(&self, snapshot: Snapshot, now: Instant) {
        let before = self.current.load();
        for key in snapshot.keys.values() {
            if let Some(older) = before.keys.get(&key.id) {
                key.last_use.inherit(&older.last_use);
            }
        }
        self.current.store(Arc::new(snapshot));
        self.confirm(now);
        self.news.send_replace(());
    }

    /// What is told of every change of what is believed.
    #[must_use]
    pub fn news(&self) -> &watch::Sender<()> {
        &self.news
    }

    /// Postgres said at `now` that the snapshot is still true.
    pub fn confirm(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX).max(1);
        self.confirmed.store(elapsed, Ordering::Release);
    }

    /// How long ago the snapshot was last known to be true; `None` if it never was.
    #[must_use]
    pub fn age(&self, now: Instant) -> Option<Duration> {
        match self.confirmed.load(Ordering::Acquire) {
            0 => None,
            elapsed => {
                let confirmed = self.started + Duration::from_millis(elapsed);
                Some(now.saturating_duration_since(confirmed))
            }
        }
    }

    /// Whether the snapshot was known to be true at most `limit` ago.
    #[must_use]
    pub fn fresh_within(&self, limit: Duration, now: Instant) -> bool {
        self.age(now).is_some_and(|age| age <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_ages_from_the_last_word_and_starts_unknown() {
        let start = Instant::now();
        let snapshots = Snapshots::empty(start);
        let limit = Duration::from_secs(3);
        assert!(!snapshots.fresh_within(limit, start));
        snapshots.swap(
            Snapshot {
                version: 7,
                ..Snapshot::default()
            },
            start,
        );
        assert_eq!(snapshots.load().version, 7);
        assert!(snapshots.fresh_within(limit, start + limit));
        assert!(!snapshots.fresh_within(limit, start + limit + limit));
        snapshots.confirm(start + limit + limit);
        assert!(snapshots.fresh_within(limit, start + limit + limit));
    }
}
