//! What operators see: metrics by route and plan, and spans that show nothing of the tenant's.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, routing::post};
use contracts::id::JobId;
use ops::testing::{TestProcess, eventually, free_address};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::{app, fleet::GENEROUS};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn contains(exported: &[u8], part: &[u8]) -> bool {
    exported.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn a_request_is_a_span_of_its_clients_trace_that_shows_no_path_and_no_credential() {
    let exported = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&exported);
    let route = post(async move |body: Bytes| {
        kept.lock().unwrap().extend_from_slice(&body);
        StatusCode::OK
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async { axum::serve(listener, Router::new().route("/v1/traces", route)).await });
    let app = app::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector)]).await;
    let theirs = format!("00-{TRACE}-b7ad6b7169203331-01");
    let request = app.request(Method::GET, "/v1/jobs/job_private?state=mine");
    let answer = request.header("traceparent", &theirs).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    // The upstream's span will be a child of ours, which is a child of the client's.
    let seen = app.upstreams.seen.last();
    let told = seen.headers["traceparent"].to_str().unwrap().to_owned();
    let parts: Vec<&str> = told.split('-').collect();
    assert_eq!(parts[1], TRACE);
    assert_ne!(parts[2], "b7ad6b7169203331");
    assert_eq!(seen.claims.traceparent.as_deref(), Some(told.as_str()));
    let ours = const_hex::decode(parts[2]).unwrap();
    let found = async || contains(&exported.lock().unwrap(), &ours).then_some(());
    eventually("the span is exported", Duration::from_secs(15), found).await;
    let exported = exported.lock().unwrap().clone();
    for part in [
        "gateway.request.serve",
        "/v1/jobs/{job_id}",
        &app.tenant,
        "req_",
    ] {
        assert!(contains(&exported, part.as_bytes()), "{part} is missing");
    }
    let secret = app.key.rsplit('_').next().unwrap();
    for part in ["job_private", "mine", secret] {
        assert!(!contains(&exported, part.as_bytes()), "{part} is shown");
    }
}

#[tokio::test]
async fn requests_are_counted_by_route_and_plan_and_many_plans_are_one() {
    let app = app::start_with_plan(&[], GENEROUS).await;
    for number in 0..20 {
        app.admin(&format!("admin plan create p{number}"));
    }
    let last = app.admin("admin tenant create t2 --plan p19");
    let theirs = app.new_key(last["tenant_id"].as_str().unwrap(), "jobs:read");
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
    let known = async || {
        let request = app.client.get(format!("{}/v1/jobs", app.url));
        let status = request.bearer_auth(&theirs).send().await.unwrap().status();
        (status == StatusCode::OK).then_some(())
    };
    eventually("the other key is known", Duration::from_secs(3), known).await;
    let metrics = app.metrics().await;
    let counted = |plan: &str| {
        let start = "gateway_requests_total{route=\"/v1/jobs\",method=\"GET\",";
        let line = format!("{start}plan=\"{plan}\",status=\"2xx\"}}");
        metrics.lines().any(|found| found.starts_with(&line))
    };
    assert!(counted("test") && counted("other"), "{metrics}");
    assert!(!metrics.contains("p19"), "no more labels than are named");
}

#[tokio::test]
async fn a_secret_in_a_path_is_shown_nowhere() {
    let app = app::start(&[]).await;
    let (listen, admin) = (free_address(), free_address());
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = app.binary();
    command.arg("run").env("RUST_LOG", "debug");
    command
        .env("LISTEN", listen.to_string())
        .env("ADMIN_LISTEN", admin.to_string());
    let _gateway = TestProcess::start(command.stderr(log.reopen().unwrap()));
    app::ready(admin, listen).await;
    let job = JobId::generate(ops::clock::Clock::system().now());
    let shown = [
        (
            Method::GET,
            format!("/v1/jobs/{job}/proof"),
            format!("/v1/jobs/{job}/proof"),
        ),
        (
            Method::DELETE,
            "/v1/api-keys/SECRET".to_owned(),
            "/v1/api-keys/{key_id}".to_owned(),
        ),
        (
            Method::GET,
            "/v1/jobs/SECRET?a=SECRET".to_owned(),
            "/v1/jobs/{job_id}".to_owned(),
        ),
        (Method::PUT, "/v1/jobs/SECRET".to_owned(), "/...".to_owned()),
        (
            Method::GET,
            "/SECRET/a?b=SECRET".to_owned(),
            "/...".to_owned(),
        ),
    ];
    for (method, path, _) in &shown {
        let path = path.replace("SECRET", &app.key);
        let request = app
            .client
            .request(method.clone(), format!("http://{listen}{path}"));
        let answer = request.bearer_auth(&app.key).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        let ours = status != StatusCode::OK;
        assert!(!ours || !text.contains(&app.key), "{path}: {text}");
    }
    let lines = async || {
        let log = std::fs::read_to_string(log.path()).unwrap();
        let lines = log.lines().filter(|line| line.contains("gateway::access"));
        let all: Vec<String> = lines.map(str::to_owned).collect();
        (all.len() == shown.len()).then_some((all, log))
    };
    let (lines, log) = eventually("lines are written", Duration::from_secs(5), lines).await;
    for (line, (_, _, expected)) in lines.iter().zip(&shown) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["http.path"], *expected);
    }
    assert!(!log.contains(&app.key), "a secret is written");
}
