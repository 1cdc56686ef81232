//! The APIs behind the gateway: where they are, what they are told about who asks, and a whole
//! exchange with one through Pingora's pooled connections.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use contracts::{
    assertion::{self, Audience, Claims, LIFETIME_MAX_SECONDS, Signer},
    id::RequestId,
};
use jiff::Timestamp;
use pingora::{
    Error, ErrorType, OkOrErr as _,
    connectors::http::Connector,
    http::{RequestHeader, ResponseHeader},
    protocols::http::client::HttpSession,
    upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    auth::Principal,
    config::{self, UpstreamOptions},
};

/// How often the address of a name is looked up.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);
/// How long a look-up may take.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(2);
/// An assertion lives this much shorter than it may, for clocks that disagree.
const CLOCK_SKEW_SECONDS: i64 = 5;

/// One API.
#[derive(Debug)]
pub struct Upstream {
    /// Which one.
    pub audience: Audience,
    /// Its `host:port`.
    pub host: String,
    signer: Signer,
    address: ArcSwapOption<SocketAddr>,
}

/// All APIs.
pub struct Upstreams {
    all: Vec<Upstream>,
    connector: Connector,
    deadline: Duration,
}

/// What an assertion says about one request.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// The client's address.
    pub address: IpAddr,
    /// The request.
    pub request_id: RequestId,
    /// The trace.
    pub traceparent: &'a str,
}

/// A captured answer.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub header: ResponseHeader,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nothing was sent: the upstream cannot be reached.
    #[error("cannot be reached")]
    Unreachable,
    /// It did not answer in time; whether it acted is unknown.
    #[error("took too long")]
    Timeout,
    /// It closed the connection or answered with nonsense; whether it acted is unknown.
    #[error("broke off")]
    Broken,
    /// It answered with more than may be captured.
    #[error("answered with too much")]
    TooLarge,
}

/// How one attempt failed.
struct Attempt {
    failure: Failure,
    /// Whether the same request may be sent again without the upstream having seen it.
    unsent: bool,
    /// Whether a pooled connection may have been closed by the upstream just before.
    stale: bool,
}

impl Upstreams {
    /// The APIs of the configuration, none of them found yet.
    #[must_use]
    pub fn new(options: &UpstreamOptions, deadline: Duration) -> Self {
        let all = options.all().map(|(audience, url, key)| {
            let host = url.host_str().unwrap_or_default();
            let host = format!("{host}:{}", url.port_or_known_default().unwrap_or(80));
            let address = host.parse().ok().map(Arc::new);
            let address = ArcSwapOption::new(address);
            Upstream {
                audience,
                host,
                signer: Signer::new(key.expose()),
                address,
            }
        });
        Self {
            all: all.into(),
            connector: Connector::new(None),
            deadline,
        }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, audience: Audience) -> &Upstream {
        let found = self
            .all
            .iter()
            .find(|upstream| upstream.audience == audience);
        found.expect("the configuration names every audience")
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Upstream] {
        &self.all
    }

    /// Follows names to addresses until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn resolve(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            for upstream in &self.all {
                if let Err(error) = upstream.resolve().await {
                    let error = format!("{error:#}");
                    warn!(
                        upstream = upstream.host,
                        error, "the upstream's name has no address"
                    );
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RESOLVE_EVERY) => {}
            }
        }
    }

    /// Sends a request whole and captures the answer. `may_repeat` says that the upstream knows a
    /// repetition of this request from a second one.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn exchange(
        &self,
        audience: Audience,
        request: &RequestHeader,
        body: &Bytes,
        may_repeat: bool,
    ) -> Result<Answer, Failure> {
        let upstream = self.get(audience);
        let work = async {
            match self.attempt(upstream, request, body).await {
                Err(first) if first.unsent || (first.stale && may_repeat) => {
                    self.attempt(upstream, request, body).await
                }
                outcome => outcome,
            }
        };
        match tokio::time::timeout(self.deadline, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(attempt)) => Err(attempt.failure),
            Err(_) => Err(Failure::Timeout),
        }
    }

    /// Sends a request without a body and hands over its answer, to be read as it comes.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn open(
        &self,
        audience: Audience,
        request: &RequestHeader,
    ) -> Result<(HttpSession, ResponseHeader), Failure> {
        let upstream = self.get(audience);
        let peer = upstream
            .peer(self.deadline)
            .map_err(|_| Failure::Unreachable)?;
        let work = async {
            loop {
                let connection = self.connector.get_http_session(&peer).await;
                let (mut session, reused) = connection.map_err(|_| Failure::Unreachable)?;
                match begin(&mut session, request, &Bytes::new()).await {
                    Ok(header) => return Ok((session, header)),
                    // The upstream may have closed it just before: the next one, or a new one.
                    Err(_) if reused => {}
                    Err(_) => return Err(Failure::Broken),
                }
            }
        };
        let answered = tokio::time::timeout(self.deadline, work).await;
        answered.unwrap_or(Err(Failure::Timeout))
    }

    async fn attempt(
        &self,
        upstream: &Upstream,
        request: &RequestHeader,
        body: &Bytes,
    ) -> Result<Answer, Attempt> {
        let unsent = |_| Attempt {
            failure: Failure::Unreachable,
            unsent: true,
            stale: false,
        };
        let peer = upstream.peer(self.deadline).map_err(unsent)?;
        let (mut session, reused) = self
            .connector
            .get_http_session(&peer)
            .await
            .map_err(unsent)?;
        let broken = |stale| {
            move |error: Box<Error>| Attempt {
                failure: match error.etype() {
                    ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Timeout,
                    _ => Failure::Broken,
                },
                unsent: false,
                stale,
            }
        };
        let header = begin(&mut session, request, body)
            .await
            .map_err(broken(reused))?;
        let body = read_body(&mut session).await.map_err(broken(false))?;
        let Some(body) = body else {
            return Err(Attempt {
                failure: Failure::TooLarge,
                unsent: false,
                stale: false,
            });
        };
        let idle = Some(config::UPSTREAM_IDLE);
        self.connector
            .release_http_session(session, &peer, idle)
            .await;
        Ok(Answer { header, body })
    }
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.all).finish()
    }
}

