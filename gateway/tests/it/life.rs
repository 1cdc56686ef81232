//! Start and stop: bad configuration, an unknown schema, and SIGTERM under load.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures::future::join_all;
use ops::testing::{eventually, free_address};
use reqwest::{Method, StatusCode};

use crate::app;

#[tokio::test]
async fn bad_configuration_exits_64_and_an_unknown_schema_is_refused() {
    let app = app::start(&[]).await;
    for command in [
        "run --listen nonsense",
        "run --jobs-url ftp://a",
        "run --jwt-issuer=",
        "run --drain-seconds 12 --upstream-deadline-ms 10000 --lame-duck-ms 1000",
    ] {
        let output = app.run(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{command}: {said}");
    }
    let client = app.database.pool().get().await.unwrap();
    client
        .batch_execute("DROP SCHEMA gateway CASCADE")
        .await
        .unwrap();
    let listen = format!("run --listen {}", free_address());
    let output = app.run(&listen);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("run `migrate` first"));
}

#[tokio::test]
async fn sigterm_is_seen_first_then_everyone_is_served_and_then_it_ends() {
    let mut app = app::start(&[("LAME_DUCK_MS", "500")]).await;
    let (stopping, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let worker = |worker: usize| {
        let (app, stopping, served) = (&app, &stopping, &served);
        async move {
            let mut number = 0;
            while !stopping.load(Ordering::Relaxed) {
                number += 1;
                let job = app::job("sleep:150").to_string();
                let request = app.post("/v1/jobs", &format!("{worker}-{number}"), &job);
                let response = request.send().await.expect("no request in flight fails");
                assert_eq!(response.status(), StatusCode::ACCEPTED);
                response.bytes().await.expect("no answer is cut");
                served.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let load_balancer = async {
        eventually("requests flow", Duration::from_secs(5), async || {
            (served.load(Ordering::Relaxed) > 8).then_some(())
        })
        .await;
        app.gateway.stop();
        app.not_ready("SIGTERM").await;
        stopping.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all((0..8).map(worker)), load_balancer);
    let told = Instant::now();
    assert_eq!(app.gateway.exit_code(Duration::from_secs(15)), Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(12),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test]
async fn cut_off_from_postgres_it_is_not_ready_and_at_last_lets_nobody_in() {
    let app = app::start(&[("SNAPSHOT_MAX_AGE_SECONDS", "4")]).await;
    let client = app.database.pool().get().await.unwrap();
    let name: String = client
        .query_one("SELECT current_database()", &[])
        .await
        .unwrap()
        .get(0);
    let (server, connection) = tokio_postgres::connect(
        &ops::testing::service("DATABASE_URL"),
        tokio_postgres::NoTls,
    )
    .await
    .unwrap();
    let cut = async {
        let lock = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false");
        server.batch_execute(&lock).await.unwrap();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        server.query(end, &[&name]).await.unwrap();
    };
    tokio::select! { () = cut => {}, _ = connection => panic!("the connection ended") }
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
    app.not_ready("Postgres is away").await;
    eventually("nobody is let in", Duration::from_secs(6), async || {
        let response = app.request(Method::GET, "/v1/jobs").send().await.unwrap();
        (response.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
}
