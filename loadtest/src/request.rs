//! One request and one answer of the public contract, and what a request is authorised with.

use std::{fs, path::Path, time::Duration};

use alloy::primitives::{Address, keccak256};
use anyhow::Context as _;
use bytes::Bytes;
use contracts::{api::jobs::JobEventType, id::RequestId, problem::ProblemDetails};
use reqwest::{
    Method, RequestBuilder,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use url::Url;

use crate::{
    clock,
    exit::BadUsage,
    log::{Actor, Intent, Route, Submission},
};

/// The name in a job's metadata under which it carries its idempotency key, so that the audit can
/// tell which request a job came from even if no answer arrived.
pub(crate) const KEY_NOTE: &str = "idempotency_key";
/// Last digits of an API key, the CRC-32 of what stands before them.
const KEY_CHECKSUM_DIGITS: usize = 8;
/// Longest credential file.
const CREDENTIAL_MAX_BYTES: usize = 4 * 1_024;

/// The answer's header that names the request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The answer's header that tells how the tenant stands with its limits; on the answer to every
/// request that the gateway counted.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// What a request is authorised with.
#[derive(Clone)]
pub(crate) struct Credential {
    actor: Actor,
    header: HeaderValue,
}

/// One request.
pub(crate) struct Call<'a> {
    /// What it is for.
    pub(crate) route: Route,
    method: Method,
    path: String,
    credential: Option<&'a Credential>,
    headers: HeaderMap,
    body: Option<reqwest::Body>,
    submission: Option<Submission>,
    events: Option<Vec<JobEventType>>,
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The whole body.
    pub(crate) body: Bytes,
    /// How long it took, whole.
    pub(crate) latency: Duration,
}

impl Credential {
    /// The API key in a file.
    pub(crate) fn from_file(path: &Path, actor: Actor) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|error| BadUsage(format!("cannot read {}: {error}", path.display())))?;
        if text.len() > CREDENTIAL_MAX_BYTES || text.trim().is_empty() {
            return Err(BadUsage(format!("{} holds no credential", path.display())).into());
        }
        Self::bearer(&SecretString::from(text.trim()), actor)
    }

    /// A token or key.
    pub(crate) fn bearer(secret: &SecretString, actor: Actor) -> anyhow::Result<Self> {
        let text = format!("Bearer {}", secret.expose_secret());
        let mut header = HeaderValue::from_str(&text)
            .map_err(|_| BadUsage("a credential cannot stand in a header".into()))?;
        header.set_sensitive(true);
        Ok(Self { actor, header })
    }

    /// The same API key with another secret, and the checksum that fits it: well-formed, known by
    /// its id, and wrong.
    pub(crate) fn with_wrong_secret(&self) -> anyhow::Result<Self> {
        let text = self
            .header
            .to_str()
            .context("a credential is visible text")?;
        let key = text.strip_prefix("Bearer ").unwrap_or(text);
        let (id, rest) = key.rsplit_once('_').context("not an API key")?;
        let secret = rest
            .len()
            .checked_sub(KEY_CHECKSUM_DIGITS)
            .and_then(|end| rest.get(..end))
            .context("not an API key")?;
        let body = format!("{id}_{}", "0".repeat(secret.len()));
        let checksum = crc32fast::hash(body.as_bytes());
        Self::bearer(&format!("{body}{checksum:08x}").into(), Actor::Stranger)
    }
}

impl<'a> Call<'a> {
    /// A request without a body.
    pub(crate) fn get(
        route: Route,
        path: impl Into<String>,
        credential: Option<&'a Credential>,
    ) -> Self {
        Self {
            route,
            method: Method::GET,
            path: path.into(),
            credential,
            headers: HeaderMap::new(),
            body: None,
            submission: None,
            events: None,
        }
    }

    /// A request with a JSON body.
    pub(crate) fn post(
        route: Route,
        path: impl Into<String>,
        credential: Option<&'a Credential>,
        body: impl Into<reqwest::Body>,
    ) -> Self {
        let call = Self::get(route, path, credential);
        let call = Self {
            method: Method::POST,
            body: Some(body.into()),
            ..call
        };
        call.header("content-type", "application/json")
    }

