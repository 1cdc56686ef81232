//! Accepting jobs: once per key, as many as may be active, and nothing that is not valid.

use axum::http::{Request, StatusCode};
use contracts::assertion::{self, Scope};
use futures::future::join_all;
use jiff::SignedDuration;
use serde_json::json;

use crate::app::{TestApp, digest};

#[tokio::test]
async fn a_job_is_accepted_and_a_retry_gets_the_same_answer() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let first = app.submit_as(&who, "k", &digest("a")).await;
    assert_eq!(first.status, StatusCode::ACCEPTED);
    assert!(!first.headers.contains_key("idempotency-replayed"));
    let id = first.body["job_id"].as_str().unwrap();
    assert_eq!(first.headers["location"], format!("/v1/jobs/{id}"));
    assert_eq!(first.body["status"], "PENDING");

    app.worker(1).step().await.unwrap();
    app.clock.advance(SignedDuration::from_hours(23));
    let retry = app.submit_as(&who, "k", &digest("a")).await;
    assert_eq!(retry.status, StatusCode::ACCEPTED);
    assert_eq!(retry.body.to_string(), first.body.to_string());
    assert_eq!(retry.headers["location"], first.headers["location"]);
    assert_eq!(retry.headers["idempotency-replayed"], "true");
    assert_eq!(app.count("SELECT count(*) FROM jobs.jobs").await, 1);
}

#[tokio::test]
async fn who_asks_for_a_replay_only_gets_one_or_nothing_happens() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let first = app.submit_as(&who, "k", &digest("a")).await;
    let ask = async |key: &str, text: &str| {
        let request = Request::post("/v1/jobs")
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .header(assertion::REPLAY_ONLY, "true");
        let request = request.body(digest(text).to_string()).unwrap();
        app.ask(&who, request).await
    };
    let again = ask("k", "a").await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.headers["location"], first.headers["location"]);
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(ask("k", "b").await.code(), "IDEMPOTENCY_MISMATCH");
    assert_eq!(ask("k2", "a").await.code(), "NOT_FOUND");
    assert_eq!(app.active().await, 1);
    let forget = "UPDATE jobs.idempotency_keys SET expires_at = now()";
    app.pool
        .get()
        .await
        .unwrap()
        .execute(forget, &[])
        .await
        .unwrap();
    assert_eq!(ask("k", "a").await.code(), "NOT_FOUND");
}

#[tokio::test]
async fn a_key_stands_for_one_request_of_one_tenant() {
    let app = TestApp::start().await;
    let who = app.somebody();
    app.submit_as(&who, "k", &digest("a")).await;
    let other = app.submit_as(&who, "k", &digest("b")).await;
    assert_eq!(
        (other.status.as_u16(), other.code()),
        (422, "IDEMPOTENCY_MISMATCH")
    );
    let elsewhere = app.submit_as(&app.somebody(), "k", &digest("b")).await;
    assert_eq!(elsewhere.status, StatusCode::ACCEPTED);
    assert_eq!(app.active().await, 2);
}

#[tokio::test]
async fn twenty_at_once_under_one_key_are_one_job() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let body = digest("a");
    let answers = join_all((0..20).map(|_| app.submit_as(&who, "k", &body))).await;
    let fresh = |answer: &&crate::app::Answer| !answer.headers.contains_key("idempotency-replayed");
    assert_eq!(answers.iter().filter(fresh).count(), 1);
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
        assert_eq!(answer.body, answers[0].body);
    }
    assert_eq!(app.count("SELECT count(*) FROM jobs.jobs").await, 1);
    assert_eq!(app.active().await, 1);
    let id = answers[0].body["job_id"].as_str().unwrap();
    assert_eq!(app.events(id).await, ["job.submitted"]);
}

