//! `POST /v1/webhooks/deliveries/{message_id}/replay`: send a delivery once more, under its id.

use axum::{extract::State, http::StatusCode};
use contracts::{
    api::webhooks::DeliveryQueued,
    assertion::Scope,
    id::MessageId,
    server::{Json, Path, Principal},
};

use super::{Api, ApiError, not_found, not_sent_to};
use crate::store::deliveries::{self, Replayed};

pub(super) async fn replay(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<MessageId>,
) -> Result<(StatusCode, Json<DeliveryQueued>), ApiError> {
    principal.require(Scope::WebhooksWrite)?;
    let (tenant, now) = (principal.tenant().uuid(), api.clock.now());
    let mut client = api.pool.get().await?;
    let transaction = client.transaction().await?;
    match deliveries::replay(&transaction, tenant, id.uuid(), now).await? {
        Replayed::Queued => {}
        Replayed::Refused(standing) => return Err(not_sent_to(standing)),
        Replayed::Missing => return Err(not_found("delivery")),
    }
    transaction.commit().await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(DeliveryQueued { message_id: id }),
    ))
}
