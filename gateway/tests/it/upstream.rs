//! The upstream's side of the interface: believes only assertions, counts what reaches it, and does
//! what the job's text asks (`status:503`, `sleep:200`, `big`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{self, FromRequest, FromRequestParts as _},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use contracts::{
    assertion::{Audience, Claims},
    id::JobId,
    server::{Guard, Principal},
};
use futures::StreamExt as _;
use ops::clock::Clock;
use serde_json::{Value, json};

/// What reached one upstream.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Request>>>);

/// One request as it arrived.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) claims: Claims,
}

/// A request that was noted in [`Seen`], as handlers get it.
struct Noted(Request);

/// The four upstreams.
pub(crate) struct Upstreams {
    pub(crate) seen: Seen,
    pub(crate) environment: HashMap<&'static str, String>,
}

impl Upstreams {
    /// Starts one server an audience.
    pub(crate) async fn start() -> Self {
        let (seen, mut environment) = (Seen::default(), HashMap::new());
        for (audience, url, key) in [
            (Audience::Jobs, "JOBS_URL", "JOBS_ASSERTION_KEY"),
            (Audience::Relayer, "RELAYER_URL", "RELAYER_ASSERTION_KEY"),
            (Audience::Metering, "METERING_URL", "METERING_ASSERTION_KEY"),
            (Audience::Webhooks, "WEBHOOKS_URL", "WEBHOOKS_ASSERTION_KEY"),
        ] {
            let secret = [audience as u8 + 1; 32];
            let clock = Clock::system();
            let guard = Guard::new(audience, &secret, move || clock.now(), |_, _| {});
            let router = guard.protect(routes(seen.clone()));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            environment.insert(url, format!("http://{}", listener.local_addr().unwrap()));
            environment.insert(key, format!("{:02x}", secret[0]).repeat(32));
            #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
            tokio::spawn(async { axum::serve(listener, router).await });
        }
        Self { seen, environment }
    }
}

impl Seen {
    /// Everything that arrived.
    pub(crate) fn all(&self) -> Vec<Request> {
        self.0.lock().unwrap().clone()
    }

    /// How many requests arrived.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The last one that arrived.
    pub(crate) fn last(&self) -> Request {
        self.all().pop().expect("something reached the upstream")
    }
}

fn routes(seen: Seen) -> Router {
    Router::new()
        .route("/v1/jobs", post(submit).get(echo))
        .route("/v1/jobs/{job_id}/events", get(events))
        .route("/v1/webhooks/endpoints", post(secret).get(echo))
        .route("/v1/{*rest}", any(echo))
        .with_state(seen)
}

impl FromRequest<Seen> for Noted {
    type Rejection = Response;

    /// Notes the request before anything is done about it.
    async fn from_request(request: extract::Request, seen: &Seen) -> Result<Self, Self::Rejection> {
        let (mut parts, body) = request.into_parts();
        let principal = Principal::from_request_parts(&mut parts, seen).await;
        let claims = principal
            .map_err(IntoResponse::into_response)?
            .claims()
            .clone();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let request = Request {
            method: parts.method,
            target: parts.uri.path_and_query().unwrap().to_string(),
            headers: parts.headers,
            body,
            claims,
        };
        seen.0.lock().unwrap().push(request.clone());
        Ok(Self(request))
    }
}

async fn submit(Noted(request): Noted) -> Response {
    let job: Value = serde_json::from_slice(&request.body).unwrap();
    let text = job["payload"]["text"].as_str().unwrap_or_default();
    if let Some(status) = text.strip_prefix("status:") {
        let status: u16 = status.parse().unwrap();
        return (StatusCode::from_u16(status).unwrap(), "as asked").into_response();
    }
    if let Some(milliseconds) = text.strip_prefix("sleep:") {
        tokio::time::sleep(Duration::from_millis(milliseconds.parse().unwrap())).await;
    }
    let id = JobId::generate(Clock::system().now());
    let filling = if text == "big" {
        "x".repeat(100_000)
    } else {
        String::new()
    };
    let headers = [
        ("location", format!("/v1/jobs/{id}")),
        ("server", "upstream/1".to_owned()),
    ];
    let body = json!({ "job_id": id, "status": "PENDING", "filling": filling });
    (StatusCode::ACCEPTED, headers, axum::Json(body)).into_response()
}

async fn secret(_: Noted) -> Response {
    let body = json!({ "endpoint_id": "ep_1", "secret": "whsec_shown_once" });
    (StatusCode::CREATED, axum::Json(body)).into_response()
}

async fn echo(Noted(request): Noted) -> Response {
    axum::Json(json!({ "claims": request.claims })).into_response()
}

/// Three events, the later two only after a while.
async fn events(_: Noted) -> Response {
    let stream = futures::stream::iter(1..=3).then(|number| async move {
        if number > 1 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok::<_, std::io::Error>(format!("id: {number}\ndata: {{}}\n\n"))
    });
    (
        [("content-type", "text/event-stream")],
        Body::from_stream(stream),
    )
        .into_response()
}
