//! API keys as a tenant manages them over HTTP.

use std::time::{Duration, Instant};

use contracts::api::keys::OVERLAP_MAX_SECONDS;
use futures::future::join_all;
use ops::testing::eventually;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::app::{self, App, problem};

async fn call(app: &App, credential: &str, method: Method, path: &str, body: &Value) -> Response {
    let mut request = app
        .client
        .request(method, format!("{}{path}", app.url))
        .bearer_auth(credential);
    if !body.is_null() {
        request = request.json(body);
    }
    request.send().await.unwrap()
}

async fn create(app: &App, credential: &str, body: &Value) -> Response {
    call(app, credential, Method::POST, "/v1/api-keys", body).await
}

async fn rotate(app: &App, id: &str, body: &Value) -> Response {
    let path = format!("/v1/api-keys/{id}/rotate");
    call(app, &app.key, Method::POST, &path, body).await
}

async fn becomes(app: &App, credential: &str, wanted: StatusCode) {
    let path = "/v1/jobs";
    eventually("the gateway follows", Duration::from_secs(2), async || {
        let answer = call(app, credential, Method::GET, path, &Value::Null).await;
        (answer.status() == wanted).then_some(())
    })
    .await;
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test]
async fn a_key_is_created_read_rotated_and_revoked() {
    let app = app::start(&[]).await;
    let asked = json!({ "name": "ci", "scopes": ["jobs:read"], "expires_in_seconds": 3_600 });
    let answer = create(&app, &app.key, &asked).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let created: Value = answer.json().await.unwrap();
    let (id, key) = (text(&created["key_id"]), text(&created["key"]));
    assert_eq!(location, format!("/v1/api-keys/{id}"));
    assert_eq!(created["scopes"], json!(["jobs:read"]));
    becomes(&app, key, StatusCode::OK).await;

    // It is shown without its secret, and when it was used.
    let shown = eventually("its use is written", Duration::from_secs(10), async || {
        let shown = app.get(&location).await.json::<Value>().await.unwrap();
        shown["last_used_at"].is_string().then_some(shown)
    })
    .await;
    assert!(shown["key"].is_null() && shown["name"] == "ci");
    let first = app.get("/v1/api-keys?limit=1").await;
    let first: Value = first.json().await.unwrap();
    assert_eq!(first["data"][0]["key_id"], created["key_id"]);
    let next = format!(
        "/v1/api-keys?limit=1&cursor={}",
        text(&first["next_cursor"])
    );
    let next: Value = app.get(&next).await.json().await.unwrap();
    assert!(next["data"][0]["scopes"].as_array().unwrap().len() > 1);
    assert!(next["next_cursor"].is_null());

    // The old one stays for a while, the new one is like it.
    let rotated = rotate(&app, id, &json!({ "overlap_seconds": 2 })).await;
    assert_eq!(rotated.status(), StatusCode::OK);
    let rotated: Value = rotated.json().await.unwrap();
    let new = text(&rotated["key"]);
    assert_eq!(
        (&rotated["name"], &rotated["previous_key_id"]),
        (&json!("ci"), &json!(id))
    );
    becomes(&app, new, StatusCode::OK).await;
    becomes(&app, key, StatusCode::OK).await;
    eventually("the old key ends", Duration::from_secs(4), async || {
        let answer = call(&app, key, Method::GET, "/v1/jobs", &Value::Null).await;
        (answer.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert_eq!(
        problem(rotate(&app, id, &Value::Null).await).await["code"],
        "CONFLICT"
    );

    let path = format!("/v1/api-keys/{}", text(&rotated["key_id"]));
    for _ in 0..2 {
        let revoked = call(&app, &app.key, Method::DELETE, &path, &Value::Null).await;
        assert_eq!(revoked.status(), StatusCode::NO_CONTENT);
        assert!(!revoked.headers().contains_key("content-length"));
    }
    becomes(&app, new, StatusCode::UNAUTHORIZED).await;
    let shown: Value = app.get(&path).await.json().await.unwrap();
    assert!(shown["revoked_at"].is_string());
}

#[tokio::test]
async fn a_key_gives_no_more_than_its_creator_has() {
    let app = app::start(&[]).await;
    let clerk = app.new_key(&app.tenant, "keys:admin,jobs:read");
    becomes(&app, &clerk, StatusCode::OK).await;
    for (body, code) in [
        (json!({ "scopes": ["jobs:submit"] }), "ACCESS_DENIED"),
        (
            json!({ "scopes": ["jobs:read"], "role": "admin" }),
            "ACCESS_DENIED",
        ),
        (
            json!({ "scopes": ["jobs:read"], "subject": "someone" }),
            "ACCESS_DENIED",
        ),
        (json!({ "scopes": [] }), "INVALID_REQUEST"),
        (
            json!({ "scopes": ["jobs:read"], "expires_in_seconds": 0 }),
            "INVALID_REQUEST",
        ),
        (json!({ "scopes": ["nonsense"] }), "INVALID_REQUEST"),
        (
            json!({ "scopes": ["jobs:read"], "other": 1 }),
            "INVALID_REQUEST",
        ),
    ] {
        let refused = problem(create(&app, &clerk, &body).await).await;
        assert_eq!(refused["code"], code, "{body}");
    }
    let like_itself = create(&app, &clerk, &json!({ "scopes": ["jobs:read"] })).await;
    assert_eq!(like_itself.status(), StatusCode::CREATED);
    // The successor of a better key would be a better key.
    let listed: Value = app.get("/v1/api-keys").await.json().await.unwrap();
    let better = listed["data"].as_array().unwrap().iter();
    let better = better.max_by_key(|key| key["scopes"].as_array().unwrap().len());
    let path = format!("/v1/api-keys/{}/rotate", text(&better.unwrap()["key_id"]));
    let stolen = call(&app, &clerk, Method::POST, &path, &Value::Null).await;
    assert_eq!(problem(stolen).await["code"], "ACCESS_DENIED");
    // Without the scope there is nothing to be had at all.
    let reader = app.new_key(&app.tenant, "jobs:admin,jobs:read");
    becomes(&app, &reader, StatusCode::OK).await;
    for (method, path) in [
        (Method::GET, "/v1/api-keys"),
        (Method::POST, "/v1/api-keys"),
    ] {
        let body = json!({ "scopes": ["jobs:read"] });
        let body = if method == Method::GET {
            Value::Null
        } else {
            body
        };
        let refused = problem(call(&app, &reader, method, path, &body).await).await;
        let detail = text(&refused["detail"]).to_owned();
        assert!(detail.contains("keys:admin"), "{detail}");
    }
}

#[tokio::test]
async fn a_repeated_creation_makes_one_key_even_without_redis() {
    let app = app::start(&[]).await;
    let body = json!({ "scopes": ["jobs:read"] });
    let send = async |url: &str, body: &Value| {
        let request = app.client.post(format!("{url}/v1/api-keys"));
        let request = request.bearer_auth(&app.key).json(body);
        request
            .header("idempotency-key", "k1")
            .send()
            .await
            .unwrap()
    };
    let first = send(&app.url, &body).await;
    assert_eq!(first.status(), StatusCode::CREATED);
    let again = problem(send(&app.url, &body).await).await;
    assert_eq!(again["code"], "IDEMPOTENCY_CONFLICT");
    // A gateway that shares nothing but Postgres knows it too, and says which key it was.
    let mut lost = app;
    lost.kill_and_restart(&[("REDIS_PREFIX", "elsewhere")])
        .await;
    let app = &lost;
    let send = async |body: &Value| {
        let request = app.client.post(format!("{}/v1/api-keys", app.url));
        let request = request.bearer_auth(&app.key).json(body);
        let key = request.header("idempotency-key", "k1");
        problem(key.send().await.unwrap()).await
    };
    let again = send(&body).await;
    assert_eq!(again["code"], "IDEMPOTENCY_CONFLICT");
    assert!(text(&again["detail"]).contains("key_"), "{again}");
    let other = send(&json!({ "scopes": ["jobs:submit"] })).await;
    assert_eq!(other["code"], "IDEMPOTENCY_MISMATCH");
    let listed: Value = app.get("/v1/api-keys").await.json().await.unwrap();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn keys_are_bounded_and_orders_that_make_no_sense_are_refused() {
    let app = app::start(&[]).await;
    let client = app.database.pool().get().await.unwrap();
    let fill = "INSERT INTO gateway.api_keys (id, tenant_id, subject, role, scopes, secret_hash,
        expires_at) SELECT gen_random_uuid(), tenant_id, subject, role, scopes, secret_hash,
        expires_at FROM gateway.api_keys, generate_series(1, 99)";
    client.execute(fill, &[]).await.unwrap();
    let refused = create(&app, &app.key, &json!({ "scopes": ["jobs:read"] })).await;
    assert_eq!(problem(refused).await["code"], "CONFLICT");
    let missing = "key_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a";
    for (method, path, code) in [
        (Method::GET, format!("/v1/api-keys/{missing}"), "NOT_FOUND"),
        (
            Method::DELETE,
            format!("/v1/api-keys/{missing}"),
            "NOT_FOUND",
        ),
        (Method::GET, "/v1/api-keys/nonsense".to_owned(), "NOT_FOUND"),
        (
            Method::GET,
            "/v1/api-keys?cursor=x".to_owned(),
            "INVALID_REQUEST",
        ),
        (
            Method::GET,
            "/v1/api-keys?limit=x".to_owned(),
            "INVALID_REQUEST",
        ),
        (
            Method::GET,
            "/v1/api-keys?tenant=x".to_owned(),
            "INVALID_REQUEST",
        ),
    ] {
        let answer = call(&app, &app.key, method, &path, &Value::Null).await;
        assert_eq!(problem(answer).await["code"], code, "{path}");
    }
    assert_eq!(
        problem(rotate(&app, missing, &Value::Null).await).await["code"],
        "NOT_FOUND"
    );
    let long = json!({ "overlap_seconds": OVERLAP_MAX_SECONDS + 1 });
    assert_eq!(
        problem(rotate(&app, missing, &long).await).await["code"],
        "INVALID_REQUEST"
    );
}

#[tokio::test]
async fn a_tenant_that_floods_its_keys_leaves_the_others_theirs() {
    let app = app::start(&[]).await;
    let other = app.admin("admin tenant create t2 --plan test");
    let other = app.new_key(text(&other["tenant_id"]), "keys:admin,jobs:read");
    becomes(&app, &other, StatusCode::OK).await;
    // Nobody makes a key of the tenant while this is held.
    let pool = app.database.pool();
    let (client, observer) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    let hold = "BEGIN; SELECT FROM gateway.tenants WHERE name = 't1' FOR UPDATE";
    client.batch_execute(hold).await.unwrap();
    let body = json!({ "scopes": ["jobs:read"] });
    let flood = join_all((0..20).map(|_| create(&app, &app.key, &body)));
    let others = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("the flood is there", Duration::from_secs(3), async || {
            let waiting: i64 = observer.query_one(waiting, &[]).await.unwrap().get(0);
            (waiting >= 4).then_some(())
        })
        .await;
        for _ in 0..5 {
            let asked = Instant::now();
            let list = call(&app, &other, Method::GET, "/v1/api-keys", &Value::Null).await;
            assert_eq!(list.status(), StatusCode::OK);
            assert!(asked.elapsed() < Duration::from_secs(1));
        }
        client.batch_execute("ROLLBACK").await.unwrap();
    };
    let (flood, ()) = tokio::join!(flood, others);
    let (created, refused): (Vec<_>, Vec<_>) = flood
        .into_iter()
        .partition(|answer| answer.status() == StatusCode::CREATED);
    assert!((4..20).contains(&created.len()), "{}", created.len());
    for answer in refused {
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(problem(answer).await["code"], "RATE_LIMIT_EXCEEDED");
    }
}

#[tokio::test]
async fn operators_do_the_same_by_the_command_line() {
    let app = app::start(&[]).await;
    let listed = app.admin(&format!("admin key list --tenant {}", app.tenant));
    let id = text(&listed[0]["key_id"]);
    let rotated = app.admin(&format!("admin key rotate {id} --overlap 0s"));
    becomes(&app, text(&rotated["key"]), StatusCode::OK).await;
    becomes(&app, &app.key, StatusCode::UNAUTHORIZED).await;
    let again = app.run(&format!("admin key rotate {id}"));
    assert_eq!(again.status.code(), Some(1));
    let long = app.run(&format!("admin key rotate {id} --overlap 8d"));
    assert_eq!(long.status.code(), Some(64));
}
