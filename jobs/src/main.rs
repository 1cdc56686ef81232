//! The program `jobs`: configuration, telemetry, build, announce, run until told to stop, drain.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use jobs::{
    SCHEMA, api, check,
    config::{Cli, Command},
    migrations, worker,
};
use ops::{
    admin::{self, Readiness},
    clock::Clock,
    config::{EXIT_CONFIG, EXIT_UNAVAILABLE, ProcessOptions, parse_or_exit},
    lifecycle::Lifecycle,
    postgres::{self, Pool},
    telemetry::{self, Telemetry},
};
use tracing::info;

#[tokio::main]
async fn main() -> ExitCode {
    let command = parse_or_exit::<Cli>().command;
    let (database, log) = command.common();
    let begun = telemetry::init("jobs", log)
        .and_then(|telemetry| Ok((telemetry, postgres::connect(database, "jobs")?)));
    let outcome = match begun {
        Ok((telemetry, pool)) => run(command, pool, &telemetry)
            .await
            .map_err(|cause| (cause, EXIT_UNAVAILABLE)),
        Err(cause) => Err((cause, EXIT_CONFIG)),
    };
    outcome.unwrap_or_else(|(cause, code)| {
        // Nowhere is left to report that standard error is gone.
        writeln!(io::stderr(), "jobs: {cause:#}").ok();
        ExitCode::from(u8::try_from(code).unwrap_or(1))
    })
}

async fn run(command: Command, pool: Pool, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let clock = Clock::system();
    match command {
        Command::Api(options) => {
            postgres::require_schema(&pool, SCHEMA, &migrations()).await?;
            let lifecycle = Lifecycle::new(options.process.drain());
            let readiness = api::start(&options, &pool, &clock, &lifecycle).await?;
            serve(lifecycle, &options.process, readiness, telemetry).await
        }
        Command::Worker(options) => {
            postgres::require_schema(&pool, SCHEMA, &migrations()).await?;
            let lifecycle = Lifecycle::new(options.process.drain());
            let readiness = worker::start(&options, &pool, &clock, &lifecycle);
            serve(lifecycle, &options.process, readiness, telemetry).await
        }
        Command::Migrate(_) => {
            postgres::migrate(&pool, SCHEMA, &migrations()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(options) => {
            check::run(&options, &pool).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn serve(
    lifecycle: Lifecycle,
    options: &ProcessOptions,
    readiness: Readiness,
    telemetry: &Telemetry,
) -> anyhow::Result<ExitCode> {
    let metrics = telemetry.metrics.clone();
    let (address, admin) = admin::bind(
        options.admin_listen,
        readiness,
        metrics,
        lifecycle.stopping(),
    )
    .await?;
    lifecycle.spawn("admin", admin);
    info!(admin.address = %address, "running");
    Ok(lifecycle.run_until_stopped().await)
}
