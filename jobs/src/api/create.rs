//! `POST /v1/jobs`
//!
//! The answer is a function of columns that never change, and its key is claimed in the
//! transaction that inserts the job: whatever crashed, a retry finds one job and the same answer.

use alloy::primitives::{Address, B256};
use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use contracts::{
    api::jobs::{JobStatus, Priority, SubmitRequest, SubmitResponse, validate_submit},
    assertion::{self, Scope},
    id::JobId,
    problem::{Code, FieldError, Problem},
    server::{Json, Principal, require_json},
};
use jiff::{SignedDuration, Timestamp};
use ops::idempotency::{Claim, Request};
use rand::{TryRng as _, rngs::SysRng};
use ring::digest;
use serde_json::Value;

use super::Api;
use crate::{
    executor::Task,
    job::{Facts, Job, MAX_ATTEMPTS, salted_hash},
    store::{Created, NewJob, StoreError},
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const REPLAY_ONLY: HeaderName = HeaderName::from_static(assertion::REPLAY_ONLY);
/// Longest idempotency key.
const KEY_MAX_BYTES: usize = 255;
/// How long a key stands for its request.
const KEY_LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// Seconds after which a job of a tenant at its limit may have ended.
const ACTIVE_RETRY_SECONDS: u64 = 5;

/// Accepts a job.
pub(super) async fn create(
    State(api): State<Api>,
    principal: Principal,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    principal.require(Scope::JobsSubmit)?;
    require_json(&headers)?;
    let key = idempotency_key(&headers)?;
    let request = validate_submit(&body)?;
    let record = Request {
        tenant: principal.tenant().uuid(),
        key,
        hash: request_hash(&method, uri.path(), &body),
    };
    if headers.contains_key(REPLAY_ONLY) {
        return match api.store.recall(record).await? {
            Some(Claim::Replay(kept)) => repeated(kept),
            Some(Claim::Mismatch) => Err(mismatch()),
            Some(Claim::Fresh) | None => {
                Err(Problem::new(Code::NotFound, "There was no such request."))
            }
        };
    }
    let task = task(&request)?;
    let now = api.clock.now();
    let new = new_job(&principal, &request, &task, salt()?, now)?;
    let answer = SubmitResponse {
        job_id: new.moved.job.facts.id,
        status: JobStatus::Pending,
        created_at: now,
        estimated_completion: new.estimated_completion,
    };
    let kept = serde_json::to_value(&answer).map_err(|_| StoreError::Unreadable("answer"))?;
    let created = api.store.create(&new, record, &kept, now + KEY_LIFETIME);
    match created.await? {
        Created::New => {
            metrics::counter!("jobs_submitted_total", "type" => request.job_type.as_str())
                .increment(1);
            Ok(accepted(&answer))
        }
        Created::Before(kept) => repeated(kept),
        Created::Mismatch => Err(mismatch()),
        Created::TooManyActive => Err(Problem::new(
            Code::ActiveJobsExceeded,
            "As many jobs are active as may be: wait for some to end, or cancel them.",
        )
        .with_retry_after(ACTIVE_RETRY_SECONDS)),
    }
}

/// The answer that a request had before.
fn repeated(kept: Value) -> Result<Response, Problem> {
    let answer: SubmitResponse =
        serde_json::from_value(kept).map_err(|_| StoreError::Unreadable("answer"))?;
    let mut response = accepted(&answer);
    let replayed = HeaderValue::from_static("true");
    response
        .headers_mut()
        .insert(IDEMPOTENCY_REPLAYED, replayed);
    Ok(response)
}

fn mismatch() -> Problem {
    Problem::new(
        Code::IdempotencyMismatch,
        "The idempotency key was used with another request in the last 24 hours.",
    )
}

fn accepted(answer: &SubmitResponse) -> Response {
    let location = format!("/v1/jobs/{}", answer.job_id);
    (
        StatusCode::ACCEPTED,
        [(header::LOCATION, location)],
        Json(answer),
    )
        .into_response()
}

fn idempotency_key(headers: &HeaderMap) -> Result<&str, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Err(Problem::new(
            Code::IdempotencyKeyRequired,
            "Name the attempt with an Idempotency-Key header.",
        ));
    };
    let text = value.to_str().unwrap_or_default();
    let fits = (1..=KEY_MAX_BYTES).contains(&text.len());
    if fits
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() || byte == b' ')
    {
        return Ok(text);
    }
    Err(Problem::new(
        Code::InvalidRequest,
        format!("An idempotency key has 1 to {KEY_MAX_BYTES} printable ASCII characters."),
    ))
}

/// The schema speaks of values, and so lets a member pass that stands there twice; the executor
/// must not be the one to find out.
fn task(request: &SubmitRequest) -> Result<Task, Problem> {
    Task::parse(request.job_type, request.payload.get().as_bytes()).map_err(|_| {
        let error = FieldError::new(
            "/payload",
            "form",
            "has a member twice or a number in a form",
        );
        Problem::new(Code::JobValidationFailed, "See errors.").with_errors(vec![error])
    })
}

fn new_job(
    principal: &Principal,
    request: &SubmitRequest,
    task: &Task,
    salt: B256,
    now: Timestamp,
) -> Result<NewJob, Problem> {
    let claims = principal.claims();
    let payload = request.payload.get().as_bytes().to_vec();
    let plans = Priority::try_from(claims.priority)
        .map_err(|_| Problem::new(Code::InvalidToken, "The plan's priority is not 1 to 9."))?;
    let facts = Facts {
        id: JobId::generate(now),
        tenant: claims.tenant,
        subject: claims.subject.clone(),
        team: claims.team.clone(),
        job_type: request.job_type,
        payload_bytes: payload.len() as u64,
        salt,
        content_hash: salted_hash(&salt, &payload),
        submitter: request
            .submitter
            .or(claims.submitter)
            .unwrap_or(Address::ZERO),
        priority: request.priority.unwrap_or(plans),
        mode: request
            .requires_confirmation
            .then_some(request.confirmation),
        max_attempts: MAX_ATTEMPTS,
        traceparent: claims.traceparent.clone(),
        created_at: now,
    };
    let expected = SignedDuration::try_from(task.expected()).unwrap_or(SignedDuration::MAX);
    Ok(NewJob {
        moved: Job::submit(facts),
        payload,
        metadata: request
            .metadata
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<Value>(),
        estimated_completion: now + expected,
        active_limit: claims.active_jobs_limit,
        weight: claims.priority,
    })
}

/// SHA-256 of what must be the same for a retry to be one. A method and a path hold no line break.
fn request_hash(method: &Method, path: &str, body: &[u8]) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in [
        method.as_str().as_bytes(),
        b"\n",
        path.as_bytes(),
        b"\n",
        body,
    ] {
        hash.update(part);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.finish().as_ref());
    bytes
}

fn salt() -> Result<B256, Problem> {
    let mut salt = B256::ZERO;
    SysRng
        .try_fill_bytes(salt.as_mut_slice())
        .map_err(|error| {
            tracing::error!(%error, "the system has no randomness");
            Problem::internal()
        })?;
    Ok(salt)
}
