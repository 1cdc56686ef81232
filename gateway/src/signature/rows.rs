//! Signing keys as rows, one function a statement. Their secrets are encrypted at rest
//! ([`ops::seal`]), bound to their row.

use std::collections::HashMap;

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use contracts::id::{SigningKeyId, TenantId};
use jiff::Timestamp;
use ops::{config::Key32, seal};
use ring::{hmac, rand::SystemRandom};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Row};
use tracing::warn;

use super::{Signing, SigningKey};

/// Signing keys of a tenant that are good at a time.
const LIVE_MAX: i64 = 16;

/// The keys of every tenant that are good now. What cannot be decrypted is left out, and what it
/// signs is refused.
pub(crate) async fn load(
    client: &impl GenericClient,
    sealing: Option<&Key32>,
) -> anyhow::Result<HashMap<TenantId, Signing>> {
    let sql = "-- gateway.signing_keys\n\
               SELECT id, tenant_id, sealed, expires_at FROM gateway.signing_keys\n\
               WHERE expires_at IS NULL OR expires_at > clock_timestamp()";
    let mut tenants: HashMap<TenantId, Signing> = HashMap::new();
    for row in client.query(sql, &[]).await? {
        let id = SigningKeyId::from_uuid(row.get("id"));
        let secret = sealing
            .context("no SIGNATURES_KEY is given")
            .and_then(|key| Ok(seal::open(key, id.uuid(), row.get("sealed"))?));
        match secret {
            Ok(secret) => {
                let key = SigningKey {
                    key: hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret()),
                    expires_at: row.get("expires_at"),
                };
                let tenant = TenantId::from_uuid(row.get("tenant_id"));
                tenants.entry(tenant).or_default().keys.insert(id, key);
            }
            Err(error) => warn!(error = format!("{error:#}"), %id, "a signing key is unreadable"),
        }
    }
    Ok(tenants)
}

/// A new key of a tenant, and its secret, in base64.
pub(crate) async fn create(
    client: &impl GenericClient,
    tenant: TenantId,
    sealing: &Key32,
    now: Timestamp,
) -> anyhow::Result<(SigningKeyId, SecretString)> {
    let sql = "-- gateway.insert_signing_key\n\
               INSERT INTO gateway.signing_keys (id, tenant_id, sealed)\n\
               SELECT $1, id, $3 FROM gateway.tenants WHERE id = $2 AND (\n    \
               SELECT count(*) FROM gateway.signing_keys WHERE tenant_id = $2\n    \
               AND (expires_at IS NULL OR expires_at > clock_timestamp())) < $4";
    let id = SigningKeyId::generate(now);
    let random = SystemRandom::new();
    let secret = seal::generate(&random);
    let sealed = seal::seal(sealing, id.uuid(), &secret, &random);
    let inserted = client
        .execute(sql, &[&id.uuid(), &tenant.uuid(), &sealed, &LIVE_MAX])
        .await?;
    ensure!(
        inserted == 1,
        "there is no tenant {tenant}, or it has {LIVE_MAX} signing keys"
    );
    Ok((id, STANDARD.encode(secret.expose_secret()).into()))
}

/// Whose key it is.
pub(crate) async fn tenant_of(
    client: &impl GenericClient,
    id: SigningKeyId,
) -> anyhow::Result<TenantId> {
    let sql = "-- gateway.signing_key_tenant\n\
               SELECT tenant_id FROM gateway.signing_keys WHERE id = $1";
    let row = client.query_opt(sql, &[&id.uuid()]).await?;
    let row = row.with_context(|| format!("there is no signing key {id}"))?;
    Ok(TenantId::from_uuid(row.get(0)))
}

/// A key ends at `ends`, if it does not end before.
pub(crate) async fn retire(
    client: &impl GenericClient,
    id: SigningKeyId,
    ends: Timestamp,
) -> anyhow::Result<()> {
    let sql = "-- gateway.retire_signing_key\n\
               UPDATE gateway.signing_keys SET expires_at = LEAST(expires_at, $2)\n\
               WHERE id = $1";
    let updated = client.execute(sql, &[&id.uuid(), &ends]).await?;
    ensure!(updated == 1, "there is no signing key {id}");
    Ok(())
}

/// The keys of a tenant, without secrets.
pub(crate) async fn list(client: &impl GenericClient, tenant: TenantId) -> anyhow::Result<Value> {
    let sql = "-- gateway.list_signing_keys\n\
               SELECT id, created_at, expires_at FROM gateway.signing_keys\n\
               WHERE tenant_id = $1 ORDER BY id";
    let rows = client.query(sql, &[&tenant.uuid()]).await?;
    let key = |row: &Row| {
        json!({
            "signing_key_id": SigningKeyId::from_uuid(row.get("id")),
            "created_at": row.get::<_, Timestamp>("created_at"),
            "expires_at": row.get::<_, Option<Timestamp>>("expires_at"),
        })
    };
    Ok(rows.iter().map(key).collect())
}
