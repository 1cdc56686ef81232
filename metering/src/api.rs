//! `metering api`: usage, raw events, invoices and prices of the tenant that the gateway's
//! assertion names. All routes stand in [`router`]; each is one file.

use axum::{Router, routing::get};
use contracts::{
    assertion::{Audience, Scope},
    problem::{Code, FieldError, Problem},
    server::{Guard, Principal},
};
use jiff::Timestamp;
use ops::{
    admin::Readiness,
    clock::Clock,
    config::HttpOptions,
    postgres::{Pool, explain, is_outage},
    process::Process,
    telemetry,
};
use tracing::error;

use crate::{
    ingest,
    store::Store,
    window::{Month, hour, next_hour},
};

mod events;
mod invoice;
mod prices;
mod usage;

/// Before this nobody used anything, and far before it no database has a date.
const EARLIEST: Timestamp = Timestamp::constant(946_684_800, 0);

/// Seconds after which a caller may try again when the database is briefly not there.
const RETRY_AFTER_SECONDS: u64 = 1;

/// What handlers need.
#[derive(Clone, Debug)]
pub struct Api {
    /// What was recorded.
    pub store: Store,
    /// The present.
    pub clock: Clock,
}

/// Whole hours, of which a request wants the usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: Timestamp,
    to: Timestamp,
}

/// Serves the API until the process stops; returns once it is bound.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(
    options: &HttpOptions,
    pool: &Pool,
    clock: &Clock,
    process: &Process,
) -> anyhow::Result<Readiness> {
    let now = clock.clone();
    let guard = Guard::new(
        Audience::Metering,
        options.assertion_key.expose(),
        move || now.now(),
        telemetry::continue_trace,
    );
    let api = Api {
        store: Store::new(pool.clone()),
        clock: clock.clone(),
    };
    process
        .serve_http(options.listen, guard.protect(router(api)))
        .await?;
    Ok(Readiness::default().with_database(pool.clone()))
}

/// All routes.
fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/usage", get(usage::get))
        .route("/v1/usage/events", get(events::get))
        .route("/v1/invoices/preview", get(invoice::get))
        .route("/v1/prices", get(prices::get))
        .with_state(api)
}

impl Api {
    /// Up to when the answers are complete.
    async fn as_of(&self) -> anyhow::Result<Option<Timestamp>> {
        self.store.as_of(&[ingest::USAGE, ingest::JOBS]).await
    }

    /// The hours from `from` (or this month's first) to `to` (or now), begun ones included.
    fn span(&self, from: Option<Timestamp>, to: Option<Timestamp>) -> Result<Span, Problem> {
        let now = self.clock.now();
        let from = hour(from.unwrap_or_else(|| Month::containing(now).start()));
        let to = next_hour(to.unwrap_or(now));
        if from >= to {
            return Err(invalid("from", "order", "must be before `to`"));
        }
        if from < EARLIEST {
            return Err(invalid("from", "range", "must be 2000-01-01 or later"));
        }
        Ok(Span { from, to })
    }
}

/// The credential must be one for looking at bills.
fn authorize(principal: &Principal) -> Result<(), Problem> {
    principal.require(Scope::BillingRead)
}

/// A query parameter breaks a rule.
fn invalid(parameter: &str, code: &str, rule: &str) -> Problem {
    let detail = format!("The query parameter `{parameter}` {rule}.");
    let error = FieldError::new(format!("/{parameter}"), code, rule);
    Problem::new(Code::InvalidRequest, detail).with_errors(vec![error])
}

/// The one place where what failed inside becomes what is said outside.
#[expect(
    clippy::needless_pass_by_value,
    reason = "used as a function in map_err"
)]
fn failed(cause: anyhow::Error) -> Problem {
    error!(error = explain(&cause), "cannot answer");
    if is_outage(cause.as_ref()) {
        return Problem::new(Code::ServiceUnavailable, "Try again shortly.")
            .with_retry_after(RETRY_AFTER_SECONDS);
    }
    Problem::internal()
}
