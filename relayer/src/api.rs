//! `relayer api`: proofs over HTTP, behind the gateway's assertion.

use std::process::ExitCode;

use axum::{Router, routing::get};
use contracts::{assertion::Audience, server::Guard};
use ops::{
    admin::Readiness,
    clock::Clock,
    config::{HttpOptions, Key32},
    postgres::{self, Pool},
    process::Process,
    telemetry,
};

use crate::store::{self, SCHEMA};

mod proof;

/// Every route.
pub fn router(pool: Pool, key: &Key32, clock: Clock) -> Router {
    let routes = Router::new()
        .route("/v1/jobs/{job_id}/proof", get(proof::get))
        .with_state(pool);
    let now = move || clock.now();
    Guard::new(
        Audience::Relayer,
        key.expose(),
        now,
        telemetry::continue_trace,
    )
    .protect(routes)
}

/// Serves until the process is told to stop.
///
/// # Errors
/// When the database is not as it must be, or an address cannot be bound.
pub async fn serve(options: &HttpOptions, process: Process) -> anyhow::Result<ExitCode> {
    let pool = postgres::open(&options.database, SCHEMA, &store::migrations()).await?;
    let router = router(pool.clone(), &options.assertion_key, Clock::system());
    process.serve_http(options.listen, router).await?;
    let readiness = Readiness::default().with_database(pool);
    process.run_until_stopped(&options.process, readiness).await
}
