//! The HTTP API, all routes on this page. Every request comes through the gateway, by assertion.

use axum::{
    Router,
    routing::{get, post},
};
use contracts::{
    api::{jobs::JobEventType, webhooks::EVENTS},
    problem::{Code, Problem},
};
use ops::{
    clock::Clock,
    config::Key32,
    postgres::{Pool, explain, is_outage},
};
use uuid::Uuid;

use crate::{delivery::Standing, guard::Guard};

mod attempts;
mod create;
mod deliveries;
mod endpoints;
mod once;
mod replay;
mod rotate;
mod test;

/// Seconds after which a caller may try again when the database is briefly not there.
const RETRY_AFTER_SECONDS: u64 = 1;

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Api {
    /// The database.
    pub pool: Pool,
    /// Vets endpoints' URLs.
    pub guard: Guard,
    /// Encrypts secrets at rest.
    pub key: Key32,
    /// The present.
    pub clock: Clock,
}

/// Every route of the service.
pub fn router(state: Api) -> Router {
    Router::new()
        .route(
            "/v1/webhooks/endpoints",
            get(endpoints::list).post(create::create),
        )
        .route(
            "/v1/webhooks/endpoints/{endpoint_id}",
            get(endpoints::get)
                .patch(endpoints::update)
                .delete(endpoints::delete),
        )
        .route(
            "/v1/webhooks/endpoints/{endpoint_id}/rotate-secret",
            post(rotate::rotate),
        )
        .route(
            "/v1/webhooks/endpoints/{endpoint_id}/test",
            post(test::test),
        )
        .route("/v1/webhooks/deliveries", get(deliveries::list))
        .route("/v1/webhooks/deliveries/{message_id}", get(deliveries::get))
        .route(
            "/v1/webhooks/deliveries/{message_id}/attempts",
            get(attempts::list),
        )
        .route(
            "/v1/webhooks/deliveries/{message_id}/replay",
            post(replay::replay),
        )
        .with_state(state)
}

/// Anything that goes wrong in a handler: a problem for the client, or a fault of ours, which is
/// logged here once and told as a 500 that says nothing, or a 503 where it will pass.
enum ApiError {
    Problem(Problem),
    Internal(anyhow::Error),
}

impl axum::response::IntoResponse for ApiError {
    fn into_response(self) -> axum::response::Response {
        match self {
            Self::Problem(problem) => problem.into_response(),
            Self::Internal(cause) => {
                tracing::error!(error = explain(&cause), "request failed");
                if !is_outage(cause.as_ref()) {
                    return Problem::internal().into_response();
                }
                Problem::new(Code::ServiceUnavailable, "Try again shortly.")
                    .with_retry_after(RETRY_AFTER_SECONDS)
                    .into_response()
            }
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<tokio_postgres::Error> for ApiError {
    fn from(cause: tokio_postgres::Error) -> Self {
        Self::Internal(cause.into())
    }
}

impl From<deadpool_postgres::PoolError> for ApiError {
    fn from(cause: deadpool_postgres::PoolError) -> Self {
        Self::Internal(cause.into())
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(cause: anyhow::Error) -> Self {
        Self::Internal(cause)
    }
}

fn not_found(what: &str) -> ApiError {
    Problem::new(Code::NotFound, format!("There is no such {what}.")).into()
}

/// Why nothing can be queued for an endpoint that is not sent to.
fn not_sent_to(endpoint: Standing) -> ApiError {
    let detail = match endpoint {
        Standing::Deleted => "The endpoint was deleted: nothing is sent to it any more.",
        _ => "The endpoint is disabled: enable it first.",
    };
    Problem::new(Code::Conflict, detail).into()
}

/// Where a page begins: the id in the cursor, or above all ids.
fn cursor_of(text: Option<&str>) -> Result<Uuid, ApiError> {
    let Some(text) = text else {
        return Ok(Uuid::max());
    };
    Uuid::try_parse(text).map_err(|_| {
        Problem::new(
            Code::InvalidRequest,
            "The cursor is not one that a page ended with.",
        )
        .into()
    })
}

fn event_type(text: &str) -> Option<JobEventType> {
    EVENTS.into_iter().find(|event| event.as_str() == text)
}
