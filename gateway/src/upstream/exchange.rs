//! An exchange with an upstream over kept connections: whole, or up to the answer's header. A
//! request is sent again only where it cannot act twice.

use std::time::{Duration, Instant};

use bytes::Bytes;
use contracts::{assertion::Audience, id::TenantId};
use http::{StatusCode, header};
use pingora::{
    Error, ErrorType, OkOrErr as _, OrErr as _,
    http::{RequestHeader, ResponseHeader},
    prelude::timeout,
    protocols::{Stream, http::v1::client::HttpSession},
};
use tokio::io::AsyncWriteExt as _;

use super::{Pick, Upstreams};
use crate::{
    budget::{Account, Gathered, Lack},
    config, headers,
};

/// A body up to this size is sent together with its header.
const TOGETHER_MAX_BYTES: usize = 16 * 1_024;

/// A request for an upstream.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// For which one.
    pub audience: Audience,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its header, as the client sent it.
    pub request: &'a RequestHeader,
    /// What it is sent in place of the client's headers.
    pub ours: headers::Upstream<'a>,
    /// Its body.
    pub body: &'a Bytes,
    /// Whether sending it twice does no more than sending it once.
    pub may_repeat: bool,
    /// How long it may take.
    pub deadline: Duration,
}

/// An answer of which only the header is read.
pub struct Begun {
    /// Status and headers, as far as they are for the client.
    pub header: ResponseHeader,
    /// Where the body comes from.
    pub session: HttpSession,
    pick: Pick,
}

/// A captured answer.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers, as far as they are for the client.
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
    /// There is no room for its answer, though it acted.
    #[error("{0}")]
    NoRoom(Lack),
}

/// How one attempt failed.
struct Attempt {
    failure: Failure,
    /// Whether the same request may be sent again without the upstream having seen it.
    unsent: bool,
    /// Whether a kept connection may have been closed by the upstream just before.
    stale: bool,
}

