//! What becomes of charges and answers when a gateway or Redis is lost: a retry gets its answer and
//! pays once, and a Redis that comes back with an earlier time is not believed.

use std::time::{Duration, Instant};

use ops::testing::{eventually, prefix};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    app::{job, problem},
    fleet::{Fleet, GENEROUS},
    quota::{text, used},
    raw, redis,
};

const DEADLINE: Duration = Duration::from_secs(10);

/// The answer to a submission, once limits of a minute let it through.
async fn submitted(fleet: &Fleet, key: &str, text: &str) -> Response {
    let admitted = async || {
        let response = fleet.submit(key, text).await;
        let wait = response.headers().get("retry-after");
        let wait = wait.map_or(0, |wait| wait.to_str().unwrap().parse().unwrap());
        // The month is longer.
        (!(1..60).contains(&wait)).then_some(response)
    };
    eventually("it is let in", DEADLINE, admitted).await
}

fn is_replayed(response: &Response) -> bool {
    response.headers().contains_key("idempotency-replayed")
}

#[tokio::test]
async fn after_a_flush_and_with_the_quota_spent_a_retry_gets_its_answer_and_a_new_key_429() {
    let own = redis::Server::start().await;
    let url = own.url();
    let plan = format!("{GENEROUS} --monthly-cu 10 --soft-buffer 0");
    let fleet = Fleet::start_with_plan(2, &[("REDIS_URL", &url)], &plan).await;
    let first = fleet.submit("k1", &text(8)).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    let location = first.headers()["location"].clone();
    let first: Value = first.json().await.unwrap();
    fleet.app.upstreams.seen.used(10);
    let _: String = redis::ask(&url, &["FLUSHALL"]).await;
    eventually("the count is known", DEADLINE, async || {
        let response = fleet.submit(&prefix("n"), &text(1)).await;
        (response.status() == StatusCode::TOO_MANY_REQUESTS).then_some(())
    })
    .await;
    let (hits, before) = (fleet.hits(), used(&fleet).await);
    for _ in 0..3 {
        let again = fleet.submit("k1", &text(8)).await;
        assert_eq!(again.status(), StatusCode::ACCEPTED);
        assert!(is_replayed(&again));
        assert_eq!(again.headers()["location"], location);
        assert_eq!(again.json::<Value>().await.unwrap(), first);
    }
    let refused = problem(fleet.submit("k2", &text(1)).await).await;
    assert_eq!(refused["violated-policies"], json!(["month"]));
    assert_eq!((fleet.hits(), used(&fleet).await), (hits, before));
}

/// Submits to the first of two gateways, which is killed while the service is at it; then to the
/// other one, until the key is free. The last answer, and what was charged.
async fn killed_and_retried(text: &str) -> (Response, Option<i64>) {
    let plan = format!("{GENEROUS} --monthly-cu 100");
    let mut fleet = Fleet::start_with_plan(2, &[("UPSTREAM_DEADLINE_MS", "800")], &plan).await;
    let body = job(text).to_string();
    // The first request goes to the first gateway.
    let request = fleet.post("/v1/jobs", "k", &body).send();
    tokio::select! {
        _ = request => panic!("it takes its time"),
        () = eventually("the service is at it", DEADLINE, async || {
            (fleet.hits() == 1).then_some(())
        }) => {}
    }
    fleet.app.gateway.kill();
    let other = fleet.urls.pop().unwrap();
    fleet.urls = vec![other];
    assert_eq!(used(&fleet).await, Some(1));
    let retry = fleet.submit("k", text).await;
    assert_eq!(problem(retry).await["code"], "IDEMPOTENCY_CONFLICT");
    let retried = eventually("the key is free", DEADLINE, async || {
        let response = fleet.submit("k", text).await;
        (response.status() != StatusCode::CONFLICT).then_some(response)
    })
    .await;
    (retried, used(&fleet).await)
}

#[tokio::test]
async fn a_retry_after_its_gateway_was_killed_is_not_charged_again() {
    let (retried, charged) = killed_and_retried("sleep:500").await;
    assert_eq!(retried.status(), StatusCode::ACCEPTED);
    assert!(!is_replayed(&retried));
    assert_eq!(charged, Some(1));
}

#[tokio::test]
async fn what_a_killed_gateway_had_done_stays_charged_when_the_service_repeats_it() {
    let (retried, charged) = killed_and_retried("known:500").await;
    assert_eq!(retried.status(), StatusCode::ACCEPTED);
    assert!(is_replayed(&retried));
    assert_eq!(charged, Some(1));
}

