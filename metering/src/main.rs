//! The program `metering`: one subcommand for each thing it does.

use std::process::ExitCode;

use metering::{
    SCHEMA, api, check,
    config::{Cli, Command},
    ingest, schema,
};
use ops::{
    clock::Clock,
    config::parse_or_exit,
    postgres,
    process::{self, Process},
};

#[tokio::main]
async fn main() -> ExitCode {
    let command = parse_or_exit::<Cli>().command;
    let (database, options) = command.common();
    let (database, options) = (database.clone(), options.clone());
    process::run("metering", &options, &database, |process| {
        run(command, process)
    })
    .await
}

async fn run(command: Command, process: Process) -> anyhow::Result<ExitCode> {
    let clock = Clock::system();
    match command {
        Command::Ingest(options) => {
            postgres::require_schema(&process.pool, SCHEMA, &schema()).await?;
            let readiness = ingest::start(&options.kafka, &process, &clock);
            process.run_until_stopped(&options.process, readiness).await
        }
        Command::Api(options) => {
            postgres::require_schema(&process.pool, SCHEMA, &schema()).await?;
            let readiness = api::start(&options, &process, &clock).await?;
            process.run_until_stopped(&options.process, readiness).await
        }
        Command::Migrate(_) => {
            postgres::migrate(&process.pool, SCHEMA, &schema()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(options) => check::run(&options, process.pool).await,
    }
}