impl Upstreams {
    /// Sends a request whole and captures the answer.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn exchange(
        &self,
        order: &Order<'_>,
        account: &mut Account<'_>,
    ) -> Result<Answer, Failure> {
        let started = Instant::now();
        let begun = self.open(order).await?;
        let rest = order.deadline.saturating_sub(started.elapsed());
        begun.finish(rest, account).await
    }

    /// Sends a request and waits for the answer's header.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(&self, order: &Order<'_>) -> Result<Begun, Failure> {
        let mut pick = None;
        let work = self.begin(order, &mut pick);
        let begun = timeout(order.deadline, work).await;
        match (begun, pick) {
            (Ok(begun), Some(pick)) => begun.map(|(header, session)| Begun {
                header,
                session,
                pick,
            }),
            (Ok(begun), None) => Err(begun.err().unwrap_or(Failure::Unreachable)),
            (Err(_), pick) => {
                if let Some(mut pick) = pick {
                    pick.sick();
                }
                Err(Failure::Timeout)
            }
        }
    }

    /// Tries twice, where the second time cannot act twice; the last pick is left in `last`.
    async fn begin(
        &self,
        order: &Order<'_>,
        last: &mut Option<Pick>,
    ) -> Result<(ResponseHeader, HttpSession), Failure> {
        let begun = match self.attempt(order, last).await {
            Err(first) if first.unsent || (first.stale && order.may_repeat) => {
                metrics::counter!("gateway_upstream_retries_total").increment(1);
                self.attempt(order, last).await
            }
            begun => begun,
        };
        begun.map_err(|attempt| attempt.failure)
    }

    async fn attempt(
        &self,
        order: &Order<'_>,
        last: &mut Option<Pick>,
    ) -> Result<(ResponseHeader, HttpSession), Attempt> {
        let unsent = |unsent| Attempt {
            failure: Failure::Unreachable,
            unsent,
            stale: false,
        };
        let upstream = self.get(order.audience);
        let pick = upstream.pick(order.tenant, last.as_ref());
        let pick = pick.map_err(|_| unsent(false))?;
        let pick = last.insert(pick);
        let kept = pick.kept();
        let reused = kept.is_some();
        let stream = match kept {
            Some(stream) => Ok(stream),
            None => self.connector.new_stream(pick.peer()).await,
        };
        let stream = stream.map_err(|_| {
            pick.unreachable();
            unsent(true)
        })?;
        match begin(stream, order, &pick.version().host).await {
            Ok((header, session)) => {
                pick.answered(header.status);
                Ok((header, session))
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

impl Begun {
    /// How long the body is, where the header says it.
    #[must_use]
    pub fn length(&self) -> Option<usize> {
        if matches!(
            self.header.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        ) {
            return Some(0);
        }
        let length = self.header.headers.get(header::CONTENT_LENGTH)?;
        length.to_str().ok()?.parse().ok()
    }

    /// Captures the answer.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn finish(
        mut self,
        deadline: Duration,
        account: &mut Account<'_>,
    ) -> Result<Answer, Failure> {
        let most = self.length().unwrap_or(config::ANSWER_MAX_BYTES);
        let read = read_body(&mut self.session, most, account);
        let read = timeout(deadline, read).await;
        let body = read.map_err(|_| Failure::Timeout)??;
        let header = self.header;
        release(self.session, &self.pick).await;
        Ok(Answer { header, body })
    }

    /// Keeps the connection, once the body is read to its end.
    pub async fn release(self) {
        release(self.session, &self.pick).await;
    }
}

async fn release(mut session: HttpSession, pick: &Pick) {
    session.respect_keepalive();
    if let Some(stream) = session.reuse().await {
        pick.keep(stream);
    }
}

impl From<Lack> for Failure {
    fn from(lack: Lack) -> Self {
        Self::NoRoom(lack)
    }
}

impl From<Box<Error>> for Failure {
    fn from(error: Box<Error>) -> Self {
        failure(&error)
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
    mut stream: Stream,
    order: &Order<'_>,
    host: &str,
) -> pingora::Result<(ResponseHeader, HttpSession)> {
    let asks = order.ours.websocket.is_some();
    let mut session = if asks {
        // Pingora must know of it, to see the connection change its language.
        let request = headers::for_websocket(order.request, &order.ours, host)?;
        let mut session = HttpSession::new(stream);
        session.write_request_header(Box::new(request)).await?;
        session
    } else {
        let mut bytes = headers::for_upstream(order.request, &order.ours, host);
        let together = order.body.len() <= TOGETHER_MAX_BYTES;
        if together {
            bytes.extend_from_slice(order.body);
        }
        let sent = async {
            stream.write_all(&bytes).await?;
            if !together {
                stream.write_all(order.body).await?;
            }
            stream.flush().await
        };
        sent.await.or_err(ErrorType::WriteError, "sending")?;
        HttpSession::new(stream)
    };
    loop {
        session.read_response().await?;
        let header = session.resp_header();
        let header = header.or_err(ErrorType::InvalidHTTPHeader, "none read")?;
        let upgraded = asks && header.status == StatusCode::SWITCHING_PROTOCOLS;
        if upgraded || !header.status.is_informational() {
            let header = headers::from_upstream(header);
            return Ok((header, session));
        }
        if header.status == StatusCode::SWITCHING_PROTOCOLS {
            return Error::e_explain(ErrorType::InvalidHTTPHeader, "another protocol, unasked");
        }
    }
}

/// Reads the answer's body, which has `most` bytes if it says so.
async fn read_body(
    session: &mut HttpSession,
    most: usize,
    account: &mut Account<'_>,
) -> Result<Bytes, Failure> {
    let mut body = Gathered::new(most.min(config::ANSWER_MAX_BYTES));
    while let Some(chunk) = session.read_body_bytes().await? {
        if body.len() + chunk.len() > config::ANSWER_MAX_BYTES {
            return Err(Failure::TooLarge);
        }
        if body.is_empty() && session.is_body_done() {
            // Read in one go: once more it is in what was read.
            account.add(2 * chunk.len())?;
            return Ok(chunk);
        }
        body.push(&chunk, account)?;
    }
    Ok(body.freeze())
}
