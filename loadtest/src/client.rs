//! Speaks the public HTTP contract, and nothing else. Every request is in the client's log before
//! it is sent; a request whose outcome is unknown is sent again with the same key.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::BytesMut;
use contracts::{
    api::{jobs::SubmitResponse, webhooks::EndpointCreated},
    id::JobId,
    problem::Code,
};
use reqwest::{RequestBuilder, retry};
use thiserror::Error;
use tokio::time::Instant;
use url::Url;

use crate::{
    clock,
    exit::Unreachable,
    log::{Answered, ClientLog, Outcome, Route, Submission},
    request::{Answer, Call, Credential},
};

/// Longest wait for one answer.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// First pause before a repetition; doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before a repetition that the target did not ask for.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// How long a read that a rate limit holds back is tried: a small plan lets few requests pass, and
/// an audit asks for the proof of every job.
const LIMITED_PATIENCE: Duration = Duration::from_mins(30);
/// Most bytes of an answer: the raw usage events of a large run.
const ANSWER_MAX_BYTES: usize = 256 * 1_024 * 1_024;
/// The gateway, as a client sees it.
#[derive(Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: Url,
    log: Arc<ClientLog>,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum NoAnswer {
    /// No connection: the request never left.
    #[error("no connection: {0}")]
    Unsent(String),
    /// The request left, and nothing (whole) came back.
    #[error("no answer: {0}")]
    Unknown(String),
    /// The log cannot be written, so nothing may be sent.
    #[error(transparent)]
    Log(#[from] anyhow::Error),
}

/// What came of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Submitted {
    /// 202, at once or after repetitions.
    Accepted(JobId),
    /// A definite refusal, at once or of every repetition up to the deadline.
    Refused(u16, Option<Code>),
    /// Still unknown at the deadline.
    Unknown,
}

/// What to do after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Done,
    Again(Duration),
}

impl Api {
    /// A client of the gateway at `base`, writing to `log`.
    pub(crate) fn new(base: Url, log: Arc<ClientLog>) -> anyhow::Result<Self> {
        // What is sent again is decided here, never by the HTTP library.
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .build()
            .context("building the HTTP client")?;
        Ok(Self { http, base, log })
    }

    /// Sends one request, once.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Answer, NoAnswer> {
        let route = call.route;
        let n = self.log.intend(call.intent())?;
        let began = Instant::now();
        let result = exchange(call.into_builder(&self.http, &self.base), began).await;
        let latency_ms = began.elapsed().as_secs_f64() * 1_000.0;
        self.log.answer(answered(n, route, latency_ms, &result))?;
        result
    }

    /// Sends a request without a body until it is answered with 2xx or a definite refusal; after
    /// `deadline` whatever was answered last. What the target asks to wait for its limits' sake
    /// tries nobody's patience.
    pub(crate) async fn fetch(
        &self,
        route: Route,
        path: &str,
        credential: Option<&Credential>,
        mut deadline: Instant,
    ) -> anyhow::Result<Answer> {
        let began = Instant::now();
        let patience = deadline.saturating_duration_since(began);
        let mut tries = 0;
        loop {
            let result = self.call(Call::get(route, path, credential)).await;
            let next = next(&result, tries);
            if let (Ok(answer), Next::Again(pause)) = (&result, next)
                && answer.status == 429
                && began.elapsed() + pause < LIMITED_PATIENCE
            {
                tries += 1;
                tokio::time::sleep(pause).await;
                deadline = Instant::now() + patience;
                continue;
            }
            match next {
                Next::Done => return Ok(result?),
                Next::Again(pause) if Instant::now() + pause < deadline => {
                    tries += 1;
                    tokio::time::sleep(pause).await;
                }
                Next::Again(_) => {
                    return result.map_err(|error| {
                        Unreachable(format!("GET {path} at {}: {error}", self.base)).into()
                    });
                }
            }
        }
    }

    /// Submits a job, again and again with the same key, until its fate is known or `deadline`.
    pub(crate) async fn submit(
        &self,
        credential: &Credential,
        submission: &Submission,
        deadline: Instant,
    ) -> anyhow::Result<Submitted> {
        let mut tries = 0;
        let mut perhaps_done = false;
        loop {
            let result = self.call(Call::submit(credential, submission)).await;
            perhaps_done |= may_have_acted(&result);
            match next(&result, tries) {
                Next::Done => return submitted(&result?),
                Next::Again(pause) if Instant::now() + pause < deadline => {
                    tries += 1;
                    tokio::time::sleep(pause).await;
                }
                Next::Again(_) => {
                    return match result {
                        Ok(refusal) if !perhaps_done => submitted(&refusal),
                        _ => Ok(Submitted::Unknown),
                    };
                }
            }
        }
    }
}

