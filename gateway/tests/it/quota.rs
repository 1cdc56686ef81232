//! The monthly quota of compute units: buffer, overage, what failures and other tenants cost, and
//! where the count comes from after Redis lost it.

use std::time::Duration;

use ops::testing::eventually;
use reqwest::{Response, StatusCode};
use serde_json::json;

use crate::{
    app::problem,
    fleet::{Fleet, GENEROUS},
    redis,
};

/// A text whose payload costs so many compute units.
pub(crate) fn text(units: usize) -> String {
    "x".repeat(units * 1_024 - 100)
}

/// The quota's member of a field that may stand in several lines.
fn month(response: &Response, field: &str) -> Option<String> {
    let lines = response.headers().get_all(field).iter();
    let mut members = lines.map(|line| line.to_str().unwrap().to_owned());
    members.find(|member| member.starts_with("\"month\""))
}

pub(crate) async fn used(fleet: &Fleet) -> Option<i64> {
    let (url, prefix) = (
        fleet.app.variable("REDIS_URL"),
        fleet.app.variable("REDIS_PREFIX"),
    );
    let keys = redis::keys(url, &format!("{prefix}:quota:")).await;
    redis::ask(url, &["HGET", keys.first()?, "used"]).await
}

#[tokio::test]
async fn beyond_quota_and_buffer_submissions_are_429_until_the_month_ends() {
    let plan = format!("{GENEROUS} --monthly-cu 10 --soft-buffer 20");
    let fleet = Fleet::start_with_plan(3, &[], &plan).await;
    let first = fleet.submit("k1", &text(9)).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    let policy = month(&first, "ratelimit-policy").unwrap();
    assert!(policy.starts_with("\"month\";q=10;w=2") && policy.ends_with("qu=\"compute-units\""));
    assert!(
        month(&first, "ratelimit")
            .unwrap()
            .starts_with("\"month\";r=1;t=")
    );
    // Into the buffer, then no further; what does not fit costs nothing.
    let second = fleet.submit("k2", &text(2)).await;
    assert_eq!(second.status(), StatusCode::ACCEPTED);
    assert!(
        month(&second, "ratelimit")
            .unwrap()
            .starts_with("\"month\";r=0;t=")
    );
    let refused = fleet.submit("k3", &text(2)).await;
    let wait: i64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=31 * 86_400).contains(&wait), "{wait}");
    let refused = problem(refused).await;
    assert_eq!(
        (&refused["status"], &refused["retry_after"]),
        (&json!(429), &json!(wait))
    );
    assert_eq!(refused["violated-policies"], json!(["month"]));
    assert!(
        refused["type"]
            .as_str()
            .unwrap()
            .ends_with("quota-exceeded")
    );
    assert_eq!(
        fleet.submit("k3", &text(1)).await.status(),
        StatusCode::ACCEPTED
    );
    assert_eq!((fleet.hits(), used(&fleet).await), (3, Some(12)));
    // Only submissions cost compute units.
    assert_eq!(fleet.get("/v1/jobs").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn with_overage_submissions_go_on_and_the_fields_say_that_nothing_is_left() {
    let plan = format!("{GENEROUS} --monthly-cu 1 --soft-buffer 0 --overage");
    let fleet = Fleet::start_with_plan(1, &[], &plan).await;
    for key in ["k1", "k2", "k3"] {
        let accepted = fleet.submit(key, &text(1)).await;
        assert_eq!(accepted.status(), StatusCode::ACCEPTED);
        assert!(
            month(&accepted, "ratelimit")
                .unwrap()
                .starts_with("\"month\";r=0;t=")
        );
    }
    assert_eq!(used(&fleet).await, Some(3));
}

#[tokio::test]
async fn what_fails_or_was_done_before_is_given_back() {
    let plan = format!("{GENEROUS} --monthly-cu 100");
    let fleet = Fleet::start_with_plan(1, &[("UPSTREAM_DEADLINE_MS", "500")], &plan).await;
    for (key, text) in [
        ("k1", "status:409"),
        ("k2", "status:500"),
        ("k3", "sleep:1500"),
    ] {
        assert!(!fleet.submit(key, text).await.status().is_success());
        assert_eq!(used(&fleet).await, Some(0), "{text}");
    }
    // The service says that it knows the request: it was paid for then.
    let known = fleet.submit("k4", "known").await;
    assert_eq!(known.headers()["idempotency-replayed"], "true");
    assert_eq!(used(&fleet).await, Some(0));
    assert_eq!(fleet.submit("k5", "a").await.status(), StatusCode::ACCEPTED);
    assert_eq!(used(&fleet).await, Some(1));
}

#[tokio::test]
async fn what_redis_lost_is_taken_again_from_metering() {
    let own = redis::Server::start().await;
    let url = own.url();
    let plan = format!("{GENEROUS} --monthly-cu 10 --soft-buffer 0");
    let fleet = Fleet::start_with_plan(3, &[("REDIS_URL", &url)], &plan).await;
    assert_eq!(
        fleet.submit("k1", &text(8)).await.status(),
        StatusCode::ACCEPTED
    );
    fleet.app.upstreams.seen.used(8);
    let _: String = redis::ask(&url, &["FLUSHALL"]).await;
    // Nobody is kept waiting for metering, so one may slip through; then the count is known again.
    let refused = async || {
        let response = fleet.submit("k2", &text(2)).await;
        assert!(response.status().is_success() || response.status().as_u16() == 429);
        (used(&fleet).await? >= 8).then_some(())
    };
    eventually("the count is known", Duration::from_secs(5), refused).await;
    // What was counted meanwhile is among what metering knows: it is not added to it.
    let used = used(&fleet).await.unwrap();
    assert!((8..=10).contains(&used), "{used}");
    let over = problem(fleet.submit("k3", &text(3)).await).await;
    assert_eq!(over["violated-policies"], json!(["month"]));
}
