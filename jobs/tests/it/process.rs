//! The program itself: killed in the middle, told to stop, given nonsense.

use std::{process::Command, time::Duration};

use ops::testing::{TestProcess, eventually, free_address, status, until_ready};

use crate::app::{PATIENCE, TestApp, digest, sleep};

fn jobs(app: &TestApp, command: &str) -> Command {
    let mut jobs = Command::new(env!("CARGO_BIN_EXE_jobs"));
    jobs.arg(command)
        .env("DATABASE_URL", app.database.url())
        .env("KAFKA_BROKERS", &app.kafka.kafka_brokers)
        .env("TOPIC_PREFIX", &app.kafka.topic_prefix)
        .env("RUST_LOG", "warn");
    jobs
}

fn worker(app: &TestApp) -> Command {
    let mut worker = jobs(app, "worker");
    worker
        .env("WORKER_LEASE_MS", "600")
        .env("WORKER_SLOTS", "3");
    worker
}

#[tokio::test]
async fn a_job_whose_worker_is_killed_completes_once_under_the_next() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &sleep(1_500)).await;
    let status = async |wanted: &str| {
        eventually(wanted, PATIENCE, async || {
            (app.show(&who, &job).await["status"] == wanted).then_some(())
        })
        .await;
    };
    let mut first = TestProcess::start(&mut worker(&app));
    status("PROCESSING").await;
    first.kill();
    let mut second = TestProcess::start(&mut worker(&app));
    status("COMPLETED").await;
    let events = [
        "job.submitted",
        "job.started",
        "job.started",
        "job.completed",
    ];
    assert_eq!(app.events(&job).await, events);
    assert_eq!(app.active().await, 0);
    eventually("everything is published", PATIENCE, async || {
        let left = "SELECT count(*) FROM jobs.outbox WHERE published_at IS NULL";
        (app.count(left).await == 0).then_some(())
    })
    .await;
    assert_eq!(second.terminate(PATIENCE), Some(0));
}

#[tokio::test]
async fn a_worker_told_to_stop_finishes_what_it_can_and_gives_back_the_rest() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let (long, short) = (
        app.submit(&who, &sleep(60_000)).await,
        app.submit(&who, &sleep(1_500)).await,
    );
    let mut process = TestProcess::start(worker(&app).env("DRAIN_SECONDS", "4"));
    eventually("both are computed", PATIENCE, async || {
        let begun = "SELECT count(*) FROM jobs.job_events WHERE event_type = 'job.started'";
        (app.count(begun).await == 2).then_some(())
    })
    .await;
    let late = app.submit(&who, &digest("late")).await;
    assert_eq!(process.terminate(Duration::from_secs(10)), Some(0));
    assert_eq!(app.show(&who, &short).await["status"], "COMPLETED");
    for job in [&long, &late] {
        let shown = app.show(&who, job).await;
        assert_eq!(
            (shown["status"].as_str(), shown["attempts"].as_u64()),
            (Some("PENDING"), Some(0))
        );
    }
    let leases = "SELECT count(*) FROM jobs.jobs WHERE lease_owner IS NOT NULL";
    assert_eq!(app.count(leases).await, 0);
}

#[tokio::test]
async fn the_api_serves_until_it_is_told_to_stop() {
    let app = TestApp::start().await;
    let (listen, admin) = (free_address(), free_address());
    let mut command = jobs(&app, "api");
    command
        .env("LISTEN", listen.to_string())
        .env("ADMIN_LISTEN", admin.to_string())
        .env("ASSERTION_KEY", "07".repeat(32));
    let mut process = TestProcess::start(&mut command);
    until_ready(admin, PATIENCE).await;
    assert_eq!(status(listen, "/v1/jobs").await, Some(401));
    assert_eq!(process.terminate(PATIENCE), Some(0));
}

// With threads of its own, because waiting for a program blocks one, and the session that migrated
// the schema closes on another.
#[tokio::test(flavor = "multi_thread")]
async fn bad_configuration_is_64_and_an_unknown_schema_or_server_is_69() {
    let app = TestApp::start().await;
    let code = |command: &mut Command| {
        let ended = command.output().unwrap();
        // Shown by a test that fails.
        eprintln!("{}", String::from_utf8_lossy(&ended.stderr));
        ended.status.code()
    };
    assert_eq!(code(&mut jobs(&app, "check")), Some(0));
    assert_eq!(
        code(&mut jobs(&app, "migrate")),
        Some(0),
        "twice is as good as once"
    );
    assert_eq!(
        code(jobs(&app, "worker").env("WORKER_SLOTS", "0")),
        Some(64)
    );
    assert_eq!(
        code(jobs(&app, "check").env("DATABASE_URL", "postgres://[")),
        Some(64)
    );
    let nowhere = "postgres://nobody@127.0.0.1:1/nothing";
    assert_eq!(
        code(jobs(&app, "check").env("DATABASE_URL", nowhere)),
        Some(69)
    );
    let sql = "DROP SCHEMA jobs CASCADE";
    app.pool
        .get()
        .await
        .unwrap()
        .batch_execute(sql)
        .await
        .unwrap();
    let refused = jobs(&app, "worker").output().unwrap();
    assert_eq!(refused.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("run `migrate` first"));
}
