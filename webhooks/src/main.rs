//! The command line: `webhooks api | worker | migrate | check`.

use std::process::ExitCode;

use contracts::{assertion::Audience, event, server::Guard as AssertionGuard};
use ops::{
    admin::{Flag, Readiness},
    clock::Clock,
    config::parse_or_exit,
    inbox::Consumer,
    postgres,
    process::{self, Process},
    telemetry,
};
use webhooks::{
    SCHEMA,
    api::{self, Api},
    client::Sender,
    config::{ApiOptions, Cli, Command, WorkerOptions},
    guard::Guard,
    intake::Intake,
    migrations,
    worker::Worker,
};

#[tokio::main]
async fn main() -> ExitCode {
    let command = parse_or_exit::<Cli>().command;
    let (process, database) = command.common();
    process::run(
        "webhooks",
        &process.clone(),
        &database.clone(),
        |process| async {
            match command {
                Command::Api(options) => serve(process, options).await,
                Command::Worker(options) => work(process, options).await,
                Command::Migrate(_) => {
                    postgres::migrate(&process.pool, SCHEMA, &migrations()).await?;
                    Ok(ExitCode::SUCCESS)
                }
                Command::Check(options) => {
                    Sender::new(Guard::new(options.delivery.allow_private_cidrs))?;
                    postgres::require_schema(&process.pool, SCHEMA, &migrations()).await?;
                    ops::kafka::ensure_topics(&options.kafka, &[event::JOBS_EVENTS]).await?;
                    Ok(ExitCode::SUCCESS)
                }
            }
        },
    )
    .await
}

async fn serve(process: Process, options: ApiOptions) -> anyhow::Result<ExitCode> {
    postgres::require_schema(&process.pool, SCHEMA, &migrations()).await?;
    let (clock, now) = (Clock::system(), Clock::system());
    let key = options.assertion_key.expose();
    let continue_trace = telemetry::continue_trace;
    let assertions =
        AssertionGuard::new(Audience::Webhooks, key, move || now.now(), continue_trace);
    let guard = Guard::new(options.delivery.allow_private_cidrs);
    let key = options.delivery.webhooks_key;
    let state = Api {
        pool: process.pool.clone(),
        guard,
        key,
        clock,
    };
    process
        .serve_http(options.listen, assertions.protect(api::router(state)))
        .await?;
    let readiness = Readiness::default().with_database(process.pool.clone());
    process.run_until_stopped(&options.process, readiness).await
}

async fn work(process: Process, options: WorkerOptions) -> anyhow::Result<ExitCode> {
    postgres::require_schema(&process.pool, SCHEMA, &migrations()).await?;
    let clock = Clock::system();
    let (pool, ready) = (process.pool.clone(), Flag::default());
    let readiness = Readiness::default()
        .with_database(pool.clone())
        .with_flag("events are taken in", ready.clone());
    let consumer = Consumer {
        pool: pool.clone(),
        schema: SCHEMA,
        name: "webhooks",
        kafka: options.kafka,
        topics: &[event::JOBS_EVENTS],
        handler: Intake {
            clock: clock.clone(),
        },
        ready,
    };
    let sender = Sender::new(Guard::new(options.delivery.allow_private_cidrs))?;
    let key = options.delivery.webhooks_key;
    let worker = Worker {
        pool,
        sender,
        key,
        clock,
        slots: options.slots,
    };
    let lifecycle = process.lifecycle.clone();
    lifecycle.spawn("intake", consumer.run(lifecycle.stopping()));
    lifecycle.spawn("deliveries", worker.run(lifecycle.stopping()));
    process.run_until_stopped(&options.process, readiness).await
}
