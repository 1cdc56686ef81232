//! `POST /v1/webhooks/endpoints/{endpoint_id}/test`: queue a test event for one endpoint.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use contracts::{
    api::webhooks::DeliveryQueued,
    assertion::Scope,
    id::{EndpointId, MessageId},
    server::{Json, Path, Principal},
};
use serde_json::json;

use super::{
    Api, ApiError, not_found, not_sent_to,
    once::{Once, repeated},
};
use crate::{
    delivery::Standing,
    store::{endpoints, queue},
};

pub(super) async fn test(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<EndpointId>,
    once: Once,
) -> Result<Response, ApiError> {
    principal.require(Scope::WebhooksWrite)?;
    let mut client = api.pool.get().await?;
    let transaction = client.transaction().await?;
    let (tenant, now) = (principal.tenant().uuid(), api.clock.now());
    let message_id = MessageId::generate(now);
    let queued = DeliveryQueued { message_id };
    if let Some(before) = once.claim(&transaction, &json!(queued), now).await? {
        return Ok(repeated(StatusCode::ACCEPTED, before));
    }
    let endpoint = endpoints::get(&transaction, tenant, id.uuid()).await?;
    let endpoint = endpoint.ok_or_else(|| not_found("endpoint"))?;
    let standing = endpoints::hold_standing(&transaction, endpoint.id).await?;
    if standing != Standing::Enabled {
        return Err(not_sent_to(standing));
    }
    let body = json!({ "type": "webhook.test", "timestamp": now, "data": { "endpoint_id": id } });
    let body = body.to_string();
    let uuid = message_id.uuid();
    queue::queue_test(&transaction, tenant, endpoint.id, uuid, &body, now).await?;
    transaction.commit().await?;
    Ok((StatusCode::ACCEPTED, Json(queued)).into_response())
}
