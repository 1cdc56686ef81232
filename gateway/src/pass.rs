//! Requests without a body: sent upstream, and the answer passed on, a short one whole in one go, a
//! long one, or one of unknown length, as it comes.

use std::{mem, pin::pin, sync::Arc};

use bytes::Bytes;
use contracts::assertion::SHA256_OF_NOTHING;
use http::{HeaderValue, Version, header};
use pingora::{Error, ErrorType, http::ResponseHeader, prelude::timeout, proxy::Session};

use crate::{
    answer::unavailable,
    budget::READ_BYTES,
    ctx::{Ctx, Stop},
    headers,
    proxy::Gateway,
    reject,
    route::Forward,
    streams,
    upstream::{Begun, Order},
};

/// Answers up to this length are read whole before they are passed on.
const WHOLE_MAX_BYTES: usize = 64 * 1_024;
/// What is held of a longer one: what was read, a piece on its way, and one that a client of HTTP/2
/// has not taken yet.
const RELAYED_BYTES: usize = 3 * READ_BYTES;
static NO_BODY: Bytes = Bytes::new();

/// Serves an admitted request of a route without a body.
pub(crate) async fn serve(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    forward: &Forward,
) -> Result<(), Stop> {
    let begun = open(gateway, session, ctx, forward, None).await?;
    answer(gateway, session, ctx, forward, begun).await
}

/// Sends the request upstream and waits for the answer's header; `websocket` is the key of a
/// client's handshake.
pub(crate) async fn open(
    gateway: &Gateway,
    session: &Session,
    ctx: &Ctx,
    forward: &Forward,
    websocket: Option<&HeaderValue>,
) -> Result<Begun, Stop> {
    let request = session.req_header();
    let assertion = gateway.assertion(session, ctx, forward, SHA256_OF_NOTHING);
    let order = Order {
        audience: forward.upstream,
        tenant: ctx.tenant(),
        request,
        ours: headers::Upstream {
            assertion: &assertion,
            traceparent: &ctx.traceparent,
            key: None,
            replay_only: false,
            length: None,
            websocket,
        },
        body: &NO_BODY,
        may_repeat: request.method.is_idempotent(),
        deadline: ctx.deadline(gateway.upstream_deadline),
    };
    let begun = gateway.upstreams.open(&order).await;
    let begun = begun.map_err(reject::failure)?;
    Gateway::check_belief(&begun.header, ctx)?;
    Ok(begun)
}

/// Passes an answer on.
pub(crate) async fn answer(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    forward: &Forward,
    begun: Begun,
) -> Result<(), Stop> {
    let length = begun.length();
    if length.is_some_and(|length| length <= WHOLE_MAX_BYTES) {
        let deadline = ctx.deadline(gateway.upstream_deadline);
        let rest = deadline.saturating_sub(ctx.started.elapsed());
        let answer = begun.finish(rest, &mut gateway.account(ctx)).await;
        let answer = answer.map_err(|failure| ctx.failed(failure))?;
        let sent = gateway.answer(session, ctx, answer.header, answer.body);
        return Ok(sent.await?);
    }
    let room = gateway.account(ctx).add(RELAYED_BYTES);
    room.map_err(|lack| ctx.lacking(lack))?;
    ctx.response_bytes = length.unwrap_or(0) as u64;
    let header = begin(gateway, session, ctx, begun.header.clone())?;
    session.write_response_header(header, false).await?;
    relay(gateway, session, ctx, forward, begun).await
}

/// The header of an answer whose body follows piece by piece, once its usage is recorded.
pub(crate) fn begin(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Ctx,
    mut header: ResponseHeader,
) -> Result<Box<ResponseHeader>, Stop> {
    let length = header.headers.contains_key(header::CONTENT_LENGTH);
    let upgraded = header.status.is_informational();
    if !length && !upgraded && session.req_header().version == Version::HTTP_11 {
        header.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    ctx.status = header.status.as_u16();
    if !gateway.record(ctx) {
        return Err(unavailable("Usage cannot be recorded at the moment.").into());
    }
    gateway.decorate(&mut header, ctx)?;
    Ok(Box::new(header))
}

/// Passes a body on as it comes and no faster than the client takes it, unless the client leaves or
/// would not be let in any more.
async fn relay(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    forward: &Forward,
    mut begun: Begun,
) -> Result<(), Stop> {
    let hold = Arc::new(mem::take(&mut ctx.hold));
    let outlasts = session.req_header().version == Version::HTTP_2;
    let silence = ctx.deadline(gateway.upstream_deadline);
    // Without its end the client sees that the answer is not complete.
    let cut = || Error::new_up(ErrorType::ConnectionClosed).into();
    let mut lost = pin!(streams::until_lost(gateway, ctx, forward));
    loop {
        let downstream = &mut session.downstream_session;
        let read = tokio::select! {
            biased;
            () = &mut lost => return Err(cut()),
            read = timeout(silence, begun.session.read_body_bytes()) => read,
            // A client that has asked has nothing more to say: it is the end.
            left = downstream.read_body_or_idle(true) => {
                left?;
                return Err(Error::new_down(ErrorType::ConnectionClosed).into());
            }
        };
        let chunk = match read {
            Ok(Ok(Some(chunk))) if outlasts => hold.around_some(chunk),
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => break,
            _ => return Err(cut()),
        };
        tokio::select! {
            written = session.write_response_body(Some(chunk), false) => written?,
            // A client that takes nothing is not waited for.
            () = &mut lost => return Err(cut()),
        }
    }
    session.write_response_body(None, true).await?;
    begun.release().await;
    Ok(())
}
