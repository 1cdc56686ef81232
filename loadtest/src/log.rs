//! The client's log, WORK-DIR/client.jsonl: every request before it is sent and after its answer,
//! so that the audit can reason about those whose outcome nobody knows.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    path::Path,
    sync::Mutex,
};

use anyhow::Context as _;
use contracts::{
    api::jobs::JobEventType,
    id::{EndpointId, JobId, RequestId},
    job_type::JobType,
    problem::Code,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::exit::BadUsage;

/// The log's name in the work folder.
pub(crate) const CLIENT_LOG: &str = "client.jsonl";

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Route {
    /// `POST /v1/jobs`
    SubmitJob,
    /// `GET /v1/jobs/{job_id}`
    GetJob,
    /// `GET /v1/jobs`
    ListJobs,
    /// `GET /v1/jobs/{job_id}/proof`
    Proof,
    /// `POST /v1/webhooks/endpoints`
    CreateEndpoint,
    /// `PATCH /v1/webhooks/endpoints/{endpoint_id}`
    UpdateEndpoint,
    /// `GET /v1/webhooks/deliveries`
    Deliveries,
    /// `GET /v1/usage`, `/v1/usage/events`, `/v1/invoices/preview`, `/v1/prices`
    Billing,
    /// `GET /v1/health`
    Health,
}

/// Whose credential a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Actor {
    /// The tenant under test.
    Tenant,
    /// Another tenant.
    Other,
    /// Nobody the gateway knows.
    Stranger,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Done: 2xx.
    Ok,
    /// Not done: 4xx.
    Refused,
    /// Nobody knows: no answer, or 5xx.
    Unknown,
    /// Never left: no connection.
    Unsent,
}

/// A job as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Submission {
    /// The idempotency key.
    pub(crate) key: String,
    /// What to do.
    pub(crate) job_type: JobType,
    /// What to do it with: the exact bytes of the JSON value.
    pub(crate) payload: String,
    /// Whether to seal it.
    pub(crate) requires_confirmation: bool,
}

/// Written before a request is sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// The request's number in this log.
    pub(crate) n: u64,
    /// When.
    pub(crate) at: Timestamp,
    /// Whose credential it carries.
    pub(crate) actor: Actor,
    /// What it is for.
    pub(crate) route: Route,
    /// Its method.
    pub(crate) method: String,
    /// Its path and query.
    pub(crate) path: String,
    /// The job, where the request submits one that is well-formed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) submission: Option<Submission>,
    /// The events asked for, where the request registers an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) events: Option<Vec<JobEventType>>,
}

/// Written after a request, whatever came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// The request's number in this log.
    pub(crate) n: u64,
    /// When.
    pub(crate) at: Timestamp,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// How long it took, in milliseconds.
    pub(crate) latency_ms: f64,
    /// The answer's status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    /// The problem's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<Code>,
    /// Whether the answer tells of rate limits: the gateway then counted the request.
    pub(crate) counted: bool,
    /// The answer's `X-Request-ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<RequestId>,
    /// The job that was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) job_id: Option<JobId>,
    /// The endpoint that was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint_id: Option<EndpointId>,
}

/// A request, and its answer if the log holds one.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// What was sent.
    pub(crate) intent: Intent,
    /// What came of it; absent when the harness was stopped in between.
    pub(crate) answer: Option<Answered>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Intent(Intent),
    Answer(Answered),
}

/// The log, open for writing.
pub(crate) struct ClientLog {
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    next: u64,
}

impl Route {
    /// The path's template, as the usage events of its requests name it; none where they cost
    /// nothing.
    pub(crate) const fn billed_as(self) -> Option<&'static str> {
        match self {
            Self::SubmitJob | Self::ListJobs => Some("/v1/jobs"),
            Self::GetJob => Some("/v1/jobs/{job_id}"),
            Self::Proof => Some("/v1/jobs/{job_id}/proof"),
            Self::CreateEndpoint => Some("/v1/webhooks/endpoints"),
            Self::UpdateEndpoint => Some("/v1/webhooks/endpoints/{endpoint_id}"),
            Self::Deliveries => Some("/v1/webhooks/deliveries"),
            Self::Billing | Self::Health => None,
        }
    }
}

impl Outcome {
    /// What an answer with this status means.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            200..=299 => Self::Ok,
            400..=499 => Self::Refused,
            _ => Self::Unknown,
        }
    }
}

impl ClientLog {
    /// Opens the log in `work_dir`, to be continued.
    pub(crate) fn open(work_dir: &Path) -> anyhow::Result<Self> {
        let path = work_dir.join(CLIENT_LOG);
        let next = match File::open(&path) {
            Ok(_) => read(work_dir)?
                .last()
                .map_or(1, |exchange| exchange.intent.n + 1),
            Err(error) if error.kind() == ErrorKind::NotFound => 1,
            Err(error) => return Err(error).context("opening the client's log"),
        };
        let file = append_to(&path)?;
        Ok(Self {
            inner: Mutex::new(Inner { file, next }),
        })
    }

