//! Requests with a body are transactions: read whole, decided, sent upstream, the answer captured,
//! kept under the idempotency key, returned.

use std::mem;

use bytes::Bytes;
use contracts::{
    assertion::{Scope, sha256_hex},
    id::JobId,
    job_type::compute_units,
    problem::{Code, Problem},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use pingora::{http::ResponseHeader, proxy::Session};

use crate::{
    budget::{Account, Gathered},
    config::BODY_MAX_BYTES,
    ctx::{Ctx, Stop, Usage},
    headers::{self, target},
    idempotency::{self, Asked, Claim, Ending, Fingerprint, Kept, Key, Standing},
    keys::{self, serve::Call},
    limit::quota::Used,
    proxy::Gateway,
    route::{Body, Forward, KEYS, Transaction},
    signature::require_digest,
    upstream::{Answer, Failure, Order},
};

/// Answer headers that a replay repeats.
const KEPT_HEADERS: [header::HeaderName; 3] =
    [header::CONTENT_TYPE, header::LOCATION, header::ETAG];

/// Who does what a transaction asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To<'a> {
    /// An upstream.
    Upstream(&'a Forward),
    /// We.
    Keys(Call),
}

/// What goes upstream of a transaction.
#[derive(Clone, Copy, Debug)]
struct Sent<'a> {
    key: Option<&'a Key>,
    body: &'a Bytes,
    /// The body's SHA-256.
    digest: &'a str,
    /// Whether only an answer that was given before is asked for.
    replay_only: bool,
}

impl To<'_> {
    fn scopes(&self) -> &'static [Scope] {
        match self {
            Self::Upstream(forward) => forward.scopes,
            Self::Keys(_) => KEYS,
        }
    }
}

/// Serves an admitted request of a route that takes a body.
pub(crate) async fn serve(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    to: To<'_>,
    transaction: Transaction,
) -> Result<(), Stop> {
    let key = Key::of(&session.req_header().headers)?;
    if key.is_none() && transaction.key_required {
        let detail = "Send an Idempotency-Key: a retry with the same one cannot act twice.";
        return Err(Problem::new(Code::IdempotencyKeyRequired, detail).into());
    }
    let body = read(gateway, session, ctx).await?;
    ctx.request_bytes = body.len() as u64;
    // That took as long as the client liked: who was let in may have been shut out meanwhile.
    gateway.renew_here(ctx, to.scopes())?;
    require_digest(ctx.signed.as_ref(), &body)?;
    let units = check(transaction.body, &session.req_header().headers, &body)?;
    let digest = sha256_hex(&body);
    let key = key.as_ref();
    let sent = Sent {
        key,
        body: &body,
        digest: &digest,
        replay_only: false,
    };
    let claim = match key {
        None => None,
        Some(key) => match claim(gateway, session, ctx, key, &digest, units).await? {
            Standing::Claimed(claim) => Some(claim),
            Standing::Replay(kept) => {
                ctx.replayed = true;
                let (header, body) = replay(kept)?;
                return Ok(gateway.answer(session, ctx, header, body).await?);
            }
            Standing::Exhausted(used) => {
                let answer = recall(gateway, session, ctx, to, sent, used).await?;
                return finish(gateway, session, ctx, answer).await;
            }
        },
    };
    ctx.quota = claim.as_ref().and_then(|claim| claim.used);
    let outcome = match to {
        To::Upstream(forward) => {
            let answer = exchange(gateway, session, ctx, forward, sent).await;
            answer.map_err(|failure| ctx.failed(failure))
        }
        To::Keys(call) => {
            let request = session.req_header();
            keys::serve::act(gateway, request, ctx, call, key, &body).await
        }
    };
    if let Some(claim) = claim {
        settle(gateway, claim, transaction, &outcome).await;
    }
    finish(gateway, session, ctx, outcome?).await
}

async fn finish(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    answer: Answer,
) -> Result<(), Stop> {
    let Answer { mut header, body } = answer;
    ctx.replayed = header.remove_header(idempotency::REPLAYED).is_some();
    Ok(gateway.answer(session, ctx, header, body).await?)
}

/// Beyond the month's quota nothing new is done. But Redis may have lost what was done before, so
/// the upstream is asked for the answer that it gave then.
async fn recall(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Ctx,
    to: To<'_>,
    sent: Sent<'_>,
    used: Used,
) -> Result<Answer, Stop> {
    ctx.quota = Some(used);
    if let To::Upstream(forward) = to {
        let replay_only = true;
        let asked = Sent {
            replay_only,
            ..sent
        };
        let answer = exchange(gateway, session, ctx, forward, asked).await;
        let answer = answer.map_err(|failure| ctx.failed(failure))?;
        if answer.header.status != StatusCode::NOT_FOUND {
            return Ok(answer);
        }
    }
    // As with the other limits, what is refused is not charged.
    ctx.usage = Usage::None;
    Err(used.refusal(ctx.arrived_at).into())
}