#[tokio::test]
async fn a_claim_whose_answer_came_too_late_is_ended_and_its_retry_gets_the_answer() {
    let own = redis::Server::start().await;
    let url = own.url();
    let plan = format!("{GENEROUS} --monthly-cu 100");
    let fleet = Fleet::start_with_plan(1, &[("REDIS_URL", &url)], &plan).await;
    // Redis knows how a claim is made, and no more how one is ended.
    fleet.submit("k0", &text(1)).await;
    let _: String = redis::ask(&url, &["SCRIPT", "FLUSH"]).await;
    assert!(is_replayed(&fleet.submit("k0", &text(1)).await));
    let body = job(&text(3)).to_string();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k\r\n\
         Expect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        fleet.app.key,
        body.len()
    );
    // Limits are asked for the head, the claim is made for the whole.
    let mut stream = TcpStream::connect(fleet.app.listen).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let let_in = raw::answer(&mut stream).await;
    assert!(let_in.starts_with("HTTP/1.1 100 "), "{let_in}");
    own.pause(true);
    stream.write_all(body.as_bytes()).await.unwrap();
    let first = raw::answer(&mut stream).await;
    own.pause(false);
    assert!(first.starts_with("HTTP/1.1 202 "), "{first}");
    eventually("Redis is asked again", DEADLINE, async || {
        is_replayed(&fleet.submit("k0", &text(1)).await).then_some(())
    })
    .await;
    // Well before the claim would end by itself.
    let (hits, deadline) = (fleet.hits(), Duration::from_secs(3));
    let again = eventually("it is not in progress", deadline, async || {
        let response = fleet.submit("k", &text(3)).await;
        (response.status() != StatusCode::CONFLICT).then_some(response)
    })
    .await;
    assert_eq!(again.status(), StatusCode::ACCEPTED);
    assert!(is_replayed(&again));
    let location = again.headers()["location"].to_str().unwrap();
    assert!(first.contains(location), "{location} {first}");
    assert_eq!((fleet.hits(), used(&fleet).await), (hits, Some(4)));
}

#[tokio::test]
async fn a_redis_that_comes_back_with_an_old_snapshot_gives_nothing_back() {
    let mut own = redis::Server::start().await;
    let url = own.url();
    let plan = "--per-minute 60 --burst 20 --per-hour 100000 --monthly-cu 10 --soft-buffer 0";
    let fleet = Fleet::start_with_plan(2, &[("REDIS_URL", &url)], plan).await;
    eventually("Redis counts", DEADLINE, async || {
        (fleet.get("/v1/jobs").await.status() == StatusCode::OK).then_some(())
    })
    .await;
    let kept = submitted(&fleet, "k1", &text(2)).await;
    assert_eq!(kept.status(), StatusCode::ACCEPTED);
    let _: String = redis::ask(&url, &["SAVE"]).await;
    let lost = submitted(&fleet, "k2", &text(7)).await;
    let location = lost.headers()["location"].clone();
    fleet.app.upstreams.seen.used(9);
    // Each of the gateways has seen that nothing is left.
    for _ in &fleet.urls {
        while fleet.get("/v1/jobs").await.status() == StatusCode::OK {}
    }
    own.kill();
    own.restart().await;
    let (started, mut admitted) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(3) {
        admitted += u64::from(fleet.get("/v1/jobs").await.status() == StatusCode::OK);
    }
    let most = started.elapsed().as_secs() + 3;
    assert!(admitted <= most, "{admitted} of at most {most}");

    eventually("the quota is known", DEADLINE / 2, async || {
        submitted(&fleet, &prefix("n"), &text(1)).await;
        (used(&fleet).await? >= 9).then_some(())
    })
    .await;
    let refused = problem(submitted(&fleet, "k3", &text(2)).await).await;
    assert_eq!(refused["violated-policies"], json!(["month"]));
    // Nor is an answer lost: of what the snapshot holds, and of what it does not.
    let hits = fleet.hits();
    assert!(is_replayed(&submitted(&fleet, "k1", &text(2)).await));
    let again = submitted(&fleet, "k2", &text(7)).await;
    assert!(is_replayed(&again));
    assert_eq!(
        (&again.headers()["location"], fleet.hits()),
        (&location, hits)
    );
}
