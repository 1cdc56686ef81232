//! The idempotency matrix of research/gateway.md section 5: its 18 cases as the design decides them
//! (3 and 16 above all), on real Redis, each with one gateway and with three.

use std::time::Duration;

use futures::future::join_all;
use ops::testing::eventually;
use reqwest::{Method, Response, StatusCode};
use serde_json::json;

use crate::{
    app::{job, problem},
    fleet::{Fleet, GENEROUS},
    redis,
};

/// What a client can tell two answers apart by.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    location: Option<String>,
    content_type: Option<String>,
    body: String,
    replayed: bool,
}

macro_rules! matrix {
    ($($case:ident),* $(,)?) => {
        mod with_one_gateway {
            $(#[tokio::test] async fn $case() { super::$case(1).await; })*
        }
        mod with_three_gateways {
            $(#[tokio::test] async fn $case() { super::$case(3).await; })*
        }
    };
}

matrix! {
    case_01_the_first_request_passes,
    case_02_a_retry_gets_the_same_answer_marked,
    case_03_refusals_and_failures_free_the_key,
    case_04_another_body_method_path_or_query_is_422,
    case_05_of_64_at_once_the_upstream_sees_one,
    case_06_a_missing_key_is_400_only_where_one_is_required,
    case_07_a_key_is_1_to_255_visible_characters_quoted_or_bare,
    case_08_keys_are_each_tenants_own,
    case_09_an_answer_is_kept_for_24_hours_and_no_longer,
    case_10_a_lost_claim_frees_itself_and_its_owner_comes_too_late,
    case_11_a_client_that_leaves_finds_its_answer_later,
    case_12_without_redis_the_services_record_decides,
    case_13_a_large_answer_is_not_kept_and_a_streamed_one_is,
    case_14_what_is_refused_before_the_claim_never_takes_the_key,
    case_15_a_replay_costs_nothing_again,
    case_16_an_unknown_outcome_frees_the_key_for_the_services_record,
    case_17_chunked_and_counted_bodies_are_the_same_request,
    case_18_whitespace_makes_another_body,
}

async fn answer(response: Response) -> Answer {
    let header = |name: &str| {
        let value = response.headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    let (location, content_type) = (header("location"), header("content-type"));
    let replayed = header("idempotency-replayed").as_deref() == Some("true");
    Answer {
        status: response.status().as_u16(),
        location,
        content_type,
        replayed,
        body: response.text().await.unwrap(),
    }
}

/// Waits until so many requests have reached the upstreams.
async fn reached(fleet: &Fleet, count: usize) {
    let there = async || (fleet.hits() >= count).then_some(());
    eventually("the upstream is reached", Duration::from_secs(5), there).await;
}

/// Sends a request and leaves once it has reached the upstream.
async fn leave(fleet: &Fleet, key: &str, text: &str) {
    let count = fleet.hits() + 1;
    tokio::select! {
        _ = fleet.submit(key, text) => panic!("it takes its time"),
        () = reached(fleet, count) => {}
    }
}

/// Where the fleet's Redis is, and the key of its only claim.
async fn claim_of(fleet: &Fleet) -> (String, String) {
    let url = fleet.app.variable("REDIS_URL").to_owned();
    let prefix = fleet.app.variable("REDIS_PREFIX");
    let mut found = redis::keys(&url, &format!("{prefix}:idem:")).await;
    assert_eq!(found.len(), 1);
    (url, found.remove(0))
}

/// Submits until the answer is another one than 409; the answer.
async fn until_free(fleet: &Fleet, key: &str, text: &str) -> Answer {
    let free = async || {
        let response = fleet.submit(key, text).await;
        (response.status() != StatusCode::CONFLICT).then_some(response)
    };
    answer(eventually("the key is free", Duration::from_secs(8), free).await).await
}

async fn case_01_the_first_request_passes(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    let first = answer(fleet.submit("k", "a").await).await;
    assert_eq!((first.status, first.replayed), (202, false));
    assert!(first.location.unwrap().starts_with("/v1/jobs/job_"));
    assert_eq!(fleet.hits(), 1);
    let arrived = fleet.app.upstreams.seen.last();
    assert_eq!(arrived.headers["idempotency-key"], "k");
}

async fn case_02_a_retry_gets_the_same_answer_marked(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    let first = answer(fleet.submit("k", "a").await).await;
    let same = Answer {
        replayed: true,
        ..first
    };
    for _ in 0..=gateways {
        assert_eq!(answer(fleet.submit("k", "a").await).await, same);
    }
    assert_eq!(fleet.hits(), 1);
}

async fn case_03_refusals_and_failures_free_the_key(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    for text in ["status:409", "status:429", "status:500", "status:503"] {
        let status = &text["status:".len()..];
        for _ in 0..2 {
            let hits = fleet.hits();
            let refused = fleet.submit(text, text).await;
            assert_eq!(refused.status().as_str(), status);
            assert!(!refused.headers().contains_key("idempotency-replayed"));
            assert_eq!(fleet.hits(), hits + 1, "{text} was kept");
        }
        // The key is free for another body too: nothing of the first request is left.
        assert_eq!(fleet.submit(text, "a").await.status(), StatusCode::ACCEPTED);
    }
}

async fn case_04_another_body_method_path_or_query_is_422(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    let test = "/v1/webhooks/endpoints/ep_1/test";
    assert!(
        fleet
            .post(test, "k", "{}")
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
    for (method, path, body) in [
        (Method::POST, test, r#"{"a":1}"#),
        (Method::POST, "/v1/webhooks/endpoints/ep_2/test", "{}"),
        (Method::POST, "/v1/webhooks/endpoints/ep_1/test?x=1", "{}"),
        (Method::POST, "/v1/webhooks/endpoints", "{}"),
        (Method::PATCH, "/v1/webhooks/endpoints/ep_1", "{}"),
    ] {
        let request = fleet.request(method, path).header("idempotency-key", "k");
        let request = request
            .header("content-type", "application/json")
            .body(body);
        let refused = problem(request.send().await.unwrap()).await;
        assert_eq!(refused["status"], 422, "{path} {body}");
        assert_eq!(refused["code"], "IDEMPOTENCY_MISMATCH", "{path} {body}");
    }
    assert_eq!(fleet.hits(), 1);
    // One resource, two methods.
    let endpoint = "/v1/webhooks/endpoints/ep_1";
    let patch = fleet
        .request(Method::PATCH, endpoint)
        .header("idempotency-key", "p");
    assert!(
        patch
            .json(&json!({}))
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
    let refused = fleet.post(endpoint, "p", "{}").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
}

async fn case_05_of_64_at_once_the_upstream_sees_one(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    let many = join_all((0..64).map(|_| fleet.submit("k", "sleep:700"))).await;
    let mut accepted = 0;
    for response in many {
        if response.status() == StatusCode::ACCEPTED {
            // Whoever came after the answer was kept gets it replayed.
            accepted += usize::from(!answer(response).await.replayed);
        } else {
            assert_eq!(response.headers()["retry-after"], "1");
            let refused = problem(response).await;
            assert_eq!(refused["status"], 409);
            assert_eq!(refused["code"], "IDEMPOTENCY_CONFLICT");
        }
    }
    assert_eq!((accepted, fleet.hits()), (1, 1));
}

async fn case_06_a_missing_key_is_400_only_where_one_is_required(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    let keyless = fleet.request(Method::POST, "/v1/jobs").json(&job("a"));
    let refused = problem(keyless.send().await.unwrap()).await;
    assert_eq!(refused["status"], 400);
    assert_eq!(refused["code"], "IDEMPOTENCY_KEY_REQUIRED");
    assert_eq!(fleet.hits(), 0);
    let keyless = fleet
        .request(Method::POST, "/v1/webhooks/endpoints")
        .json(&json!({}));
    assert_eq!(keyless.send().await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(fleet.hits(), 1);
}

async fn case_07_a_key_is_1_to_255_visible_characters_quoted_or_bare(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    let long = "k".repeat(255);
    for (key, same) in [
        (long.as_str(), format!("\"{long}\"")),
        ("a-1", "\"a-1\"".into()),
    ] {
        assert!(!answer(fleet.submit(key, "a").await).await.replayed);
        assert!(answer(fleet.submit(&same, "a").await).await.replayed);
    }
    let hits = fleet.hits();
    let longer = "k".repeat(256);
    for bad in [
        "",
        "\"\"",
        "a b",
        "a\tb",
        "\"open",
        "\"a\"b",
        "\u{fc}",
        longer.as_str(),
    ] {
        let refused = problem(fleet.submit(bad, "a").await).await;
        assert_eq!(refused["code"], "INVALID_REQUEST", "{bad:?}");
    }
    let twice = fleet.post("/v1/jobs", "a", &job("a").to_string());
    let twice = twice.header("idempotency-key", "b").send().await.unwrap();
    assert_eq!(problem(twice).await["code"], "INVALID_REQUEST");
    assert_eq!(fleet.hits(), hits);
}

async fn case_08_keys_are_each_tenants_own(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    let other = fleet.app.admin("admin tenant create t2 --plan test");
    let theirs = fleet
        .app
        .new_key(other["tenant_id"].as_str().unwrap(), "jobs:submit");
    fleet.submit("k", "a").await;
    let known = async || {
        let request = fleet.app.client.post(format!("{}/v1/jobs", fleet.urls[0]));
        let request = request.bearer_auth(&theirs).header("idempotency-key", "k");
        let response = request.json(&job("b")).send().await.unwrap();
        (response.status() != StatusCode::UNAUTHORIZED).then_some(response)
    };
    let first = eventually("the new key is known", Duration::from_secs(3), known).await;
    let first = answer(first).await;
    assert_eq!((first.status, first.replayed), (202, false));
    assert_eq!(fleet.hits(), 2);
}

async fn case_09_an_answer_is_kept_for_24_hours_and_no_longer(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    fleet.submit("k", "a").await;
    let (url, key) = claim_of(&fleet).await;
    let left: i64 = redis::ask(&url, &["PTTL", &key]).await;
    let day = 24 * 3_600 * 1_000;
    assert!((day - 60_000..=day).contains(&left), "{left} ms");
    assert!(answer(fleet.submit("k", "a").await).await.replayed);
    let again: i64 = redis::ask(&url, &["PTTL", &key]).await;
    assert!(again <= left, "a replay must not prolong it");
    // The boundary itself, without waiting for a day.
    let _: i64 = redis::ask(&url, &["PEXPIRE", &key, "1"]).await;
    let gone = async || redis::keys(&url, &key).await.is_empty().then_some(());
    eventually("it is forgotten", Duration::from_secs(2), gone).await;
    assert!(!answer(fleet.submit("k", "b").await).await.replayed);
    assert_eq!(fleet.hits(), 2);
}

async fn case_10_a_lost_claim_frees_itself_and_its_owner_comes_too_late(gateways: usize) {
    let mut fleet = Fleet::start(gateways, &[("UPSTREAM_DEADLINE_MS", "1500")]).await;
    // A gateway of whose claim somebody else took hold, as after a long pause, changes nothing.
    let (ended, ()) = tokio::join!(fleet.submit("late", "sleep:500"), async {
        reached(&fleet, 1).await;
        let (url, key) = claim_of(&fleet).await;
        let _: i64 = redis::ask(&url, &["HSET", &key, "token", "another"]).await;
    });
    assert_eq!(ended.status(), StatusCode::ACCEPTED);
    let refused = problem(fleet.submit("late", "sleep:500").await).await;
    assert_eq!(refused["code"], "IDEMPOTENCY_CONFLICT");
    // The claim of a killed one ends with the upstream's deadline and a little more.
    let at = fleet.hits();
    let url = fleet.app.url.clone();
    let request = fleet
        .app
        .client
        .post(format!("{url}/v1/jobs"))
        .bearer_auth(&fleet.app.key);
    let request = request
        .header("idempotency-key", "k")
        .json(&job("sleep:1000"));
    tokio::select! {
        _ = request.send() => panic!("it takes its time"),
        () = reached(&fleet, at + 1) => {}
    }
    fleet.app.kill_and_restart(&[]).await;
    let first = fleet.submit("k", "sleep:1000").await;
    assert_eq!(first.status(), StatusCode::CONFLICT);
    let free = until_free(&fleet, "k", "sleep:1000").await;
    assert_eq!((free.status, free.replayed), (202, false));
}

async fn case_11_a_client_that_leaves_finds_its_answer_later(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    leave(&fleet, "k", "sleep:400").await;
    let kept = until_free(&fleet, "k", "sleep:400").await;
    assert_eq!((kept.status, kept.replayed), (202, true));
    assert_eq!(fleet.hits(), 1);
}

async fn case_12_without_redis_the_services_record_decides(gateways: usize) {
    let mut own = redis::Server::start().await;
    let url = own.url();
    // One gateway's share without Redis must do for this test.
    let changes = [("REDIS_URL", url.as_str()), ("GATEWAYS_MAX", "3")];
    let fleet = Fleet::start(gateways, &changes).await;
    assert_eq!(
        fleet.submit("warm", "a").await.status(),
        StatusCode::ACCEPTED
    );
    // Lost between claim and answer: the client is answered all the same.
    let (between, ()) = tokio::join!(fleet.submit("between", "sleep:600"), async {
        reached(&fleet, 2).await;
        own.kill();
    });
    assert_eq!(between.status(), StatusCode::ACCEPTED);
    // Away before the claim: every request reaches the service, with its key.
    for key in ["between", "before", "before"] {
        let hits = fleet.hits();
        let accepted = async || {
            let response = fleet.submit(key, "sleep:600").await;
            (response.status() == StatusCode::ACCEPTED).then_some(response)
        };
        let accepted = eventually("it is let in", Duration::from_secs(8), accepted).await;
        assert!(!answer(accepted).await.replayed);
        assert_eq!(fleet.hits(), hits + 1);
        assert_eq!(
            fleet.app.upstreams.seen.last().headers["idempotency-key"],
            key
        );
    }
    own.restart().await;
    let back = async || {
        fleet.submit("back", "a").await;
        answer(fleet.submit("back", "a").await)
            .await
            .replayed
            .then_some(())
    };
    eventually("the fast path is back", Duration::from_secs(10), back).await;
}

async fn case_13_a_large_answer_is_not_kept_and_a_streamed_one_is(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    for _ in 0..2 {
        let large = answer(fleet.submit("large", "big").await).await;
        assert_eq!((large.status, large.replayed), (202, false));
        assert!(large.body.len() > 100_000);
    }
    assert_eq!(fleet.hits(), 2);
    let first = answer(fleet.submit("stream", "streamed").await).await;
    assert_eq!((first.status, first.replayed), (202, false));
    let same = Answer {
        replayed: true,
        ..first
    };
    assert_eq!(answer(fleet.submit("stream", "streamed").await).await, same);
    assert_eq!(fleet.hits(), 3);
}

async fn case_14_what_is_refused_before_the_claim_never_takes_the_key(gateways: usize) {
    let plan = "--per-minute 60 --burst 3 --per-hour 100000";
    let fleet = Fleet::start_with_plan(gateways, &[], plan).await;
    let anonymous = fleet.app.client.post(format!("{}/v1/jobs", fleet.urls[0]));
    let anonymous = anonymous.header("idempotency-key", "k").json(&job("a"));
    assert_eq!(
        anonymous.send().await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
    let malformed = fleet.post("/v1/jobs", "k", "{").send().await.unwrap();
    assert_eq!(malformed.status(), StatusCode::BAD_REQUEST);
    let limited = async || {
        let response = fleet.submit("k", "status:500").await;
        (response.status() == StatusCode::TOO_MANY_REQUESTS).then_some(())
    };
    eventually("the burst is spent", Duration::from_secs(5), limited).await;
    // Another body than any of those: the key was never taken.
    let accepted = async || {
        let response = fleet.submit("k", "b").await;
        assert_ne!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        (response.status() == StatusCode::ACCEPTED).then_some(response)
    };
    let accepted = eventually("a token is back", Duration::from_secs(8), accepted).await;
    assert!(!answer(accepted).await.replayed);
}

async fn case_15_a_replay_costs_nothing_again(gateways: usize) {
    let plan = format!("{GENEROUS} --monthly-cu 5");
    let fleet = Fleet::start_with_plan(gateways, &[], &plan).await;
    // Three units: the quota and its buffer hold one such job, and any number of its replays.
    let text = "x".repeat(2_500);
    let first = fleet.submit("k", &text).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    for _ in 0..4 {
        assert!(answer(fleet.submit("k", &text).await).await.replayed);
    }
    let refused = problem(fleet.submit("k2", &text).await).await;
    assert_eq!(refused["code"], "RATE_LIMIT_EXCEEDED");
    assert_eq!(refused["violated-policies"], json!(["month"]));
    let (url, prefix) = (
        fleet.app.variable("REDIS_URL"),
        fleet.app.variable("REDIS_PREFIX"),
    );
    let quota = redis::keys(url, &format!("{prefix}:quota:")).await;
    let used: i64 = redis::ask(url, &["HGET", &quota[0], "used"]).await;
    assert_eq!((used, fleet.hits()), (3, 1));
}

async fn case_16_an_unknown_outcome_frees_the_key_for_the_services_record(gateways: usize) {
    let fleet = Fleet::start(gateways, &[("UPSTREAM_DEADLINE_MS", "500")]).await;
    for attempt in 1..=2 {
        let late = problem(fleet.submit("k", "sleep:1500").await).await;
        assert_eq!(late["code"], "GATEWAY_TIMEOUT");
        assert_eq!(
            fleet.hits(),
            attempt,
            "it must reach the service's record again"
        );
        let arrived = fleet.app.upstreams.seen.last();
        assert_eq!(arrived.headers["idempotency-key"], "k");
    }
}

async fn case_17_chunked_and_counted_bodies_are_the_same_request(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    fleet.submit("k", "a").await;
    let bytes = job("a").to_string().into_bytes();
    let (head, tail) = bytes.split_at(7);
    let chunks = [head.to_vec(), tail.to_vec()].map(Ok::<_, std::io::Error>);
    let chunked = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    let request = fleet.post("/v1/jobs", "k", "").body(chunked);
    assert!(answer(request.send().await.unwrap()).await.replayed);
    assert_eq!(fleet.hits(), 1);
}

async fn case_18_whitespace_makes_another_body(gateways: usize) {
    let fleet = Fleet::start(gateways, &[]).await;
    fleet.submit("k", "a").await;
    let job = job("a").to_string();
    for spaced in [format!("{job} "), format!(" {job}"), job.replace(':', ": ")] {
        let refused = fleet.post("/v1/jobs", "k", &spaced).send().await.unwrap();
        assert_eq!(
            problem(refused).await["code"],
            "IDEMPOTENCY_MISMATCH",
            "{spaced:?}"
        );
    }
    assert_eq!(fleet.hits(), 1);
}
