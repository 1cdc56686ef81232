//! Upstreams that are not well: told apart whatever way a request passes, and left out when there
//! is another address.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use ops::testing::{eventually, free_address};
use reqwest::{Method, RequestBuilder, StatusCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, lookup_host},
};

use crate::app::{self, App, problem};

/// A request of each passage.
fn each(app: &App, key: &str) -> [RequestBuilder; 3] {
    let job = app::job("a").to_string();
    [
        app.request(Method::GET, "/v1/jobs"),
        app.request(Method::GET, "/v1/jobs/job_1/events"),
        app.post("/v1/jobs", key, &job),
    ]
}

/// An upstream that reads a request and says nothing; `closes` says whether it then hangs up.
async fn silent(closes: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4_096];
            let read = stream.read(&mut request);
            tokio::time::timeout(Duration::from_secs(2), read)
                .await
                .ok();
            if !closes {
                held.push(stream);
            }
        }
    });
    url
}

#[tokio::test]
async fn refused_broken_off_and_too_slow_are_three_things_for_every_passage() {
    let nowhere = format!("http://{}", free_address());
    let (closing, silent) = (silent(true).await, silent(false).await);
    for (url, code) in [
        (nowhere, "SERVICE_UNAVAILABLE"),
        (closing, "BAD_GATEWAY"),
        (silent, "GATEWAY_TIMEOUT"),
    ] {
        let changes = [("JOBS_URL", &url[..]), ("UPSTREAM_DEADLINE_MS", "600")];
        let app = app::start(&changes).await;
        // Again: a breaker that opened meanwhile changes nothing about it.
        for round in 0..3 {
            for request in each(&app, &format!("{round}")) {
                let response = request.send().await.unwrap();
                let again = response.headers().get("retry-after").cloned();
                assert_eq!(again.is_some(), code == "SERVICE_UNAVAILABLE");
                assert_eq!(problem(response).await["code"], code);
            }
        }
    }
}

/// How many requests had this outcome at the Jobs API.
async fn outcomes(app: &App, outcome: &str) -> u64 {
    let metrics = app.metrics().await;
    let line = metrics.lines().find(|line| {
        line.starts_with("gateway_upstream_requests_total{upstream=\"jobs\"")
            && line.contains(&format!("outcome=\"{outcome}\""))
    });
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn an_address_that_cannot_be_reached_is_left_out() {
    let port = free_address().port();
    let addresses = lookup_host(("localhost", port)).await.unwrap().count();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let upstreams = crate::upstream::Upstreams::start_at(listener);
    let url = format!("http://localhost:{port}");
    let app = app::start(&[("JOBS_URL", &url)]).await;
    for number in 0..30 {
        let answer = app.submit(&format!("{number}"), "a").await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
    }
    assert_eq!(upstreams.count(), 60);
    assert_eq!(outcomes(&app, "answered").await, 60);
    // Those few, at most, that found it out.
    let misses = outcomes(&app, "unreachable").await;
    assert!(
        misses <= 3 && addresses <= 2,
        "{misses} of {addresses} addresses"
    );
    let shown = async || {
        let out = "gateway_upstream_addresses{upstream=\"jobs\",version=\"stable\",state=\"out\"}";
        let line = format!("{out} {}", addresses - 1);
        app.metrics().await.contains(&line).then_some(())
    };
    eventually("it is counted", Duration::from_secs(5), shown).await;
}

#[tokio::test]
async fn an_upstream_that_is_back_is_found_within_a_second_or_so() {
    let address = free_address();
    let url = format!("http://{address}");
    let checked = ("UPSTREAM_CHECK_PATH", "/");
    let app = app::start(&[("JOBS_URL", &url), checked]).await;
    for _ in 0..5 {
        let refused = app.get("/v1/jobs").await;
        assert_eq!(problem(refused).await["code"], "SERVICE_UNAVAILABLE");
    }
    let listener = TcpListener::bind(address).await.unwrap();
    let upstream = crate::upstream::Upstreams::start_at(listener);
    let well = async || (app.get("/v1/jobs").await.status() == StatusCode::OK).then_some(());
    eventually("it is back", Duration::from_secs(4), well).await;
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn failures_that_one_tenant_can_cause_shut_the_door_on_nobody() {
    let app = app::start(&[]).await;
    for number in 0..40 {
        let failed = app.submit(&format!("{number}"), "status:500").await;
        assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
    assert!(outcomes(&app, "sick").await >= 40);
}

/// An upstream that is never well to checks, counts its requests, and answers each after a while.
async fn counting() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::<AtomicUsize>::default();
    let seen = Arc::clone(&count);
    let serve = async |mut stream: TcpStream, seen: Arc<AtomicUsize>| {
        let mut request = [0; 4_096];
        while let Ok(read @ 1..) = stream.read(&mut request).await {
            let checks = request[..read].starts_with(b"GET /check ");
            if !checks {
                seen.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            let line = if checks {
                "503 Service Unavailable"
            } else {
                "200 OK"
            };
            let answer = format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.ok();
        }
    };
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&seen)));
        }
    });
    (url, count)
}

#[tokio::test]
async fn after_an_outage_one_request_tries_and_the_others_are_refused_at_once() {
    let (url, count) = counting().await;
    let app = app::start(&[("JOBS_URL", &url), ("UPSTREAM_CHECK_PATH", "/check")]).await;
    let out = async || {
        let out =
            "gateway_upstream_addresses{upstream=\"jobs\",version=\"stable\",state=\"out\"} 1";
        app.metrics().await.contains(out).then_some(())
    };
    eventually("it is out", Duration::from_secs(10), out).await;
    let before = count.load(Ordering::SeqCst);
    // Until its pause is over nobody gets there.
    let batch = async || {
        let answers = join_all((0..32).map(|_| app.get("/v1/jobs"))).await;
        let tried = count.load(Ordering::SeqCst) - before;
        (tried > 0).then_some((tried, answers))
    };
    let (tried, answers) = eventually("its pause is over", Duration::from_secs(10), batch).await;
    assert_eq!(tried, 1);
    let of = |status| {
        answers
            .iter()
            .filter(|answer| answer.status() == status)
            .count()
    };
    assert_eq!(
        (of(StatusCode::OK), of(StatusCode::SERVICE_UNAVAILABLE)),
        (1, 31)
    );
}
