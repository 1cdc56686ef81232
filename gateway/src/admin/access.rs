//! What operators change of tenants, plans and what is believed, one function a statement.

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use contracts::id::{Subject, TenantId};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, types::ToSql};

use super::{PlanChange, tables::explain};
use crate::{snapshot::Revocations, store};

/// Longest `jti` that can be revoked.
const JTI_MAX_BYTES: usize = 128;

/// What credentials can be revoked by, beside their own id.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kind {
    /// One token, by its `jti`.
    Jti,
    /// All tokens and keys of a subject of the tenant that `--tenant` names.
    Subject,
    /// All tokens and keys of a tenant.
    Tenant,
}

/// What is revoked, or is no longer.
#[derive(Args, Debug)]
pub(super) struct Named {
    /// By what.
    kind: Kind,
    /// Which one.
    value: String,
    /// The tenant of a subject: names are a tenant's own.
    #[arg(long, required_if_eq("kind", "subject"))]
    tenant: Option<TenantId>,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Jti => "jti",
            Self::Subject => "subject",
            Self::Tenant => "tenant",
        }
    }

    /// What is written down. A value that could never match would only look like a revocation.
    fn value(self, value: &str, tenant: Option<TenantId>) -> anyhow::Result<String> {
        ensure!(
            tenant.is_none() || matches!(self, Self::Subject),
            "only a subject is named with its tenant"
        );
        Ok(match self {
            Self::Jti => {
                ensure!(
                    (1..=JTI_MAX_BYTES).contains(&value.len()),
                    "a jti has 1 to {JTI_MAX_BYTES} bytes"
                );
                value.to_owned()
            }
            Self::Subject => {
                let tenant = tenant.context("name the subject's tenant too: --tenant")?;
                Revocations::subject_value(tenant, &value.parse::<Subject>()?)
            }
            Self::Tenant => value.parse::<TenantId>()?.to_string(),
        })
    }
}

pub(super) async fn revoke(
    client: &impl GenericClient,
    Named {
        kind,
        value,
        tenant,
    }: &Named,
) -> anyhow::Result<Value> {
    let written = kind.value(value, *tenant)?;
    let sql = "-- gateway.revoke\n\
               INSERT INTO gateway.revocations (kind, value) VALUES ($1, $2)\n\
               ON CONFLICT (kind, value) DO UPDATE SET created_at = EXCLUDED.created_at";
    client.execute(sql, &[&kind.as_str(), &written]).await?;
    Ok(json!({ "revoked": kind.as_str(), "value": written }))
}

pub(super) async fn restore(
    client: &impl GenericClient,
    Named {
        kind,
        value,
        tenant,
    }: &Named,
) -> anyhow::Result<Value> {
    let written = kind.value(value, *tenant)?;
    let sql = "-- gateway.restore\n\
               DELETE FROM gateway.revocations WHERE kind = $1 AND value = $2";
    let deleted = client.execute(sql, &[&kind.as_str(), &written]).await?;
    ensure!(deleted == 1, "{} {written} is not revoked", kind.as_str());
    Ok(json!({ "restored": kind.as_str(), "value": written }))
}

/// Makes every gateway read the issuer's keys now.
pub(super) async fn refresh_jwks(client: &impl GenericClient) -> anyhow::Result<Value> {
    let sql = "-- gateway.refresh_jwks\n\
               WITH told AS (SELECT pg_notify('gateway_changes', ''))\n\
               UPDATE gateway.changes\n    \
               SET version = version + 1, jwks_refreshes = jwks_refreshes + 1\n\
               FROM told";
    client.execute(sql, &[]).await?;
    Ok(json!({ "jwks": "refresh" }))
}

pub(super) async fn set_plan(
    client: &impl GenericClient,
    tenant: TenantId,
    plan: &str,
) -> anyhow::Result<Value> {
    let sql = "-- gateway.set_plan\nUPDATE gateway.tenants SET plan = $2 WHERE id = $1";
    let updated = client.execute(sql, &[&tenant.uuid(), &plan]).await;
    require_one(explain(updated, &format!("plan {plan}"))?, tenant)?;
    Ok(json!({ "tenant_id": tenant, "plan": plan }))
}

pub(super) async fn set_allowed(
    client: &impl GenericClient,
    tenant: TenantId,
    networks: &[IpNet],
) -> anyhow::Result<Value> {
    let sql = "-- gateway.set_allowed\nUPDATE gateway.tenants SET allowed = $2 WHERE id = $1";
    let allowed: Vec<String> = networks.iter().map(ToString::to_string).collect();
    let updated = client.execute(sql, &[&tenant.uuid(), &allowed]).await;
    require_one(explain(updated, "the list of networks")?, tenant)?;
    Ok(json!({ "tenant_id": tenant, "allowed": allowed }))
}

pub(super) async fn set_signed(
    client: &impl GenericClient,
    tenant: TenantId,
    signed: bool,
) -> anyhow::Result<Value> {
    // Without a key to sign with, the tenant would be locked out.
    let sql = "-- gateway.set_signed\n\
               UPDATE gateway.tenants SET signed = $2 WHERE id = $1 AND (NOT $2 OR EXISTS (\n    \
               SELECT FROM gateway.signing_keys WHERE tenant_id = $1\n    \
               AND (expires_at IS NULL OR expires_at > clock_timestamp())))";
    let updated = client.execute(sql, &[&tenant.uuid(), &signed]).await?;
    ensure!(
        updated == 1,
        "there is no tenant {tenant} with a signing key: create one first"
    );
    Ok(json!({ "tenant_id": tenant, "signed": signed }))
}

/// Changes what is given of a plan, for all its tenants.
pub(super) async fn update_plan(
    client: &impl GenericClient,
    change: &PlanChange,
) -> anyhow::Result<Value> {
    let sql = "-- gateway.update_plan\n\
               UPDATE gateway.plans SET per_minute = COALESCE($2, per_minute),\n    \
               burst = COALESCE($3, burst), per_hour = COALESCE($4, per_hour),\n    \
               active_jobs = COALESCE($5, active_jobs), priority = COALESCE($6, priority),\n    \
               monthly_cu = COALESCE($7, monthly_cu),\n    \
               buffer_percent = COALESCE($8, buffer_percent), overage = COALESCE($9, overage)\n\
               WHERE name = $1\n\
               RETURNING name, per_minute, burst, per_hour, monthly_cu, buffer_percent,\n    \
               overage, active_jobs, priority";
    let PlanChange {
        name,
        per_minute,
        burst,
        per_hour,
        active_jobs,
        priority,
        monthly_cu,
        soft_buffer,
        overage,
    } = change;
    let values: [&(dyn ToSql + Sync); 9] = [
        name,
        per_minute,
        burst,
        per_hour,
        active_jobs,
        priority,
        monthly_cu,
        soft_buffer,
        overage,
    ];
    let updated = client.query_opt(sql, &values).await;
    let row = explain(updated, &format!("plan {name}"))?;
    let row = row.with_context(|| format!("there is no plan {name}"))?;
    Ok(super::plan_json(&store::plan(&row)?))
}

fn require_one(updated: u64, tenant: TenantId) -> anyhow::Result<()> {
    ensure!(updated == 1, "there is no tenant {tenant}");
    Ok(())
}
