//! The gateway's tables in Postgres, one function a statement, and the loop that keeps the snapshot
//! true: told by NOTIFY, looking once a second anyway.

use std::{
    collections::HashMap,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use contracts::id::{KeyId, Subject, TenantId};
use futures::{StreamExt as _, stream::poll_fn};
use ops::config::{DatabaseOptions, Key32};
use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, GenericClient, IsolationLevel, NoTls, Row};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(crate) mod prune;
pub(crate) mod traffic;

use crate::{
    auth::stated::Ready,
    keys::uses::LastUse,
    limit::quota::Quota,
    sight::PlanLabel,
    signature::{self, Signing},
    snapshot::{ApiKey, Identity, Plan, Revocations, Snapshot, Snapshots, Tenant},
};

/// The schema that is ours.
pub const SCHEMA: &str = "gateway";

const CHANNEL: &str = "gateway_changes";
/// How often Postgres is asked whether anything changed, were a notification lost.
const POLL: Duration = Duration::from_secs(1);
/// How long one look may take before the connection is given up.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);
/// Pause before a lost connection is made anew.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// The migrations of our schema.
#[must_use]
pub fn migrations() -> Vec<ops::postgres::Migration> {
    let own = [(
        "V10__gateway",
        include_str!("../migrations/V10__gateway.sql"),
    )];
    ops::postgres::migrations(SCHEMA, &own)
}

/// Keeps `snapshots` true until the process stops. Outages only make it age.
///
/// # Errors
/// Never by itself.
pub async fn follow(
    options: DatabaseOptions,
    sealing: Option<Key32>,
    snapshots: Arc<Snapshots>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => break,
            ended = follow_once(&options, sealing.as_ref(), &snapshots) => {
                let error = format!("{:#}", ended.expect_err("only ends by an error"));
                warn!(error, "the snapshot is not being kept true: connecting again");
            }
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
    Ok(())
}

/// One connection's worth of [`follow`].
async fn follow_once(
    options: &DatabaseOptions,
    sealing: Option<&Key32>,
    snapshots: &Snapshots,
) -> anyhow::Result<std::convert::Infallible> {
    let mut config = tokio_postgres::Config::from_str(options.database_url.expose_secret())
        .context("DATABASE_URL is not of the form postgres://user:password@host:port/database")?;
    config
        .application_name("gateway snapshot")
        .connect_timeout(LOOK_DEADLINE);
    let (mut client, mut connection) = config.connect(NoTls).await.context("connect")?;
    let (told, mut changes) = mpsc::channel(1);
    let drive = async move {
        let mut messages = poll_fn(|context| connection.poll_message(context));
        while let Some(message) = messages.next().await {
            if let AsyncMessage::Notification(_) = message.context("connection")? {
                // One waiting notice is enough: the look that follows sees everything.
                told.try_send(()).ok();
            }
        }
        Err(anyhow!("the connection was closed"))
    };
    let look = async {
        client
            .batch_execute(&format!("-- gateway.listen\nLISTEN {CHANNEL}"))
            .await?;
        loop {
            tokio::time::timeout(LOOK_DEADLINE, refresh(&mut client, sealing, snapshots))
                .await
                .context("Postgres does not answer")??;
            tokio::time::timeout(POLL, changes.recv()).await.ok();
        }
    };
    tokio::select! {
        ended = drive => ended,
        ended = look => ended,
    }
}

/// Looks once whether anything changed, and loads everything if so.
async fn refresh(
    client: &mut Client,
    sealing: Option<&Key32>,
    snapshots: &Snapshots,
) -> anyhow::Result<()> {
    // Taken before asking: what is read is at least as new as this moment.
    let now = Instant::now();
    let known = snapshots.age(now).map(|_| snapshots.load().version);
    if known == Some(version(client).await?.0) {
        snapshots.confirm(now);
        return Ok(());
    }
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let snapshot = load(&transaction, sealing).await?;
    transaction.commit().await?;
    info!(
        snapshot.version = snapshot.version,
        tenants = snapshot.tenants.len(),
        keys = snapshot.keys.len(),
        "snapshot loaded"
    );
    snapshots.swap(snapshot, now);
    Ok(())
}

