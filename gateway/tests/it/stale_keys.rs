//! The issuer's keys, where they cannot be read for longer than they are believed.

use std::time::Duration;

use ops::testing::eventually;
use reqwest::{Method, StatusCode};

use crate::{
    app::{self, problem},
    issuer::Issuer,
};

#[tokio::test]
async fn keys_that_cannot_be_read_for_too_long_are_believed_no_more() {
    let changes = [("JWKS_TTL_SECONDS", "1"), ("JWKS_STALE_MAX_SECONDS", "2")];
    let app = app::start(&changes).await;
    let token = app.issuer.sign(&Issuer::claims(&app.tenant, "jobs:read"));
    let ask = async || {
        let request = app.client.get(format!("{}/v1/jobs", app.url));
        request.bearer_auth(&token).send().await.unwrap()
    };
    assert_eq!(ask().await.status(), StatusCode::OK);
    std::fs::remove_file(&app.jwks).unwrap();
    assert_eq!(
        ask().await.status(),
        StatusCode::OK,
        "at once nothing changes"
    );
    let refused = async || {
        let answer = ask().await;
        (answer.status() != StatusCode::OK).then_some(answer)
    };
    let answer = eventually("the keys are given up", Duration::from_secs(10), refused).await;
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(problem(answer).await["code"], "SERVICE_UNAVAILABLE");
    app.not_ready("nobody knows the keys").await;
    // API keys are ours.
    let with_key = app.request(Method::GET, "/v1/jobs").send().await.unwrap();
    assert_eq!(with_key.status(), StatusCode::OK);
    Issuer::write(&[&app.issuer], &app.jwks);
    app.ready().await;
    assert_eq!(ask().await.status(), StatusCode::OK);
}
