//! API keys as rows, one function a statement.

use std::str::FromStr;

use anyhow::Context as _;
use contracts::{
    api::keys::KeyView,
    id::{KeyId, Subject, TenantId},
    problem::{Code, Problem},
};
use jiff::Timestamp;
use tokio_postgres::{GenericClient, Row, types::ToSql};
use uuid::Uuid;

use crate::{auth::Principal, snapshot::Revocations};

/// Makes everyone who adds keys to a tenant take turns, so that its keys can be counted.
pub(super) async fn lock_tenant(
    client: &impl GenericClient,
    tenant: TenantId,
) -> anyhow::Result<()> {
    let sql = "-- gateway.lock_tenant\n\
               SELECT id FROM gateway.tenants WHERE id = $1 FOR NO KEY UPDATE";
    let found = client.query_opt(sql, &[&tenant.uuid()]).await?;
    let detail = format!("There is no tenant {tenant}.");
    found.ok_or_else(|| Problem::new(Code::NotFound, detail))?;
    Ok(())
}

/// Refuses whoever was shut out since they were let in. Their key's row is held, so that revoking
/// it and making a key with it come one after the other.
pub(super) async fn require_good(
    client: &impl GenericClient,
    asker: &Principal,
) -> anyhow::Result<()> {
    let mut good = true;
    if let Some(id) = asker.key_id() {
        let sql = "-- gateway.hold_key\n\
                   SELECT revoked_at IS NULL AND expires_at > clock_timestamp()\n\
                   FROM gateway.api_keys WHERE id = $1 FOR SHARE";
        let row = client.query_opt(sql, &[&id.uuid()]).await?;
        good = row.is_some_and(|row| row.get(0));
    }
    let sql = "-- gateway.is_revoked\n\
               SELECT EXISTS (SELECT FROM gateway.revocations\n    \
               WHERE (kind, value) IN (('tenant', $1), ('subject', $2), ('jti', $3)))";
    let identity = asker.identity();
    let tenant = identity.tenant.to_string();
    let subject = Revocations::subject_value(identity.tenant, &identity.subject);
    let named: [&(dyn ToSql + Sync); 3] = [&tenant, &subject, &asker.jti()];
    let is_revoked: bool = client.query_one(sql, &named).await?.get(0);
    if good && !is_revoked {
        return Ok(());
    }
    Err(Problem::new(Code::InvalidToken, "The credential is not valid.").into())
}

/// How many keys of a tenant are good, and how many there are.
pub(super) async fn count(
    client: &impl GenericClient,
    tenant: TenantId,
) -> anyhow::Result<(i64, i64)> {
    let sql = "-- gateway.count_keys\n\
               SELECT count(*) FILTER (WHERE revoked_at IS NULL\n    \
               AND expires_at > clock_timestamp()), count(*)\n\
               FROM gateway.api_keys WHERE tenant_id = $1";
    let row = client.query_one(sql, &[&tenant.uuid()]).await?;
    Ok((row.get(0), row.get(1)))
}

/// Deletes keys of a tenant that ended long ago.
pub(super) async fn forget(
    client: &impl GenericClient,
    tenant: TenantId,
    ended_before: Timestamp,
) -> anyhow::Result<()> {
    let sql = "-- gateway.forget_keys\n\
               DELETE FROM gateway.api_keys\n\
               WHERE tenant_id = $1 AND LEAST(revoked_at, expires_at) < $2";
    client
        .execute(sql, &[&tenant.uuid(), &ended_before])
        .await?;
    Ok(())
}

pub(super) async fn insert(
    client: &impl GenericClient,
    tenant: TenantId,
    key: &KeyView,
    secret_hash: [u8; 32],
) -> anyhow::Result<()> {
    let sql = "-- gateway.insert_key\n\
               INSERT INTO gateway.api_keys (id, tenant_id, name, subject, team, submitter,\n    \
               role, scopes, secret_hash, created_at, expires_at)\n\
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    let submitter = key.submitter.map(|address| address.to_string());
    client
        .execute(
            sql,
            &[
                &key.key_id.uuid(),
                &tenant.uuid(),
                &key.name,
                &key.subject.as_str(),
                &key.team.as_ref().map(Subject::as_str),
                &submitter,
                &key.role.as_str(),
                &scopes,
                &&secret_hash[..],
                &key.created_at,
                &key.expires_at,
            ],
        )
        .await?;
    Ok(())
}