/// The number of changes, and of orders to read the issuer's keys again.
async fn version(client: &impl GenericClient) -> Result<(i64, i64), tokio_postgres::Error> {
    let sql = "-- gateway.version\nSELECT version, jwks_refreshes FROM gateway.changes";
    let row = client.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

async fn load(client: &impl GenericClient, sealing: Option<&Key32>) -> anyhow::Result<Snapshot> {
    let plans = plans(client).await?;
    let mut signing = signature::rows::load(client, sealing).await?;
    let mut tenants = HashMap::new();
    for row in tenant_rows(client).await? {
        let plan = plans
            .get(row.get::<_, &str>("plan"))
            .context("a tenant has a plan")?;
        match tenant(&row, plan, &mut signing) {
            Ok(tenant) => drop(tenants.insert(tenant.id, Arc::new(tenant))),
            Err(error) => warn!(error = format!("{error:#}"), "a tenant is unreadable"),
        }
    }
    let mut keys = HashMap::new();
    for row in key_rows(client).await? {
        // A key that cannot be read must not take all others with it.
        match key(&row) {
            Ok(key) => drop(keys.insert(key.id, Arc::new(key))),
            Err(error) => warn!(error = format!("{error:#}"), "an API key is unreadable"),
        }
    }
    let (version, jwks_refreshes) = version(client).await?;
    let revoked = revocations(client).await?;
    Ok(Snapshot {
        version,
        tenants,
        keys,
        revoked,
        rollouts: traffic::rollouts(client).await?,
        rules: traffic::rules(client).await?,
        jwks_refreshes,
    })
}

async fn plans(client: &impl GenericClient) -> anyhow::Result<HashMap<String, Arc<Plan>>> {
    let sql = "-- gateway.plans\n\
               SELECT name, per_minute, burst, per_hour, monthly_cu, buffer_percent, overage,\n    \
               active_jobs, priority\n\
               FROM gateway.plans";
    let rows = client.query(sql, &[]).await?;
    let named = rows.iter().map(|row| {
        let plan = plan(row)?;
        anyhow::Ok((plan.name.clone(), Arc::new(plan)))
    });
    named.collect()
}

/// The plan that a row with all its columns is.
pub(crate) fn plan(row: &Row) -> anyhow::Result<Plan> {
    let count = |column: &str| u32::try_from(row.get::<_, i32>(column));
    let units: Option<i64> = row.get("monthly_cu");
    let quota = units.map(|units| {
        anyhow::Ok(Quota {
            units: units.try_into()?,
            buffer_percent: row.get::<_, i16>("buffer_percent").try_into()?,
            overage: row.get("overage"),
        })
    });
    let name: String = row.get("name");
    Ok(Plan {
        quota: quota.transpose()?,
        label: PlanLabel::of(&name),
        name,
        per_minute: count("per_minute")?,
        burst: count("burst")?,
        per_hour: count("per_hour")?,
        active_jobs: count("active_jobs")?,
        priority: u8::try_from(row.get::<_, i16>("priority"))?,
    })
}

fn tenant(
    row: &Row,
    plan: &Arc<Plan>,
    signing: &mut HashMap<TenantId, Signing>,
) -> anyhow::Result<Tenant> {
    let id = TenantId::from_uuid(row.get("id"));
    let allowed = row.get::<_, Vec<&str>>("allowed").into_iter();
    let allowed: Result<_, _> = allowed.map(str::parse).collect();
    Ok(Tenant {
        id,
        plan: Arc::clone(plan),
        unique_content: row.get("unique_content"),
        allowed: allowed.with_context(|| format!("the networks of {id}"))?,
        signing: row
            .get::<_, bool>("signed")
            .then(|| signing.remove(&id).unwrap_or_default()),
    })
}

async fn tenant_rows(client: &impl GenericClient) -> Result<Vec<Row>, tokio_postgres::Error> {
    let sql = "-- gateway.tenants\n\
               SELECT id, plan, unique_content, allowed, signed FROM gateway.tenants";
    client.query(sql, &[]).await
}

async fn key_rows(client: &impl GenericClient) -> Result<Vec<Row>, tokio_postgres::Error> {
    let sql = "-- gateway.keys\n\
               SELECT id, tenant_id, subject, team, submitter, role, scopes, secret_hash,\n    \
               expires_at\n\
               FROM gateway.api_keys\n\
               WHERE revoked_at IS NULL AND expires_at > clock_timestamp()";
    client.query(sql, &[]).await
}

fn key(row: &Row) -> anyhow::Result<ApiKey> {
    let id = KeyId::from_uuid(row.get("id"));
    let optional = |column| row.get::<_, Option<&str>>(column);
    let read = || {
        let identity = Identity {
            tenant: TenantId::from_uuid(row.get("tenant_id")),
            subject: row.get::<_, &str>("subject").parse()?,
            team: optional("team").map(Subject::from_str).transpose()?,
            submitter: optional("submitter").map(str::parse).transpose()?,
            role: row.get::<_, &str>("role").parse()?,
            scopes: row
                .get::<_, Vec<&str>>("scopes")
                .into_iter()
                .map(str::parse)
                .collect::<Result<_, _>>()?,
        };
        anyhow::Ok(ApiKey {
            id,
            identity,
            secret_hash: row.get::<_, &[u8]>("secret_hash").try_into()?,
            expires_at: row.get("expires_at"),
            last_use: LastUse::default(),
            ready: Ready::default(),
        })
    };
    read().with_context(|| id.to_string())
}

async fn revocations(client: &impl GenericClient) -> anyhow::Result<Revocations> {
    let sql = "-- gateway.revocations\nSELECT kind, value FROM gateway.revocations";
    let mut revoked = Revocations::default();
    for row in client.query(sql, &[]).await? {
        let value: &str = row.get("value");
        match row.get::<_, &str>("kind") {
            "jti" => drop(revoked.tokens.insert(value.to_owned())),
            "subject" => {
                if let Some((tenant, subject)) = Revocations::subject_of(value) {
                    let subjects = revoked.subjects.entry(tenant).or_default();
                    subjects.insert(subject.to_owned());
                } else {
                    // There can be no such tenant.
                    warn!(value, "a revoked subject is unreadable");
                }
            }
            _ => drop(revoked.tenants.insert(value.to_owned())),
        }
    }
    Ok(revoked)
}
