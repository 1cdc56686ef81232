//! The upstream's side of the interface: believes only assertions, counts what reaches it, and does
//! what the job's text asks (`status:503`, `sleep:200`, `known:200`, `big`).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{
        self, FromRequest, FromRequestParts as _, WebSocketUpgrade,
        ws::{Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use contracts::{
    assertion::{Audience, Claims, REPLAY_ONLY},
    id::JobId,
    server::{Guard, Principal},
};
use futures::StreamExt as _;
use ops::clock::Clock;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::{TcpListener, TcpStream},
};

/// What reached one upstream.
#[derive(Clone, Default)]
pub(crate) struct Seen(
    Arc<Mutex<Vec<Request>>>,
    Arc<AtomicUsize>,
    /// Jobs that were accepted, by idempotency key.
    Arc<Mutex<HashMap<String, JobId>>>,
);

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

/// An upstream that answers the first request of each connection, and ends the connection with the
/// second one unanswered.
pub(crate) struct Breaking {
    pub(crate) url: String,
    seen: Arc<AtomicUsize>,
}

/// Length of an answer that is not read whole before it is passed on.
pub(crate) const LARGE: usize = 1_000_000;

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
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            environment.insert(url, format!("http://{}", listener.local_addr().unwrap()));
            environment.insert(key, format!("{:02x}", secret[0]).repeat(32));
            #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
            tokio::spawn(async { axum::serve(listener, router).await });
        }
        Self { seen, environment }
    }
}

impl Upstreams {
    /// Starts a Jobs API on a socket of the caller's.
    pub(crate) fn start_at(listener: TcpListener) -> Seen {
        let (seen, clock) = (Seen::default(), Clock::system());
        let secret = [Audience::Jobs as u8 + 1; 32];
        let guard = Guard::new(Audience::Jobs, &secret, move || clock.now(), |_, _| {});
        let router = guard.protect(routes(seen.clone()));
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async { axum::serve(listener, router).await });
        seen
    }
}

impl Seen {
    /// Everything that arrived.
    pub(crate) fn all(&self) -> Vec<Request> {
        self.0.lock().unwrap().clone()
    }

    /// Forgets what arrived: under load for long it is more than a machine has room for.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    /// How many requests arrived.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Has metering say that so many compute units were used in the month.
    pub(crate) fn used(&self, units: usize) {
        self.1.store(units, Ordering::SeqCst);
    }

    /// The last one that arrived.
    pub(crate) fn last(&self) -> Request {
        self.all().pop().expect("something reached the upstream")
    }
}

impl Breaking {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&seen);
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_one(stream, Arc::clone(&count)));
            }
        });
        Self { url, seen }
    }

    /// How many requests arrived.
    pub(crate) fn count(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

async fn serve_one(stream: TcpStream, count: Arc<AtomicUsize>) {
    let mut stream = BufStream::new(stream);
    for answered in [true, false] {
        if !read_request(&mut stream).await {
            return;
        }
        count.fetch_add(1, Ordering::SeqCst);
        if answered {
            let head = "HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\n";
            let answer = format!("{head}content-length: 2\r\n\r\n{{}}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
    }
}

/// Reads a request whole; false when the connection ends first.
async fn read_request(stream: &mut BufStream<TcpStream>) -> bool {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return false;
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
    }
    stream.read_exact(&mut vec![0; length]).await.is_ok()
}

fn routes(seen: Seen) -> Router {
    Router::new()
        .route("/v1/jobs", post(submit).get(echo))
        .route("/v1/jobs/{job_id}/events", get(events))
        .route("/v1/usage", get(usage))
        .route("/v1/usage/events", get(lines))
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
        // What the gateway asks by itself, nobody sent; and what is only asked for is not done.
        let asked = request.headers.contains_key(REPLAY_ONLY);
        if request.claims.subject.as_str() != "gateway" && !asked {
            seen.0.lock().unwrap().push(request.clone());
        }
        Ok(Self(request))
    }
}

async fn submit(extract::State(seen): extract::State<Seen>, Noted(request): Noted) -> Response {
    let key = request.headers["idempotency-key"].to_str().unwrap();
    if request.headers.contains_key(REPLAY_ONLY) {
        return match seen.2.lock().unwrap().get(key) {
            Some(id) => accepted(*id, "", true),
            None => StatusCode::NOT_FOUND.into_response(),
        };
    }
    let job: Value = serde_json::from_slice(&request.body).unwrap();
    let text = job["payload"]["text"].as_str().unwrap_or_default();
    if let Some(status) = text.strip_prefix("status:") {
        let status: u16 = status.parse().unwrap();
        return (StatusCode::from_u16(status).unwrap(), "as asked").into_response();
    }
    if let Some(milliseconds) = text.strip_prefix("sleep:") {
        tokio::time::sleep(Duration::from_millis(milliseconds.parse().unwrap())).await;
    }
    let known = text.strip_prefix("known");
    if let Some(milliseconds) = known.and_then(|rest| rest.strip_prefix(':')) {
        tokio::time::sleep(Duration::from_millis(milliseconds.parse().unwrap())).await;
    }
    let id = JobId::generate(Clock::system().now());
    seen.2.lock().unwrap().insert(key.to_owned(), id);
    if text == "streamed" {
        // Of a length that is not announced.
        let parts = ["{\"job_id\":\"", &id.to_string(), "\"}"].map(str::to_owned);
        let stream = futures::stream::iter(parts.map(Ok::<_, std::io::Error>));
        let headers = [
            ("content-type", "application/json"),
            ("location", "/v1/jobs/x"),
        ];
        return (StatusCode::ACCEPTED, headers, Body::from_stream(stream)).into_response();
    }
    let filling = if text == "big" {
        "x".repeat(100_000)
    } else {
        String::new()
    };
    accepted(id, &filling, known.is_some())
}

fn accepted(id: JobId, filling: &str, replayed: bool) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert("location", format!("/v1/jobs/{id}").parse().unwrap());
    headers.insert("server", "upstream/1".parse().unwrap());
    if replayed {
        headers.insert("idempotency-replayed", "true".parse().unwrap());
    }
    let body = json!({ "job_id": id, "status": "PENDING", "filling": filling });
    (StatusCode::ACCEPTED, headers, axum::Json(body)).into_response()
}

