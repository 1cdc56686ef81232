//! `GET /v1/webhooks/endpoints`, and `GET`, `PATCH`, `DELETE` of one. What an endpoint is owed may
//! be long: a request changes only how the endpoint stands, and the worker's upkeep lets the rest
//! follow.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use contracts::{
    api::{
        Page, page_size,
        webhooks::{EndpointView, EndpointsQuery, UpdateEndpoint},
    },
    assertion::Scope,
    id::EndpointId,
    server::{Json, Path, Principal, Query},
};
use jiff::Timestamp;
use serde_json::json;

use super::{
    Api, ApiError, create, cursor_of, event_type, not_found,
    once::{Once, repeated},
};
use crate::{
    health::Health,
    store::{
        endpoints::{self, Endpoint},
        health,
    },
};

pub(super) async fn list(
    State(api): State<Api>,
    principal: Principal,
    Query(query): Query<EndpointsQuery>,
) -> Result<Json<Page<EndpointView>>, ApiError> {
    principal.require(Scope::WebhooksRead)?;
    let (cursor, size) = (cursor_of(query.cursor.as_deref())?, page_size(query.limit));
    let client = api.pool.get().await?;
    let tenant = principal.tenant().uuid();
    let found = endpoints::list(&client, tenant, cursor, i64::from(size) + 1).await?;
    Ok(Json(page(
        found,
        size as usize,
        |endpoint| endpoint.id,
        view,
    )))
}

pub(super) async fn get(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<EndpointId>,
) -> Result<Json<EndpointView>, ApiError> {
    principal.require(Scope::WebhooksRead)?;
    let client = api.pool.get().await?;
    let found = endpoints::get(&client, principal.tenant().uuid(), id.uuid()).await?;
    Ok(Json(view(found.ok_or_else(|| not_found("endpoint"))?)))
}

pub(super) async fn update(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<EndpointId>,
    once: Once,
    Json(request): Json<UpdateEndpoint>,
) -> Result<Response, ApiError> {
    principal.require(Scope::WebhooksWrite)?;
    let mut errors = Vec::new();
    errors.extend(
        request
            .url
            .as_deref()
            .and_then(|url| create::url_error(&api.guard, url)),
    );
    errors.extend(request.events.as_deref().and_then(create::events_error));
    errors.extend(
        request
            .description
            .as_deref()
            .and_then(create::description_error),
    );
    create::refuse(errors)?;
    let (tenant, now) = (principal.tenant().uuid(), api.clock.now());
    let mut client = api.pool.get().await?;
    let transaction = client.transaction().await?;
    let found = endpoints::lock(&transaction, tenant, id.uuid()).await?;
    let before = found.ok_or_else(|| not_found("endpoint"))?;
    let endpoint = changed(before.clone(), request, now);
    let answer = view(endpoint.clone());
    if let Some(before) = once.claim(&transaction, &json!(answer), now).await? {
        return Ok(repeated(StatusCode::OK, before));
    }
    endpoints::update(&transaction, tenant, &endpoint).await?;
    // What was learnt of the old address, or before it was switched on, tells nothing any more.
    if endpoint.url != before.url || (endpoint.enabled && !before.enabled) {
        health::save(&transaction, endpoint.id, Health::Untried).await?;
    }
    transaction.commit().await?;
    Ok(Json(answer).into_response())
}

pub(super) async fn delete(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<EndpointId>,
) -> Result<StatusCode, ApiError> {
    principal.require(Scope::WebhooksWrite)?;
    let (tenant, now) = (principal.tenant().uuid(), api.clock.now());
    let client = api.pool.get().await?;
    if !endpoints::delete(&client, tenant, id.uuid(), now).await? {
        return Err(not_found("endpoint"));
    }
    Ok(StatusCode::NO_CONTENT)
}

fn changed(mut endpoint: Endpoint, request: UpdateEndpoint, now: Timestamp) -> Endpoint {
    if let Some(url) = request.url {
        endpoint.url = url;
    }
    if let Some(events) = request.events {
        endpoint.events = events
            .iter()
            .map(|event| event.as_str().to_owned())
            .collect();
    }
    if let Some(description) = request.description {
        endpoint.description = Some(description);
    }
    if let Some(enabled) = request.enabled {
        endpoint.enabled = enabled;
        endpoint.disabled_reason = None;
    }
    endpoint.updated_at = now;
    endpoint
}

pub(super) fn view(endpoint: Endpoint) -> EndpointView {
    EndpointView {
        endpoint_id: EndpointId::from_uuid(endpoint.id),
        url: endpoint.url,
        events: endpoint
            .events
            .iter()
            .filter_map(|event| event_type(event))
            .collect(),
        description: endpoint.description,
        enabled: endpoint.enabled,
        disabled_reason: endpoint.disabled_reason,
        created_at: endpoint.created_at,
        updated_at: endpoint.updated_at,
    }
}

/// A page of at most `size` out of rows of which one more was asked for.
pub(super) fn page<R, V>(
    mut rows: Vec<R>,
    size: usize,
    id: impl Fn(&R) -> uuid::Uuid,
    view: impl Fn(R) -> V,
) -> Page<V> {
    let more = rows.len() > size;
    rows.truncate(size);
    let next_cursor = rows
        .last()
        .filter(|_| more)
        .map(|row| id(row).simple().to_string());
    Page {
        data: rows.into_iter().map(view).collect(),
        next_cursor,
    }
}
