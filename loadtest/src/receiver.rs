//! The webhook sink: verifies every webhook with the crate `standardwebhooks`, writes each to
//! WORK-DIR/receipts.jsonl, and refuses some on purpose to see them come again.

use std::{
    collections::HashSet,
    fs::File,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, OnceLock},
};

use alloy::primitives::B256;
use anyhow::Context as _;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use contracts::{
    api::{
        jobs::{JobEventType, JobFailure, JobStatus},
        webhooks::{WebhookBody, WebhookData},
    },
    assertion::sha256_hex,
    id::JobId,
    job_type::JobType,
};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_TIMESTAMP, Webhook};
use tokio::{net::TcpListener, task::JoinSet, time::Instant};

use crate::{
    clock,
    log::{append_to, write_line},
    watch::Tracker,
};

/// The receipts' name in the work folder.
pub(crate) const RECEIPTS: &str = "receipts.jsonl";
/// Where webhooks are to be sent.
const PATH: &str = "/webhooks";
/// Largest webhook that is looked at.
const BODY_MAX_BYTES: usize = 256 * 1_024;

/// A webhook that arrived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// When.
    pub(crate) at: Timestamp,
    /// The header `webhook-id`.
    pub(crate) webhook_id: String,
    /// The header `webhook-timestamp`.
    pub(crate) webhook_timestamp: String,
    /// What it tells of.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub(crate) event_type: Option<JobEventType>,
    /// Of which job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) job_id: Option<JobId>,
    /// What it tells of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) told: Option<Told>,
    /// Whether its signature is right.
    pub(crate) verified: bool,
    /// What it was answered with.
    pub(crate) answered: u16,
    /// SHA-256 of the body, in hexadecimal.
    pub(crate) body_sha256: String,
}

/// What a webhook tells of its job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// What it does.
    pub(crate) job_type: JobType,
    /// Where it is.
    pub(crate) status: JobStatus,
    /// SHA-256 of its result, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result_sha256: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<JobFailure>,
    /// Its number on the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sequence: Option<u64>,
    /// The transaction that confirmed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) transaction_hash: Option<B256>,
}

/// A webhook in full, to be shown.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// The job it is about.
    pub(crate) job_id: JobId,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: Bytes,
}

/// The sink, listening until it is dropped.
pub(crate) struct Receiver {
    address: SocketAddr,
    sink: Arc<Sink>,
    _server: JoinSet<std::io::Result<()>>,
}

struct Sink {
    verifier: OnceLock<Webhook>,
    tracker: Arc<Tracker>,
    /// Every so many messages, one is answered 500 when it comes first; zero: none.
    refuse_every: usize,
    state: Mutex<SinkState>,
}

struct SinkState {
    receipts: File,
    seen: HashSet<String>,
    refused: u64,
    sample: Option<Sample>,
}

impl Receiver {
    /// Listens on a free port of this machine.
    pub(crate) async fn start(
        work_dir: &Path,
        tracker: Arc<Tracker>,
        refuse_every: usize,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("opening the receiver")?;
        let address = listener.local_addr().context("opening the receiver")?;
        let state = SinkState {
            receipts: append_to(&work_dir.join(RECEIPTS))?,
            seen: HashSet::new(),
            refused: 0,
            sample: None,
        };
        let verifier = OnceLock::new();
        let sink = Arc::new(Sink {
            verifier,
            tracker,
            refuse_every,
            state: Mutex::new(state),
        });
        let routes = Router::new()
            .route(PATH, post(receive))
            .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
            .with_state(Arc::clone(&sink));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, routes).await });
        Ok(Self {
            address,
            sink,
            _server: server,
        })
    }

    /// The URL to register.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// What webhooks are signed with, once that is known; until then each is answered 503.
    pub(crate) fn expect_secret(&self, secret: &SecretString) -> anyhow::Result<()> {
        let webhook = Webhook::new(secret.expose_secret())
            .map_err(|_| anyhow::anyhow!("the endpoint's secret is not of its form"))?;
        let fresh = self.sink.verifier.set(webhook);
        fresh.map_err(|_| anyhow::anyhow!("the receiver has a secret already"))
    }

    /// A verified `job.confirmed` in full, if one came.
    pub(crate) fn sample(&self) -> Option<Sample> {
        self.sink
            .state
            .lock()
            .expect("no receipt panics")
            .sample
            .clone()
    }

    /// How many webhooks were answered 500 on purpose.
    pub(crate) fn refused(&self) -> u64 {
        self.sink.state.lock().expect("no receipt panics").refused
    }
}

async fn receive(
    State(sink): State<Arc<Sink>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    let Some(secret) = sink.verifier.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready");
    };
    let verified = secret.verify(&body, &headers).is_ok();
    match sink.take(&headers, &body, verified) {
        Ok(status) => (status, ""),
        // A full disk, say: what cannot be written down was not received.
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "the receipt cannot be written",
        ),
    }
}