async fn secret(_: Noted) -> Response {
    let body = json!({ "endpoint_id": "ep_1", "secret": "whsec_shown_once" });
    (StatusCode::CREATED, axum::Json(body)).into_response()
}

/// What was claimed; a job's id may ask for an answer that is long, slow, or breaks off.
async fn echo(Noted(request): Noted) -> Response {
    let asked = request.target.split('/').nth(3);
    if asked == Some("job_large") {
        return "x".repeat(LARGE).into_response();
    }
    if let Some(slow @ ("job_slow" | "job_broken")) = asked {
        let last = match slow {
            "job_slow" => Ok("end"),
            _ => Err(std::io::Error::other("as asked")),
        };
        let parts = futures::stream::iter([Ok("begin "), last]);
        let paced = parts.enumerate().then(|(number, part)| async move {
            if number > 0 {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            part
        });
        return Body::from_stream(paced).into_response();
    }
    axum::Json(json!({ "claims": request.claims })).into_response()
}

/// What metering says of the month.
async fn usage(extract::State(seen): extract::State<Seen>, Noted(request): Noted) -> Response {
    let units = seen.1.load(Ordering::SeqCst).to_string();
    let (from, to) = ("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z");
    let total = json!({
        "meter": "JOB_SUBMISSION", "unit": "COMPUTE_UNIT", "quantity": units, "events": 1,
    });
    axum::Json(json!({
        "tenant_id": request.claims.tenant, "from": from, "to": to, "granularity": "month",
        "as_of": null, "data": [], "totals": [total],
    }))
    .into_response()
}

/// One line after the other without end, or one and then silence.
async fn lines(Noted(request): Noted) -> Response {
    let endless = request.target.ends_with("endless");
    let pause = Duration::from_millis(if endless { 20 } else { 300_000 });
    let lines = futures::stream::iter(0_u64..).then(move |number| async move {
        if number > 0 {
            tokio::time::sleep(pause).await;
        }
        Ok::<_, std::io::Error>(format!("{{\"number\":{number}}}\n"))
    });
    let media = [("content-type", "application/x-ndjson")];
    (media, Body::from_stream(lines)).into_response()
}

/// Three text messages, then an echo until the client closes.
async fn talk(mut socket: WebSocket) {
    for number in 1..=3 {
        let text = format!("event {number}");
        socket.send(Message::text(text)).await.unwrap();
    }
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Three events, the later two only after a while; a job's id may ask for more, for silence, or for
/// none at all.
async fn events(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    Noted(request): Noted,
) -> Response {
    let asked = request.target.split('/').nth(3);
    if let Ok(upgrade) = upgrade {
        if asked == Some("job_deaf") {
            return upgrade.on_upgrade(async |socket| {
                tokio::time::sleep(Duration::from_mins(5)).await;
                drop(socket);
            });
        }
        return upgrade.on_upgrade(talk);
    }
    let (count, pause) = match asked {
        Some("job_settled") => return StatusCode::NO_CONTENT.into_response(),
        Some("job_endless") => (u64::MAX, Duration::from_millis(50)),
        Some("job_flood") => (u64::MAX, Duration::ZERO),
        Some("job_silent" | "job_idle") => (2, Duration::from_mins(5)),
        _ => (3, Duration::from_millis(300)),
    };
    let size = if pause.is_zero() { 100_000 } else { 2 };
    let stream = futures::stream::iter(1..=count).then(move |number| async move {
        if number > 1 {
            tokio::time::sleep(pause).await;
        }
        let data = "x".repeat(size);
        Ok::<_, std::io::Error>(format!("id: {number}\ndata: {data}\n\n"))
    });
    (
        [("content-type", "text/event-stream")],
        Body::from_stream(stream),
    )
        .into_response()
}
