//! A metering service of a test's own: database, topics, processes, and verbs to speak of them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    time::Duration,
};

use contracts::{
    assertion::{self, Audience, Claims, Role, Scope},
    event::{Completed, Confirmed, JobEvent, Kind, Record, Submitted, UsageRecorded, proto_time},
    id::{JobId, RequestId, TenantId},
};
use jiff::Timestamp;
use metering::{
    SCHEMA,
    config::Cli,
    event::Fact,
    ingest, schema,
    store::{Store, record::record},
};
use ops::{
    clock::Clock,
    config::KafkaOptions,
    kafka,
    postgres::Pool,
    testing::{
        self, TestDatabase, TestProcess, eventually, free_address,
        records::{Told, produce},
        until_ready,
    },
};
use reqwest::StatusCode;
use rust_decimal::Decimal;

/// How long anything may take on a machine that does other things too.
pub(crate) const DEADLINE: Duration = Duration::from_secs(50);
const KEY: [u8; 32] = [7; 32];

/// Everything a test needs; gone when the test ends.
pub(crate) struct App {
    pub(crate) pool: Pool,
    pub(crate) store: Store,
    kafka: KafkaOptions,
    database: TestDatabase,
}

/// A `metering api` process.
pub(crate) struct Api {
    process: TestProcess,
    address: SocketAddr,
    http: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: String,
    pub(crate) body: String,
}

impl App {
    pub(crate) async fn start() -> Self {
        let (database, pool) = TestDatabase::with_schema(SCHEMA, &schema()).await;
        Self {
            store: Store::new(pool.clone()),
            pool,
            kafka: testing::kafka(),
            database,
        }
    }

    /// The program with `subcommand`, configured for this app.
    pub(crate) fn command(&self, subcommand: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metering"));
        command
            .args(subcommand)
            .env_clear()
            .env("DATABASE_URL", self.database.url())
            .env("KAFKA_BROKERS", &self.kafka.kafka_brokers)
            .env("TOPIC_PREFIX", &self.kafka.topic_prefix)
            .env(
                "RUST_LOG",
                std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()),
            );
        command
    }

    /// A running `metering ingest`.
    pub(crate) fn ingest(&self) -> TestProcess {
        TestProcess::start(&mut self.command(&["ingest"]))
    }

    /// A running and ready `metering api`.
    pub(crate) async fn api(&self) -> Api {
        let (listen, admin) = (free_address(), free_address());
        let mut command = self.command(&["api"]);
        command
            .env("LISTEN", listen.to_string())
            .env("ADMIN_LISTEN", admin.to_string())
            .env("ASSERTION_KEY", "07".repeat(32));
        let process = TestProcess::start(&mut command);
        until_ready(admin, DEADLINE).await;
        Api {
            process,
            address: listen,
            http: http(),
        }
    }

    /// Sends records and waits for Kafka's acknowledgement of each.
    pub(crate) async fn produce(&self, records: &[Record]) {
        kafka::ensure_topics(&self.kafka, &contracts::event::TOPICS)
            .await
            .unwrap();
        let told = records.iter().map(|record| Told {
            topic: record.topic,
            key: &record.key,
            headers: record.attributes.headers(),
            value: &record.value,
        });
        produce(&self.kafka, told).await;
    }

    /// Waits until everything that was produced before this call is taken in.
    pub(crate) async fn until_caught_up(&self) {
        let now = now();
        eventually("ingest catches up", DEADLINE, || async move {
            let as_of = self
                .store
                .as_of(&[ingest::USAGE, ingest::JOBS])
                .await
                .unwrap();
            as_of.filter(|as_of| *as_of >= now)
        })
        .await;
    }

    /// Records facts without Kafka.
    pub(crate) async fn record(&self, facts: &[Fact]) {
        let mut client = self.pool.get().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let facts: Vec<&Fact> = facts.iter().collect();
        record(&transaction, &facts, now()).await.unwrap();
        transaction.commit().await.unwrap();
    }

    /// The one number that a query gives.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        testing::value(&self.pool, sql).await
    }

    /// The texts that a query gives.
    pub(crate) async fn texts(&self, sql: &str) -> Vec<String> {
        let rows = self.rows(sql).await;
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The sums of the raw events by unit.
    pub(crate) async fn sums(&self) -> BTreeMap<String, Decimal> {
        let sql = "SELECT unit, sum(quantity) FROM metering.events GROUP BY unit";
        let rows = self.rows(sql).await;
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn rows(&self, sql: &str) -> Vec<tokio_postgres::Row> {
        let client = self.pool.get().await.unwrap();
        client.query(sql, &[]).await.unwrap()
    }

    /// Raw events and aggregates are equal.
    pub(crate) async fn assert_reconciled(&self) {
        assert_eq!(self.store.reconcile().await.unwrap().differences, []);
    }
}

impl Api {
    /// What a principal of `tenant` with `scopes` gets.
    pub(crate) async fn get_as(&self, tenant: TenantId, scopes: &[Scope], path: &str) -> Answer {
        let claims = Claims {
            aud: Audience::Metering,
            tenant,
            subject: "user_1".parse().unwrap(),
            scopes: scopes.to_vec(),
            role: Role::Developer,
            team: None,
            submitter: None,
            active_jobs_limit: None,
            priority: 5,
            address: Ipv4Addr::LOCALHOST.into(),
            request_id: RequestId::generate(now()),
            traceparent: None,
            method: "GET".to_owned(),
            path: path.to_owned(),
            body_sha256: assertion::sha256_hex(b""),
            expires_at: now().as_second() + 20,
        };
        self.send(path, Some(assertion::sign(&claims, &KEY))).await
    }

    /// What who may look at the bill gets.
    pub(crate) async fn get(&self, tenant: TenantId, path: &str) -> Answer {
        self.get_as(tenant, &[Scope::BillingRead], path).await
    }

    /// What somebody without an assertion gets.
    pub(crate) async fn get_bare(&self, path: &str) -> Answer {
        self.send(path, None).await
    }

    /// SIGTERM; the exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.process.terminate(DEADLINE)
    }

    async fn send(&self, path: &str, assertion: Option<String>) -> Answer {
        let mut request = self.http.get(format!("http://{}{path}", self.address));
        if let Some(assertion) = assertion {
            request = request.header(assertion::HEADER, assertion);
        }
        let response = request.send().await.unwrap();
        Answer {
            status: response.status(),
            content_type: response.headers()["content-type"]
                .to_str()
                .unwrap()
                .to_owned(),
            body: response.text().await.unwrap(),
        }
    }
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) fn now() -> Timestamp {
    Clock::system().now()
}

