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
    process::run("metering", &command.log().clone(), |process| {
        run(command, process)
    })
    .await
}

async fn run(command: Command, process: Process) -> anyhow::Result<ExitCode> {
    let clock = Clock::system();
    match command {
        Command::Ingest(options) => {
            let pool = postgres::open(&options.database, SCHEMA, &schema()).await?;
            let readiness = ingest::start(&options.kafka, &pool, &clock, &process.lifecycle)?;
            process.run_until_stopped(&options.process, readiness).await
        }
        Command::Api(options) => {
            let pool = postgres::open(&options.database, SCHEMA, &schema()).await?;
            let readiness = api::start(&options, &pool, &clock, &process).await?;
            process.run_until_stopped(&options.process, readiness).await
        }
        Command::Migrate(options) => process::migrate(&options.database, SCHEMA, &schema()).await,
        Command::DeadLetters(letters) => {
            letters
                .run(SCHEMA, &schema(), &ingest::handlings(&clock))
                .await
        }
        Command::Check(options) => check::run(&options).await,
    }
}
