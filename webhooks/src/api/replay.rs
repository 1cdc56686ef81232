//! `POST /v1/webhooks/deliveries/{message_id}/replay`: send a delivery once more, under its id.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use contracts::{
    api::webhooks::DeliveryQueued,
    assertion::Scope,
    id::MessageId,
    server::{Json, Path, Principal},
};
use serde_json::json;

use super::{
    Api, ApiError, not_found, not_sent_to,
    once::{Once, repeated},
};
use crate::store::deliveries::{self, Replayed};

pub(super) async fn replay(
    State(api): State<Api>,
    principal: Principal,
    Path(message_id): Path<MessageId>,
    once: Once,
) -> Result<Response, ApiError> {
    principal.require(Scope::WebhooksWrite)?;
    let (tenant, now) = (principal.tenant().uuid(), api.clock.now());
    let mut client = api.pool.get().await?;
    let transaction = client.transaction().await?;
    let queued = DeliveryQueued { message_id };
    if let Some(before) = once.claim(&transaction, &json!(queued), now).await? {
        return Ok(repeated(StatusCode::ACCEPTED, before));
    }
    match deliveries::replay(&transaction, tenant, message_id.uuid(), now).await? {
        Replayed::Queued => {}
        Replayed::Refused(standing) => return Err(not_sent_to(standing)),
        Replayed::Missing => return Err(not_found("delivery")),
    }
    transaction.commit().await?;
    Ok((StatusCode::ACCEPTED, Json(queued)).into_response())
}
