//! `/v1/api-keys`: the gateway answers by itself, from Postgres.

use bytes::Bytes;
use contracts::{
    api::{
        Page,
        keys::{CreateKey, KeyView, KeysQuery, RotateKey},
        page_size,
    },
    id::KeyId,
    problem::{Code, Problem},
    server::parse_json,
};
use http::{StatusCode, header};
use ops::postgres::{explain, is_outage, sql_state};
use pingora::{
    http::{RequestHeader, ResponseHeader},
    proxy::Session,
};
use ring::digest;
use serde::Serialize;
use tracing::error;
use url::form_urlencoded;

use super::{Repeatable, grant};
use crate::{
    answer::unavailable,
    ctx::{Ctx, Stop, Usage},
    idempotency::Key,
    proxy::{Gateway, require_no_body},
    route::Transaction,
    signature::require_digest,
    submit::{self, To},
    upstream::Answer,
};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `POST /v1/api-keys`
    Create,
    /// `GET /v1/api-keys`
    List,
    /// `GET /v1/api-keys/{key_id}`
    Show,
    /// `POST /v1/api-keys/{key_id}/rotate`
    Rotate,
    /// `DELETE /v1/api-keys/{key_id}`
    Revoke,
}

/// Serves an admitted request.
pub(crate) async fn serve(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    call: Call,
    transaction: Option<Transaction>,
) -> Result<(), Stop> {
    if let Some(transaction) = transaction {
        return submit::serve(gateway, session, ctx, To::Keys(call), transaction).await;
    }
    require_no_body(session)?;
    require_digest(ctx.signed.as_ref(), b"")?;
    let (request, nothing) = (session.req_header(), Bytes::new());
    let answer = act(gateway, request, ctx, call, None, &nothing).await?;
    let Answer { header, body } = answer;
    Ok(gateway.answer(session, ctx, header, body).await?)
}

/// Does what is asked for.
pub(crate) async fn act(
    gateway: &Gateway,
    request: &RequestHeader,
    ctx: &mut Ctx,
    call: Call,
    key: Option<&Key>,
    body: &Bytes,
) -> Result<Answer, Problem> {
    let share = gateway.keys.shares.take(ctx.tenant());
    // As with the other limits, what is refused is not charged.
    let _share = share.inspect_err(|_| ctx.usage = Usage::None)?;
    let done = carry_out(gateway, request, ctx, call, key, body).await;
    done.map_err(|cause| match cause.downcast::<Problem>() {
        Ok(problem) => problem,
        Err(cause) => {
            let error = explain(&cause);
            error!(error, request.id = %ctx.request_id, "API keys cannot be reached");
            // What Postgres itself refuses, it refuses again: a failure of ours.
            match sql_state(&*cause) {
                Some(_) if !is_outage(&*cause) => Problem::internal(),
                _ => unavailable("API keys cannot be reached at the moment."),
            }
        }
    })
}

async fn carry_out(
    gateway: &Gateway,
    request: &RequestHeader,
    ctx: &Ctx,
    call: Call,
    key: Option<&Key>,
    body: &Bytes,
) -> anyhow::Result<Answer> {
    let principal = ctx.principal.as_ref();
    let asks = principal
        .expect("only admitted requests come here")
        .identity();
    let (keys, tenant) = (&gateway.keys, asks.tenant);
    match call {
        Call::Create => {
            let asked: CreateKey = parse_json(body)?;
            let new = grant::new_key(asks, asked)?;
            let hash = digest::digest(&digest::SHA256, body);
            let hash = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
            let key = key.map(Key::as_str);
            let repeatable = key.map(|key| Repeatable { key, hash });
            let created = keys.create(&new, principal, repeatable).await?;
            let mut answer = json(StatusCode::CREATED, &created)?;
            let location = format!("/v1/api-keys/{}", created.view.key_id);
            answer.header.insert_header(header::LOCATION, location)?;
            Ok(answer)
        }
        Call::List => {
            let (before, size) = page(request.uri.query().unwrap_or_default())?;
            let found = keys.list(Some(tenant), before, size).await?;
            let data: Vec<KeyView> = found.data.into_iter().map(|(_, view)| view).collect();
            let next_cursor = found.next_cursor;
            json(StatusCode::OK, &Page { data, next_cursor })
        }
        Call::Show => json(StatusCode::OK, &keys.show(tenant, id(request)?).await?),
        Call::Rotate => {
            let asked = if body.is_empty() {
                RotateKey::default()
            } else {
                parse_json(body)?
            };
            let overlap = grant::overlap(asked)?;
            let may = |key: &KeyView| grant::may_rotate(asks, key);
            let rotated = keys
                .rotate(Some(tenant), id(request)?, principal, overlap, may)
                .await?;
            json(StatusCode::OK, &rotated)
        }
        Call::Revoke => {
            keys.revoke(Some(tenant), id(request)?).await?;
            let header = ResponseHeader::build(StatusCode::NO_CONTENT, None)?;
            let body = Bytes::new();
            Ok(Answer { header, body })
        }
    }
}

/// The key that the path names. One that cannot exist is one that does not.
fn id(request: &RequestHeader) -> Result<KeyId, Problem> {
    let text = request.uri.path().split('/').nth(3).unwrap_or_default();
    text.parse()
        .map_err(|_| Problem::new(Code::NotFound, "The path names no key."))
}

/// Where a page begins and how long it is.
fn page(query: &str) -> Result<(Option<KeyId>, u32), Problem> {
    let refuse = |detail: &str| Problem::new(Code::InvalidRequest, detail);
    let mut asked = KeysQuery::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "cursor" => asked.cursor = Some(value.into_owned()),
            "limit" => {
                let limit = value
                    .parse()
                    .map_err(|_| refuse("limit must be a number."))?;
                asked.limit = Some(limit);
            }
            _ => return Err(refuse("The query string may hold cursor and limit.")),
        }
    }
    let before = asked.cursor.map(|cursor| cursor.parse()).transpose();
    let before = before.map_err(|_| refuse("cursor is not one of ours."))?;
    Ok((before, page_size(asked.limit)))
}

fn json(status: StatusCode, value: &impl Serialize) -> anyhow::Result<Answer> {
    let mut header = ResponseHeader::build(status, None)?;
    header.insert_header(header::CONTENT_TYPE, "application/json")?;
    let body = serde_json::to_vec(value)?.into();
    Ok(Answer { header, body })
}
