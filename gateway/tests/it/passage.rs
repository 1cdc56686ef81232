//! What passes: who asks reaches the upstream as we state it, streams stream, failures of upstreams
//! are told apart, and the gateway's own pages.

use std::time::{Duration, Instant};

use contracts::assertion::{Audience, Role};
use ops::testing::{eventually, free_address};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    app::{self, problem},
    issuer::Issuer,
    upstream::LARGE,
};

#[tokio::test]
async fn the_upstream_learns_who_asks_from_us_and_from_nobody_else() {
    let app = app::start(&[("TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let forged = app
        .request(Method::GET, "/v1/jobs?limit=3")
        .header("jobseal-assertion", "forged")
        .header("x-jobseal-tenant", "forged")
        .header("x-tenant-id", "forged")
        .header("x-consumer-username", "forged")
        .header("cookie", "a=b")
        .header("x-forwarded-for", "1.1.1.1, 203.0.113.7")
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        );
    let response = forged.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    for (name, value) in [
        (
            "strict-transport-security",
            "max-age=31536000; includeSubDomains",
        ),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        (
            "content-security-policy",
            "default-src 'none'; frame-ancestors 'none'",
        ),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    let id = response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let seen = app.upstreams.seen.last();
    assert_eq!(seen.target, "/v1/jobs?limit=3");
    for name in [
        "authorization",
        "x-tenant-id",
        "x-jobseal-tenant",
        "x-consumer-username",
        "cookie",
    ] {
        assert!(!seen.headers.contains_key(name), "{name}");
    }
    let claims = seen.claims;
    assert_eq!(
        (claims.aud, claims.tenant.to_string()),
        (Audience::Jobs, app.tenant.clone())
    );
    assert_eq!(
        (claims.request_id.to_string(), claims.role),
        (id, Role::Developer)
    );
    assert_eq!(claims.address.to_string(), "203.0.113.7");
    assert_eq!((claims.active_jobs_limit, claims.priority), (Some(50), 5));
    let trace = claims.traceparent.unwrap();
    assert_eq!(
        trace,
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    );
}

#[tokio::test]
async fn each_tenant_is_stated_as_itself() {
    let app = app::start(&[]).await;
    let other = app.admin("admin tenant create t2 --plan default");
    let other = other["tenant_id"].as_str().unwrap();
    let key = app.new_key(other, "jobs:read");
    eventually("the new key is known", Duration::from_secs(3), async || {
        let request = app.client.get(format!("{}/v1/jobs/job_1", app.url));
        let response = request.header("x-api-key", &key).send().await.unwrap();
        (response.status() == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(app.upstreams.seen.last().claims.tenant.to_string(), other);
    app.get("/v1/jobs/job_1").await;
    assert_eq!(
        app.upstreams.seen.last().claims.tenant.to_string(),
        app.tenant
    );
    // A token's tenant is the one it names, whatever else the request says.
    let token = app.issuer.sign(&Issuer::claims(other, "jobs:admin"));
    let request = app
        .client
        .get(format!("{}/v1/jobs", app.url))
        .bearer_auth(token);
    request
        .header("x-tenant-id", &app.tenant)
        .send()
        .await
        .unwrap();
    let claims = app.upstreams.seen.last().claims;
    assert_eq!(
        (claims.tenant.to_string().as_str(), claims.role),
        (other, Role::Admin)
    );
}

#[tokio::test]
async fn a_transaction_carries_the_body_and_strips_what_is_not_for_the_client() {
    let app = app::start(&[]).await;
    let response = app.submit("\"quoted key\"", "hello").await;
    // Quoted or bare, a key holds no space.
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let response = app.submit("\"quoted\"", "hello").await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert!(
        response.headers()["location"]
            .to_str()
            .unwrap()
            .starts_with("/v1/jobs/job_")
    );
    assert!(!response.headers().contains_key("server"));
    let seen = app.upstreams.seen.last();
    assert_eq!((seen.method, &seen.target[..]), (Method::POST, "/v1/jobs"));
    assert_eq!(seen.headers["idempotency-key"], "quoted");
    assert_eq!(seen.headers["content-type"], "application/json");
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(body["payload"]["text"], "hello");
    let deleted = app
        .request(Method::DELETE, "/v1/jobs/job_1")
        .send()
        .await
        .unwrap();
    assert_eq!(deleted.status(), StatusCode::OK);
    let proof = app.get("/v1/jobs/job_1/proof").await;
    assert_eq!(proof.status(), StatusCode::OK);
    assert_eq!(app.upstreams.seen.last().claims.aud, Audience::Relayer);
    app.get("/v1/usage").await;
    assert_eq!(app.upstreams.seen.last().claims.aud, Audience::Metering);
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let app = app::start(&[]).await;
    let started = Instant::now();
    let request = app
        .request(Method::GET, "/v1/jobs/job_1/events")
        .header("last-event-id", "0");
    let mut response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let first = response.chunk().await.unwrap().unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(290),
        "the first event waited"
    );
    assert!(first.starts_with(b"id: 1"));
    let mut rest = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        rest.extend_from_slice(&chunk);
    }
    assert!(String::from_utf8(rest).unwrap().contains("id: 3"));
    assert_eq!(app.upstreams.seen.last().headers["last-event-id"], "0");
}

#[tokio::test]
async fn a_long_answer_passes_as_it_comes_and_one_that_breaks_off_is_seen_to() {
    let app = app::start(&[]).await;
    let large = app.get("/v1/jobs/job_large").await;
    assert_eq!(large.headers()["content-length"], LARGE.to_string());
    assert_eq!(large.bytes().await.unwrap().len(), LARGE);
    let started = Instant::now();
    let mut slow = app.get("/v1/jobs/job_slow").await;
    assert!(slow.headers().contains_key("x-request-id"));
    assert_eq!(slow.chunk().await.unwrap().unwrap(), "begin ");
    let waited = started.elapsed();
    assert!(waited < Duration::from_millis(290), "the beginning waited");
    assert_eq!(slow.text().await.unwrap(), "end");
    let broken = app.get("/v1/jobs/job_broken").await;
    assert_eq!(broken.status(), StatusCode::OK);
    assert!(broken.text().await.is_err());
    // The connection is another one, and nothing is left behind.
    assert_eq!(app.get("/v1/jobs/job_1").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn failures_of_upstreams_are_told_apart() {
    let nowhere = format!("http://{}", free_address());
    let wrong_key = "f".repeat(64);
    let app = app::start(&[
        ("RELAYER_URL", &nowhere),
        ("METERING_ASSERTION_KEY", &wrong_key),
        ("UPSTREAM_DEADLINE_MS", "700"),
    ])
    .await;
    let response = app.get("/v1/jobs/job_1/proof").await;
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(problem(response).await["code"], "SERVICE_UNAVAILABLE");
    // An upstream that does not believe us is our failure, not the client's.
    assert_eq!(
        problem(app.get("/v1/usage").await).await["code"],
        "BAD_GATEWAY"
    );
    let slow = app.submit("k1", "sleep:3000").await;
    assert_eq!(problem(slow).await["code"], "GATEWAY_TIMEOUT");
    // The upstream's own refusals pass as they are.
    let busy = app.submit("k2", "status:503").await;
    assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(busy.text().await.unwrap(), "as asked");
}

#[tokio::test]
async fn health_the_document_and_its_page_need_no_credential() {
    let app = app::start(&[]).await;
    let get = |path: &str| app.client.get(format!("{}{path}", app.url)).send();
    let health: Value = eventually(
        "the doctor has looked",
        Duration::from_secs(10),
        async || {
            let response = get("/v1/health").await.unwrap();
            let healthy = response.status() == StatusCode::OK;
            if healthy {
                Some(response.json().await.unwrap())
            } else {
                None
            }
        },
    )
    .await;
    assert_eq!(health["status"], "healthy", "{health}");
    let names: Vec<&str> = health["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|dependency| dependency["name"].as_str().unwrap())
        .collect();
    let expected = [
        "postgres", "redis", "kafka", "jobs", "relayer", "metering", "webhooks",
    ];
    assert_eq!(names, expected);
    let document: Value = get("/v1/openapi.json").await.unwrap().json().await.unwrap();
    assert_eq!(document["openapi"], json!("3.1.0"));
    let page = get("/docs").await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'; style-src 'sha256-"));
    assert!(page.text().await.unwrap().contains("/v1/jobs/{job_id}"));
    let metrics = app.metrics().await;
    assert!(
        metrics.contains("gateway_requests_total{route=\"/docs\""),
        "{metrics}"
    );
}
