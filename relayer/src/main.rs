//! The relayer's processes: `run`, `api`, and the commands that prepare them.

use std::process::ExitCode;

use ops::{
    config::{LogOptions, parse_or_exit},
    telemetry::{self, Telemetry},
};
use relayer::{
    api, check,
    config::{Cli, Command, Failure},
    deploy, run,
};
use tracing::error;

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = parse_or_exit();
    let outcome = match telemetry::init("relayer", log_options(&cli.command)) {
        Ok(telemetry) => execute(cli.command, &telemetry).await,
        Err(cause) => Err(Failure::Config(cause)),
    };
    outcome.unwrap_or_else(|failure| {
        error!(error = format!("{:#}", failure.cause()), "relayer ends");
        ExitCode::from(failure.exit_code())
    })
}

async fn execute(command: Command, telemetry: &Telemetry) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(options) => run::run(*options, telemetry).await,
        Command::Api(options) => api::serve(*options, telemetry).await,
        Command::Deploy(options) => deploy::deploy(&options).await.map(|()| ExitCode::SUCCESS),
        Command::Migrate(options) => check::migrate(&options).await.map(|()| ExitCode::SUCCESS),
        Command::Check(options) => check::check(&options).await.map(|()| ExitCode::SUCCESS),
    }
}

fn log_options(command: &Command) -> &LogOptions {
    match command {
        Command::Run(options) | Command::Check(options) => &options.process.log,
        Command::Api(options) => &options.process.log,
        Command::Deploy(options) => &options.log,
        Command::Migrate(options) => &options.log,
    }
}
