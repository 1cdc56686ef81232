//! `relayer api`: proofs over HTTP, behind the gateway's assertion.

use std::process::ExitCode;

use anyhow::Context as _;
use axum::{Router, routing::get};
use contracts::{assertion::Audience, server::Guard};
use ops::{
    admin::{self, Readiness},
    clock::Clock,
    config::Key32,
    lifecycle::Lifecycle,
    postgres::{self, Pool},
    telemetry::{self, Telemetry},
};
use tokio::net::TcpListener;
use tracing::info;

use crate::{
    config::{ApiOptions, Failure},
    store::{self, SCHEMA},
};

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
pub async fn serve(options: ApiOptions, telemetry: &Telemetry) -> Result<ExitCode, Failure> {
    let pool = postgres::connect(&options.database, "relayer-api").map_err(Failure::Config)?;
    postgres::ping(&pool).await.map_err(Failure::Unavailable)?;
    postgres::require_schema(&pool, SCHEMA, &store::migrations()).await?;
    let lifecycle = Lifecycle::new(options.process.drain());
    let stop = lifecycle.stopping();
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("listen on {}", options.listen))?;
    let address = listener.local_addr().context("the API's address")?;
    let readiness = Readiness::default().with_database(pool.clone());
    let metrics = telemetry.metrics.clone();
    let (admin_address, serve_admin) = admin::bind(
        options.process.admin_listen,
        readiness,
        metrics,
        stop.clone(),
    )
    .await?;
    info!(api.address = %address, admin.address = %admin_address, "relayer api is up");
    let router = router(pool, &options.assertion_key, Clock::system());
    lifecycle.spawn("admin", serve_admin);
    lifecycle.spawn("api", async move {
        let stopped = async move { stop.cancelled().await };
        axum::serve(listener, router)
            .with_graceful_shutdown(stopped)
            .await?;
        Ok(())
    });
    Ok(lifecycle.run_until_stopped().await)
}
