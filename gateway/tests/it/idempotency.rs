//! Idempotency beside the matrix: secrets, broken connections, and content that must be unique.

use std::time::Duration;

use ops::testing::eventually;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{
    app::{self, job, problem},
    fleet::Fleet,
    upstream::Breaking,
};

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
async fn a_request_whose_connection_broke_is_sent_again_only_with_a_key() {
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
    // Whether that acted nobody knows, and no record would tell a second time from the first.
    let keyless = app.request(Method::POST, test).send().await.unwrap();
    assert_eq!(problem(keyless).await["code"], "BAD_GATEWAY");
    assert_eq!(webhooks.count(), 2);
}

#[tokio::test]
async fn a_second_job_with_the_same_content_is_409_and_names_the_first() {
    let fleet = Fleet::start(3, &[]).await;
    let tenant = fleet
        .app
        .admin("admin tenant create unique --plan test --unique-content");
    let tenant = tenant["tenant_id"].as_str().unwrap();
    let unique = fleet.app.new_key(tenant, "jobs:submit");
    let submit = async |key: &str, text: &str| {
        let request = fleet.post("/v1/jobs", key, &job(text).to_string());
        let mut request = request.build().unwrap();
        let bearer = format!("Bearer {unique}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        fleet.app.client.execute(request).await.unwrap()
    };
    let known = async || {
        let response = submit("k1", "a").await;
        (response.status() != StatusCode::UNAUTHORIZED).then_some(response)
    };
    let first = eventually("the key is known", Duration::from_secs(3), known).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    let location = first.headers()["location"].to_str().unwrap().to_owned();
    let again = problem(submit("k2", "a").await).await;
    assert_eq!(
        (&again["status"], &again["code"]),
        (&json!(409), &json!("DUPLICATE_JOB"))
    );
    assert!(location.ends_with(again["job_id"].as_str().unwrap()));
    // A retry of the first is one still; other content passes; so do other tenants with the same.
    assert_eq!(
        submit("k1", "a").await.headers()["idempotency-replayed"],
        "true"
    );
    assert_eq!(submit("k2", "b").await.status(), StatusCode::ACCEPTED);
    for key in ["k1", "k2"] {
        assert_eq!(fleet.submit(key, "a").await.status(), StatusCode::ACCEPTED);
    }
    // While the first is on its way nobody knows its job; when it fails its content is free.
    let (slow, ()) = tokio::join!(submit("k3", "sleep:500"), async {
        let arrived = async || (fleet.hits() >= 5).then_some(());
        eventually("it is on its way", Duration::from_secs(3), arrived).await;
        let meanwhile = problem(submit("k4", "sleep:500").await).await;
        assert_eq!(meanwhile["code"], "IDEMPOTENCY_CONFLICT");
    });
    assert_eq!(slow.status(), StatusCode::ACCEPTED);
    for key in ["k5", "k6"] {
        assert_eq!(
            submit(key, "status:500").await.status(),
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }
}
