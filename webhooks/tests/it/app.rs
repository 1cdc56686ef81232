//! A webhooks service of its own for each test, a receiver that remembers, and the verbs of the
//! domain.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use contracts::{
    assertion::{self, Audience, Claims, Role, Scope},
    event::{Completed, JobEvent, Kind, Submitted, proto_time},
    id::{JobId, RequestId, TenantId},
};
use jiff::Timestamp;
use ops::{
    config::KafkaOptions,
    outbox::{Message, Publisher, append},
    postgres::Pool,
    testing::{TestDatabase, TestProcess, eventually, kafka},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use webhooks::intake::Telling;

pub(crate) const DEADLINE: Duration = Duration::from_mins(1);
const ASSERTION_KEY: [u8; 32] = [0x11; 32];

/// The processes `webhooks api` and `webhooks worker` on a database of their own.
pub(crate) struct App {
    pub(crate) pool: Pool,
    pub(crate) tenant: TenantId,
    api: SocketAddr,
    http: reqwest::Client,
    kafka: KafkaOptions,
    database: TestDatabase,
    _api: TestProcess,
}

/// An endpoint on loopback that remembers what it was told.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
    answers: Arc<Mutex<Vec<(StatusCode, &'static str)>>>,
}

/// One request to a receiver.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// A port that was free a moment ago, for a process that must come back at the same place.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

impl App {
    pub(crate) async fn start() -> Self {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let database = TestDatabase::create().await;
        let (kafka, api) = (kafka(), free_address());
        let migrated = command(&database, &kafka, "migrate")
            .status()
            .expect("the program can be started");
        assert!(migrated.success());
        let process =
            TestProcess::start(command(&database, &kafka, "api").env("LISTEN", api.to_string()));
        let app = Self {
            pool: database.pool(),
            tenant: TenantId::generate(now()),
            api,
            http: reqwest::Client::new(),
            kafka,
            database,
            _api: process,
        };
        eventually("the api listens", DEADLINE, || async {
            tokio::net::TcpStream::connect(api).await.ok()
        })
        .await;
        app
    }

    pub(crate) fn worker(&self) -> TestProcess {
        TestProcess::start(&mut command(&self.database, &self.kafka, "worker"))
    }

    pub(crate) fn worker_with_slots(&self, slots: usize) -> TestProcess {
        let mut command = command(&self.database, &self.kafka, "worker");
        TestProcess::start(command.env("WEBHOOKS_SLOTS", slots.to_string()))
    }

    /// A request as the gateway would send it.
    pub(crate) async fn request(
        &self,
        tenant: TenantId,
        scopes: &[Scope],
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let key = ops::testing::prefix("key");
        let request = self.asserted(tenant, scopes, method, path, body);
        let response = request.header("idempotency-key", key).send().await.unwrap();
        read(response).await
    }

    /// The same by one who may, under a key.
    pub(crate) async fn under_key(
        &self,
        key: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, bool, Value) {
        let request = self.asserted(self.tenant, &[Scope::WebhooksWrite], method, path, body);
        let response = request.header("idempotency-key", key).send().await.unwrap();
        let replayed = response.headers().contains_key("idempotency-replayed");
        let (status, answer) = read(response).await;
        (status, replayed, answer)
    }

    fn asserted(
        &self,
        tenant: TenantId,
        scopes: &[Scope],
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> reqwest::RequestBuilder {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let claims = Claims {
            aud: Audience::Webhooks,
            tenant,
            subject: "user_test".parse().unwrap(),
            scopes: scopes.to_vec(),
            role: Role::Developer,
            team: None,
            submitter: None,
            active_jobs_limit: None,
            priority: 5,
            address: "127.0.0.1".parse().unwrap(),
            request_id: RequestId::generate(now()),
            traceparent: None,
            method: method.to_owned(),
            path: path.to_owned(),
            body_sha256: assertion::sha256_hex(body.as_bytes()),
            expires_at: now().as_second() + 20,
        };
        let mut request = self
            .http
            .request(
                method.parse().unwrap(),
                format!("http://{}{path}", self.api),
            )
            .header(assertion::HEADER, assertion::sign(&claims, &ASSERTION_KEY));
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        request.body(body)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let scopes = [Scope::WebhooksRead];
        let (status, body) = self.request(self.tenant, &scopes, "GET", path, None).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// A write by one who may, that must succeed.
    pub(crate) async fn write(&self, method: &str, path: &str, body: Value) -> Value {
        let scopes = [Scope::WebhooksWrite];
        let (status, answer) = self
            .request(self.tenant, &scopes, method, path, Some(body))
            .await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    }

    /// Puts events on Kafka through a real outbox.
    pub(crate) async fn tell(&self, events: &[JobEvent]) {
        let client = self.pool.get().await.unwrap();
        for event in events {
            let record = event.record().unwrap();
            let message = Message {
                topic: record.topic,
                key: record.key.into_bytes(),
                source: record.attributes.source,
                id: record.attributes.id,
                kind: event.event_type().unwrap().as_str(),
                time: record.attributes.time,
                traceparent: None,
                value: record.value,
            };
            append(&client, webhooks::SCHEMA, &message).await.unwrap();
        }
        ops::kafka::ensure_topics(&self.kafka, &contracts::event::TOPICS)
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let publisher = Publisher::new(self.pool.clone(), webhooks::SCHEMA, self.kafka.clone());
        let publishing = tokio::spawn(publisher.run(stop.clone()));
        eventually("published", DEADLINE, || async {
            let sql = "SELECT count(*) FROM webhooks.outbox WHERE published_at IS NULL";
            (self.count(sql).await == 0).then_some(())
        })
        .await;
        stop.cancel();
        publishing.await.unwrap().unwrap();
    }

    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.pool
            .get()
            .await
            .unwrap()
            .query_one(sql, &[])
            .await
            .unwrap()
            .get(0)
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.pool
            .get()
            .await
            .unwrap()
            .batch_execute(sql)
            .await
            .unwrap();
    }
}

async fn read(response: reqwest::Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// One of the service's commands, on this database.
fn command(database: &TestDatabase, kafka: &KafkaOptions, name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_webhooks"));
    command
        .arg(name)
        .env("DATABASE_URL", database.url())
        .env("KAFKA_BROKERS", &kafka.kafka_brokers)
        .env("TOPIC_PREFIX", &kafka.topic_prefix)
        .env("ASSERTION_KEY", "11".repeat(32))
        .env("WEBHOOKS_KEY", "22".repeat(32))
        .env("ALLOW_PRIVATE_CIDRS", "127.0.0.1/32")
        .stdout(Stdio::null());
    command
}

/// The completion of a new job, as the intake queues it.
pub(crate) fn telling(tenant: TenantId, id: &str) -> Telling {
    Telling {
        tenant: tenant.uuid(),
        job: JobId::generate(now()).uuid(),
        source: "/jobs".to_owned(),
        id: id.to_owned(),
        event_type: "job.completed",
        body: format!("{{\"id\":\"{id}\"}}"),
        traceparent: None,
    }
}

/// The completion of a new job.
pub(crate) fn completion(tenant: TenantId) -> JobEvent {
    let job = JobId::generate(now());
    let completed = Completed::new(1, 5, r#"{"bytes":3}"#, None);
    event(tenant, job, 3, Kind::Completed(completed))
}

/// The submission of a new job, which endpoints are not told of by default.
pub(crate) fn submission(tenant: TenantId) -> JobEvent {
    let submitted = Submitted {
        payload_bytes: 10,
        compute_units: 1,
        requires_confirmation: false,
        priority: 5,
    };
    event(
        tenant,
        JobId::generate(now()),
        1,
        Kind::Submitted(submitted),
    )
}

fn event(tenant: TenantId, job: JobId, event_number: u64, kind: Kind) -> JobEvent {
    JobEvent {
        tenant_id: tenant.to_string(),
        job_id: job.to_string(),
        event_number,
        occurred_at: Some(proto_time(now())),
        job_type: "digest".to_owned(),
        subject: "user_test".to_owned(),
        team: None,
        kind: Some(kind),
    }
}

impl Receiver {
    /// Answers 204, except that it first gives `answers` in turn.
    pub(crate) async fn start(answers: &[(StatusCode, &'static str)]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            told: Arc::default(),
            answers: Arc::new(Mutex::new(answers.iter().rev().copied().collect())),
        };
        let router = Router::new()
            .fallback(post(receive))
            .with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// From now on answers 204.
    pub(crate) fn recover(&self) {
        self.answers.lock().unwrap().clear();
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    pub(crate) async fn is_told(&self, times: usize) -> Vec<Told> {
        eventually("the receiver is told", DEADLINE, || async {
            let told = self.told();
            (told.len() >= times).then_some(told)
        })
        .await
    }
}

async fn receive(
    State(receiver): State<Receiver>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, HeaderMap) {
    receiver.told.lock().unwrap().push(Told { headers, body });
    let answer = receiver.answers.lock().unwrap().pop();
    let (status, retry_after) = answer.unwrap_or((StatusCode::NO_CONTENT, ""));
    let mut headers = HeaderMap::new();
    if !retry_after.is_empty() {
        headers.insert("retry-after", retry_after.parse().unwrap());
        headers.insert("location", "http://127.0.0.1:1/".parse().unwrap());
    }
    (status, headers)
}

impl Told {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}
