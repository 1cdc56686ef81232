//! What operators say about routes while gateways run.

use std::time::Duration;

use ops::{clock::Clock, testing::eventually};
use reqwest::{Response, StatusCode};

use crate::app::{self, App, problem};

const LIST: &str = "/v1/webhooks/endpoints";

/// Repeats a request until its answer has changed.
async fn until(app: &App, path: &str, changed: impl Fn(&Response) -> bool) -> Response {
    let look = async || Some(app.get(path).await).filter(|answer| changed(answer));
    eventually("it is heard of", Duration::from_secs(2), look).await
}

#[tokio::test]
async fn a_route_is_deprecated_then_ends_and_comes_back_without_a_restart() {
    let app = app::start(&[]).await;
    let route = format!("GET {LIST}");
    app.admin(&format!(
        "admin route deprecate {route} --at 2024-01-01T00:00:00Z"
    ));
    let deprecated = until(&app, LIST, |answer| {
        answer.headers().contains_key("deprecation")
    });
    assert_eq!(deprecated.await.headers()["deprecation"], "@1704067200");
    let other = app.get("/v1/webhooks/deliveries").await;
    assert!(!other.headers().contains_key("deprecation"));
    let soon = Clock::system().now() + Duration::from_secs(2);
    app.admin(&format!("admin route sunset {route} --at {soon}"));
    let warned = until(&app, LIST, |answer| answer.headers().contains_key("sunset")).await;
    assert_eq!(warned.status(), StatusCode::OK);
    assert!(
        warned.headers()["sunset"]
            .to_str()
            .unwrap()
            .ends_with(" GMT")
    );
    let gone = async || {
        let answer = app.get(LIST).await;
        (answer.status() == StatusCode::GONE).then_some(answer)
    };
    let gone = eventually("it ends", Duration::from_secs(5), gone).await;
    assert!(gone.headers().contains_key("deprecation"));
    assert_eq!(problem(gone).await["code"], "GONE");
    app.admin(&format!(
        "admin route sunset {route} --at {soon} --serve-after"
    ));
    until(&app, LIST, |answer| answer.status() == StatusCode::OK).await;
    assert_eq!(app.admin("admin route list")[0]["served_after"], true);
    app.admin(&format!("admin route clear {route}"));
    until(&app, LIST, |answer| {
        !answer.headers().contains_key("deprecation")
    })
    .await;
    let unknown = app.run("admin route clear GET /v1/nothing");
    assert!(
        unknown.status.success(),
        "what is not said cannot be unsaid wrongly"
    );
    assert!(
        !app.run("admin route timeout GET /v1/nothing 5")
            .status
            .success()
    );
}

#[tokio::test]
async fn a_route_may_have_less_time_than_others() {
    let app = app::start(&[]).await;
    app.admin("admin route timeout POST /v1/jobs 300");
    let mut number = 0;
    let cut = async || {
        number += 1;
        let answer = app.submit(&format!("{number}"), "sleep:700").await;
        (answer.status() == StatusCode::GATEWAY_TIMEOUT).then_some(())
    };
    let mut cut = cut;
    for _ in 0..5 {
        if cut().await.is_some() {
            return;
        }
    }
    panic!("the route's deadline is not heard of");
}
