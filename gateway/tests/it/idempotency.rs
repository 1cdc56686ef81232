//! The idempotency matrix of research/gateway.md §5, as far as the fast path alone decides it.

use std::time::Duration;

use futures::future::join_all;
use ops::testing::eventually;
use reqwest::{Method, Response, StatusCode};
use serde_json::json;

use crate::{
    app::{self, App, job, problem},
    upstream::Breaking,
};

async fn parts(response: Response) -> (u16, Option<String>, Option<String>, String) {
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let (location, replayed) = (header("location"), header("idempotency-replayed"));
    (
        response.status().as_u16(),
        location,
        replayed,
        response.text().await.unwrap(),
    )
}

#[tokio::test]
async fn a_retry_gets_the_same_answer_marked_and_the_upstream_nothing() {
    let app = app::start(&[]).await;
    let first = parts(app.submit("k", "a").await).await;
    assert_eq!((first.0, &first.2), (202, &None));
    let hits = app.upstreams.seen.count();
    for key in ["k", "\"k\""] {
        let again = parts(app.submit(key, "a").await).await;
        assert_eq!(again.2.as_deref(), Some("true"));
        assert_eq!((again.0, &again.1, &again.3), (first.0, &first.1, &first.3));
    }
    assert_eq!(app.upstreams.seen.count(), hits);
    // A chunked body with the same bytes is the same request.
    let bytes = job("a").to_string().into_bytes();
    let stream = futures::stream::iter([Ok::<_, std::io::Error>(bytes)]);
    let chunked = app
        .request(Method::POST, "/v1/jobs")
        .header("idempotency-key", "k");
    let chunked = chunked
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(stream));
    assert_eq!(parts(chunked.send().await.unwrap()).await.3, first.3);
}

#[tokio::test]
async fn another_body_or_path_is_422_and_whitespace_is_another_body() {
    let app = app::start(&[]).await;
    app.submit("k", "a").await;
    let spaced = format!("{} ", job("a"));
    for (path, body) in [
        ("/v1/jobs", job("b").to_string()),
        ("/v1/jobs", spaced),
        ("/v1/jobs?x=1", job("a").to_string()),
        ("/v1/webhooks/endpoints", job("a").to_string()),
    ] {
        let answer = problem(app.post(path, "k", &body).send().await.unwrap()).await;
        assert_eq!(answer["code"], "IDEMPOTENCY_MISMATCH", "{path}");
    }
    assert_eq!(app.upstreams.seen.count(), 1);
}

#[tokio::test]
async fn of_many_at_once_the_upstream_sees_one() {
    let app = app::start(&[]).await;
    let many = join_all((0..32).map(|_| app.submit("k", "sleep:500"))).await;
    let accepted = many
        .iter()
        .filter(|response| response.status() == StatusCode::ACCEPTED);
    assert_eq!(accepted.count(), 1);
    for response in many {
        if response.status() != StatusCode::ACCEPTED {
            assert_eq!(response.headers()["retry-after"], "1");
            assert_eq!(problem(response).await["code"], "IDEMPOTENCY_CONFLICT");
        }
    }
    assert_eq!(app.upstreams.seen.count(), 1);
}

#[tokio::test]
async fn keys_are_each_tenants_own() {
    let app = app::start(&[]).await;
    let other = app.admin("admin tenant create t2 --plan test");
    let key = app.new_key(other["tenant_id"].as_str().unwrap(), "jobs:submit");
    app.submit("k", "a").await;
    let theirs = eventually("the new key is known", Duration::from_secs(3), async || {
        let request = app
            .client
            .post(format!("{}/v1/jobs", app.url))
            .bearer_auth(&key);
        let request = request.header("idempotency-key", "k").json(&job("b"));
        let response = request.send().await.unwrap();
        (response.status() != StatusCode::UNAUTHORIZED).then_some(response)
    })
    .await;
    assert_eq!(parts(theirs).await.2, None);
    assert_eq!(app.upstreams.seen.count(), 2);
}

