//! One JSON-RPC endpoint: a call has a deadline, and a failure says nothing of the address.

use std::{fmt, str::FromStr, time::Duration};

use alloy::{
    rpc::client::RpcClient,
    transports::{RpcError, TransportError, TransportErrorKind},
};
use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::classify::RpcFailure;

/// How long opening a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// An endpoint's address, whose path or query may hold a provider's key: only its host prints.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl(Url);

/// An endpoint, ready to be asked.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Host and port, for logs and metrics.
    pub(super) label: String,
    client: RpcClient,
    deadline: Duration,
}

/// What can be read from an endpoint's answer.
pub(super) trait Answer:
    DeserializeOwned + fmt::Debug + Send + Sync + Unpin + 'static
{
}

impl<T: DeserializeOwned + fmt::Debug + Send + Sync + Unpin + 'static> Answer for T {}

impl Endpoint {
    pub(super) fn new(url: &EndpointUrl, deadline: Duration) -> anyhow::Result<Self> {
        // The client wants a TLS provider even for plain http; a second install changes nothing.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(deadline)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("set up the RPC client")?;
        let client = RpcClient::new_http_with_client(http, url.0.clone());
        Ok(Self {
            label: url.to_string(),
            client,
            deadline,
        })
    }

    pub(super) async fn call<R: Answer>(
        &self,
        method: &'static str,
        parameters: Value,
    ) -> Result<R, RpcFailure> {
        let request = self.client.request::<Value, R>(method, parameters);
        let outcome = match tokio::time::timeout(self.deadline, request).await {
            Ok(outcome) => outcome.map_err(failure),
            Err(_) => Err(RpcFailure::Timeout),
        };
        if let Err(failure) = &outcome
            && !matches!(failure, RpcFailure::Answer { .. })
        {
            tracing::debug!(rpc.endpoint = self.label, rpc.method = method, %failure, "RPC");
            self.count_failure();
        }
        outcome
    }

    /// An answer of the right form that says what cannot be.
    pub(super) fn nonsense(&self, what: String) -> anyhow::Error {
        self.count_failure();
        anyhow::Error::from(RpcFailure::Malformed).context(what)
    }

    fn count_failure(&self) {
        let label = self.label.clone();
        metrics::counter!("relayer_rpc_errors_total", "endpoint" => label).increment(1);
    }
}

fn failure(error: TransportError) -> RpcFailure {
    match error {
        RpcError::ErrorResp(answer) => RpcFailure::Answer {
            code: answer.code,
            data: answer.as_revert_data(),
            message: answer.message.into_owned(),
        },
        RpcError::Transport(TransportErrorKind::HttpError(http)) => RpcFailure::Http(http.status),
        RpcError::Transport(TransportErrorKind::HttpErrorWithRetryAfter { error, .. }) => {
            RpcFailure::Http(error.status)
        }
        RpcError::Transport(TransportErrorKind::Custom(cause)) => {
            let timed_out = cause.downcast_ref().is_some_and(reqwest::Error::is_timeout);
            if timed_out {
                RpcFailure::Timeout
            } else {
                RpcFailure::Unreachable
            }
        }
        RpcError::Transport(_) => RpcFailure::Unreachable,
        _ => RpcFailure::Malformed,
    }
}

impl FromStr for EndpointUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url: Url = text.trim().parse().map_err(|_| "not a URL")?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("must be an http:// or https:// URL");
        }
        Ok(Self(url))
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.host_str().unwrap_or_default();
        match self.0.port() {
            Some(port) => write!(f, "{host}:{port}"),
            None => f.write_str(host),
        }
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_providers_key_never_prints() {
        let url: EndpointUrl = "https://user:pass@rpc.example/v2/k3y?token=k3y"
            .parse()
            .unwrap();
        let shown = format!("{url} {url:?}");
        assert!(!shown.contains("k3y") && !shown.contains("pass"), "{shown}");
        assert!("ws://127.0.0.1:1".parse::<EndpointUrl>().is_err());
    }

    #[tokio::test]
    async fn an_unreachable_endpoint_fails_without_its_address() {
        let url: EndpointUrl = "http://127.0.0.1:1/k3y".parse().unwrap();
        let endpoint = Endpoint::new(&url, Duration::from_secs(2)).unwrap();
        let answer = endpoint
            .call::<Value>("eth_chainId", serde_json::json!([]))
            .await;
        assert_eq!(answer, Err(RpcFailure::Unreachable));
    }
}
