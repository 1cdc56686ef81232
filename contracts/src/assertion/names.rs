//! The closed lists of upstreams, roles and scopes, by their names in tokens and claims.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

/// Which upstream an assertion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// `jobs api`
    Jobs,
    /// `relayer api`
    Relayer,
    /// `metering api`
    Metering,
    /// `webhooks api`
    Webhooks,
}

/// What a credential is for, beside its scopes; each one is more than those before it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Few jobs at a time.
    Developer,
    /// More jobs at a time.
    TeamLead,
    /// No limit of its own.
    Admin,
}

/// What a credential may do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
pub enum Scope {
    /// Create and cancel jobs.
    #[serde(rename = "jobs:submit")]
    JobsSubmit,
    /// Read the jobs one created.
    #[serde(rename = "jobs:read")]
    JobsRead,
    /// Read the jobs of one's team.
    #[serde(rename = "jobs:read:team")]
    JobsReadTeam,
    /// Read and cancel every job of the tenant.
    #[serde(rename = "jobs:admin")]
    JobsAdmin,
    /// Read endpoints and deliveries.
    #[serde(rename = "webhooks:read")]
    WebhooksRead,
    /// Change endpoints, replay deliveries.
    #[serde(rename = "webhooks:write")]
    WebhooksWrite,
    /// Read usage, invoices and prices.
    #[serde(rename = "billing:read")]
    BillingRead,
    /// Create, list, rotate and revoke the tenant's API keys.
    #[serde(rename = "keys:admin")]
    KeysAdmin,
}

/// The text names no scope, role or audience.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("unknown name")]
pub struct UnknownName;

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 8] = [
        Self::JobsSubmit,
        Self::JobsRead,
        Self::JobsReadTeam,
        Self::JobsAdmin,
        Self::WebhooksRead,
        Self::WebhooksWrite,
        Self::BillingRead,
        Self::KeysAdmin,
    ];
    /// Any one of these lets one read jobs; which jobs is for `Principal::may_read_job` to say.
    pub const READ_JOBS: [Self; 3] = [Self::JobsRead, Self::JobsReadTeam, Self::JobsAdmin];
    /// Any one of these lets one cancel jobs; which is for `Principal::may_cancel_job` to say.
    pub const CANCEL_JOBS: [Self; 2] = [Self::JobsSubmit, Self::JobsAdmin];

    /// The scope as it stands in tokens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JobsSubmit => "jobs:submit",
            Self::JobsRead => "jobs:read",
            Self::JobsReadTeam => "jobs:read:team",
            Self::JobsAdmin => "jobs:admin",
            Self::WebhooksRead => "webhooks:read",
            Self::WebhooksWrite => "webhooks:write",
            Self::BillingRead => "billing:read",
            Self::KeysAdmin => "keys:admin",
        }
    }
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Developer, Self::TeamLead, Self::Admin];

    /// The role as it stands in tokens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Developer => "developer",
            Self::TeamLead => "team_lead",
            Self::Admin => "admin",
        }
    }
}

impl Audience {
    /// The audience as it stands in claims.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Relayer => "relayer",
            Self::Metering => "metering",
            Self::Webhooks => "webhooks",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or(UnknownName)
    }
}

impl FromStr for Role {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|r| r.as_str() == text)
            .ok_or(UnknownName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_names_are_those_of_tokens() {
        for scope in Scope::ALL {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
            assert_eq!(scope.as_str().parse(), Ok(scope));
        }
        for role in Role::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert_eq!(
            serde_json::to_value(Audience::Metering).unwrap(),
            "metering"
        );
    }
}
