//! `GET /v1/webhooks/deliveries`, and one of them.

use axum::extract::State;
use contracts::{
    api::{
        Page, page_size,
        webhooks::{DeliveriesQuery, DeliveryStatus, DeliveryView},
    },
    assertion::Scope,
    id::{EndpointId, JobId, MessageId},
    server::{Json, Path, Principal, Query},
};

use super::{Api, ApiError, cursor_of, endpoints::page, event_type, not_found};
use crate::store::deliveries::{self, Filter, Stored};

pub(super) async fn list(
    State(api): State<Api>,
    principal: Principal,
    Query(query): Query<DeliveriesQuery>,
) -> Result<Json<Page<DeliveryView>>, ApiError> {
    principal.require(Scope::WebhooksRead)?;
    let size = page_size(query.limit);
    let filter = Filter {
        tenant: principal.tenant().uuid(),
        cursor: cursor_of(query.cursor.as_deref())?,
        endpoint: query.endpoint_id.map(EndpointId::uuid),
        status: query.status.map(DeliveryStatus::as_str),
        job: query.job_id.map(JobId::uuid),
        limit: i64::from(size) + 1,
    };
    let client = api.pool.get().await?;
    let found = deliveries::list(&client, &filter).await?;
    Ok(Json(page(
        found,
        size as usize,
        |delivery| delivery.message,
        view,
    )))
}

pub(super) async fn get(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<MessageId>,
) -> Result<Json<DeliveryView>, ApiError> {
    principal.require(Scope::WebhooksRead)?;
    let client = api.pool.get().await?;
    let found = deliveries::get(&client, principal.tenant().uuid(), id.uuid()).await?;
    Ok(Json(view(found.ok_or_else(|| not_found("delivery"))?)))
}

fn view(delivery: Stored) -> DeliveryView {
    DeliveryView {
        message_id: MessageId::from_uuid(delivery.message),
        endpoint_id: EndpointId::from_uuid(delivery.endpoint),
        event_type: delivery.event_type.as_deref().and_then(event_type),
        job_id: delivery.job.map(JobId::from_uuid),
        status: DeliveryStatus::ALL
            .into_iter()
            .find(|status| status.as_str() == delivery.status)
            .expect("the table's check admits no other status"),
        attempts: delivery.attempts.unsigned_abs(),
        created_at: delivery.created_at,
        next_attempt_at: delivery.next_attempt_at,
        delivered_at: delivery.delivered_at,
        last_error: delivery.last_error,
    }
}
