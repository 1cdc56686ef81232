//! Endpoints: who may, what is refused, what is shown once.

use contracts::{assertion::Scope, id::TenantId};
use reqwest::StatusCode;
use serde_json::json;

use crate::app::{App, now};

const ENDPOINTS: &str = "/v1/webhooks/endpoints";

#[tokio::test]
async fn a_secret_is_shown_once_and_nowhere_in_the_clear() {
    let app = App::start().await;
    let request = json!({ "url": "https://example.com/hook", "description": "mine" });
    let created = app.write("POST", ENDPOINTS, request.clone()).await;
    let secret = created["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_"));
    let shown = app
        .get(&format!(
            "{ENDPOINTS}/{}",
            created["endpoint_id"].as_str().unwrap()
        ))
        .await;
    assert_eq!(shown["url"], "https://example.com/hook");
    assert!(!shown.to_string().contains("secret"));
    assert!(!app.get(ENDPOINTS).await.to_string().contains("whsec_"));

    // The retry of a create cannot show the secret again, and creates nothing.
    let scopes = [Scope::WebhooksWrite];
    let (status, answer) = app
        .request(app.tenant, &scopes, "POST", ENDPOINTS, Some(request))
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(answer["code"], "IDEMPOTENCY_CONFLICT");
    assert!(
        answer["detail"]
            .as_str()
            .unwrap()
            .contains(created["endpoint_id"].as_str().unwrap())
    );
    let other = json!({ "url": "https://example.com/other" });
    let (status, _) = app
        .request(app.tenant, &scopes, "POST", ENDPOINTS, Some(other))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        app.count("SELECT count(*) FROM webhooks.endpoints").await,
        1
    );
}

#[tokio::test]
async fn another_tenants_endpoint_does_not_exist_and_scopes_are_demanded() {
    let app = App::start().await;
    let request = json!({ "url": "https://example.com/hook" });
    let created = app.write("POST", ENDPOINTS, request.clone()).await;
    let one = format!("{ENDPOINTS}/{}", created["endpoint_id"].as_str().unwrap());
    let stranger = TenantId::generate(now());
    let both = [Scope::WebhooksRead, Scope::WebhooksWrite];
    for (method, body) in [
        ("GET", None),
        ("DELETE", None),
        ("PATCH", Some(json!({ "enabled": false }))),
    ] {
        let (status, answer) = app.request(stranger, &both, method, &one, body).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{method}: {answer}");
    }
    let reader = [Scope::WebhooksRead];
    let (status, answer) = app
        .request(app.tenant, &reader, "POST", ENDPOINTS, Some(request))
        .await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::FORBIDDEN, &json!("ACCESS_DENIED"))
    );
    let (status, _) = app.request(app.tenant, &[], "GET", &one, None).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, _) = app.request(app.tenant, &both, "DELETE", &one, None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = app.request(app.tenant, &both, "GET", &one, None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn bad_endpoints_are_refused_with_the_pointer() {
    let app = App::start().await;
    let scopes = [Scope::WebhooksWrite];
    let long = format!("https://example.com/{}", "x".repeat(3_000));
    for (body, pointer) in [
        (json!({ "url": "https://10.0.0.1/hook" }), "/url"),
        (json!({ "url": "http://example.com" }), "/url"),
        (json!({ "url": "https://169.254.169.254/latest" }), "/url"),
        (json!({ "url": "not a url" }), "/url"),
        (json!({ "url": long }), "/url"),
        (
            json!({ "url": "https://example.com", "events": [] }),
            "/events",
        ),
        (
            json!({ "url": "https://example.com", "events": ["job.purged"] }),
            "/events",
        ),
    ] {
        let (status, answer) = app
            .request(app.tenant, &scopes, "POST", ENDPOINTS, Some(body))
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_eq!(answer["errors"][0]["pointer"], pointer, "{answer}");
    }
    let (status, answer) = app
        .request(
            app.tenant,
            &scopes,
            "POST",
            ENDPOINTS,
            Some(json!({ "link": "x" })),
        )
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert_eq!(
        app.count("SELECT count(*) FROM webhooks.endpoints").await,
        0
    );
}
