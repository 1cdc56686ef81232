//! The same main everywhere: command line, telemetry, then the command; run until told to stop; and
//! one meaning of exit codes.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use axum::Router;
use tokio::net::TcpListener;
use tracing::info;

use crate::{
    admin::{self, Readiness},
    config::{
        BadConfig, DatabaseOptions, EXIT_CONFIG, EXIT_UNAVAILABLE, LogOptions, ProcessOptions,
    },
    lifecycle::Lifecycle,
    postgres::{self, Migration, explain},
    telemetry::{self, Telemetry},
};

/// What every command has before it does its own.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    telemetry: Telemetry,
    /// The tasks of the process, and its end.
    pub lifecycle: Lifecycle,
}

/// Sets up a process, runs `command` in it, and [ends](end).
pub async fn run<F, Fut>(name: &'static str, log: &LogOptions, command: F) -> ExitCode
where
    F: FnOnce(Process) -> Fut,
    Fut: Future<Output = anyhow::Result<ExitCode>>,
{
    let outcome = match telemetry::init(name, log) {
        Err(cause) => Err(cause.into()),
        Ok(telemetry) => {
            let lifecycle = Lifecycle::default();
            command(Process {
                name,
                telemetry,
                lifecycle,
            })
            .await
        }
    };
    end(name, outcome)
}

/// How a program ends: by the exit code that its command gives, or, when the command could not do
/// its work, with the reason on standard error. Then the code is 64 for a [`BadConfig`] and 69 for
/// all else, since something is not there or not as the command needs it.
#[must_use]
pub fn end(name: &str, outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|cause| {
        // Nowhere is left to report that standard error is gone.
        writeln!(std::io::stderr(), "{name}: {}", explain(&cause)).ok();
        ExitCode::from(if cause.is::<BadConfig>() {
            EXIT_CONFIG
        } else {
            EXIT_UNAVAILABLE
        })
    })
}

/// The command `migrate` of every service: brings its schema up to date.
///
/// # Errors
/// As [`postgres::connect`] and [`postgres::migrate`] say.
pub async fn migrate(
    database: &DatabaseOptions,
    schema: &str,
    all: &[Migration],
) -> anyhow::Result<ExitCode> {
    let pool = postgres::connect(database, schema)?;
    postgres::migrate(&pool, schema, all).await?;
    Ok(ExitCode::SUCCESS)
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
            .with_context(|| format!("listen on {listen}"))?;
        info!(process = self.name, http.address = %listener.local_addr()?, "serving");
        let stop = self.lifecycle.stopping();
        self.lifecycle.spawn("http", async move {
            Ok(axum::serve(listener, router)
                .with_graceful_shutdown(stop.cancelled_owned())
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
        Ok(self.lifecycle.run_until_stopped(options.drain()).await)
    }
}