impl Told {
    fn of(data: &WebhookData) -> Self {
        let confirmation = data.blockchain_confirmation.as_ref();
        let hash = |json: &RawValue| sha256_hex(json.get().as_bytes());
        Self {
            job_type: data.job_type,
            status: data.status,
            result_sha256: data.result.as_deref().map(hash),
            error: data.error.clone(),
            sequence: confirmation.and_then(|shown| shown.sequence),
            transaction_hash: confirmation.and_then(|shown| shown.transaction_hash),
        }
    }
}

impl Sink {
    fn take(
        &self,
        headers: &HeaderMap,
        body: &Bytes,
        verified: bool,
    ) -> anyhow::Result<StatusCode> {
        let at = Instant::now();
        let header = |name| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let webhook_id = header(HEADER_WEBHOOK_ID);
        let parsed: Option<WebhookBody> = serde_json::from_slice(body).ok();
        let mut state = self.state.lock().expect("no receipt panics");
        let status = state.decide(&webhook_id, verified, self.refuse_every);
        let receipt = Receipt {
            at: clock::now(),
            webhook_id,
            webhook_timestamp: header(HEADER_WEBHOOK_TIMESTAMP),
            event_type: parsed.as_ref().map(|body| body.event_type),
            job_id: parsed.as_ref().map(|body| body.data.job_id),
            told: parsed.as_ref().map(|body| Told::of(&body.data)),
            verified,
            answered: status.as_u16(),
            body_sha256: sha256_hex(body),
        };
        write_line(&mut state.receipts, &receipt)?;
        if let (StatusCode::NO_CONTENT, Some(parsed)) = (status, parsed) {
            let WebhookBody {
                event_type, data, ..
            } = parsed;
            if event_type == JobEventType::Confirmed && state.sample.is_none() {
                let (headers, body) = (headers.clone(), body.clone());
                state.sample = Some(Sample {
                    job_id: data.job_id,
                    headers,
                    body,
                });
            }
            let sequence = data.blockchain_confirmation.and_then(|c| c.sequence);
            self.tracker.told(data.job_id, event_type, sequence, at);
        }
        Ok(status)
    }
}

impl SinkState {
    fn decide(&mut self, webhook_id: &str, verified: bool, refuse_every: usize) -> StatusCode {
        if !verified {
            return StatusCode::UNAUTHORIZED;
        }
        let first = self.seen.insert(webhook_id.to_owned());
        if first && refuse_every > 0 && self.seen.len().is_multiple_of(refuse_every) {
            self.refused += 1;
            return StatusCode::INTERNAL_SERVER_ERROR;
        }
        StatusCode::NO_CONTENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::read_lines;

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    async fn send(receiver: &Receiver, signing: &str, id: &str, job: JobId) -> u16 {
        let body = format!(
            r#"{{"type":"job.completed","timestamp":"2026-01-01T00:00:00Z","data":{{
            "job_id":"{job}","job_type":"digest","status":"COMPLETED",
            "tenant_id":"tenant_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a","result":{{"a":1}}}}}}"#,
        );
        let now = clock::now().as_second();
        let signature = Webhook::new(signing)
            .unwrap()
            .sign(id, now, body.as_bytes())
            .unwrap();
        let response = reqwest::Client::new()
            .post(receiver.url())
            .header(HEADER_WEBHOOK_ID, id)
            .header(HEADER_WEBHOOK_TIMESTAMP, now.to_string())
            .header("webhook-signature", signature)
            .body(body)
            .send();
        response.await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn only_signed_webhooks_count_and_some_are_refused_once() {
        // Another test may have been faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let tracker = Arc::new(Tracker::default());
        let receiver = Receiver::start(dir.path(), Arc::clone(&tracker), 2)
            .await
            .unwrap();
        let job = JobId::generate(clock::now());
        assert_eq!(
            send(&receiver, SECRET, "msg_1", job).await,
            503,
            "before the secret is known"
        );
        receiver.expect_secret(&SECRET.into()).unwrap();
        assert_eq!(send(&receiver, SECRET, "msg_1", job).await, 204);
        assert_eq!(
            send(&receiver, SECRET, "msg_2", job).await,
            500,
            "the second message"
        );
        assert_eq!(send(&receiver, SECRET, "msg_2", job).await, 204);
        assert_eq!(send(&receiver, "whsec_AAAA", "msg_3", job).await, 401);
        let receipts: Vec<Receipt> = read_lines(&dir.path().join(RECEIPTS)).unwrap();
        let seen: Vec<_> = receipts
            .iter()
            .map(|r| (r.webhook_id.as_str(), r.verified, r.answered))
            .collect();
        let expected = [
            ("msg_1", true, 204),
            ("msg_2", true, 500),
            ("msg_2", true, 204),
            ("msg_3", false, 401),
        ];
        assert_eq!(seen, expected);
        assert_eq!(receipts[0].job_id, Some(job));
        let told = receipts[0].told.as_ref().unwrap();
        let result = sha256_hex(br#"{"a":1}"#);
        assert_eq!(told.status, JobStatus::Completed);
        assert_eq!(told.result_sha256.as_ref(), Some(&result));
        assert_eq!(receiver.refused(), 1);
        tracker.accepted(job, false, None, Instant::now());
        assert_eq!(
            tracker.reached().stages[&crate::stages::Stage::Delivered],
            (1, 1)
        );
    }
}
