//! API keys, as a tenant manages its own.

use alloy::primitives::Address;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    assertion::{Role, Scope},
    id::{KeyId, Subject},
};

/// Longest name of a key.
pub const NAME_MAX_BYTES: usize = 128;
/// Longest life of a key, and the usual one: a year.
pub const LIFE_MAX_SECONDS: u64 = 365 * 24 * 3_600;
/// Longest time an old key is still good, beside its successor.
pub const OVERLAP_MAX_SECONDS: u64 = 7 * 24 * 3_600;
/// How long an old key is still good when the request does not say.
pub const OVERLAP_DEFAULT_SECONDS: u64 = 24 * 3_600;

/// A new key. It can do no more than the credential that asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// The tenant's own note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 128)]
    pub name: Option<String>,
    /// What it may do: scopes that the asking credential has.
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// What it is; at most, and if absent, what the asking credential is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// As whom it acts; as the asking credential if absent. Another needs the scope `jobs:admin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// Of which team; of the asking credential's if absent. Another needs the scope `jobs:admin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<Subject>,
    /// The EVM address of its holder; that of the asking credential if absent. Another needs the
    /// scope `jobs:admin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^0x[0-9a-fA-F]{40}$")]
    pub submitter: Option<Address>,
    /// How long it is good: a year if absent, at most that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub expires_in_seconds: Option<u64>,
}

/// A key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// The key.
    pub key_id: KeyId,
    /// The tenant's own note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// As whom it acts.
    pub subject: Subject,
    /// Of which team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<Subject>,
    /// The EVM address of its holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^0x[0-9a-fA-F]{40}$")]
    pub submitter: Option<Address>,
    /// What it is.
    pub role: Role,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// The key that took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<KeyId>,
    /// When it was last used, to the minute; known a little later, and forgotten in a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

/// A new key, with its secret: shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyCreated {
    /// The key.
    #[serde(flatten)]
    pub view: KeyView,
    /// What to send as `X-API-Key` or bearer token (`jsk_…`).
    pub key: String,
}

/// How to replace a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKey {
    /// How long the old key is still good: 24 h if absent, at most 7 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 604_800)]
    pub overlap_seconds: Option<u64>,
}

/// A key's successor, which can do the same for as long again; its secret is shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyRotated {
    /// The new key.
    #[serde(flatten)]
    pub created: KeyCreated,
    /// The key that it replaces.
    pub previous_key_id: KeyId,
    /// Until when that one is still good.
    pub previous_expires_at: Timestamp,
}

/// Which keys to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct KeysQuery {
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Most items of the page: 50 if absent, at most 200.
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u32>,
}
