//! An exchange with an upstream through Pingora's pooled connections: whole, or up to the answer's
//! header. A request is sent again only where it cannot act twice.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use contracts::{assertion::Audience, id::TenantId};
use http::{StatusCode, header};
use pingora::{
    Error, ErrorType, OkOrErr as _,
    http::{RequestHeader, ResponseHeader},
    protocols::http::client::HttpSession,
    upstreams::peer::HttpPeer,
};

use super::{Pick, Upstreams};
use crate::config;

/// A request for an upstream.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// For which one.
    pub audience: Audience,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its header, all but `Host`.
    pub request: &'a RequestHeader,
    /// Its body.
    pub body: &'a Bytes,
    /// Whether the upstream knows a repetition of it from a second one.
    pub may_repeat: bool,
    /// How long it may take.
    pub deadline: Duration,
}

/// An answer of which only the header is read.
pub struct Begun {
    /// Status and headers.
    pub header: ResponseHeader,
    /// Where the body comes from.
    pub session: HttpSession,
    peer: HttpPeer,
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
    /// Sends a request whole and captures the answer.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn exchange(&self, order: &Order<'_>) -> Result<Answer, Failure> {
        let started = Instant::now();
        let begun = self.open(order).await?;
        let rest = order.deadline.saturating_sub(started.elapsed());
        self.finish(begun, rest).await
    }

    /// Sends a request and waits for the answer's header.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(&self, order: &Order<'_>) -> Result<Begun, Failure> {
        let mut pick = None;
        let work = self.begin(order, &mut pick);
        let begun = tokio::time::timeout(order.deadline, work).await;
        begun.unwrap_or_else(|_| {
            if let Some(pick) = &mut pick {
                pick.sick();
            }
            Err(Failure::Timeout)
        })
    }

    /// Captures an answer that has begun.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn finish(&self, mut begun: Begun, deadline: Duration) -> Result<Answer, Failure> {
        let read = tokio::time::timeout(deadline, read_body(&mut begun.session)).await;
        let body = read
            .map_err(|_| Failure::Timeout)?
            .map_err(|error| failure(&error))?
            .ok_or(Failure::TooLarge)?;
        let idle = Some(config::UPSTREAM_IDLE);
        self.connector
            .release_http_session(begun.session, &begun.peer, idle)
            .await;
        let header = begun.header;
        Ok(Answer { header, body })
    }

    /// Tries twice, where the second time cannot act twice; the last pick is left in `last`.
    async fn begin(&self, order: &Order<'_>, last: &mut Option<Pick>) -> Result<Begun, Failure> {
        let begun = match self.attempt(order, last).await {
            Err(first) if first.unsent || (first.stale && order.may_repeat) => {
                self.attempt(order, last).await
            }
            begun => begun,
        };
        begun.map_err(|attempt| attempt.failure)
    }

    async fn attempt(&self, order: &Order<'_>, last: &mut Option<Pick>) -> Result<Begun, Attempt> {
        let unsent = |unsent| Attempt {
            failure: Failure::Unreachable,
            unsent,
            stale: false,
        };
        let upstream = self.get(order.audience);
        let pick = upstream.pick(order.tenant, last.as_ref());
        let pick = pick.map_err(|_| unsent(false))?;
        let pick = last.insert(pick);
        let peer = pick.peer(order.deadline);
        let connected = self.connector.get_http_session(&peer).await;
        let (mut session, reused) = connected.map_err(|_| {
            pick.unreachable();
            unsent(true)
        })?;
        let mut request = order.request.clone();
        let header = match request.insert_header(header::HOST, &pick.version().host) {
            Ok(()) => begin(&mut session, request, order.body).await,
            Err(error) => Err(error),
        };
        match header {
            Ok(header) => {
                pick.answered(header.status);
                Ok(Begun {
                    header,
                    session,
                    peer,
                })
            }
            Err(error) => {
                // An idle connection that was just closed says nothing of the address.
                if !reused {
                    pick.sick();
                }
                Err(Attempt {
                    failure: failure(&error),
                    unsent: false,
                    stale: reused,
                })
            }
        }
    }
}

fn failure(error: &Error) -> Failure {
    match error.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Timeout,
        _ => Failure::Broken,
    }
}

/// Sends the request and reads the answer's header.
async fn begin(
    session: &mut HttpSession,
    request: RequestHeader,
    body: &Bytes,
) -> pingora::Result<ResponseHeader> {
    let asks = request.headers.contains_key(header::UPGRADE);
    session.write_request_header(Box::new(request)).await?;
    if !body.is_empty() {
        session.write_request_body(body.clone(), true).await?;
    }
    session.finish_request_body().await?;
    loop {
        session.read_response_header().await?;
        let header = session
            .response_header()
            .or_err(ErrorType::InvalidHTTPHeader, "none read")?;
        let upgraded = asks && header.status == StatusCode::SWITCHING_PROTOCOLS;
        if upgraded || !header.status.is_informational() {
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
