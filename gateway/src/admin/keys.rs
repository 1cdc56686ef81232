//! `gateway admin key`: API keys, by the same code as `/v1/api-keys`.

use std::time::Duration;

use alloy::primitives::Address;
use clap::{Args, Subcommand};
use contracts::{
    api::keys::OVERLAP_MAX_SECONDS,
    assertion::{Role, Scope},
    id::{KeyId, Subject, TenantId, UserId},
};
use ops::clock::Clock;
use serde::Serialize;
use serde_json::{Value, json};

use crate::keys::{self, Keys};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Create an API key; it is shown this once.
    Create(NewKey),
    /// List API keys, without secrets.
    List {
        /// Only this tenant's.
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Put a new API key in the place of another one; it is shown this once.
    Rotate {
        /// Which one.
        id: KeyId,
        /// How long the old one is still good.
        #[arg(long, default_value = "24h", value_parser = overlap)]
        overlap: Duration,
    },
    /// Revoke an API key, at once and for ever.
    Revoke {
        /// Which one.
        id: KeyId,
    },
}

#[derive(Args, Debug)]
pub(super) struct NewKey {
    /// Whose key it is.
    #[arg(long)]
    tenant: TenantId,
    /// What people call it.
    #[arg(long)]
    name: Option<String>,
    /// What it may do.
    #[arg(long, value_delimiter = ',', required = true)]
    scopes: Vec<Scope>,
    /// What its holder is: developer, `team_lead` or admin.
    #[arg(long, default_value = "developer")]
    role: Role,
    /// As whom it acts; a new user if not given.
    #[arg(long)]
    subject: Option<Subject>,
    /// Their team.
    #[arg(long)]
    team: Option<Subject>,
    /// Their EVM address.
    #[arg(long)]
    submitter: Option<Address>,
    /// How long it is valid.
    #[arg(long, default_value = "365d", value_parser = humantime::parse_duration)]
    expires_in: Duration,
}

pub(super) async fn carry_out(
    keys: &Keys,
    command: KeyCommand,
    clock: &Clock,
) -> anyhow::Result<Value> {
    match command {
        KeyCommand::Create(new) => {
            let tenant = new.tenant;
            let created = keys.create(&new.into_key(clock)?, None, None).await?;
            Ok(with_tenant(tenant, &created))
        }
        KeyCommand::List { tenant } => {
            let found = keys.list(tenant, None, u32::MAX).await?;
            let rows = found.data.iter();
            Ok(rows
                .map(|(tenant, key)| with_tenant(*tenant, key))
                .collect())
        }
        KeyCommand::Rotate { id, overlap } => {
            let rotated = keys.rotate(None, id, None, overlap, |_| Ok(())).await?;
            Ok(json!(rotated))
        }
        KeyCommand::Revoke { id } => {
            keys.revoke(None, id).await?;
            Ok(json!({ "revoked": id }))
        }
    }
}

impl NewKey {
    fn into_key(self, clock: &Clock) -> anyhow::Result<keys::NewKey> {
        let subject = match self.subject {
            Some(subject) => subject,
            None => UserId::generate(clock.now()).to_string().parse()?,
        };
        Ok(keys::NewKey {
            tenant: self.tenant,
            name: self.name,
            subject,
            team: self.team,
            submitter: self.submitter,
            role: self.role,
            scopes: self.scopes,
            life: self.expires_in,
        })
    }
}

/// A key as it is printed.
fn with_tenant(tenant: TenantId, key: &impl Serialize) -> Value {
    let mut key = json!(key);
    key["tenant_id"] = json!(tenant);
    key
}

/// How long an old key may stay beside its successor.
pub(super) fn overlap(text: &str) -> Result<Duration, String> {
    let overlap = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if overlap > Duration::from_secs(OVERLAP_MAX_SECONDS) {
        return Err("at most 7 days".to_owned());
    }
    Ok(overlap)
}
