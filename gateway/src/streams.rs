//! Streams of events, server-sent or over a WebSocket: passed on as they come, within limits of
//! number and time, and ended cleanly when the process stops, so that their clients come back to
//! another one.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use contracts::{
    id::TenantId,
    problem::{Code, Problem},
};
use http::{StatusCode, header};
use pingora::{Error, ErrorType, http::ResponseHeader, proxy::Session};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::{
    ctx::{Ctx, Stop, Usage},
    pass,
    proxy::Gateway,
    route::Forward,
    upstream::Begun,
};

/// How often an open stream is looked at although nothing changed: what is believed also ages.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Seconds after which a stream may have become free.
const RETRY_AFTER_SECONDS: u64 = 5;
/// Most bytes that a client may say on a WebSocket: answers to pings, and its farewell.
const SAID_MAX_BYTES: usize = 256 * 1_024;
const EVENT_STREAM: &str = "text/event-stream";
/// A WebSocket's last frame from us: close, "going away" (RFC 6455, 5.5.1 and 7.4.1).
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

/// How many streams there may be, and for how long. Clones share the count.
#[derive(Clone, Debug)]
pub struct Streams {
    max: u32,
    tenant_max: u32,
    idle: Duration,
    longest: Duration,
    open: Arc<Mutex<HashMap<TenantId, u32>>>,
}

/// The right to keep a stream open, for as long as this lives.
#[derive(Debug)]
struct Permit {
    streams: Streams,
    tenant: TenantId,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The upstream said all.
    Complete,
    /// The upstream broke off.
    Broken,
    /// The client left.
    Client,
    /// Nothing passed for too long.
    Idle,
    /// It lived as long as it may.
    Longest,
    /// The process stops.
    Drain,
    /// Whoever opened it would not be let in any more.
    Lost,
}

impl Streams {
    /// At most `max` streams, `tenant_max` of one tenant; each ends after `longest`, or after
    /// nothing passed for `idle`.
    #[must_use]
    pub fn new(max: u32, tenant_max: u32, idle: Duration, longest: Duration) -> Self {
        Self {
            max,
            tenant_max,
            idle,
            longest,
            open: Arc::default(),
        }
    }

    /// One more stream of `tenant`, if there may be one.
    fn open(&self, tenant: TenantId) -> Result<Permit, Problem> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: u32 = open.values().sum();
        let own = open.get(&tenant).copied().unwrap_or(0);
        let (code, detail, reason) = if own >= self.tenant_max {
            let detail = "Your tenant has as many streams open as it may.";
            (Code::RateLimitExceeded, detail, "tenant")
        } else if all >= self.max {
            let detail = "As many streams are open as may be.";
            (Code::ServiceUnavailable, detail, "process")
        } else {
            open.insert(tenant, own + 1);
            drop(open);
            metrics::gauge!("gateway_streams_open").increment(1);
            let streams = self.clone();
            return Ok(Permit { streams, tenant });
        };
        metrics::counter!("gateway_streams_refused_total", "limit" => reason).increment(1);
        Err(Problem::new(code, detail).with_retry_after(RETRY_AFTER_SECONDS))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        metrics::gauge!("gateway_streams_open").decrement(1);
        let open = &self.streams.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.tenant);
            }
        }
    }
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Broken => "broken",
            Self::Client => "client",
            Self::Idle => "idle",
            Self::Longest => "longest",
            Self::Drain => "drain",
            Self::Lost => "lost",
        }
    }
}

/// Serves an admitted request of a route whose answer is a stream.
pub(crate) async fn serve(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    forward: &Forward,
) -> Result<(), Stop> {
    let permit = gateway.streams.open(ctx.tenant());
    // As with the other limits, what is refused is not charged.
    let _permit = permit.inspect_err(|_| ctx.usage = Usage::None)?;
    let request = session.req_header();
    let key = request.headers.get(header::SEC_WEBSOCKET_KEY);
    let key = key.filter(|_| session.is_upgrade_req());
    let mut begun = pass::open(gateway, session, ctx, forward, key).await?;
    if !is_stream(&begun.header) {
        return pass::answer(gateway, session, ctx, forward, begun).await;
    }
    begin(gateway, session, ctx, begun.header.clone()).await?;
    // A stream may outlast the process: nobody waits for it on the way out.
    let _streaming = gateway.drain.stream();
    ctx.in_flight = None;
    let lost = until_lost(gateway, ctx, forward);
    let end = pass(gateway, session, &mut begun, lost).await;
    metrics::counter!("gateway_streams_ended_total", "reason" => end.as_str()).increment(1);
    match end {
        // Without its last chunk the client sees that the stream is not complete.
        End::Broken => Err(Error::new_up(ErrorType::ConnectionClosed).into()),
        End::Client => Ok(()),
        End::Complete if session.was_upgraded() => Ok(()),
        _ if session.was_upgraded() => {
            let farewell = Bytes::from_static(&GOING_AWAY);
            Ok(session.write_response_body(Some(farewell), true).await?)
        }
        _ => Ok(session.write_response_body(None, true).await?),
    }
}