async fn exchange(request: RequestBuilder, began: Instant) -> Result<Answer, NoAnswer> {
    let unknown = |error: reqwest::Error| NoAnswer::Unknown(describe(&error));
    let mut response = request.send().await.map_err(|error| {
        if error.is_connect() {
            NoAnswer::Unsent(describe(&error))
        } else {
            unknown(error)
        }
    })?;
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(unknown)? {
        if body.len() + chunk.len() > ANSWER_MAX_BYTES {
            return Err(NoAnswer::Unknown("the answer is too large".into()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: body.freeze(),
        latency: began.elapsed(),
    })
}

/// The innermost cause says most.
fn describe(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn next(result: &Result<Answer, NoAnswer>, tries: u32) -> Next {
    let backoff = BACKOFF_FIRST
        .saturating_mul(1 << tries.min(16))
        .min(BACKOFF_MAX);
    let answer = match result {
        Ok(answer) => answer,
        Err(NoAnswer::Log(_)) => return Next::Done,
        Err(NoAnswer::Unsent(_) | NoAnswer::Unknown(_)) => return Next::Again(backoff),
    };
    match answer.status {
        408 | 429 | 500.. => Next::Again(answer.retry_after().unwrap_or(backoff)),
        409 if is_in_flight(answer) => Next::Again(answer.retry_after().unwrap_or(backoff)),
        _ => Next::Done,
    }
}

/// Whether another request with the same key is being worked on.
fn is_in_flight(answer: &Answer) -> bool {
    let problem = answer.problem();
    problem.is_some_and(|problem| problem.code == Code::IdempotencyConflict)
}

/// Whether the request, or another with its key, may have done something that nobody told us.
fn may_have_acted(result: &Result<Answer, NoAnswer>) -> bool {
    match result {
        Ok(answer) => Outcome::of_status(answer.status) == Outcome::Unknown || is_in_flight(answer),
        Err(NoAnswer::Unknown(_)) => true,
        Err(NoAnswer::Unsent(_) | NoAnswer::Log(_)) => false,
    }
}

fn submitted(answer: &Answer) -> anyhow::Result<Submitted> {
    if Outcome::of_status(answer.status) == Outcome::Ok {
        return Ok(Submitted::Accepted(answer.json::<SubmitResponse>()?.job_id));
    }
    Ok(Submitted::Refused(
        answer.status,
        answer.problem().map(|problem| problem.code),
    ))
}

fn answered(n: u64, route: Route, latency_ms: f64, result: &Result<Answer, NoAnswer>) -> Answered {
    let answer = result.as_ref().ok();
    let outcome = match result {
        Ok(answer) => Outcome::of_status(answer.status),
        Err(NoAnswer::Unsent(_)) => Outcome::Unsent,
        Err(_) => Outcome::Unknown,
    };
    let done = answer.filter(|_| outcome == Outcome::Ok);
    let job = done.filter(|_| route == Route::SubmitJob);
    let endpoint = done.filter(|_| route == Route::CreateEndpoint);
    Answered {
        n,
        at: clock::now(),
        outcome,
        latency_ms: answer.map_or(latency_ms, |answer| answer.latency.as_secs_f64() * 1_000.0),
        status: answer.map(|answer| answer.status),
        code: answer.and_then(Answer::problem).map(|problem| problem.code),
        counted: answer.is_some_and(Answer::is_counted),
        request_id: answer.and_then(Answer::request_id),
        job_id: job
            .and_then(|answer| answer.json::<SubmitResponse>().ok())
            .map(|job| job.job_id),
        endpoint_id: endpoint
            .and_then(|answer| answer.json::<EndpointCreated>().ok())
            .map(|created| created.endpoint.endpoint_id),
    }
}

/// A target of a test's own, over a socket, and the log of what was sent to it.
#[cfg(test)]
pub(crate) struct Target {
    pub(crate) api: Api,
    pub(crate) folder: tempfile::TempDir,
    _server: tokio::task::JoinSet<std::io::Result<()>>,
}

#[cfg(test)]
impl Target {
    pub(crate) async fn start(routes: axum::Router) -> Self {
        // Another test may have been faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let mut server = tokio::task::JoinSet::new();
        server.spawn(async move { axum::serve(listener, routes).await });
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(ClientLog::open(folder.path()).unwrap());
        Self {
            api: Api::new(base.parse().unwrap(), log).unwrap(),
            folder,
            _server: server,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{Router, http::StatusCode};
    use contracts::problem::Problem;
    use reqwest::header::{HeaderMap, RETRY_AFTER};

    use super::*;

    fn answer(status: u16, body: Vec<u8>, retry_after: Option<&str>) -> Next {
        let mut headers = HeaderMap::new();
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, seconds.parse().unwrap());
        }
        let latency = Duration::ZERO;
        next(
            &Ok(Answer {
                status,
                headers,
                body: body.into(),
                latency,
            }),
            0,
        )
    }

    #[test]
    fn only_an_unknown_fate_is_asked_for_again() {
        for status in [202, 400, 401, 403, 404, 413, 415, 422] {
            assert_eq!(answer(status, vec![], None), Next::Done, "{status}");
        }
        let again = Next::Again(BACKOFF_FIRST);
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(answer(status, vec![], None), again, "{status}");
        }
        assert_eq!(next(&Err(NoAnswer::Unsent(String::new())), 0), again);
        assert_eq!(next(&Err(NoAnswer::Unknown(String::new())), 0), again);
        let conflict = |code| answer(409, Problem::new(code, "").to_json_bytes(), None);
        assert_eq!(conflict(Code::IdempotencyConflict), again);
        assert_eq!(conflict(Code::Conflict), Next::Done);
    }

    #[test]
    fn what_was_refused_whenever_it_was_tried_is_not_of_unknown_fate() {
        let acted = |status, body: Vec<u8>| {
            may_have_acted(&Ok(Answer {
                status,
                headers: HeaderMap::new(),
                body: body.into(),
                latency: Duration::ZERO,
            }))
        };
        let problem = |code| Problem::new(code, "").to_json_bytes();
        assert!(!acted(429, problem(Code::ActiveJobsExceeded)));
        assert!(acted(409, problem(Code::IdempotencyConflict)));
        assert!(acted(503, Vec::new()));
        assert!(may_have_acted(&Err(NoAnswer::Unknown(String::new()))));
        assert!(!may_have_acted(&Err(NoAnswer::Unsent(String::new()))));
    }

    #[tokio::test]
    async fn a_limit_is_waited_for_beyond_the_deadline() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let routes = Router::new().fallback(move || async move {
            let limited = count.fetch_add(1, Ordering::Relaxed) < 3;
            let status = if limited { 429 } else { 200 };
            let status = StatusCode::from_u16(status).unwrap();
            (status, [(RETRY_AFTER, "0")])
        });
        let target = Target::start(routes).await;
        let fetched = target.api.fetch(Route::Proof, "/", None, Instant::now());
        assert_eq!(fetched.await.unwrap().status, 200);
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn the_target_says_when_to_come_back() {
        assert_eq!(
            answer(429, vec![], Some("7")),
            Next::Again(Duration::from_secs(7))
        );
        let pauses = [0, 1, 30].map(|tries| next(&Err(NoAnswer::Unsent(String::new())), tries));
        let expected = [100, 200, 2_000].map(|ms| Next::Again(Duration::from_millis(ms)));
        assert_eq!(pauses, expected);
    }
}