/// Reads the body whole, within its size and time.
async fn read(gateway: &Gateway, session: &mut Session, ctx: &mut Ctx) -> Result<Bytes, Stop> {
    let headers = &session.req_header().headers;
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let length = length.map_or(Some(0), |length| length.parse::<usize>().ok());
    if length.is_none_or(|length| length > BODY_MAX_BYTES) {
        return Err(too_large());
    }
    let expects = headers.get(header::EXPECT).map(HeaderValue::as_bytes);
    let expects = expects.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // Pingora takes a chunk without a size for the last one: what follows is nobody's request.
        session.set_keepalive(None);
    }
    if expects {
        session.write_continue_response().await?;
    }
    let most = length
        .filter(|length| *length > 0)
        .unwrap_or(BODY_MAX_BYTES);
    let whole = async {
        let mut body = Gathered::new(most);
        while let Some(chunk) = read_chunk(session).await? {
            if body.len() + chunk.len() > BODY_MAX_BYTES {
                return Err(too_large());
            }
            if let Err(lack) = body.push(&chunk, &mut gateway.account(ctx)) {
                session.set_keepalive(None);
                return Err(ctx.lacking(lack).into());
            }
        }
        Ok(body.freeze())
    };
    let Ok(outcome) = tokio::time::timeout(gateway.body_deadline, whole).await else {
        session.set_keepalive(None);
        let detail = "The body was not received in time.";
        return Err(Problem::new(Code::RequestTimeout, detail).into());
    };
    outcome
}

/// The body's next bytes. Where the next request begins is unknown after a failure.
async fn read_chunk(session: &mut Session) -> pingora::Result<Option<Bytes>> {
    let read = session.read_request_body().await;
    if read.is_err() {
        session.set_keepalive(None);
    }
    read.map_err(pingora::Error::into_down)
}

/// Whether the body is what the route wants, and how many compute units it costs.
fn check(wanted: Body, headers: &HeaderMap, body: &[u8]) -> Result<u64, Problem> {
    if wanted == Body::OptionalJson && body.is_empty() {
        return Ok(0);
    }
    contracts::server::require_json(headers)?;
    match wanted {
        Body::Job => {
            let job = contracts::api::jobs::validate_submit(body)?;
            Ok(compute_units(job.payload.get().len()))
        }
        Body::Json | Body::OptionalJson => {
            contracts::server::parse_json::<serde::de::IgnoredAny>(body).map(|_| 0)
        }
    }
}

async fn claim(
    gateway: &Gateway,
    session: &Session,
    ctx: &Ctx,
    key: &Key,
    digest: &str,
    units: u64,
) -> Result<Standing, Problem> {
    let request = session.req_header();
    let fingerprint = Fingerprint::new(&request.method, target(request), digest);
    let principal = ctx
        .principal
        .as_ref()
        .expect("only admitted requests come here");
    let asked = Asked {
        tenant: &principal.tenant,
        key,
        fingerprint: &fingerprint,
        units,
        now: ctx.arrived_at,
    };
    gateway.idempotency.claim(&asked).await
}

/// Sends the request upstream and captures the answer.
async fn exchange(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Ctx,
    forward: &Forward,
    sent: Sent<'_>,
) -> Result<Answer, Failure> {
    let Sent {
        key,
        body,
        digest,
        replay_only,
    } = sent;
    let assertion = gateway.assertion(session, ctx, forward, digest);
    let mut hold = mem::take(&mut ctx.hold);
    hold.spare();
    let mut account = Account {
        budget: &gateway.budget,
        tenant: ctx.tenant(),
        hold: &mut hold,
    };
    let order = Order {
        audience: forward.upstream,
        tenant: ctx.tenant(),
        request: session.req_header(),
        ours: headers::Upstream {
            assertion: &assertion,
            traceparent: &ctx.traceparent,
            key,
            replay_only,
            length: Some(body.len()),
            websocket: None,
        },
        body,
        // With a key the upstream's record knows a repetition.
        may_repeat: key.is_some(),
        deadline: ctx.deadline(gateway.upstream_deadline),
    };
    let answer = gateway.upstreams.exchange(&order, &mut account).await;
    ctx.hold = hold;
    let answer = answer?;
    Gateway::check_belief(&answer.header, ctx).map_err(|_| Failure::Broken)?;
    Ok(answer)
}

/// Ends the claim: only success is kept, and never a secret. After anything else the key is free,
/// and the upstream's record arbitrates on what a retry does.
async fn settle(
    gateway: &Gateway,
    claim: Claim,
    transaction: Transaction,
    outcome: &Result<Answer, Problem>,
) {
    let idempotency = &gateway.idempotency;
    let answer = match outcome {
        Ok(answer) if answer.header.status.is_success() => answer,
        _ => return idempotency.end(claim, Ending::Freed, false).await,
    };
    let headers = &answer.header.headers;
    // What a gateway that is gone had charged paid for what the upstream then repeats.
    let acted = claim.carried || !headers.contains_key(idempotency::REPLAYED);
    if transaction.secret {
        return idempotency.end(claim, Ending::Secret, acted).await;
    }
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    let kept = headers
        .iter()
        .filter(|(name, _)| KEPT_HEADERS.contains(name));
    let kept = Kept {
        status: answer.header.status.as_u16(),
        headers: kept
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), text(value)?)))
            .collect(),
        body: answer.body.clone(),
    };
    let ending = Ending::Kept(&kept, created(headers));
    idempotency.end(claim, ending, acted).await;
}

/// The job that an answer's `Location` names.
fn created(headers: &HeaderMap) -> Option<JobId> {
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    location.rsplit('/').next()?.parse().ok()
}

fn replay(kept: Kept) -> Result<(ResponseHeader, Bytes), Stop> {
    let status = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
    let mut header = ResponseHeader::build(status, None)?;
    for (name, value) in kept.headers {
        header.insert_header(name, value)?;
    }
    Ok((header, kept.body))
}

fn too_large() -> Stop {
    let detail = format!("The body may have at most {BODY_MAX_BYTES} bytes.");
    let problem = Problem::new(Code::PayloadTooLarge, detail);
    problem.with_max_size(BODY_MAX_BYTES as u64).into()
}
