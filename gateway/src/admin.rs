//! `gateway admin`: plans, tenants, credentials and what is revoked. Running gateways hear of every
//! change at once.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use contracts::id::TenantId;
use ops::{clock::Clock, config::CommandOptions, postgres};
use serde_json::{Value, json};
use tracing::error;

use crate::{config::Networks, keys::Keys, snapshot::Plan, store};

mod access;
mod keys;
mod rollout;
mod route;
mod signing;
mod tables;

/// Where, what, and how to say it.
#[derive(Args, Debug)]
pub struct AdminOptions {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub command: CommandOptions,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// What tenants may use.
    #[command(subcommand)]
    Plan(PlanCommand),
    /// Who pays.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Their credentials.
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// What they sign their requests with.
    #[command(subcommand)]
    SigningKey(signing::SigningKeyCommand),
    /// Stop believing tokens and keys, by token, subject or tenant.
    Revoke(access::Named),
    /// Undo a `revoke`.
    Restore(access::Named),
    /// The issuer's keys.
    #[command(subcommand)]
    Jwks(JwksCommand),
    /// Versions of upstreams on their way in.
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// What is said about routes: deprecation, end, deadline.
    #[command(subcommand)]
    Route(route::RouteCommand),
}

#[derive(Debug, Subcommand)]
enum PlanCommand {
    /// Create a plan.
    Create(NewPlan),
    /// Change a plan, and so what all its tenants may use.
    Update(PlanChange),
    /// List plans.
    List,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Create a tenant.
    Create {
        /// What people call it.
        name: String,
        /// Its plan.
        #[arg(long, default_value = "default")]
        plan: String,
        /// Refuse a second job with the same content within a day, naming the first.
        #[arg(long)]
        unique_content: bool,
    },
    /// Give a tenant another plan.
    SetPlan {
        /// Which tenant.
        tenant: TenantId,
        /// Its plan from now on.
        plan: String,
    },
    /// Say from which networks a tenant's requests may come.
    Allow {
        /// Which tenant.
        tenant: TenantId,
        /// The networks, such as 192.0.2.0/24 or `2001:db8::/32`.
        #[arg(required_unless_present = "anywhere", value_name = "CIDR,…")]
        networks: Option<Networks>,
        /// From anywhere again.
        #[arg(long, conflicts_with = "networks")]
        anywhere: bool,
    },
    /// Require that a tenant's requests are signed (RFC 9421). Give it a signing key first.
    RequireSignatures {
        /// Which tenant.
        tenant: TenantId,
        /// Require it no longer.
        #[arg(long)]
        off: bool,
    },
    /// List tenants.
    List,
}

#[derive(Debug, Subcommand)]
enum JwksCommand {
    /// Make every gateway read the issuer's keys now.
    Refresh,
}

#[derive(Args, Debug)]
struct NewPlan {
    /// Its name: lower-case letters, digits, `-` and `_`.
    name: String,
    /// Requests a minute, sustained.
    #[arg(long, default_value_t = 100)]
    per_minute: i32,
    /// Requests at once on top of that.
    #[arg(long, default_value_t = 20)]
    burst: i32,
    /// Requests an hour.
    #[arg(long, default_value_t = 10_000)]
    per_hour: i32,
    /// Compute units a month (1,024 bytes of payload each); without it they are not bounded.
    #[arg(long)]
    monthly_cu: Option<i64>,
    /// How many percent beyond them are let through before submissions are refused.
    #[arg(long, default_value_t = 10, value_name = "PERCENT")]
    soft_buffer: i16,
    /// Let submissions go on beyond that too; they are billed.
    #[arg(long)]
    overage: bool,
    /// Unfinished jobs.
    #[arg(long, default_value_t = 100)]
    active_jobs: i32,
    /// How early its jobs' turn comes, 1 to 9.
    #[arg(long, default_value_t = 5)]
    priority: i16,
}