    /// Writes an intent, which gets its number here; the request may be sent when this returns.
    pub(crate) fn intend(&self, mut intent: Intent) -> anyhow::Result<u64> {
        let mut inner = self.inner.lock().expect("no writer panics");
        intent.n = inner.next;
        inner.next += 1;
        let n = intent.n;
        write_line(&mut inner.file, &Line::Intent(intent))?;
        Ok(n)
    }

    /// Writes what came of a request.
    pub(crate) fn answer(&self, answer: Answered) -> anyhow::Result<()> {
        let mut inner = self.inner.lock().expect("no writer panics");
        write_line(&mut inner.file, &Line::Answer(answer))
    }
}

/// Every request of the log in `work_dir`, in the order they were sent.
pub(crate) fn read(work_dir: &Path) -> anyhow::Result<Vec<Exchange>> {
    let mut exchanges: BTreeMap<u64, Exchange> = BTreeMap::new();
    for line in read_lines(&work_dir.join(CLIENT_LOG))? {
        match line {
            Line::Intent(intent) => {
                exchanges.insert(
                    intent.n,
                    Exchange {
                        intent,
                        answer: None,
                    },
                );
            }
            Line::Answer(answer) => {
                if let Some(exchange) = exchanges.get_mut(&answer.n) {
                    exchange.answer = Some(answer);
                }
            }
        }
    }
    Ok(exchanges.into_values().collect())
}

/// A file to append lines to.
pub(crate) fn append_to(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// Appends one line. The kernel has it when this returns, so killing the harness loses nothing.
pub(crate) fn write_line(file: &mut File, line: &impl Serialize) -> anyhow::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.write_all(&bytes)
        .context("writing a log in the work folder")
}

/// Every line of a file; a last one without its end was being written when the harness stopped.
pub(crate) fn read_lines<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<Vec<T>> {
    let file = File::open(path)
        .map_err(|error| BadUsage(format!("cannot read {}: {error}", path.display())))?;
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    let mut text = String::new();
    while reader
        .read_line(&mut text)
        .context("reading a log of the work folder")?
        > 0
    {
        if text.ends_with('\n') {
            let line = serde_json::from_str(&text);
            lines.push(line.with_context(|| {
                format!(
                    "{}, line {}: not of this form",
                    path.display(),
                    lines.len() + 1
                )
            })?);
        }
        text.clear();
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn intent() -> Intent {
        Intent {
            n: 0,
            at: clock::now(),
            actor: Actor::Tenant,
            route: Route::SubmitJob,
            method: "POST".into(),
            path: "/v1/jobs".into(),
            submission: Some(Submission {
                key: "k".into(),
                job_type: JobType::Digest,
                payload: r#"{"text": "a\u0020b"}"#.into(),
                requires_confirmation: true,
            }),
            events: None,
        }
    }

    fn answered(n: u64) -> Answered {
        Answered {
            n,
            at: clock::now(),
            outcome: Outcome::Ok,
            latency_ms: 1.5,
            status: Some(202),
            code: None,
            counted: true,
            request_id: None,
            job_id: Some(JobId::generate(clock::now())),
            endpoint_id: None,
        }
    }

    #[test]
    fn a_log_is_continued_and_an_unanswered_request_stays_visible() {
        let dir = tempfile::tempdir().unwrap();
        let log = ClientLog::open(dir.path()).unwrap();
        assert_eq!(log.intend(intent()).unwrap(), 1);
        assert_eq!(log.intend(intent()).unwrap(), 2);
        log.answer(answered(2)).unwrap();
        drop(log);
        let log = ClientLog::open(dir.path()).unwrap();
        assert_eq!(log.intend(intent()).unwrap(), 3);
        let exchanges = read(dir.path()).unwrap();
        let answers: Vec<_> = exchanges.iter().map(|e| e.answer.is_some()).collect();
        assert_eq!(answers, [false, true, false]);
        let submission = exchanges[0].intent.submission.clone().unwrap();
        assert_eq!(Some(submission), intent().submission);
    }

    #[test]
    fn a_line_cut_off_by_a_stop_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = ClientLog::open(dir.path()).unwrap();
        log.intend(intent()).unwrap();
        let mut file = append_to(&dir.path().join(CLIENT_LOG)).unwrap();
        file.write_all(br#"{"kind":"answ"#).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_status_says_what_is_known() {
        let outcomes = [202, 404, 429, 500, 503].map(Outcome::of_status);
        let refused = Outcome::Refused;
        let expected = [
            Outcome::Ok,
            refused,
            refused,
            Outcome::Unknown,
            Outcome::Unknown,
        ];
        assert_eq!(outcomes, expected);
    }
}
