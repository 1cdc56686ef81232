//! Postgres: the pool, schema versions, and the retry of what Postgres itself asks to retry.
//!
//! Each service owns one schema. Its migrations are `V10__…` and up; `V1` to `V9` are the tables of
//! the four mechanisms, made in that schema by [`mechanisms`]. `migrate` is a command of its own:
//! every other command refuses a schema version that it does not know.

use std::time::Duration;

use anyhow::Context as _;
use backon::{ExponentialBuilder, Retryable};
use deadpool_postgres::{Manager, ManagerConfig, Object, RecyclingMethod, Runtime};
use refinery::Runner;
use secrecy::ExposeSecret;
use tokio::time::error::Elapsed;
use tokio_postgres::{Config, NoTls};

use crate::config::{BadConfig, DatabaseOptions};

pub use deadpool_postgres::Pool;
pub use errors::{explain, is_conflict, is_outage, sql_state};
pub use refinery::Migration;

mod errors;

/// How long a caller waits for a free connection, or for a new one to open.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(5);
/// A statement that runs longer than this is ended by the server.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);
/// Packets that nobody acknowledges for this long break the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// A connection that is silent this long is probed, so often, and then given up.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// Deadlocks and serialization failures are tried again this often.
const CONFLICT_RETRIES: usize = 5;

const MECHANISMS: &str = include_str!("mechanisms.sql");

/// Opens the pool of one process; connections are made when first needed.
///
/// # Errors
/// When the URL cannot be parsed; it is not repeated, since it holds a password.
pub fn connect(options: &DatabaseOptions, application: &str) -> Result<Pool, BadConfig> {
    let url = options.database_url.expose_secret();
    let mut config: Config = url
        .parse()
        .context("DATABASE_URL is not of the form postgres://user:password@host:port/database")?;
    config
        .application_name(application)
        .connect_timeout(CONNECTION_DEADLINE)
        .tcp_user_timeout(UNACKNOWLEDGED)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_EVERY)
        .keepalives_retries(KEEPALIVE_PROBES)
        .options(format!(
            "-c statement_timeout={}",
            STATEMENT_DEADLINE.as_millis()
        ));
    // A connection that hangs looks open, and would hang whoever got it next: each is asked first.
    let recycling = ManagerConfig {
        recycling_method: RecyclingMethod::Verified,
    };
    let pool = Pool::builder(Manager::from_config(config, NoTls, recycling))
        .max_size(options.database_connections)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECTION_DEADLINE))
        .create_timeout(Some(CONNECTION_DEADLINE))
        .recycle_timeout(Some(CONNECTION_DEADLINE))
        .build()
        .context("set up the connection pool")?;
    Ok(pool)
}

/// Opens the pool of one process on its service's schema, which must be at the newest version in
/// `all`.
///
/// # Errors
/// As [`connect`] and [`require_schema`] say.
pub async fn open(
    options: &DatabaseOptions,
    schema: &str,
    all: &[Migration],
) -> anyhow::Result<Pool> {
    let pool = connect(options, schema)?;
    require_schema(&pool, schema, all).await?;
    Ok(pool)
}

/// Whether the database answers.
///
/// # Errors
/// When it does not.
pub async fn ping(pool: &Pool) -> anyhow::Result<()> {
    let client = pool.get().await?;
    client.simple_query("-- ops.ping\nSELECT 1").await?;
    Ok(())
}

/// Ends what was done on `client` within a deadline. Where the deadline came first, the connection
/// is closed rather than given back: what it still waits for would hold up whoever got it next.
/// Only this helps against a server that hangs while its machine still acknowledges packets.
///
/// # Errors
/// The work's own, or that it did not end in time.
pub fn settle<T>(client: Object, outcome: Result<anyhow::Result<T>, Elapsed>) -> anyhow::Result<T> {
    outcome.unwrap_or_else(|_| {
        drop(Object::take(client));
        Err(anyhow::anyhow!(
            "Postgres did not answer in time: the connection is given up"
        ))
    })
}