fn is_stream(answer: &ResponseHeader) -> bool {
    let media = answer.headers.get(header::CONTENT_TYPE);
    let media = media.map_or(&b""[..], |value| value.as_bytes());
    let sent = answer.status == StatusCode::OK && media.starts_with(EVENT_STREAM.as_bytes());
    sent || answer.status == StatusCode::SWITCHING_PROTOCOLS
}

/// Sends the answer's header, after its usage is recorded.
async fn begin(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    mut header: ResponseHeader,
) -> Result<(), Stop> {
    header.remove_header(&header::CONTENT_LENGTH);
    if header.status == StatusCode::SWITCHING_PROTOCOLS {
        header.insert_header(header::CONNECTION, "Upgrade")?;
        header.insert_header(header::UPGRADE, "websocket")?;
    }
    let header = pass::begin(gateway, session, ctx, header)?;
    // Whoever comes back after the stream comes by a connection of its own, wherever that leads.
    session.set_keepalive(None);
    Ok(session.write_response_header(header, false).await?)
}

/// Passes on what comes, until either side or a limit ends it. Nothing is waited for without the
/// limits: a side that takes nothing must not keep a stream that has ended.
async fn pass(
    gateway: &Gateway,
    session: &mut Session,
    begun: &mut Begun,
    lost: impl Future<Output = ()>,
) -> End {
    let streams = &gateway.streams;
    let over = Instant::now() + streams.longest;
    let mut idle = Instant::now() + streams.idle;
    let mut ended = pin!(async {
        tokio::select! {
            () = gateway.drain.streams_end() => End::Drain,
            () = sleep_until(over) => End::Longest,
            () = lost => End::Lost,
        }
    });
    let upgraded = session.was_upgraded();
    begun.session.maybe_upgrade_body_writer();
    let mut said_bytes = 0;
    loop {
        let downstream = &mut session.downstream_session;
        let chunk: Bytes = tokio::select! {
            read = begun.session.read_body_bytes() => match read {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return End::Complete,
                Err(_) => return End::Broken,
            },
            said = downstream.read_body_or_idle(!upgraded) => match said {
                Ok(Some(said)) if upgraded && said_bytes + said.len() <= SAID_MAX_BYTES => {
                    said_bytes += said.len();
                    tokio::select! {
                        written = begun.session.write_body(&said) => {
                            if written.is_err() {
                                return End::Broken;
                            }
                        }
                        end = &mut ended => return end,
                        () = sleep_until(idle) => return End::Idle,
                    }
                    continue;
                }
                // Where events are sent, a client has next to nothing to say: it is the end.
                _ => return End::Client,
            },
            () = sleep_until(idle) => return End::Idle,
            end = &mut ended => return end,
        };
        tokio::select! {
            written = session.write_response_body(Some(chunk), false) => {
                if written.is_err() {
                    return End::Client;
                }
            }
            // A client that takes nothing is not waited for, and takes no farewell either.
            _ = &mut ended => return End::Client,
            () = sleep_until(idle) => return End::Client,
        }
        idle = Instant::now() + streams.idle;
    }
}

/// Returns once whoever asked would not be let in any more: it wakes when anything changed that is
/// believed, and when the credential ends.
pub(crate) async fn until_lost(gateway: &Gateway, ctx: &Ctx, forward: &Forward) {
    let principal = ctx.principal.as_ref();
    let principal = principal.expect("only admitted requests are forwarded");
    let mut news = gateway.snapshots.news().subscribe();
    loop {
        match gateway.renew(principal, forward.scopes, ctx.address, ctx.signed.is_some()) {
            Ok(principal) => {
                let rest = principal.expires_at().duration_since(gateway.clock.now());
                let rest = Duration::try_from(rest).unwrap_or_default();
                let changed = news.changed();
                tokio::time::timeout(rest.min(LOOK_EVERY), changed)
                    .await
                    .ok();
            }
            Err(cause) => {
                let code = cause.code().as_str();
                info!(request.id = %ctx.request_id, code, "an answer ends with its credential");
                metrics::counter!("gateway_streams_revoked_total").increment(1);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_leaves_room_for_the_others() {
        let tenant = |second| TenantId::generate(jiff::Timestamp::from_second(second).unwrap());
        let streams = Streams::new(3, 2, Duration::MAX, Duration::MAX);
        let (greedy, other, third) = (tenant(1), tenant(2), tenant(3));
        let held: Vec<_> = (0..2).map(|_| streams.open(greedy).unwrap()).collect();
        let refused = |tenant| streams.open(tenant).unwrap_err().code();
        assert_eq!(refused(greedy), Code::RateLimitExceeded);
        let others = streams.open(other).unwrap();
        assert_eq!(refused(third), Code::ServiceUnavailable);
        drop(held);
        drop(streams.open(third).unwrap());
        drop(others);
        assert_eq!(streams.open.lock().unwrap().len(), 0);
    }
}
