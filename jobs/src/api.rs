//! The jobs API as the gateway sees it: every route on one page, and the one place where errors
//! become problems.

use axum::{Router, routing::get};
use contracts::{
    assertion::Audience,
    id::{JobId, Subject},
    problem::{Code, Problem},
    server::{Guard, Principal},
};
use ops::{
    admin::Readiness,
    clock::Clock,
    config::Key32,
    postgres::{Pool, explain, is_outage},
    process::Process,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{
    config::ApiOptions,
    store::{Record, Store, StoreError},
};

mod cancel;
mod create;
mod follow;
mod list;
mod show;
mod socket;
mod streams;
mod view;

pub use streams::Streams;

/// Seconds after which a caller may try again when something we need is briefly not there.
const RETRY_AFTER_SECONDS: u64 = 1;

/// What the endpoints need.
#[derive(Clone, Debug)]
pub struct Api {
    /// The jobs.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// The event streams that are open.
    pub streams: Streams,
    /// Cancelled when open streams must end.
    pub stopping: CancellationToken,
}

/// All routes, behind the gateway's assertions.
pub fn router(api: Api, assertion_key: &Key32) -> Router {
    let clock = api.clock.clone();
    let guard = Guard::new(
        Audience::Jobs,
        assertion_key.expose(),
        move || clock.now(),
        ops::telemetry::continue_trace,
    );
    let routes = Router::new()
        .route("/v1/jobs", get(list::list).post(create::create))
        .route("/v1/jobs/{job_id}", get(show::show).delete(cancel::cancel))
        .route("/v1/jobs/{job_id}/events", get(follow::follow))
        .with_state(api);
    guard.protect(routes)
}

/// Serves the API until the process stops; returns once it is bound.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(
    options: &ApiOptions,
    pool: &Pool,
    clock: &Clock,
    process: &Process,
) -> anyhow::Result<Readiness> {
    let api = Api {
        store: Store::new(pool.clone()),
        clock: clock.clone(),
        streams: Streams::new(options.streams_max, options.tenant_streams_max),
        stopping: process.lifecycle.stopping(),
    };
    let router = router(api, &options.http.assertion_key);
    process.serve_http(options.http.listen, router).await?;
    Ok(Readiness::default().with_database(pool.clone()))
}

impl Api {
    /// The job that a path names, if there is one that the caller sees.
    async fn visible(&self, principal: &Principal, id: &str) -> Result<Record, Problem> {
        let id: JobId = id.parse().map_err(|_| no_such_job())?;
        let found = self.store.find(principal.tenant(), id).await?;
        found
            .filter(|record| {
                let facts = &record.job.facts;
                principal.may_read_job(
                    facts.subject.as_str(),
                    facts.team.as_ref().map(Subject::as_str),
                )
            })
            .ok_or_else(no_such_job)
    }
}

fn no_such_job() -> Problem {
    Problem::new(
        Code::JobNotFound,
        "There is no such job, or it is not yours to see.",
    )
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing => no_such_job(),
            StoreError::Illegal(illegal) => {
                Self::new(Code::JobNotCancellable, format!("{illegal}."))
            }
            StoreError::TooSlow => Self::new(
                Code::ServiceUnavailable,
                "The list took too long: ask for fewer jobs, or for those of one status.",
            )
            .with_retry_after(RETRY_AFTER_SECONDS),
            error if is_outage(&error) => {
                error!(error = explain(&error.into()), "no database");
                Self::new(Code::ServiceUnavailable, "Try again shortly.")
                    .with_retry_after(RETRY_AFTER_SECONDS)
            }
            StoreError::Postgres(_)
            | StoreError::Pool(_)
            | StoreError::Untold(_)
            | StoreError::Fenced
            | StoreError::Unreadable(_) => {
                error!(error = explain(&error.into()), "request failed");
                Self::internal()
            }
        }
    }
}
