//! `gateway admin`: plans, tenants and API keys. Running gateways hear of every change at once.

use std::{io::Write as _, process::ExitCode, time::Duration};

use alloy::primitives::Address;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use contracts::{
    assertion::{Role, Scope},
    id::{KeyId, Subject, TenantId, UserId},
};
use ops::{clock::Clock, config::CommandOptions, postgres};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tracing::error;

use crate::{auth::api_key::Presented, snapshot::Plan, store};

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
    Key(KeyCommand),
}

#[derive(Debug, Subcommand)]
enum PlanCommand {
    /// Create a plan.
    Create(NewPlan),
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
    /// List tenants.
    List,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Create an API key; it is shown this once.
    Create(NewKey),
    /// List API keys, without secrets.
    List {
        /// Only this tenant's.
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Revoke an API key, at once and for ever.
    Revoke {
        /// Which one.
        id: KeyId,
    },
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

#[derive(Args, Debug)]
struct NewKey {
    /// Whose key it is.
    #[arg(long)]
    tenant: TenantId,
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

/// Does what the command line says and prints the outcome; an order that is refused ends with exit
/// code 1.
///
/// # Errors
/// When the database is not as it must be.
pub async fn run(options: AdminOptions, clock: &Clock) -> anyhow::Result<ExitCode> {
    let database = &options.command.database;
    let pool = postgres::open(database, store::SCHEMA, &store::migrations()).await?;
    let client = pool.get().await.context("connect to Postgres")?;
    match carry_out(&**client, options.action, clock).await {
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
    action: Action,
    clock: &Clock,
) -> anyhow::Result<Value> {
    Ok(match action {
        Action::Plan(PlanCommand::Create(plan)) => {
            tables::insert_plan(client, &plan).await?;
            json!({ "plan": plan.name })
        }
        Action::Plan(PlanCommand::List) => tables::list_plans(client).await?,
        Action::Tenant(TenantCommand::Create {
            name,
            plan,
            unique_content,
        }) => {
            let id = TenantId::generate(clock.now());
            tables::insert_tenant(client, id, &name, &plan, unique_content).await?;
            json!({ "tenant_id": id })
        }
        Action::Tenant(TenantCommand::List) => tables::list_tenants(client).await?,
        Action::Key(KeyCommand::Create(key)) => create_key(client, key, clock).await?,
        Action::Key(KeyCommand::List { tenant }) => tables::list_keys(client, tenant).await?,
        Action::Key(KeyCommand::Revoke { id }) => {
            tables::revoke_key(client, id).await?;
            json!({ "revoked": id })
        }
    })
}

async fn create_key(
    client: &impl tokio_postgres::GenericClient,
    new: NewKey,
    clock: &Clock,
) -> anyhow::Result<Value> {
    let now = clock.now();
    let key = Presented::generate(KeyId::generate(now));
    let subject = match new.subject {
        Some(subject) => subject,
        None => UserId::generate(now).to_string().parse()?,
    };
    let expires_at = now
        .checked_add(new.expires_in)
        .context("--expires-in is too long")?;
    let row = tables::KeyRow {
        id: key.id,
        tenant: new.tenant,
        subject: &subject,
        team: new.team.as_ref(),
        submitter: new.submitter,
        role: new.role,
        scopes: &new.scopes,
        secret_hash: key.secret_hash(),
        expires_at,
    };
    tables::insert_key(client, &row).await?;
    Ok(json!({
        "key": key.text().expose_secret(),
        "key_id": key.id,
        "tenant_id": new.tenant,
        "subject": subject,
        "expires_at": expires_at,
    }))
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
