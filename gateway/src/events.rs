//! Streams of events: passed on as they come, for as long as whoever opened them would be let in.
//!
//! Not by Pingora's own streaming, which wakes only when a side sends something: a stream that is
//! silent must end too when its credential does.

use std::{pin::pin, time::Duration};

use contracts::problem::Code;
use http::{StatusCode, Version, header};
use pingora::{
    Error, ErrorType,
    http::{RequestHeader, ResponseHeader},
    protocols::http::client::HttpSession,
    proxy::Session,
};
use tracing::info;

use crate::{
    auth::Principal,
    config::STREAM_IDLE,
    ctx::{Ctx, Stop},
    headers,
    proxy::Gateway,
    reject,
    route::Forward,
};

/// How often an open stream is looked at although nothing changed: what is believed also ages.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Serves an admitted request of a route whose answer is a stream of events.
pub(crate) async fn serve(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    forward: &Forward,
) -> Result<(), Stop> {
    let mut request: RequestHeader = session.req_header().clone();
    let ours = headers::Upstream {
        host: &gateway.upstreams.get(forward.upstream).host,
        assertion: &ctx.assertion,
        traceparent: &ctx.traceparent,
        key: None,
        length: None,
    };
    request.set_version(Version::HTTP_11);
    headers::for_upstream(&mut request, &ours)?;
    let opened = gateway.upstreams.open(forward.upstream, &request).await;
    let (mut upstream, mut answer) = opened.map_err(reject::failure)?;
    Gateway::check_belief(&answer, ctx)?;
    headers::from_upstream(&mut answer);
    frame(session.req_header().version, &mut answer)?;
    // A stream may outlast the process: nobody waits for it on the way out.
    ctx.in_flight = None;
    ctx.status = answer.status.as_u16();
    if !gateway.record(ctx) {
        return Err(Error::new_in(ErrorType::HTTPStatus(503)).into());
    }
    gateway.decorate(&mut answer, ctx)?;
    let answer = Box::new(answer);
    session.write_response_header(answer, false).await?;
    let principal = ctx.principal.clone();
    let principal = principal.expect("only admitted requests are forwarded");
    let ended = pin!(until_lost(gateway, principal, forward, ctx));
    Ok(pump(session, &mut upstream, ended).await?)
}

/// Passes chunks on until either side ends, or `lost` does.
async fn pump(
    session: &mut Session,
    upstream: &mut HttpSession,
    mut lost: impl Future<Output = ()> + Unpin,
) -> pingora::Result<()> {
    loop {
        let chunk = tokio::select! {
            chunk = tokio::time::timeout(STREAM_IDLE, upstream.read_response_body()) => chunk,
            // Says something only when the client is gone.
            gone = session.downstream_session.read_body_or_idle(true) => {
                return gone.map(drop).map_err(Error::into_down);
            }
            () = &mut lost => Ok(Ok(None)),
        };
        let chunk = chunk.map_err(|_| Error::new_up(ErrorType::ReadTimedout))?;
        let chunk = chunk.map_err(Error::into_up)?;
        let ends = chunk.is_none();
        tokio::select! {
            written = session.write_response_body(chunk, ends) => written?,
            // A client that takes nothing is not waited for.
            () = &mut lost, if !ends => return Err(Error::new_down(ErrorType::ConnectionClosed)),
        }
        if ends {
            return Ok(());
        }
    }
}

/// Returns once whoever opened the stream would not be let in any more.
async fn until_lost(gateway: &Gateway, principal: Principal, forward: &Forward, ctx: &Ctx) {
    let mut news = gateway.snapshots.news().subscribe();
    loop {
        let cause = match gateway.renew(&principal, forward.scopes, ctx.address) {
            Ok(until) => {
                let rest = until.duration_since(gateway.clock.now());
                let rest = Duration::try_from(rest).unwrap_or_default();
                tokio::time::timeout(rest.min(LOOK_EVERY), news.changed())
                    .await
                    .ok();
                continue;
            }
            Err(problem) => problem,
        };
        let code = Code::as_str(cause.code());
        info!(request.id = %ctx.request_id, code, "a stream is ended: its credential is");
        metrics::counter!("gateway_streams_revoked_total").increment(1);
        return;
    }
}

/// Says how the answer ends, in the client's version of HTTP.
fn frame(version: Version, answer: &mut ResponseHeader) -> pingora::Result<()> {
    answer.remove_header(&header::TRANSFER_ENCODING);
    let has_body = !matches!(
        answer.status,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    let is_measured = answer.headers.contains_key(header::CONTENT_LENGTH);
    if version == Version::HTTP_11 && has_body && !is_measured {
        answer.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
}