    /// The request with another method.
    pub(crate) fn method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// The request with a header set.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).expect("headers of ours are visible text");
        self.headers.insert(HeaderName::from_static(name), value);
        self
    }

    /// The request with what it submits, for the log.
    pub(crate) fn submitting(self, submission: Submission) -> Self {
        Self {
            submission: Some(submission),
            ..self
        }
    }

    /// The request with the events an endpoint asks for, for the log.
    pub(crate) fn subscribing(self, events: Vec<JobEventType>) -> Self {
        Self {
            events: Some(events),
            ..self
        }
    }

    /// A request that submits a job.
    pub(crate) fn submit(credential: &'a Credential, submission: &Submission) -> Self {
        Self::post(
            Route::SubmitJob,
            "/v1/jobs",
            Some(credential),
            body_of(submission),
        )
        .header("idempotency-key", &submission.key)
        .submitting(submission.clone())
    }

    /// The request, to be sent to the gateway at `base`.
    pub(crate) fn into_builder(self, http: &reqwest::Client, base: &Url) -> RequestBuilder {
        let base = base.as_str().trim_end_matches('/');
        let mut request = http.request(self.method, format!("{base}{}", self.path));
        if let Some(credential) = self.credential {
            request = request.header(AUTHORIZATION, credential.header.clone());
        }
        if let Some(body) = self.body {
            request = request.body(body);
        }
        request.headers(self.headers)
    }

    /// What the log holds of the request before it is sent.
    pub(crate) fn intent(&self) -> Intent {
        Intent {
            n: 0,
            at: clock::now(),
            actor: self
                .credential
                .map_or(Actor::Stranger, |credential| credential.actor),
            route: self.route,
            method: self.method.to_string(),
            path: self.path.clone(),
            submission: self.submission.clone(),
            events: self.events.clone(),
        }
    }
}

impl Answer {
    /// The body as a `T`.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("an answer with status {} is not of its form", self.status))
    }

    /// The problem that the body is, if it is one.
    pub(crate) fn problem(&self) -> Option<ProblemDetails> {
        serde_json::from_slice(&self.body).ok()
    }

    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The request's id, as the gateway named it.
    pub(crate) fn request_id(&self) -> Option<RequestId> {
        self.header(REQUEST_ID.as_str())?.parse().ok()
    }

    /// Whether the gateway counted the request against the tenant's limits.
    pub(crate) fn is_counted(&self) -> bool {
        self.headers.contains_key(RATE_LIMIT)
    }

    /// How long the target asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.header(RETRY_AFTER.as_str())?
            .parse()
            .ok()
            .map(Duration::from_secs)
    }
}

/// The EVM address that a submission asks for as its submitter: one of its own, so that no other
/// can stand in for it.
pub(crate) fn submitter_of(submission: &Submission) -> Address {
    Address::from_word(keccak256(&submission.key))
}

/// The body that asks for a job. The payload stands in it byte for byte.
pub(crate) fn body_of(submission: &Submission) -> String {
    format!(
        concat!(
            r#"{{"type":"{}","payload":{},"requires_confirmation":{},"submitter":"{}","#,
            r#""metadata":{{"{}":{}}}}}"#
        ),
        submission.job_type,
        submission.payload,
        submission.requires_confirmation,
        submitter_of(submission),
        KEY_NOTE,
        serde_json::Value::from(submission.key.as_str()),
    )
}

#[cfg(test)]
mod tests {
    use contracts::{api::jobs::validate_submit, job_type::JobType};

    use super::*;

    #[test]
    fn a_submission_is_valid_and_its_payload_stays_as_written() {
        let submission = Submission {
            key: "a\"b".into(),
            job_type: JobType::Digest,
            payload: r#"{ "text" : "\u0061" }"#.into(),
            requires_confirmation: true,
        };
        let request = validate_submit(body_of(&submission).as_bytes()).unwrap();
        assert_eq!(request.payload.get(), submission.payload);
        assert_eq!(request.metadata[KEY_NOTE], submission.key);
        assert!(request.requires_confirmation);
        assert_eq!(request.submitter, Some(submitter_of(&submission)));
    }

    #[test]
    fn a_credential_does_not_print() {
        let credential = Credential::bearer(&"jsk_secret".into(), Actor::Tenant).unwrap();
        assert_eq!(format!("{:?}", credential.header), "Sensitive");
    }
}