/// The migrations that make the tables of outbox, inbox, lease and idempotency record in `schema`.
#[must_use]
pub fn mechanisms(schema: &'static str) -> Vec<Migration> {
    let sql = MECHANISMS.replace("{schema}", schema);
    vec![Migration::unapplied("V1__mechanisms", &sql).expect("the name is well-formed")]
}

/// All migrations of a service: the mechanisms' and its own, by `(name, sql)`, such as
/// `("V10__jobs", include_str!("../migrations/V10__jobs.sql"))`.
#[must_use]
pub fn migrations(schema: &'static str, own: &[(&str, &str)]) -> Vec<Migration> {
    let own = own.iter().map(|(name, sql)| {
        Migration::unapplied(name, sql).expect("a migration is named V<number>__<name>")
    });
    mechanisms(schema).into_iter().chain(own).collect()
}

/// Brings `schema` up to date. Two processes that migrate at once take turns.
///
/// # Errors
/// When the database cannot be reached, or a migration that ran before has changed since.
pub async fn migrate(pool: &Pool, schema: &str, all: &[Migration]) -> anyhow::Result<()> {
    let mut client = pool.get().await.context("connect to Postgres")?;
    // A migration, and the wait for another process's, may take longer than a statement may.
    let patience = "-- ops.migrate_patience\nSET statement_timeout = 0";
    client.batch_execute(patience).await?;
    // Held by the session, not the transaction: refinery runs its own transactions inside.
    let turn = "-- ops.migrate_turn\nSELECT pg_advisory_lock(hashtextextended($1, 0))";
    client
        .query_one(turn, &[&format!("migrate {schema}")])
        .await?;
    client
        .batch_execute(&format!(
            "-- ops.create_schema\nCREATE SCHEMA IF NOT EXISTS {schema}"
        ))
        .await?;
    let outcome = runner(schema, all).run_async(&mut **client).await;
    // Closing the session gives the turn to the next one, whatever happened above.
    drop(Object::take(client));
    outcome
        .map(|_| ())
        .with_context(|| format!("migrate schema {schema}"))
}

/// Refuses to run on a schema version other than the newest one in `all`.
///
/// # Errors
/// When the schema is missing, older or newer; the message says what to do.
pub async fn require_schema(pool: &Pool, schema: &str, all: &[Migration]) -> anyhow::Result<()> {
    let wanted = all.iter().map(Migration::version).max().unwrap_or_default();
    let mut client = pool.get().await.context("connect to Postgres")?;
    let found = runner(schema, all)
        .get_last_applied_migration_async(&mut **client)
        .await
        .ok()
        .flatten()
        .map(|migration| migration.version());
    match found {
        Some(version) if version == wanted => Ok(()),
        Some(version) if version > wanted => anyhow::bail!(
            "schema {schema} is at version {version}, newer than this program's {wanted}: \
             run the matching release"
        ),
        other => anyhow::bail!(
            "schema {schema} is at version {}, this program needs {wanted}: run `migrate` first",
            other.map_or("none".to_owned(), |version| version.to_string())
        ),
    }
}

/// Runs a whole named transaction again when Postgres ended it for a deadlock or a serialization
/// conflict. The operation must begin and commit its own transaction, and be repeatable.
///
/// # Errors
/// The operation's own, once it is not a conflict or the retries are used up.
pub async fn retrying<T, E, F, Fut>(name: &'static str, operation: F) -> Result<T, E>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
    E: std::error::Error + 'static,
{
    let backoff = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_millis(200))
        .with_max_times(CONFLICT_RETRIES)
        .with_jitter();
    operation
        .retry(backoff)
        .when(|error: &E| is_conflict(error))
        .notify(|error, after| {
            tracing::debug!(transaction = name, %error, ?after, "conflict: trying again");
        })
        .await
}

fn runner(schema: &str, all: &[Migration]) -> Runner {
    let mut runner = Runner::new(all).set_abort_divergent(true);
    runner.set_migration_table_name(format!("{schema}.schema_history"));
    runner
}