#[tokio::test]
async fn refusals_and_failures_free_the_key() {
    let app = app::start(&[("UPSTREAM_DEADLINE_MS", "600")]).await;
    for text in ["status:409", "status:500", "sleep:2000"] {
        let first = app.submit(text, text).await;
        assert_ne!(first.status(), StatusCode::ACCEPTED);
        let hits = app.upstreams.seen.count();
        app.submit(text, text).await;
        assert_eq!(app.upstreams.seen.count(), hits + 1, "{text} was kept");
    }
    // Refused before the claim: the key was never taken.
    app.post("/v1/jobs", "fresh", "{").send().await.unwrap();
    assert_eq!(
        app.submit("fresh", "a").await.status(),
        StatusCode::ACCEPTED
    );
}

#[tokio::test]
async fn an_answer_with_a_secret_is_not_kept_and_its_retry_says_so() {
    let app = app::start(&[]).await;
    let body = json!({ "url": "https://example.org" }).to_string();
    let create = |key: &'static str| app.post("/v1/webhooks/endpoints", key, &body).send();
    let first = create("k").await.unwrap();
    assert_eq!(first.status(), StatusCode::CREATED);
    assert!(first.text().await.unwrap().contains("whsec_"));
    let again = create("k").await.unwrap();
    assert_eq!(again.status(), StatusCode::CONFLICT);
    let problem = problem(again).await;
    assert!(problem["detail"].as_str().unwrap().contains("secret"));
    assert!(!problem.to_string().contains("whsec_"));
    assert_eq!(app.upstreams.seen.count(), 1);
    // Without a key there is nothing to remember.
    let keyless = app
        .request(Method::POST, "/v1/webhooks/endpoints")
        .json(&json!({}));
    assert_eq!(keyless.send().await.unwrap().status(), StatusCode::CREATED);
}

#[tokio::test]
async fn an_answer_too_large_to_keep_is_left_to_the_services_record() {
    let app = app::start(&[]).await;
    assert!(app.submit("k", "big").await.text().await.unwrap().len() > 100_000);
    let again = parts(app.submit("k", "big").await).await;
    assert_eq!((again.0, again.2), (202, None));
    assert_eq!(app.upstreams.seen.count(), 2);
}

#[tokio::test]
async fn the_claim_of_a_killed_gateway_frees_itself() {
    let mut app = app::start(&[("UPSTREAM_DEADLINE_MS", "1000")]).await;
    {
        let pending = app.submit("k", "sleep:900");
        tokio::select! {
            _ = pending => panic!("it sleeps"),
            () = reached(&app, 1) => {}
        }
    }
    app.kill_and_restart(&[]).await;
    // The claim lasts the upstream's second and two more.
    let answer = eventually("the key is free", Duration::from_secs(6), async || {
        let response = app.submit("k", "sleep:900").await;
        (response.status() != StatusCode::CONFLICT).then_some(response)
    })
    .await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_client_that_leaves_finds_its_answer_later() {
    let app = app::start(&[]).await;
    {
        let pending = app.submit("k", "sleep:400");
        tokio::select! {
            _ = pending => panic!("it sleeps"),
            () = reached(&app, 1) => {}
        }
    }
    let answer = eventually("the answer is kept", Duration::from_secs(5), async || {
        let response = app.submit("k", "sleep:400").await;
        (response.status() == StatusCode::ACCEPTED).then_some(response)
    })
    .await;
    assert_eq!(parts(answer).await.2.as_deref(), Some("true"));
    assert_eq!(app.upstreams.seen.count(), 1);
}

async fn reached(app: &App, count: usize) {
    eventually(
        "the upstream is reached",
        Duration::from_secs(5),
        async || (app.upstreams.seen.count() >= count).then_some(()),
    )
    .await;
}

#[tokio::test]
async fn a_request_whose_connection_broke_is_sent_again_only_where_the_upstream_keeps_a_record() {
    let (jobs, webhooks) = (Breaking::start().await, Breaking::start().await);
    let app = app::start(&[("JOBS_URL", &jobs.url), ("WEBHOOKS_URL", &webhooks.url)]).await;
    for key in ["k1", "k2"] {
        let response = app.submit(key, "a").await;
        assert_eq!(response.status(), StatusCode::ACCEPTED);
    }
    // The second one twice.
    assert_eq!(jobs.count(), 3);

    let test = "/v1/webhooks/endpoints/ep_1/test";
    let first = app.post(test, "k3", "").send().await.unwrap();
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    let second = app.post(test, "k4", "").send().await.unwrap();
    assert_eq!(problem(second).await["code"], "BAD_GATEWAY");
    assert_eq!(webhooks.count(), 2);
}
