//! The command line of the gateway.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gateway::{admin, config::RunOptions, run, store};
use ops::{
    clock::Clock,
    config::{DatabaseOptions, EXIT_CONFIG, LogFormat, LogOptions, parse_or_exit},
    postgres, telemetry,
};
use tracing::error;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The edge: who are you, may you, where to, what did it cost.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Carry requests until told to stop.
    Run(Box<RunOptions>),
    /// Validate the configuration of `run` and reach for its dependencies.
    Check(Box<RunOptions>),
    /// Bring the database schema up to date.
    Migrate(DatabaseOptions),
    /// Plans, tenants and API keys.
    Admin(Box<admin::AdminOptions>),
}

fn main() -> ExitCode {
    let command = parse_or_exit::<Cli>().command;
    let log = match &command {
        Command::Run(options) | Command::Check(options) => options.process.log.clone(),
        _ => LogOptions {
            log_format: LogFormat::Text,
            otlp_endpoint: None,
        },
    };
    let telemetry = telemetry::init("gateway", &log);
    let outcome = telemetry.and_then(|telemetry| match command {
        Command::Run(options) => match options.validate() {
            Ok(()) => run::run(&options, &telemetry),
            Err(cause) => Ok(misconfigured(&cause)),
        },
        Command::Check(options) => match options.validate() {
            Ok(()) => run::check(&options),
            Err(cause) => Ok(misconfigured(&cause)),
        },
        Command::Migrate(options) => block_on(async {
            let pool = postgres::connect(&options, "gateway migrate")?;
            postgres::migrate(&pool, store::SCHEMA, &store::migrations()).await
        }),
        Command::Admin(options) => block_on(admin::run(*options, &Clock::system())),
    });
    outcome.unwrap_or_else(|cause| {
        error!(error = format!("{cause:#}"), "gateway failed");
        ExitCode::FAILURE
    })
}

fn misconfigured(cause: &anyhow::Error) -> ExitCode {
    error!(error = format!("{cause:#}"), "bad configuration");
    ExitCode::from(u8::try_from(EXIT_CONFIG).expect("64"))
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)?;
    Ok(ExitCode::SUCCESS)
}
