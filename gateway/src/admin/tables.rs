//! What `gateway admin` reads and writes, one function a statement.

use anyhow::{Context as _, bail};
use contracts::id::TenantId;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Row, error::SqlState, types::ToSql};

use crate::{admin::NewPlan, store};

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
               SELECT id, name, plan, unique_content, allowed, signed, created_at\n\
               FROM gateway.tenants ORDER BY id";
    let rows = client.query(sql, &[]).await?;
    let tenant = |row: &Row| {
        json!({
            "tenant_id": TenantId::from_uuid(row.get("id")),
            "name": row.get::<_, &str>("name"),
            "plan": row.get::<_, &str>("plan"),
            "unique_content": row.get::<_, bool>("unique_content"),
            "allowed": row.get::<_, Vec<&str>>("allowed"),
            "signed": row.get::<_, bool>("signed"),
            "created_at": row.get::<_, Timestamp>("created_at"),
        })
    };
    Ok(rows.iter().map(tenant).collect())
}

/// Says in words what the tables' constraints refuse.
pub(super) fn explain<T>(
    outcome: Result<T, tokio_postgres::Error>,
    what: &str,
) -> anyhow::Result<T> {
    match outcome.as_ref().err().and_then(|error| error.code()) {
        Some(state) if *state == SqlState::UNIQUE_VIOLATION => bail!("{what} exists already"),
        Some(state) if *state == SqlState::FOREIGN_KEY_VIOLATION => {
            bail!("{what}: what it refers to does not exist")
        }
        Some(state) if *state == SqlState::CHECK_VIOLATION => {
            bail!("{what}: a value is out of its range")
        }
        _ => outcome.with_context(|| format!("write {what}")),
    }
}
