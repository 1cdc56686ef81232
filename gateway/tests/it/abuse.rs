//! Who does wrong waits, and nobody else: budgets by address and by credential, end to end.

use reqwest::{RequestBuilder, StatusCode};
use serde_json::Value;

use crate::{
    app::{self, App, problem},
    issuer::Issuer,
    recorder::Recorder,
};

/// Kong's network, and budgets that a test can use up.
const SMALL: [(&str, &str); 3] = [
    ("TRUSTED_PROXIES", "127.0.0.0/8,10.0.0.0/8"),
    ("FAILED_AUTH_PER_MINUTE", "5"),
    ("MISSES_PER_MINUTE", "8"),
];

fn from(app: &App, path: &str, address: &str) -> RequestBuilder {
    let request = app.client.get(format!("{}{path}", app.url));
    request.header("x-forwarded-for", address)
}

async fn status(request: RequestBuilder) -> StatusCode {
    request.send().await.unwrap().status()
}

/// Presents a bad credential from this address so often; the last answer.
async fn fail(app: &App, address: &str, times: usize) -> StatusCode {
    let mut last = StatusCode::OK;
    for _ in 0..times {
        last = status(from(app, "/v1/jobs", address).bearer_auth("a.b.c")).await;
    }
    last
}

async fn good(app: &App, address: &str) -> StatusCode {
    status(from(app, "/v1/jobs", address).bearer_auth(&app.key)).await
}

#[tokio::test]
async fn an_address_that_fails_too_often_waits_and_others_do_not() {
    let app = app::start(&SMALL).await;
    assert_eq!(good(&app, "203.0.113.1").await, StatusCode::OK);
    assert_eq!(fail(&app, "203.0.113.1", 5).await, StatusCode::UNAUTHORIZED);
    let waits = from(&app, "/v1/jobs", "203.0.113.1")
        .bearer_auth("d.e.f")
        .send()
        .await
        .unwrap();
    assert_eq!(waits.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = waits.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=12).contains(&seconds), "{seconds}");
    assert_eq!(problem(waits).await["code"], "RATE_LIMIT_EXCEEDED");
    // Whose credential was accepted there before is heard whatever others do behind the address;
    // who is new there waits with it.
    assert_eq!(good(&app, "203.0.113.1").await, StatusCode::OK);
    let token = app.issuer.sign(&Issuer::claims(&app.tenant, "jobs:read"));
    let new = |address| status(from(&app, "/v1/jobs", address).bearer_auth(&token));
    assert_eq!(new("203.0.113.1").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(new("203.0.113.2").await, StatusCode::OK);
    // An address of IPv6 is its /64.
    assert_eq!(
        fail(&app, "2001:db8:1:2::1", 6).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(
        fail(&app, "2001:db8:1:2::2", 1).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(new("2001:db8:1:3::1").await, StatusCode::OK);
    // A trusted proxy that forwards no address is not one client.
    for _ in 0..20 {
        let request = app.client.get(format!("{}/v1/jobs", app.url));
        assert_eq!(
            status(request.bearer_auth("a.b.c")).await,
            StatusCode::UNAUTHORIZED
        );
    }
}

#[tokio::test]
async fn the_address_is_the_last_that_no_trusted_proxy_wrote() {
    let app = app::start(&SMALL).await;
    // What a client writes in front of its own address, in one field or several, is not believed.
    for number in 0..6 {
        let forged = format!("198.51.100.{number}");
        let request = app.client.get(format!("{}/v1/jobs", app.url));
        let request = request
            .header("x-forwarded-for", format!("{forged}, 192.0.2.1"))
            .header("x-forwarded-for", "203.0.113.5,10.1.2.3")
            .header("x-forwarded-for", "10.0.0.7")
            .bearer_auth("a.b.c");
        let expected = if number < 5 {
            StatusCode::UNAUTHORIZED
        } else {
            StatusCode::TOO_MANY_REQUESTS
        };
        assert_eq!(status(request).await, expected, "{number}");
    }
    assert_eq!(
        fail(&app, "203.0.113.5", 1).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(
        fail(&app, "198.51.100.1", 1).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(fail(&app, "192.0.2.1", 1).await, StatusCode::UNAUTHORIZED);
    // From outside the trusted networks nothing is believed at all.
    let direct = app::start(&[SMALL[1], ("TRUSTED_PROXIES", "10.0.0.0/8")]).await;
    for number in 0..6 {
        fail(&direct, &format!("203.0.113.{number}"), 1).await;
    }
    assert_eq!(
        fail(&direct, "203.0.113.9", 1).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn who_asks_for_what_is_not_there_waits_by_credential_and_else_by_address() {
    let upstream = Recorder::start().await;
    let app = app::start(&[&SMALL[..], &[("JOBS_URL", &upstream.url)]].concat()).await;
    let guess = async |key: &str| {
        let request = from(&app, "/v1/nothing", "203.0.113.1");
        status(request.bearer_auth(key)).await
    };
    // Without an accepted credential it is the address that waits.
    for _ in 0..8 {
        assert_eq!(guess("none").await, StatusCode::NOT_FOUND);
    }
    assert_eq!(guess("none").await, StatusCode::TOO_MANY_REQUESTS);
    // With one it is the credential, for what it may not have; and only the one.
    let narrow = app.new_key(&app.tenant, "jobs:submit");
    let wide = app.new_key(&app.tenant, "jobs:read");
    let read = async |key: &str| {
        let request = from(&app, "/v1/jobs", "203.0.113.2").bearer_auth(key);
        status(request).await
    };
    ops::testing::eventually(
        "the keys are known",
        std::time::Duration::from_secs(3),
        async || {
            (status(from(&app, "/v1/jobs", "203.0.113.3").bearer_auth(&wide)).await
                == StatusCode::OK)
                .then_some(())
        },
    )
    .await;
    assert_eq!(read(&wide).await, StatusCode::OK);
    for _ in 0..8 {
        assert_eq!(read(&narrow).await, StatusCode::FORBIDDEN);
    }
    assert_eq!(read(&narrow).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(read(&wide).await, StatusCode::OK);
    let metrics = app.metrics().await;
    assert!(
        metrics.contains("gateway_abuse_refused_total 2"),
        "{metrics}"
    );
}

#[tokio::test]
async fn who_goes_on_and_on_is_shut_out_for_minutes() {
    let app = app::start(&[SMALL[0], ("DEMERITS_MAX", "30")]).await;
    assert_eq!(
        fail(&app, "203.0.113.1", 11).await,
        StatusCode::UNAUTHORIZED
    );
    let out = from(&app, "/docs", "203.0.113.1").send().await.unwrap();
    assert_eq!(out.status(), StatusCode::TOO_MANY_REQUESTS);
    let answer: Value = problem(out).await;
    let seconds = answer["retry_after"].as_u64().unwrap();
    assert!((500..=600).contains(&seconds), "{seconds}");
}
