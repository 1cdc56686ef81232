//! The service under test, with verbs of its domain: a database of its own, a clock set by hand,
//! the router called as the gateway would.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use contracts::{
    assertion::{Audience, Claims, HEADER, Role, Scope, sha256_hex, sign},
    id::{JobId, RequestId, TenantId},
};
use jobs::{
    SCHEMA,
    api::{Api, Streams, router},
    config::SlotOptions,
    migrations,
    store::Store,
    worker::Worker,
};
use ops::{
    clock::Clock,
    config::{KafkaOptions, Key32},
    postgres::Pool,
    testing::{self, TestDatabase},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Long enough for everything that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The longest body a test expects.
const BODY_MAX: usize = 4 * 1_024 * 1_024;

pub(crate) struct TestApp {
    // Dropped last, when nothing uses it any more.
    pub(crate) pool: Pool,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) kafka: KafkaOptions,
    router: Router,
    key: Key32,
    pub(crate) database: TestDatabase,
}

/// Somebody with a credential.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) claims: Claims,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl TestApp {
    pub(crate) async fn start() -> Self {
        let (database, pool) = TestDatabase::with_schema(SCHEMA, &migrations()).await;
        let (store, key) = (Store::new(pool.clone()), Key32::from([7; 32]));
        let clock = Clock::manual(Clock::system().now());
        let api = Api {
            store: store.clone(),
            clock: clock.clone(),
            streams: Streams::new(3, 2),
            stopping: CancellationToken::new(),
        };
        let router = router(api, &key);
        Self {
            pool,
            store,
            clock,
            kafka: testing::kafka(),
            router,
            key,
            database,
        }
    }

    /// A developer of a new tenant.
    pub(crate) fn somebody(&self) -> Who {
        let now = self.clock.now();
        Who {
            claims: Claims {
                aud: Audience::Jobs,
                tenant: TenantId::generate(now),
                subject: "user_1".parse().unwrap(),
                scopes: vec![Scope::JobsSubmit, Scope::JobsRead],
                role: Role::Developer,
                team: None,
                submitter: None,
                active_jobs_limit: Some(50),
                priority: 5,
                address: "127.0.0.1".parse().unwrap(),
                request_id: RequestId::generate(now),
                traceparent: None,
                method: String::new(),
                path: String::new(),
                body_sha256: String::new(),
                expires_at: 0,
            },
        }
    }

    /// A worker that computes so many jobs at a time.
    pub(crate) fn worker(&self, slots: u16) -> Worker {
        let slots = SlotOptions {
            count: slots,
            lease_ms: 15_000,
        };
        Worker::new(self.store.clone(), self.clock.clone(), slots, PATIENCE)
    }

    /// The response to a request as the gateway would send it, body unread.
    pub(crate) async fn send(
        &self,
        who: &Who,
        request: Request<String>,
    ) -> axum::response::Response {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.to_string();
        let assertion = self.assertion(who, parts.method.as_str(), &path, body.as_bytes());
        parts.headers.insert(HEADER, assertion.parse().unwrap());
        self.router
            .clone()
            .oneshot(Request::from_parts(parts, Body::from(body)))
            .await
            .unwrap()
    }

    /// What the gateway says about a request.
    pub(crate) fn assertion(&self, who: &Who, method: &str, path: &str, body: &[u8]) -> String {
        let claims = Claims {
            method: method.to_owned(),
            path: path.to_owned(),
            body_sha256: sha256_hex(body),
            expires_at: self.clock.now().as_second() + 20,
            ..who.claims.clone()
        };
        sign(&claims, self.key.expose())
    }

    /// Serves the API on a socket of its own.
    pub(crate) async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, router) = (listener.local_addr().unwrap(), self.router.clone());
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async { axum::serve(listener, router).await });
        address
    }

    pub(crate) async fn ask(&self, who: &Who, request: Request<String>) -> Answer {
        answer(self.send(who, request).await).await
    }

    /// The answer to a request without an assertion.
    pub(crate) async fn ask_unasserted(&self, path: &str) -> Answer {
        let request = Request::get(path).body(Body::empty()).unwrap();
        answer(self.router.clone().oneshot(request).await.unwrap()).await
    }

    pub(crate) async fn get(&self, who: &Who, path: &str) -> Answer {
        self.ask(who, Request::get(path).body(String::new()).unwrap())
            .await
    }

    pub(crate) async fn show(&self, who: &Who, job: &str) -> Value {
        let answer = self.get(who, &format!("/v1/jobs/{job}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        answer.body
    }

    pub(crate) async fn cancel(&self, who: &Who, job: &str) -> Answer {
        let request = Request::delete(format!("/v1/jobs/{job}")).body(String::new());
        self.ask(who, request.unwrap()).await
    }

    pub(crate) async fn submit_as(&self, who: &Who, key: &str, body: &Value) -> Answer {
        let request = Request::post("/v1/jobs")
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(body.to_string());
        self.ask(who, request.unwrap()).await
    }

    /// Submits a job under a key of its own; returns its id.
    pub(crate) async fn submit(&self, who: &Who, body: &Value) -> String {
        let answer = self.submit_as(who, &testing::prefix("key"), body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
        answer.body["job_id"].as_str().unwrap().to_owned()
    }

    /// The types of a job's events, whose numbers must have no gaps, in its own list and in the
    /// outbox alike.
    pub(crate) async fn events(&self, job: &str) -> Vec<String> {
        let id: JobId = job.parse().unwrap();
        let told = self.store.events(id, 0).await.unwrap();
        let types: Vec<String> = told
            .iter()
            .map(|t| t.event_type.as_str().to_owned())
            .collect();
        let numbers: Vec<u64> = told.iter().map(|told| told.number).collect();
        assert_eq!(numbers, (1..=told.len() as u64).collect::<Vec<_>>());
        let sql = "SELECT ce_id, ce_type FROM jobs.outbox WHERE key = $1 ORDER BY id";
        let client = self.pool.get().await.unwrap();
        let rows = client.query(sql, &[&job.as_bytes()]).await.unwrap();
        let outbox: Vec<(String, String)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        let expected: Vec<(String, String)> = types
            .iter()
            .zip(1_u64..)
            .map(|(kind, number)| (contracts::event::job_event_id(id, number), kind.clone()))
            .collect();
        assert_eq!(outbox, expected);
        types
    }

    /// A number that a query gives.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        testing::value(&self.pool, sql).await
    }

    pub(crate) async fn active(&self) -> i64 {
        self.count("SELECT coalesce(sum(active), 0)::bigint FROM jobs.tenants")
            .await
    }
}

impl Who {
    /// Somebody else of the same tenant.
    pub(crate) fn colleague(&self, subject: &str) -> Self {
        let mut other = self.clone();
        other.claims.subject = subject.parse().unwrap();
        other
    }

    pub(crate) fn with_scope(mut self, scope: Scope) -> Self {
        self.claims.scopes.push(scope);
        self
    }

    pub(crate) fn in_team(mut self, team: &str) -> Self {
        self.claims.team = Some(team.parse().unwrap());
        self
    }

    pub(crate) fn with_limit(mut self, limit: u32) -> Self {
        self.claims.active_jobs_limit = Some(limit);
        self
    }
}

impl Answer {
    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

async fn answer(response: axum::response::Response) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, BODY_MAX).await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

pub(crate) fn digest(text: &str) -> Value {
    json!({ "type": "digest", "payload": { "text": text } })
}

pub(crate) fn sealed(text: &str) -> Value {
    json!({ "type": "digest", "payload": { "text": text }, "requires_confirmation": true })
}

pub(crate) fn sleep(milliseconds: u64) -> Value {
    json!({ "type": "sleep", "payload": { "milliseconds": milliseconds } })
}

pub(crate) fn fail(payload: &Value) -> Value {
    json!({ "type": "fail", "payload": payload })
}
