//! `POST /v1/webhooks/deliveries/{message_id}/replay`: send a delivery once more, under its id.

use axum::{extract::State, http::StatusCode};
use contracts::{
    api::webhooks::DeliveryQueued,
    assertion::Scope,
    id::MessageId,
    server::{Json, Path, Principal},
};

use super::{Api, ApiError, not_found};
use crate::store::deliveries;

pub(super) async fn replay(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<MessageId>,
) -> Result<(StatusCode, Json<DeliveryQueued>), ApiError> {
    principal.require(Scope::WebhooksWrite)?;
    let client = api.pool.get().await?;
    let now = api.clock.now();
    if deliveries::replay(&client, principal.tenant().uuid(), id.uuid(), now).await? {
        Ok((
            StatusCode::ACCEPTED,
            Json(DeliveryQueued { message_id: id }),
        ))
    } else {
        Err(not_found("delivery"))
    }
}
