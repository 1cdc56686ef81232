//! The HTTP client: its resolver refuses every address [`Guard`] does and dials exactly what was
//! vetted; it follows no redirect and bounds connecting, the whole exchange, and the body.

use std::{error::Error as _, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use reqwest::{
    Client, Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{CONTENT_TYPE, RETRY_AFTER},
    redirect::Policy,
};
use url::Url;

use crate::{
    delivery::Outcome,
    guard::{Guard, Refusal},
};

/// How long connecting may take, resolution included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long the whole exchange may take, the answer's body included.
pub const TOTAL_DEADLINE: Duration = Duration::from_secs(15);
/// How much of an answer's body is read and kept.
const BODY_KEPT_BYTES: usize = 4 * 1_024;
const USER_AGENT: &str = "Jobseal-Webhooks/1.0";

/// Sends webhooks.
#[derive(Clone, Debug)]
pub struct Sender {
    client: Client,
    guard: Guard,
}

/// One signed webhook, as it goes out.
#[derive(Debug)]
pub struct Webhook<'a> {
    /// Where to.
    pub url: &'a str,
    /// `webhook-id`.
    pub id: &'a str,
    /// `webhook-timestamp`, in seconds of Unix time.
    pub timestamp: i64,
    /// `webhook-signature`: one entry for each active secret, separated by spaces.
    pub signature: String,
    /// W3C trace context, if any.
    pub traceparent: Option<String>,
    /// The exact bytes that were signed.
    pub body: String,
}

/// What came of sending, for the log and for the delivery.
#[derive(Debug)]
pub struct Report {
    /// What it means for the delivery.
    pub outcome: Outcome,
    /// The answer's status, if there was one.
    pub status: Option<u16>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// The beginning of the answer's body.
    pub body: Option<String>,
}

struct Resolver(Guard);

impl Sender {
    /// A client that dials only what `guard` allows.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(guard: Guard) -> anyhow::Result<Self> {
        // Another part of the process may have chosen a provider already.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let client = Client::builder()
            .dns_resolver(Arc::new(Resolver(guard.clone())))
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(TOTAL_DEADLINE)
            .user_agent(USER_AGENT)
            .build()
            .context("set up the webhook client")?;
        Ok(Self { client, guard })
    }

    /// Sends a webhook and reads what the endpoint says to it; `now` dates a `Retry-After`.
    pub async fn send(&self, webhook: Webhook<'_>, now: Timestamp) -> Report {
        let url = match Url::parse(webhook.url) {
            Ok(url) => url,
            Err(error) => return Report::refused(format!("the URL cannot be parsed: {error}")),
        };
        if let Err(refusal) = self.guard.check_url(&url) {
            return Report::refused(refusal.to_string());
        }
        let mut request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", webhook.id)
            .header("webhook-timestamp", webhook.timestamp)
            .header("webhook-signature", webhook.signature);
        if let Some(parent) = webhook.traceparent {
            request = request.header("traceparent", parent);
        }
        match request.body(webhook.body).send().await {
            Ok(response) => Report::answered(response, now).await,
            Err(error) => Report::unanswered(&error),
        }
    }
}

impl Report {
    /// A refusal of ours, which no retry changes.
    #[must_use]
    pub fn refused(reason: String) -> Self {
        Self {
            outcome: Outcome::Refused,
            status: None,
            error: Some(reason),
            body: None,
        }
    }

    async fn answered(response: Response, now: Timestamp) -> Self {
        let status = response.status();
        let outcome = match status {
            _ if status.is_success() => Outcome::Accepted,
            StatusCode::GONE => Outcome::Gone,
            _ => Outcome::Failed(retry_after(&response, now)),
        };
        let error = (outcome != Outcome::Accepted).then(|| format!("the endpoint said {status}"));
        let body = beginning(response).await;
        Self {
            outcome,
            status: Some(status.as_u16()),
            error,
            body: Some(body),
        }
    }

    fn unanswered(error: &reqwest::Error) -> Self {
        let mut causes = vec![in_short(error).to_owned()];
        let mut next = error.source();
        while let Some(cause) = next {
            if let Some(refusal) = cause.downcast_ref::<Refusal>() {
                return Self::refused(refusal.to_string());
            }
            causes.push(cause.to_string());
            next = cause.source();
        }
        let error = Some(without_nul(&causes.join(": ")));
        Self {
            outcome: Outcome::Failed(None),
            status: None,
            error,
            body: None,
        }
    }
}

/// What failed, without the URL, which may hold what only the tenant should see.
fn in_short(error: &reqwest::Error) -> &'static str {
    match error {
        _ if error.is_timeout() => "no answer in time",
        _ if error.is_connect() => "cannot connect",
        _ => "cannot send",
    }
}

/// `Retry-After` in seconds or as an HTTP date (RFC 9110 §10.2.3).
fn retry_after(response: &Response, now: Timestamp) -> Option<SignedDuration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(SignedDuration::from_secs(seconds.into()));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(date.duration_since(now).max(SignedDuration::ZERO))
}

/// Reads no more of the body than is kept; what is left is dropped with the connection.
async fn beginning(mut response: Response) -> String {
    let mut kept = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = BODY_KEPT_BYTES - kept.len();
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if kept.len() == BODY_KEPT_BYTES {
            break;
        }
    }
    without_nul(&String::from_utf8_lossy(&kept))
}

/// Postgres text holds no NUL.
fn without_nul(text: &str) -> String {
    text.replace('\0', "␀")
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> = found.collect();
            // One forbidden address among several is reason enough: a name that points both ways
            // is how rebinding begins.
            for address in &addresses {
                guard.check(address.ip())?;
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
