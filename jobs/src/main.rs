//! The program `jobs`: one subcommand for each thing it does.

use std::process::ExitCode;

use jobs::{
    SCHEMA, api, check,
    config::{Cli, Command},
    inbox, migrations, worker,
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
    process::run("jobs", &command.log().clone(), |process| {
        run(command, process)
    })
    .await
}

async fn run(command: Command, process: Process) -> anyhow::Result<ExitCode> {
    let clock = Clock::system();
    match command {
        Command::Api(options) => {
            let pool = postgres::open(&options.http.database, SCHEMA, &migrations()).await?;
            let readiness = api::start(&options, &pool, &clock, &process).await?;
            process
                .run_until_stopped(&options.http.process, readiness)
                .await
        }
        Command::Worker(options) => {
            let pool = postgres::open(&options.database, SCHEMA, &migrations()).await?;
            let readiness = worker::start(&options, &pool, &clock, &process.lifecycle);
            process.run_until_stopped(&options.process, readiness).await
        }
        Command::Migrate(options) => {
            process::migrate(&options.database, SCHEMA, &migrations()).await
        }
        Command::DeadLetters(letters) => {
            letters
                .run(SCHEMA, &migrations(), &[inbox::handling(clock)])
                .await
        }
        Command::Check(options) => check::run(&options).await,
    }
}
