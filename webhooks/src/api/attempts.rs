//! `GET /v1/webhooks/deliveries/{message_id}/attempts`: every attempt at a delivery, in order.

use axum::extract::State;
use contracts::{
    api::{Page, webhooks::AttemptView},
    assertion::Scope,
    id::MessageId,
    server::{Json, Path, Principal},
};

use super::{Api, ApiError, not_found};
use crate::store::{
    attempts::{self, Attempt},
    deliveries,
};

pub(super) async fn list(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<MessageId>,
) -> Result<Json<Page<AttemptView>>, ApiError> {
    principal.require(Scope::WebhooksRead)?;
    let client = api.pool.get().await?;
    let found = deliveries::get(&client, principal.tenant().uuid(), id.uuid()).await?;
    let delivery = found.ok_or_else(|| not_found("delivery"))?;
    let attempts = attempts::list(&client, delivery.message).await?;
    Ok(Json(Page {
        data: attempts.into_iter().map(view).collect(),
        next_cursor: None,
    }))
}

fn view(attempt: Attempt) -> AttemptView {
    let unfinished = "no outcome on record: under way, or its worker ended in the middle";
    AttemptView {
        attempt: attempt.attempt.unsigned_abs(),
        started_at: attempt.started_at,
        duration_ms: attempt.duration_ms.unwrap_or_default().unsigned_abs(),
        status_code: attempt
            .status_code
            .and_then(|code| u16::try_from(code).ok()),
        error: match attempt.duration_ms {
            Some(_) => attempt.error,
            None => Some(unfinished.to_owned()),
        },
        response_body: attempt.response_body,
    }
}
