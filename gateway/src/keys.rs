//! API keys as their tenants and operators manage them: created, rotated with an overlap, revoked.
//! A rotated key is a new one, with everything of the old one but its id, secret and times.

use std::time::Duration;

use alloy::primitives::Address;
use anyhow::Context as _;
use contracts::{
    api::{
        Page,
        keys::{KeyCreated, KeyRotated, KeyView},
    },
    assertion::{Role, Scope},
    id::{KeyId, Subject, TenantId},
    problem::{Code, Problem},
};
use jiff::{SignedDuration, Timestamp};
use ops::{
    clock::Clock,
    idempotency::{self, Claim, Request},
    postgres::{Pool, settle},
};
use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    auth::{Principal, api_key::Presented},
    store::SCHEMA,
};

mod grant;
mod rows;
pub mod serve;
mod share;
pub mod uses;

/// Keys of a tenant that are good at a time.
pub const LIVE_MAX: i64 = 100;
/// Keys of a tenant that are kept at all, ended ones too.
pub const KEPT_MAX: i64 = 1_000;
/// How long an ended key is kept to be looked at.
const ENDED_KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How long an idempotency key stands for its request.
const IDEMPOTENCY_TTL: SignedDuration = SignedDuration::from_hours(24);
/// How long Postgres may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What a new key is to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Whose it is.
    pub tenant: TenantId,
    /// What people call it.
    pub name: Option<String>,
    /// As whom it acts.
    pub subject: Subject,
    /// Their team.
    pub team: Option<Subject>,
    /// Their EVM address.
    pub submitter: Option<Address>,
    /// What it is.
    pub role: Role,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// How long it is good.
    pub life: Duration,
}

/// The keys in Postgres. What it refuses is an error that holds a [`Problem`].
#[derive(Clone, Debug)]
pub struct Keys {
    pool: Pool,
    clock: Clock,
    shares: share::Shares,
}

/// What an idempotency key is claimed with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repeatable<'a> {
    pub(crate) key: &'a str,
    pub(crate) hash: [u8; 32],
}

impl Keys {
    /// The keys of this database.
    #[must_use]
    pub fn new(pool: Pool, clock: Clock) -> Self {
        let shares = share::Shares::default();
        Self {
            pool,
            clock,
            shares,
        }
    }

    /// Creates a key, once for each idempotency key; `asker` is who asks, if not an operator.
    ///
    /// # Errors
    /// When there is no such tenant, or it has as many keys as it may.
    pub(crate) async fn create(
        &self,
        new: &NewKey,
        asker: Option<&Principal>,
        repeatable: Option<Repeatable<'_>>,
    ) -> anyhow::Result<KeyCreated> {
        let mut client = self.pool.get().await?;
        let now = self.clock.now();
        let work = async {
            let transaction = client.transaction().await?;
            rows::lock_tenant(&*transaction, new.tenant).await?;
            if let Some(asker) = asker {
                rows::require_good(&*transaction, asker).await?;
            }
            let (view, presented) = generate(new, now)?;
            if let Some(Repeatable { key, hash }) = repeatable {
                let tenant = new.tenant.uuid();
                let request = Request { tenant, key, hash };
                let answer = json!({ "key_id": view.key_id });
                let until = now.saturating_add(IDEMPOTENCY_TTL)?;
                let claimed =
                    idempotency::claim(&transaction, SCHEMA, request, &answer, until).await?;
                refuse_repetition(claimed)?;
            }
            insert(&*transaction, new.tenant, &view, &presented, now).await?;
            transaction.commit().await?;
            Ok(shown(view, &presented))
        };
        let outcome = timeout(DEADLINE, work).await;
        settle(client, outcome)
    }

