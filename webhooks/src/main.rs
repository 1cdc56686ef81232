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
    retention, telemetry,
};
use webhooks::{
    SCHEMA,
    api::{self, Api},
    client::Sender,
    config::{ApiOptions, Cli, Command, WorkerOptions},
    guard::Guard,
    intake, migrations, upkeep,
    worker::Worker,
};

#[tokio::main]
async fn main() -> ExitCode {
    let command = parse_or_exit::<Cli>().command;
    process::run("webhooks", &command.log().clone(), |process| {
        run(command, process)
    })
    .await
}

async fn run(command: Command, process: Process) -> anyhow::Result<ExitCode> {
    match command {
        Command::Api(options) => serve(process, options).await,
        Command::Worker(options) => work(process, options).await,
        Command::Migrate(options) => {
            process::migrate(&options.database, SCHEMA, &migrations()).await
        }
        Command::DeadLetters(letters) => {
            let handling = intake::handling(Clock::system());
            letters.run(SCHEMA, &migrations(), &[handling]).await
        }
        Command::Check(options) => {
            Sender::new(Guard::new(options.delivery.allow_private_cidrs))?;
            postgres::open(&options.database, SCHEMA, &migrations()).await?;
            ops::kafka::ensure_topics(&options.kafka, &[event::JOBS_EVENTS]).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn serve(process: Process, options: ApiOptions) -> anyhow::Result<ExitCode> {
    let pool = postgres::open(&options.http.database, SCHEMA, &migrations()).await?;
    let (clock, now) = (Clock::system(), Clock::system());
    let key = options.http.assertion_key.expose();
    let continue_trace = telemetry::continue_trace;
    let assertions =
        AssertionGuard::new(Audience::Webhooks, key, move || now.now(), continue_trace);
    let guard = Guard::new(options.delivery.allow_private_cidrs);
    let key = options.delivery.webhooks_key;
    let state = Api {
        pool: pool.clone(),
        guard,
        key,
        clock,
    };
    process
        .serve_http(options.http.listen, assertions.protect(api::router(state)))
        .await?;
    let readiness = Readiness::default().with_database(pool);
    process
        .run_until_stopped(&options.http.process, readiness)
        .await
}

async fn work(process: Process, options: WorkerOptions) -> anyhow::Result<ExitCode> {
    let pool = postgres::open(&options.database, SCHEMA, &migrations()).await?;
    let (clock, ready) = (Clock::system(), Flag::default());
    let readiness = Readiness::default()
        .with_database(pool.clone())
        .with_flag("events are taken in", ready.clone());
    let consumer = Consumer {
        pool: pool.clone(),
        schema: SCHEMA,
        kafka: options.kafka,
        handling: intake::handling(clock.clone()),
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
    let retention = retention::run(worker.pool.clone(), SCHEMA, lifecycle.stopping());
    let upkeep = upkeep::run(
        worker.pool.clone(),
        worker.clock.clone(),
        lifecycle.stopping(),
    );
    lifecycle.spawn("retention", retention);
    lifecycle.spawn("upkeep", upkeep);
    lifecycle.spawn("intake", consumer.run(lifecycle.stopping()));
    lifecycle.spawn("deliveries", worker.run(lifecycle.stopping()));
    process.run_until_stopped(&options.process, readiness).await
}