#[tokio::test]
async fn a_tenant_has_no_more_active_jobs_than_it_may_and_the_refused_key_stays_free() {
    let app = TestApp::start().await;
    let who = app.somebody().with_limit(3);
    let keys = ["a", "b", "c", "d", "e", "f"];
    let body = digest("a");
    let answers = join_all(keys.map(|key| app.submit_as(&who, key, &body))).await;
    let refused: Vec<usize> = (0..keys.len())
        .filter(|index| answers[*index].status == StatusCode::TOO_MANY_REQUESTS)
        .collect();
    assert_eq!(refused.len(), 3);
    let problem = &answers[refused[0]];
    assert_eq!(problem.code(), "ACTIVE_JOBS_EXCEEDED");
    assert!(problem.headers.contains_key("retry-after"));
    assert_eq!(app.active().await, 3);

    assert_eq!(app.worker(8).step().await.unwrap(), 3);
    assert_eq!(app.active().await, 0);
    let again = app.submit_as(&who, keys[refused[0]], &body).await;
    assert_eq!(again.status, StatusCode::ACCEPTED);
    assert!(!again.headers.contains_key("idempotency-replayed"));

    let none = app
        .submit_as(&app.somebody().with_limit(0), "a", &body)
        .await;
    assert_eq!(none.code(), "ACTIVE_JOBS_EXCEEDED");
}

#[tokio::test]
async fn what_is_not_valid_is_refused_with_the_reason() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let invalid = app
        .submit_as(&who, "k", &json!({ "type": "digest", "payload": {} }))
        .await;
    assert_eq!(
        (invalid.status.as_u16(), invalid.code()),
        (400, "JOB_VALIDATION_FAILED")
    );
    let errors = invalid.body["errors"].as_array().unwrap();
    assert!(
        errors
            .iter()
            .any(|error| error["pointer"] == "/payload/text"),
        "{errors:?}"
    );
    assert_eq!(invalid.body["instance"], "/v1/jobs");
    assert!(
        invalid.body["request_id"]
            .as_str()
            .unwrap()
            .starts_with("req_")
    );

    let post = || Request::post("/v1/jobs").header("content-type", "application/json");
    let text = digest("a").to_string();
    let keyless = app.ask(&who, post().body(text.clone()).unwrap()).await;
    assert_eq!(keyless.code(), "IDEMPOTENCY_KEY_REQUIRED");
    for key in ["", "\u{7}", &"k".repeat(256)] {
        let Ok(request) = post().header("idempotency-key", key).body(text.clone()) else {
            continue;
        };
        assert_eq!(
            app.ask(&who, request).await.code(),
            "INVALID_REQUEST",
            "{key:?}"
        );
    }
    let twice = r#"{"type": "digest", "payload": {"text": "a", "text": "b"}}"#.to_owned();
    let twice = post().header("idempotency-key", "k").body(twice).unwrap();
    assert_eq!(app.ask(&who, twice).await.code(), "JOB_VALIDATION_FAILED");
    let plain = Request::post("/v1/jobs")
        .header("idempotency-key", "k")
        .body(text)
        .unwrap();
    assert_eq!(app.ask(&who, plain).await.code(), "INVALID_CONTENT_TYPE");

    // What Postgres text and JSON cannot hold.
    let mut nul = digest("a");
    nul["metadata"] = json!({ "note": "a\0b" });
    let refused = app.submit_as(&who, "k", &nul).await;
    assert_eq!(refused.code(), "JOB_VALIDATION_FAILED");
    assert_eq!(refused.body["errors"][0]["pointer"], "/metadata");

    let mut reader = app.somebody();
    reader.claims.scopes = vec![Scope::JobsRead];
    assert_eq!(
        app.submit_as(&reader, "k", &digest("a")).await.code(),
        "ACCESS_DENIED"
    );
    assert_eq!(app.ask_unasserted("/v1/jobs").await.code(), "INVALID_TOKEN");
    assert_eq!(app.count("SELECT count(*) FROM jobs.jobs").await, 0);
    assert_eq!(
        app.count("SELECT count(*) FROM jobs.idempotency_keys")
            .await,
        0
    );
}