impl Upstream {
    /// Where Pingora connects to. `read_deadline` is how long the upstream may be silent.
    ///
    /// # Errors
    /// When the upstream's name has no address yet.
    pub fn peer(&self, read_deadline: Duration) -> pingora::Result<HttpPeer> {
        let address = self.address.load();
        let address = address
            .as_deref()
            .or_err(ErrorType::ConnectError, "no address yet")?;
        let mut peer = HttpPeer::new(address, false, String::new());
        peer.options.connection_timeout = Some(config::CONNECT_DEADLINE);
        peer.options.total_connection_timeout = Some(config::CONNECT_DEADLINE);
        peer.options.read_timeout = Some(read_deadline);
        peer.options.write_timeout = Some(read_deadline);
        peer.options.idle_timeout = Some(config::UPSTREAM_IDLE);
        peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        Ok(peer)
    }

    /// The statement about who asks, bound to one request to this upstream.
    #[must_use]
    pub fn assertion(&self, principal: &Principal, facts: &Facts<'_>, now: Timestamp) -> String {
        let identity = principal.identity();
        let claims = Claims {
            aud: self.audience,
            tenant: identity.tenant,
            subject: identity.subject.clone(),
            scopes: identity.scopes.clone(),
            role: identity.role,
            team: identity.team.clone(),
            submitter: identity.submitter,
            active_jobs_limit: Some(principal.active_jobs_limit()),
            priority: principal.tenant.plan.priority,
            address: facts.address,
            request_id: facts.request_id,
            traceparent: Some(facts.traceparent.to_owned()),
            method: facts.method.to_owned(),
            path: facts.target.to_owned(),
            body_sha256: assertion::sha256_hex(facts.body),
            expires_at: now.as_second() + LIFETIME_MAX_SECONDS - CLOCK_SKEW_SECONDS,
        };
        self.signer.sign(&claims)
    }

    /// Whether a connection can be opened.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn ping(&self) -> anyhow::Result<()> {
        if self.address.load().is_none() {
            self.resolve().await?;
        }
        let address = self.address.load();
        let address = address.as_deref().context("no address")?;
        let connect = tokio::net::TcpStream::connect(address);
        tokio::time::timeout(config::CONNECT_DEADLINE, connect)
            .await
            .context("does not accept connections")??;
        Ok(())
    }

    /// Looks the name up; an address written as such stays.
    async fn resolve(&self) -> anyhow::Result<()> {
        if self.host.parse::<SocketAddr>().is_ok() {
            return Ok(());
        }
        let look_up = tokio::net::lookup_host(self.host.as_str());
        let mut found = tokio::time::timeout(RESOLVE_DEADLINE, look_up).await??;
        let address = found.next().context("the name has no address")?;
        self.address.store(Some(Arc::new(address)));
        Ok(())
    }
}

/// Sends the request and reads the answer's header.
async fn begin(
    session: &mut HttpSession,
    request: &RequestHeader,
    body: &Bytes,
) -> pingora::Result<ResponseHeader> {
    session
        .write_request_header(Box::new(request.clone()))
        .await?;
    if !body.is_empty() {
        session.write_request_body(body.clone(), true).await?;
    }
    session.finish_request_body().await?;
    loop {
        session.read_response_header().await?;
        let header = session
            .response_header()
            .or_err(ErrorType::InvalidHTTPHeader, "none read")?;
        if !header.status.is_informational() {
            return Ok(header.clone());
        }
    }
}

/// Reads the answer's body; `None` when it is more than may be captured.
async fn read_body(session: &mut HttpSession) -> pingora::Result<Option<Bytes>> {
    let mut body = BytesMut::new();
    while let Some(chunk) = session.read_response_body().await? {
        if body.len() + chunk.len() > config::ANSWER_MAX_BYTES {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.freeze()))
}
