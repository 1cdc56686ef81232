//! `gateway admin signing-key`: what tenants sign their requests with.

use std::time::Duration;

use clap::{Args, Subcommand};
use contracts::id::{SigningKeyId, TenantId};
use ops::{clock::Clock, config::Key32};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::keys::overlap;
use crate::signature::rows;

#[derive(Debug, Subcommand)]
pub(super) enum SigningKeyCommand {
    /// Create a signing key; it is shown this once.
    Create {
        /// Whose key it is.
        tenant: TenantId,
        #[command(flatten)]
        sealing: Sealing,
    },
    /// Put a new signing key in the place of another one.
    Rotate {
        /// Which one.
        id: SigningKeyId,
        /// How long the old one is still good.
        #[arg(long, default_value = "24h", value_parser = overlap)]
        overlap: Duration,
        #[command(flatten)]
        sealing: Sealing,
    },
    /// Revoke a signing key, at once and for ever.
    Revoke {
        /// Which one.
        id: SigningKeyId,
    },
    /// List a tenant's signing keys, without secrets.
    List {
        /// Whose.
        tenant: TenantId,
    },
}

#[derive(Args, Debug)]
pub(super) struct Sealing {
    /// What signing keys are encrypted with at rest: that of `gateway run`.
    #[arg(
        long,
        env = "SIGNATURES_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    signatures_key: Key32,
}

pub(super) async fn carry_out(
    client: &impl tokio_postgres::GenericClient,
    command: SigningKeyCommand,
    clock: &Clock,
) -> anyhow::Result<Value> {
    let now = clock.now();
    let create = async |tenant, sealing: Sealing| {
        let key = sealing.signatures_key;
        let (id, secret) = rows::create(client, tenant, &key, now).await?;
        let secret = secret.expose_secret();
        Ok(json!({ "signing_key_id": id, "tenant_id": tenant, "secret": secret }))
    };
    match command {
        SigningKeyCommand::Create { tenant, sealing } => create(tenant, sealing).await,
        SigningKeyCommand::Rotate {
            id,
            overlap,
            sealing,
        } => {
            let ends = now.checked_add(overlap)?;
            let created = create(rows::tenant_of(client, id).await?, sealing).await?;
            rows::retire(client, id, ends).await?;
            Ok(created)
        }
        SigningKeyCommand::Revoke { id } => {
            rows::retire(client, id, now).await?;
            Ok(json!({ "revoked": id }))
        }
        SigningKeyCommand::List { tenant } => rows::list(client, tenant).await,
    }
}
