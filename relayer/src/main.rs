//! The relayer's processes: `run`, `api`, and the commands that prepare them.

use std::process::ExitCode;

use ops::{
    clock::Clock,
    config::parse_or_exit,
    process::{self, Process},
};
use relayer::{
    api, check,
    config::{Cli, Command},
    deploy, intake, resume, run,
    store::{SCHEMA, migrations},
};

#[tokio::main]
async fn main() -> ExitCode {
    let command = parse_or_exit::<Cli>().command;
    process::run("relayer", &command.log().clone(), |process| {
        execute(command, process)
    })
    .await
}

async fn execute(command: Command, process: Process) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(options) => run::run(*options, process).await,
        Command::Api(options) => api::serve(&options, process).await,
        Command::Deploy(options) => deploy::deploy(&options).await,
        Command::Migrate(options) => {
            process::migrate(&options.database, SCHEMA, &migrations()).await
        }
        Command::Resume(options) => resume::resume(&options).await,
        Command::DeadLetters(letters) => {
            let handling = intake::handling(Clock::system());
            letters.run(SCHEMA, &migrations(), &[handling]).await
        }
        Command::Check(options) => check::check(&options).await,
    }
}
