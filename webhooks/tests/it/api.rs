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
    let create = async |request| app.under_key("k", "POST", ENDPOINTS, Some(request)).await;
    let (_, _, created) = create(request.clone()).await;
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
    let (status, _, answer) = create(request).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(answer["code"], "IDEMPOTENCY_CONFLICT");
    assert!(
        answer["detail"]
            .as_str()
            .unwrap()
            .contains(created["endpoint_id"].as_str().unwrap())
    );
    let other = json!({ "url": "https://example.com/other" });
    let (status, ..) = create(other).await;
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
        (
            json!({ "url": "https://example.com", "events": ["job.failed", "job.failed"] }),
            "/events",
        ),
        (json!({ "url": "https://example.com/a\0b" }), "/url"),
        (
            json!({ "url": "https://example.com", "description": "a\0b" }),
            "/description",
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

#[tokio::test]
async fn a_bad_change_is_refused_too_and_the_table_holds_a_bounded_set_of_events() {
    let app = App::start().await;
    let created = app
        .write("POST", ENDPOINTS, json!({ "url": "https://example.com" }))
        .await;
    let one = format!("{ENDPOINTS}/{}", created["endpoint_id"].as_str().unwrap());
    for (body, pointer) in [
        (json!({ "url": "https://example.com/\0" }), "/url"),
        (json!({ "description": "\0" }), "/description"),
        (
            json!({ "events": vec!["job.completed"; 10_000] }),
            "/events",
        ),
    ] {
        let scopes = [Scope::WebhooksWrite];
        let (status, answer) = app
            .request(app.tenant, &scopes, "PATCH", &one, Some(body))
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_eq!(answer["errors"][0]["pointer"], pointer, "{answer}");
    }
    let client = app.pool.get().await.unwrap();
    for events in ["'{}'", "array_fill('job.failed'::text, ARRAY[7])"] {
        let sql = format!("UPDATE webhooks.endpoints SET events = {events}");
        let refused = client.batch_execute(&sql).await.unwrap_err();
        assert!(
            refused
                .as_db_error()
                .unwrap()
                .message()
                .contains("events_check")
        );
    }
}

#[tokio::test]
async fn secrets_that_sign_at_a_time_are_limited_and_none_ends_before_its_time() {
    let app = App::start().await;
    let created = app
        .write("POST", ENDPOINTS, json!({ "url": "https://example.com" }))
        .await;
    let id = created["endpoint_id"].as_str().unwrap();
    let rotate = format!("{ENDPOINTS}/{id}/rotate-secret");
    let scopes = [Scope::WebhooksWrite];
    let rotated = async |body| {
        app.request(app.tenant, &scopes, "POST", &rotate, body)
            .await
    };
    let live = "SELECT count(*) FROM webhooks.secrets WHERE coalesce(expires_at > now(), true)";
    // No body at all is the usual overlap.
    for already in 1..5 {
        assert_eq!(app.count(live).await, already);
        let (status, answer) = rotated(None).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let (status, answer) = rotated(Some(json!({ "overlap_seconds": 60 }))).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::CONFLICT, &json!("CONFLICT")),
        "{answer}"
    );
    let tomorrow = "SELECT count(*) FROM webhooks.secrets \
        WHERE coalesce(expires_at > now() + interval '23 hours', true)";
    assert_eq!(app.count(tomorrow).await, 5);
    // A secret that leaked can be replaced at any time.
    let (status, _) = rotated(Some(json!({ "overlap_seconds": 0 }))).await;
    assert_eq!((status, app.count(live).await), (StatusCode::OK, 1));
}

#[tokio::test]
async fn a_repeated_key_acts_once_and_gets_the_same_answer() {
    let app = App::start().await;
    let created = app
        .write("POST", ENDPOINTS, json!({ "url": "https://example.com" }))
        .await;
    let one = format!("{ENDPOINTS}/{}", created["endpoint_id"].as_str().unwrap());
    let (test, rotate) = (format!("{one}/test"), format!("{one}/rotate-secret"));

    let first = app.under_key("t", "POST", &test, None).await;
    assert_eq!((first.0, first.1), (StatusCode::ACCEPTED, false));
    let again = app.under_key("t", "POST", &test, None).await;
    assert_eq!(again, (first.0, true, first.2.clone()));
    let queued = "SELECT count(*) FROM webhooks.deliveries";
    assert_eq!(app.count(queued).await, 1);

    let message = first.2["message_id"].as_str().unwrap();
    let replay = format!("/v1/webhooks/deliveries/{message}/replay");
    let first = app.under_key("r", "POST", &replay, None).await;
    assert_eq!((first.0, first.1), (StatusCode::ACCEPTED, false));
    let again = app.under_key("r", "POST", &replay, None).await;
    assert_eq!(again, (first.0, true, first.2));
    // Each time it is queued it has a new epoch.
    let epochs = "SELECT sum(lease_epoch)::bigint FROM webhooks.deliveries";
    assert_eq!(app.count(epochs).await, 1);

    let change = json!({ "description": "first" });
    let first = app
        .under_key("p", "PATCH", &one, Some(change.clone()))
        .await;
    assert_eq!((first.0, first.1), (StatusCode::OK, false));
    app.write("PATCH", &one, json!({ "description": "second" }))
        .await;
    let again = app.under_key("p", "PATCH", &one, Some(change)).await;
    assert_eq!(again, (first.0, true, first.2));
    assert_eq!(app.get(&one).await["description"], "second");

    let (status, _, rotated) = app.under_key("s", "POST", &rotate, None).await;
    assert_eq!(status, StatusCode::OK, "{rotated}");
    let (status, _, answer) = app.under_key("s", "POST", &rotate, None).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(answer["code"], "IDEMPOTENCY_CONFLICT");
    assert!(!answer.to_string().contains("whsec_"));
    assert_eq!(app.count("SELECT count(*) FROM webhooks.secrets").await, 2);
    // The same key for anything else is refused, and what is refused keeps no key.
    let (status, ..) = app.under_key("s", "POST", &test, None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, ..) = app
        .under_key("n", "POST", &replay.replace('0', "1"), None)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(
        app.under_key("n", "POST", &test, None).await.0,
        StatusCode::ACCEPTED
    );
}