pub(crate) fn tenant() -> TenantId {
    TenantId::generate(now())
}

/// What a finished run of the program printed, and its exit code.
pub(crate) fn output(mut command: Command) -> (Option<i32>, String) {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

/// A billable call at `time`.
pub(crate) fn call(tenant: TenantId, time: Timestamp) -> UsageRecorded {
    UsageRecorded {
        tenant_id: tenant.to_string(),
        request_id: RequestId::generate(time).to_string(),
        subject: "user_1".to_owned(),
        endpoint: "/v1/jobs".to_owned(),
        method: "POST".to_owned(),
        status_code: 202,
        occurred_at: Some(proto_time(time)),
        billable: true,
        ..UsageRecorded::default()
    }
}

/// The billable events of a job's life: 3 CU, 1 job of 40 ms, 1 confirmation.
pub(crate) fn job_life(tenant: TenantId, time: Timestamp) -> Vec<Record> {
    let job = JobId::generate(time);
    let submitted = Submitted {
        payload_bytes: 3_000,
        compute_units: 3,
        ..Submitted::default()
    };
    let kinds = [
        Kind::Submitted(submitted),
        Kind::Started(contracts::event::Started { attempt: 1 }),
        Kind::Completed(Completed::new(1, 40, "{}", None)),
        Kind::Confirmed(Confirmed::default()),
    ];
    (1..)
        .zip(kinds)
        .map(|(event_number, kind)| job_event(tenant, job, event_number, time, kind))
        .collect()
}

pub(crate) fn job_event(
    tenant: TenantId,
    job: JobId,
    event_number: u64,
    time: Timestamp,
    kind: Kind,
) -> Record {
    let event = JobEvent {
        tenant_id: tenant.to_string(),
        job_id: job.to_string(),
        event_number,
        occurred_at: Some(proto_time(time)),
        job_type: "digest".to_owned(),
        subject: "user_1".to_owned(),
        team: None,
        kind: Some(kind),
    };
    event.record().unwrap()
}

/// Parses a command line without the environment's doing.
pub(crate) fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
    clap::Parser::try_parse_from(std::iter::once("metering").chain(arguments.iter().copied()))
}

fn http() -> reqwest::Client {
    // No TLS is spoken, but the client's builder wants a provider all the same.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(DEADLINE)
        .build()
        .unwrap()
}