/// What is not given stays.
#[derive(Args, Debug)]
struct PlanChange {
    /// Which plan.
    name: String,
    /// Requests a minute, sustained.
    #[arg(long)]
    per_minute: Option<i32>,
    /// Requests at once on top of that.
    #[arg(long)]
    burst: Option<i32>,
    /// Requests an hour.
    #[arg(long)]
    per_hour: Option<i32>,
    /// Unfinished jobs.
    #[arg(long)]
    active_jobs: Option<i32>,
    /// How early its jobs' turn comes, 1 to 9.
    #[arg(long)]
    priority: Option<i16>,
    /// Compute units a month.
    #[arg(long)]
    monthly_cu: Option<i64>,
    /// How many percent beyond them are let through.
    #[arg(long, value_name = "PERCENT")]
    soft_buffer: Option<i16>,
    /// Whether submissions go on beyond that too.
    #[arg(long)]
    overage: Option<bool>,
}

/// Does what the command line says and prints the outcome; an order that is refused ends with exit
/// code 1.
///
/// # Errors
/// When the database is not as it must be.
pub async fn run(options: AdminOptions, clock: &Clock) -> anyhow::Result<ExitCode> {
    let database = &options.command.database;
    let pool = postgres::open(database, store::SCHEMA, &store::migrations()).await?;
    let client = pool.get().await.context("connect to Postgres")?;
    let keys = Keys::new(pool.clone(), clock.clone());
    match carry_out(&**client, &keys, options.action, clock).await {
        Ok(outcome) => {
            print(&outcome, options.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(cause) => {
            error!(error = format!("{cause:#}"), "refused");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn carry_out(
    client: &impl tokio_postgres::GenericClient,
    keys: &Keys,
    action: Action,
    clock: &Clock,
) -> anyhow::Result<Value> {
    Ok(match action {
        Action::Plan(PlanCommand::Create(plan)) => {
            tables::insert_plan(client, &plan).await?;
            json!({ "plan": plan.name })
        }
        Action::Plan(PlanCommand::Update(change)) => access::update_plan(client, &change).await?,
        Action::Plan(PlanCommand::List) => tables::list_plans(client).await?,
        Action::Tenant(command) => of_tenant(client, command, clock).await?,
        Action::Key(command) => keys::carry_out(keys, command, clock).await?,
        Action::SigningKey(command) => signing::carry_out(client, command, clock).await?,
        Action::Revoke(named) => access::revoke(client, &named).await?,
        Action::Restore(named) => access::restore(client, &named).await?,
        Action::Jwks(JwksCommand::Refresh) => access::refresh_jwks(client).await?,
        Action::Rollout(command) => rollout::carry_out(client, command, clock).await?,
        Action::Route(command) => route::carry_out(client, command, clock).await?,
    })
}

async fn of_tenant(
    client: &impl tokio_postgres::GenericClient,
    command: TenantCommand,
    clock: &Clock,
) -> anyhow::Result<Value> {
    match command {
        TenantCommand::Create {
            name,
            plan,
            unique_content,
        } => {
            let id = TenantId::generate(clock.now());
            tables::insert_tenant(client, id, &name, &plan, unique_content).await?;
            Ok(json!({ "tenant_id": id }))
        }
        TenantCommand::SetPlan { tenant, plan } => access::set_plan(client, tenant, &plan).await,
        TenantCommand::Allow {
            tenant, networks, ..
        } => access::set_allowed(client, tenant, &networks.unwrap_or_default().0).await,
        TenantCommand::RequireSignatures { tenant, off } => {
            access::set_signed(client, tenant, !off).await
        }
        TenantCommand::List => tables::list_tenants(client).await,
    }
}

/// JSON as it is, or a line a member and a paragraph a row.
fn print(outcome: &Value, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{outcome}")?;
        return Ok(());
    }
    let rows = match outcome {
        Value::Array(rows) => rows.as_slice(),
        one => std::slice::from_ref(one),
    };
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        for (name, value) in row.as_object().into_iter().flatten() {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            writeln!(out, "{name:<12} {value}")?;
        }
    }
    Ok(())
}

/// A plan as it is listed.
fn plan_json(plan: &Plan) -> Value {
    json!({
        "plan": plan.name,
        "per_minute": plan.per_minute,
        "burst": plan.burst,
        "per_hour": plan.per_hour,
        "monthly_cu": plan.quota.map(|quota| quota.units),
        "soft_buffer": plan.quota.map(|quota| quota.buffer_percent),
        "overage": plan.quota.map(|quota| quota.overage),
        "active_jobs": plan.active_jobs,
        "priority": plan.priority,
    })
}