pub(super) async fn find(
    client: &impl GenericClient,
    tenant: Option<TenantId>,
    id: KeyId,
) -> anyhow::Result<Option<(TenantId, KeyView)>> {
    let sql = "-- gateway.find_key\n\
               SELECT id, tenant_id, name, subject, team, submitter, role, scopes,\n    \
               created_at, expires_at, revoked_at, replaced_by, used_at\n\
               FROM gateway.api_keys LEFT JOIN gateway.key_uses ON key_id = id\n\
               WHERE id = $1 AND ($2::uuid IS NULL OR tenant_id = $2)";
    let tenant = tenant.map(TenantId::uuid);
    let row = client.query_opt(sql, &[&id.uuid(), &tenant]).await?;
    row.as_ref().map(view).transpose()
}

pub(super) async fn list(
    client: &impl GenericClient,
    tenant: Option<TenantId>,
    before: Option<KeyId>,
    limit: i64,
) -> anyhow::Result<Vec<(TenantId, KeyView)>> {
    let sql = "-- gateway.list_keys\n\
               SELECT id, tenant_id, name, subject, team, submitter, role, scopes,\n    \
               created_at, expires_at, revoked_at, replaced_by, used_at\n\
               FROM gateway.api_keys LEFT JOIN gateway.key_uses ON key_id = id\n\
               WHERE ($1::uuid IS NULL OR tenant_id = $1) AND ($2::uuid IS NULL OR id < $2)\n\
               ORDER BY id DESC LIMIT $3";
    let (tenant, before) = (tenant.map(TenantId::uuid), before.map(KeyId::uuid));
    let rows = client.query(sql, &[&tenant, &before, &limit]).await?;
    rows.iter().map(view).collect()
}

/// A key ends at `ends`.
pub(super) async fn retire(
    client: &impl GenericClient,
    id: KeyId,
    ends: Timestamp,
) -> anyhow::Result<()> {
    let sql = "-- gateway.retire_key\nUPDATE gateway.api_keys SET expires_at = $2 WHERE id = $1";
    client.execute(sql, &[&id.uuid(), &ends]).await?;
    Ok(())
}

/// A key's place is taken by another.
pub(super) async fn replace(
    client: &impl GenericClient,
    id: KeyId,
    by: KeyId,
) -> anyhow::Result<()> {
    let sql = "-- gateway.replace_key\nUPDATE gateway.api_keys SET replaced_by = $2 WHERE id = $1";
    client.execute(sql, &[&id.uuid(), &by.uuid()]).await?;
    Ok(())
}

/// Whether there was such a key.
pub(super) async fn revoke(
    client: &impl GenericClient,
    tenant: Option<TenantId>,
    id: KeyId,
) -> anyhow::Result<bool> {
    let sql = "-- gateway.revoke_key\n\
               UPDATE gateway.api_keys SET revoked_at = COALESCE(revoked_at, clock_timestamp())\n\
               WHERE id = $1 AND ($2::uuid IS NULL OR tenant_id = $2)";
    let tenant = tenant.map(TenantId::uuid);
    Ok(client.execute(sql, &[&id.uuid(), &tenant]).await? == 1)
}

/// Notes when keys were last used. A key that is gone meanwhile is left out.
pub(super) async fn note_uses(
    client: &impl GenericClient,
    keys: &[Uuid],
    at: &[Timestamp],
) -> anyhow::Result<()> {
    let sql = "-- gateway.note_key_uses\n\
               INSERT INTO gateway.key_uses AS known (key_id, used_at)\n\
               SELECT key_id, used_at FROM unnest($1::uuid[], $2::timestamptz[])\n    \
               AS used (key_id, used_at) JOIN gateway.api_keys ON id = key_id\n\
               ON CONFLICT (key_id) DO UPDATE SET used_at = EXCLUDED.used_at\n\
               WHERE known.used_at < EXCLUDED.used_at";
    client.execute(sql, &[&keys, &at]).await?;
    Ok(())
}

fn view(row: &Row) -> anyhow::Result<(TenantId, KeyView)> {
    let id = KeyId::from_uuid(row.get("id"));
    let optional = |column| row.get::<_, Option<&str>>(column);
    let scopes = row.get::<_, Vec<&str>>("scopes").into_iter();
    let read = || {
        anyhow::Ok(KeyView {
            key_id: id,
            name: row.get("name"),
            subject: row.get::<_, &str>("subject").parse()?,
            team: optional("team").map(Subject::from_str).transpose()?,
            submitter: optional("submitter").map(str::parse).transpose()?,
            role: row.get::<_, &str>("role").parse()?,
            scopes: scopes.map(str::parse).collect::<Result<_, _>>()?,
            created_at: row.get("created_at"),
            expires_at: row.get("expires_at"),
            revoked_at: row.get("revoked_at"),
            replaced_by: row
                .get::<_, Option<Uuid>>("replaced_by")
                .map(KeyId::from_uuid),
            last_used_at: row.get("used_at"),
        })
    };
    let view = read().with_context(|| id.to_string())?;
    Ok((TenantId::from_uuid(row.get("tenant_id")), view))
}
