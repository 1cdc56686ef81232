//! What `gateway admin` reads and writes, one function a statement.

use alloy::primitives::Address;
use anyhow::{Context as _, bail, ensure};
use contracts::{
    assertion::{Role, Scope},
    id::{KeyId, Subject, TenantId},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Row, error::SqlState, types::ToSql};

use crate::{admin::NewPlan, store};

/// A new API key.
pub(super) struct KeyRow<'a> {
    pub(super) id: KeyId,
    pub(super) tenant: TenantId,
    pub(super) subject: &'a Subject,
    pub(super) team: Option<&'a Subject>,
    pub(super) submitter: Option<Address>,
    pub(super) role: Role,
    pub(super) scopes: &'a [Scope],
    pub(super) secret_hash: [u8; 32],
    pub(super) expires_at: Timestamp,
}

pub(super) async fn insert_plan(client: &impl GenericClient, plan: &NewPlan) -> anyhow::Result<()> {
    let sql = "-- gateway.insert_plan\n\
               INSERT INTO gateway.plans\n    \
               (name, per_minute, burst, per_hour, monthly_cu, buffer_percent, overage,\n    \
               active_jobs, priority)\n\
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    let NewPlan {
        name,
        per_minute,
        burst,
        per_hour,
        monthly_cu,
        soft_buffer,
        overage,
        active_jobs,
        priority,
    } = plan;
    let inserted = client
        .execute(
            sql,
            &[
                name,
                per_minute,
                burst,
                per_hour,
                monthly_cu,
                soft_buffer,
                overage,
                active_jobs,
                priority,
            ],
        )
        .await;
    explain(inserted, &format!("plan {name}")).map(drop)
}

pub(super) async fn list_plans(client: &impl GenericClient) -> anyhow::Result<Value> {
    let sql = "-- gateway.list_plans\n\
               SELECT name, per_minute, burst, per_hour, monthly_cu, buffer_percent, overage,\n    \
               active_jobs, priority\n\
               FROM gateway.plans ORDER BY name";
    let rows = client.query(sql, &[]).await?;
    rows.iter()
        .map(|row| Ok(super::plan_json(&store::plan(row)?)))
        .collect()
}

pub(super) async fn insert_tenant(
    client: &impl GenericClient,
    id: TenantId,
    name: &str,
    plan: &str,
    unique_content: bool,
) -> anyhow::Result<()> {
    let sql = "-- gateway.insert_tenant\n\
               INSERT INTO gateway.tenants (id, name, plan, unique_content)\n\
               VALUES ($1, $2, $3, $4)";
    let row: [&(dyn ToSql + Sync); 4] = [&id.uuid(), &name, &plan, &unique_content];
    let inserted = client.execute(sql, &row).await;
    explain(inserted, &format!("tenant with plan {plan}")).map(drop)
}

pub(super) async fn list_tenants(client: &impl GenericClient) -> anyhow::Result<Value> {
    let sql = "-- gateway.list_tenants\n\
               SELECT id, name, plan, unique_content, created_at\n\
               FROM gateway.tenants ORDER BY id";
    let rows = client.query(sql, &[]).await?;
    let tenant = |row: &Row| {
        json!({
            "tenant_id": TenantId::from_uuid(row.get("id")),
            "name": row.get::<_, &str>("name"),
            "plan": row.get::<_, &str>("plan"),
            "unique_content": row.get::<_, bool>("unique_content"),
            "created_at": row.get::<_, Timestamp>("created_at"),
        })
    };
    Ok(rows.iter().map(tenant).collect())
}

pub(super) async fn insert_key(
    client: &impl GenericClient,
    key: &KeyRow<'_>,
) -> anyhow::Result<()> {
    let sql = "-- gateway.insert_key\n\
               INSERT INTO gateway.api_keys (id, tenant_id, subject, team, submitter, role,\n    \
               scopes, secret_hash, expires_at)\n\
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    let submitter = key.submitter.map(|address| address.to_string());
    let inserted = client
        .execute(
            sql,
            &[
                &key.id.uuid(),
                &key.tenant.uuid(),
                &key.subject.as_str(),
                &key.team.map(Subject::as_str),
                &submitter,
                &key.role.as_str(),
                &scopes,
                &&key.secret_hash[..],
                &key.expires_at,
            ],
        )
        .await;
    explain(inserted, &format!("key of {}", key.tenant)).map(drop)
}

pub(super) async fn list_keys(
    client: &impl GenericClient,
    tenant: Option<TenantId>,
) -> anyhow::Result<Value> {
    let sql = "-- gateway.list_keys\n\
               SELECT id, tenant_id, subject, team, role, scopes, created_at, expires_at,\n    \
               revoked_at\n\
               FROM gateway.api_keys WHERE $1::uuid IS NULL OR tenant_id = $1 ORDER BY id";
    let rows = client.query(sql, &[&tenant.map(TenantId::uuid)]).await?;
    let key = |row: &Row| {
        json!({
            "key_id": KeyId::from_uuid(row.get("id")),
            "tenant_id": TenantId::from_uuid(row.get("tenant_id")),
            "subject": row.get::<_, &str>("subject"),
            "team": row.get::<_, Option<&str>>("team"),
            "role": row.get::<_, &str>("role"),
            "scopes": row.get::<_, Vec<&str>>("scopes"),
            "created_at": row.get::<_, Timestamp>("created_at"),
            "expires_at": row.get::<_, Timestamp>("expires_at"),
            "revoked_at": row.get::<_, Option<Timestamp>>("revoked_at"),
        })
    };
    Ok(rows.iter().map(key).collect())
}

pub(super) async fn revoke_key(client: &impl GenericClient, id: KeyId) -> anyhow::Result<()> {
    let sql = "-- gateway.revoke_key\n\
               UPDATE gateway.api_keys SET revoked_at = COALESCE(revoked_at, clock_timestamp())\n\
               WHERE id = $1";
    let revoked = client.execute(sql, &[&id.uuid()]).await?;
    ensure!(revoked == 1, "there is no key {id}");
    Ok(())
}

/// Says in words what the tables' constraints refuse.
fn explain(outcome: Result<u64, tokio_postgres::Error>, what: &str) -> anyhow::Result<u64> {
    match outcome.as_ref().err().and_then(|error| error.code()) {
        Some(state) if *state == SqlState::UNIQUE_VIOLATION => bail!("{what} exists already"),
        Some(state) if *state == SqlState::FOREIGN_KEY_VIOLATION => {
            bail!("{what}: what it refers to does not exist")
        }
        Some(state) if *state == SqlState::CHECK_VIOLATION => {
            bail!("{what}: a value is out of its range")
        }
        _ => outcome.with_context(|| format!("create {what}")),
    }
}
