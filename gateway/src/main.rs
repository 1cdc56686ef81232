//! The command line of the gateway.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gateway::{
    admin,
    config::RunOptions,
    run,
    store::{SCHEMA, migrations},
};
use ops::{
    clock::Clock,
    config::{BadConfig, CommandOptions, LogOptions, parse_or_exit},
    process, telemetry,
};

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
    Migrate(CommandOptions),
    /// Plans, tenants and API keys.
    Admin(Box<admin::AdminOptions>),
}

impl Command {
    fn log(&self) -> &LogOptions {
        match self {
            Self::Run(options) | Self::Check(options) => &options.process.log,
            Self::Migrate(options) => &options.log,
            Self::Admin(options) => &options.command.log,
        }
    }
}

fn main() -> ExitCode {
    process::end("gateway", execute(parse_or_exit::<Cli>().command))
}

/// Not in `process::run`, because Pingora has runtimes and a way to stop of its own.
fn execute(command: Command) -> anyhow::Result<ExitCode> {
    let telemetry = telemetry::init("gateway", command.log())?;
    if let Command::Run(options) | Command::Check(options) = &command {
        options.validate().map_err(BadConfig)?;
    }
    match command {
        Command::Run(options) => run::run(&options, &telemetry),
        Command::Check(options) => run::check(&options),
        Command::Migrate(options) => {
            block_on(process::migrate(&options.database, SCHEMA, &migrations()))
        }
        Command::Admin(options) => block_on(admin::run(*options, &Clock::system())),
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
