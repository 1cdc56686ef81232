//! The same main everywhere: command line, telemetry, database; then run until told to stop.

use std::{io::Write as _, process::ExitCode};

use axum::Router;
use tokio::net::TcpListener;
use tracing::info;

use crate::{
    admin::{self, Readiness},
    config::{DatabaseOptions, EXIT_CONFIG, EXIT_UNAVAILABLE, ProcessOptions},
    lifecycle::Lifecycle,
    postgres::{self, Pool},
    telemetry::{self, Telemetry},
};

/// What every command of a service has before it does its own.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    telemetry: Telemetry,
    /// The service's database.
    pub pool: Pool,
    /// The tasks of the process, and its end.
    pub lifecycle: Lifecycle,
}

/// Sets up a process and runs `command` in it. What goes wrong is said on standard error: exit
/// code 64 for configuration, 69 for what cannot be reached.
pub async fn run<F, Fut>(
    name: &'static str,
    options: &ProcessOptions,
    database: &DatabaseOptions,
    command: F,
) -> ExitCode
where
    F: FnOnce(Process) -> Fut,
    Fut: Future<Output = anyhow::Result<ExitCode>>,
{
    let set_up = || {
        let telemetry = telemetry::init(name, &options.log)?;
        let pool = postgres::connect(database, name)?;
        anyhow::Ok(Process {
            name,
            telemetry,
            pool,
            lifecycle: Lifecycle::new(options.drain()),
        })
    };
    match set_up() {
        Err(cause) => fail(name, &cause, EXIT_CONFIG),
        Ok(process) => command(process)
            .await
            .unwrap_or_else(|cause| fail(name, &cause, EXIT_UNAVAILABLE)),
    }
}

impl Process {
    /// Serves `router` on `listen` until the process stops; returns once it is bound.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn serve_http(
        &self,
        listen: std::net::SocketAddr,
        router: Router,
    ) -> anyhow::Result<()> {
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|error| anyhow::anyhow!("listen on {listen}: {error}"))?;
        info!(process = self.name, http.address = %listener.local_addr()?, "serving");
        let stop = self.lifecycle.stopping();
        self.lifecycle.spawn("http", async move {
            let stopped = async move { stop.cancelled().await };
            Ok(axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await?)
        });
        Ok(())
    }

    /// Opens the admin listener, says that the process runs, and waits for its end.
    ///
    /// # Errors
    /// When the admin address cannot be bound.
    pub async fn run_until_stopped(
        self,
        options: &ProcessOptions,
        readiness: Readiness,
    ) -> anyhow::Result<ExitCode> {
        let (address, admin) = admin::bind(
            options.admin_listen,
            readiness,
            self.telemetry.metrics.clone(),
            self.lifecycle.stopping(),
        )
        .await?;
        self.lifecycle.spawn("admin", admin);
        info!(process = self.name, admin.address = %address, "running");
        Ok(self.lifecycle.run_until_stopped().await)
    }
}

fn fail(name: &str, cause: &anyhow::Error, code: i32) -> ExitCode {
    // Nowhere is left to report that standard error is gone.
    writeln!(std::io::stderr(), "{name}: {cause:#}").ok();
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