    /// Keys, newest first: a tenant's, or everyone's.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn list(
        &self,
        tenant: Option<TenantId>,
        before: Option<KeyId>,
        size: u32,
    ) -> anyhow::Result<Page<(TenantId, KeyView)>> {
        let client = self.pool.get().await?;
        let work = rows::list(&**client, tenant, before, i64::from(size) + 1);
        let outcome = timeout(DEADLINE, work).await;
        let mut data = settle(client, outcome)?;
        let more = data.len() > size as usize;
        data.truncate(size as usize);
        let last = data.last().filter(|_| more);
        let next_cursor = last.map(|(_, view)| view.key_id.to_string());
        Ok(Page { data, next_cursor })
    }

    /// One key of a tenant.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn show(&self, tenant: TenantId, id: KeyId) -> anyhow::Result<KeyView> {
        let client = self.pool.get().await?;
        let outcome = timeout(DEADLINE, rows::find(&**client, Some(tenant), id)).await;
        let found = settle(client, outcome)?;
        Ok(found.ok_or_else(|| no_such_key(id))?.1)
    }

    /// Puts a new key in the place of another one, which ends after `overlap`. `may` says whether
    /// whoever asks may be shown a key like it.
    ///
    /// # Errors
    /// When there is none, it has ended or was replaced before, or the tenant has too many.
    pub(crate) async fn rotate(
        &self,
        tenant: Option<TenantId>,
        id: KeyId,
        asker: Option<&Principal>,
        overlap: Duration,
        may: impl Fn(&KeyView) -> Result<(), Problem> + Send,
    ) -> anyhow::Result<KeyRotated> {
        let mut client = self.pool.get().await?;
        let now = self.clock.now();
        let work = async {
            let transaction = client.transaction().await?;
            let found = rows::find(&*transaction, tenant, id).await?;
            let (tenant, _) = found.ok_or_else(|| no_such_key(id))?;
            // Read again under the lock: another rotation may have been faster.
            rows::lock_tenant(&*transaction, tenant).await?;
            if let Some(asker) = asker {
                rows::require_good(&*transaction, asker).await?;
            }
            let found = rows::find(&*transaction, Some(tenant), id).await?;
            let (_, old) = found.ok_or_else(|| no_such_key(id))?;
            may(&old)?;
            require_rotatable(&old, now)?;
            let new = successor(tenant, &old)?;
            let (view, presented) = generate(&new, now)?;
            let ends = now.checked_add(overlap)?.min(old.expires_at);
            // First, so that an old key that ends at once leaves its place to the new one.
            rows::retire(&*transaction, id, ends).await?;
            insert(&*transaction, tenant, &view, &presented, now).await?;
            rows::replace(&*transaction, id, view.key_id).await?;
            transaction.commit().await?;
            Ok(KeyRotated {
                created: shown(view, &presented),
                previous_key_id: id,
                previous_expires_at: ends,
            })
        };
        let outcome = timeout(DEADLINE, work).await;
        settle(client, outcome)
    }

    /// Revokes a key, at once and for ever. Again is no error.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn revoke(&self, tenant: Option<TenantId>, id: KeyId) -> anyhow::Result<()> {
        let client = self.pool.get().await?;
        let outcome = timeout(DEADLINE, rows::revoke(&**client, tenant, id)).await;
        let known = settle(client, outcome)?;
        anyhow::ensure!(known, no_such_key(id));
        Ok(())
    }
}

fn generate(new: &NewKey, now: Timestamp) -> anyhow::Result<(KeyView, Presented)> {
    let presented = Presented::generate(KeyId::generate(now));
    let expires_at = now.checked_add(new.life).context("it lives too long")?;
    let view = KeyView {
        key_id: presented.id,
        name: new.name.clone(),
        subject: new.subject.clone(),
        team: new.team.clone(),
        submitter: new.submitter,
        role: new.role,
        scopes: new.scopes.clone(),
        created_at: now,
        expires_at,
        revoked_at: None,
        replaced_by: None,
        last_used_at: None,
    };
    Ok((view, presented))
}

/// Inserts a key of a tenant whose row is locked, if there is room for it.
async fn insert(
    transaction: &impl tokio_postgres::GenericClient,
    tenant: TenantId,
    view: &KeyView,
    presented: &Presented,
    now: Timestamp,
) -> anyhow::Result<()> {
    let ended_before = now.checked_sub(ENDED_KEPT)?;
    rows::forget(transaction, tenant, ended_before).await?;
    let (live, kept) = rows::count(transaction, tenant).await?;
    if live >= LIVE_MAX || kept >= KEPT_MAX {
        let detail = format!(
            "A tenant may have {LIVE_MAX} good keys, and {KEPT_MAX} with those that ended lately."
        );
        return Err(Problem::new(Code::Conflict, detail).into());
    }
    rows::insert(transaction, tenant, view, presented.secret_hash()).await
}

fn shown(view: KeyView, presented: &Presented) -> KeyCreated {
    let key = presented.text().expose_secret().to_owned();
    KeyCreated { view, key }
}

/// A key like `old`, for as long again.
fn successor(tenant: TenantId, old: &KeyView) -> anyhow::Result<NewKey> {
    let life = old.expires_at.duration_since(old.created_at);
    Ok(NewKey {
        tenant,
        name: old.name.clone(),
        subject: old.subject.clone(),
        team: old.team.clone(),
        submitter: old.submitter,
        role: old.role,
        scopes: old.scopes.clone(),
        life: life.try_into().context("it ends before it begins")?,
    })
}

fn require_rotatable(old: &KeyView, now: Timestamp) -> Result<(), Problem> {
    let refuse = |detail: String| Err(Problem::new(Code::Conflict, detail));
    if let Some(by) = old.replaced_by {
        return refuse(format!("The key was replaced by {by}: rotate that one."));
    }
    if old.revoked_at.is_some() || old.expires_at <= now {
        return refuse("The key has ended: create a new one.".to_owned());
    }
    Ok(())
}

/// A retry cannot be given the key again: its secret is nowhere.
fn refuse_repetition(claimed: Claim) -> Result<(), Problem> {
    match claimed {
        Claim::Fresh => Ok(()),
        Claim::Replay(answer) => {
            let id = answer["key_id"].as_str().unwrap_or_default();
            let detail = format!(
                "This Idempotency-Key created {id} already. It was shown then and is not kept: \
                 rotate it if it was lost."
            );
            Err(Problem::new(Code::IdempotencyConflict, detail))
        }
        Claim::Mismatch => {
            let detail = "This Idempotency-Key was used with another request.";
            Err(Problem::new(Code::IdempotencyMismatch, detail))
        }
    }
}

fn no_such_key(id: KeyId) -> Problem {
    Problem::new(Code::NotFound, format!("There is no key {id}."))
}
