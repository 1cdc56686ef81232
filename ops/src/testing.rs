//! For tests only: databases, prefixes and processes of their own on the real services that the
//! environment names (`ops/test` starts them), and waiting with a deadline.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    process::{self, Child, Command, ExitStatus},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool_postgres::GenericClient;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_postgres::{NoTls, types::FromSqlOwned};
use uuid::Uuid;

use crate::{
    config::{DatabaseOptions, KafkaOptions},
    postgres::{Migration, Pool, migrate},
};

pub mod broker;
pub mod records;

/// Ports for processes of tests: below those that the kernel gives to whoever asks for any, which
/// could be taken before the process is there; and above those of `ops/up`.
const PORTS: Range<u16> = 20_000..32_000;

/// A Postgres database that is created for one test and dropped with it.
#[derive(Debug)]
pub struct TestDatabase {
    server: String,
    name: String,
    url: SecretString,
}

/// A child process that is killed when the test ends.
#[derive(Debug)]
pub struct TestProcess(Child);

/// A variable that names a real service.
///
/// # Panics
/// When it is not set: the tests need the real part.
#[must_use]
pub fn service(variable: &str) -> String {
    let named = env::var(variable).ok();
    assert!(
        named.is_some(),
        "{variable} is not set: ./ops/test starts the services and sets it"
    );
    named.unwrap_or_default()
}

/// Kafka as the environment names it, under a topic prefix of its own.
#[must_use]
pub fn kafka() -> KafkaOptions {
    KafkaOptions {
        kafka_brokers: service("KAFKA_BROKERS"),
        topic_prefix: prefix("t") + ".",
    }
}

/// A name that no other test has.
#[must_use]
pub fn prefix(kind: &str) -> String {
    format!("{kind}_{}", Uuid::now_v7().simple())
}

/// A free address, for a process that others must find. No other test is given it while this test's
/// process lives, which holds a lock on a file of the port's name.
///
/// # Panics
/// When none is free.
#[must_use]
pub fn free_address() -> SocketAddr {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // A folder of each user's own: others could not lock its files.
    let user = env::var("USER").unwrap_or_default();
    let folder = env::temp_dir().join(format!("jobseal-test-ports-{user}"));
    fs::create_dir_all(&folder).expect("the folder for temporary files takes another");
    let count = PORTS.end - PORTS.start;
    // Test processes begin at different places, so that they seldom meet.
    let first = u16::try_from(process::id().wrapping_mul(61) % u32::from(count))
        .expect("it is less than the count");
    let free = (0..count).find_map(|_| {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + (first + step % count) % count;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let lock = File::create(folder.join(port.to_string())).ok()?;
        lock.try_lock().ok()?;
        TcpListener::bind(address).ok()?;
        Some((address, lock))
    });
    let (address, lock) = free.expect("loopback has a free port");
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.push(lock);
    address
}

/// The status that a process answers a GET with, or `None` while it does not answer.
pub async fn status(address: SocketAddr, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// Waits until the process behind an admin address can do its work.
///
/// # Panics
/// When `deadline` passes first.
pub async fn until_ready(admin: SocketAddr, deadline: Duration) {
    let ready = async || (status(admin, "/readyz").await == Some(200)).then_some(());
    eventually("the process is ready", deadline, ready).await;
}

/// The one value that a query gives.
///
/// # Panics
/// When it gives something else.
pub async fn value<T: FromSqlOwned>(pool: &Pool, sql: &str) -> T {
    let client = pool.get().await.expect("Postgres answers");
    let row = client.query_one(sql, &[]).await;
    row.expect("the query gives one row").get(0)
}

/// Rows of a table, and entries of its indexes, that the session of `client` has read. Unlike a
/// plan or a time, it says how the work grows with the table.
///
/// # Panics
/// When Postgres does not say.
pub async fn examined(client: &impl GenericClient, table: &str) -> i64 {
    let sql = "SELECT sum(pg_stat_get_xact_tuples_returned(oid)
        + pg_stat_get_xact_tuples_fetched(oid))::bigint FROM pg_class
        WHERE oid = $1::text::regclass OR oid IN
        (SELECT indexrelid FROM pg_index WHERE indrelid = $1::text::regclass)";
    let row = client.query_one(sql, &[&table]).await;
    row.expect("Postgres counts what it reads").get(0)
}

/// Waits until `condition` gives something.
///
/// # Panics
/// When `deadline` passes first; `what` is named.
pub async fn eventually<T, Fut>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Fut,
) -> T
where
    Fut: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(
            started.elapsed() < deadline,
            "{what}: not within {deadline:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl TestDatabase {
    /// Creates an empty database on the server of `DATABASE_URL`.
    ///
    /// # Panics
    /// When it cannot be created.
    pub async fn create() -> Self {
        let server = service("DATABASE_URL");
        let name = prefix("test");
        execute(&server, &format!("CREATE DATABASE {name}"))
            .await
            .expect("create the database");
        let (base, query) = match server.split_once('?') {
            Some((base, query)) => (base, format!("?{query}")),
            None => (server.as_str(), String::new()),
        };
        let (host, _) = base
            .rsplit_once('/')
            .expect("DATABASE_URL names a database");
        let url = SecretString::from(format!("{host}/{name}{query}"));
        Self { server, name, url }
    }

    /// A database with the schema that `all` make, and a pool on it.
    ///
    /// # Panics
    /// When it cannot be created.
    pub async fn with_schema(schema: &str, all: &[Migration]) -> (Self, Pool) {
        let database = Self::create().await;
        let pool = database.pool();
        let migrated = migrate(&pool, schema, all).await;
        migrated.expect("the schema can be made from nothing");
        (database, pool)
    }

    /// The database's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.expose_secret()
    }

    /// The database as configuration.
    #[must_use]
    pub fn options(&self) -> DatabaseOptions {
        DatabaseOptions {
            database_url: self.url.clone(),
            database_connections: 8,
        }
    }

    /// A pool on the database.
    ///
    /// # Panics
    /// When the URL is not one.
    #[must_use]
    pub fn pool(&self) -> Pool {
        crate::postgres::connect(&self.options(), "test").expect("the URL was used before")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (server, sql) = (
            self.server.clone(),
            format!("DROP DATABASE {} WITH (FORCE)", self.name),
        );
        // Drop cannot await, and the test's runtime may be gone: a thread with its own does it.
        let dropped = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map(|runtime| runtime.block_on(execute(&server, &sql)))
        });
        dropped.join().ok();
    }
}

async fn execute(url: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let work = async { client.batch_execute(sql).await };
    tokio::select! {
        outcome = work => outcome,
        outcome = connection => outcome,
    }
}

impl TestProcess {
    /// Starts `command`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("the program can be started"))
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        self.0.kill().expect("the process is ours");
        self.0.wait().expect("the process is ours");
    }

    /// How it ended, once it has by itself.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("the process is ours")
    }

    /// SIGTERM. A second one would end it at once.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn stop(&self) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill is there").success());
    }

    /// Its exit code, within `deadline`.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn exit_code(&mut self, deadline: Duration) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status.code();
            }
            assert!(
                started.elapsed() < deadline,
                "still running after {deadline:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, then its exit code within `deadline`.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn terminate(&mut self, deadline: Duration) -> Option<i32> {
        self.stop();
        self.exit_code(deadline)
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
