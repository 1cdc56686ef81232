//! `gateway admin`, and how soon running gateways follow; revocations and rotated keys.

use std::time::Duration;

use futures::future::join_all;
use ops::testing::eventually;
use reqwest::StatusCode;
use serde_json::json;

use crate::{
    app::{self, App},
    issuer::{Issuer, Server},
};

async fn status(app: &App, credential: &str) -> StatusCode {
    let request = app
        .client
        .get(format!("{}/v1/jobs", app.url))
        .bearer_auth(credential);
    request.send().await.unwrap().status()
}

async fn becomes(app: &App, credential: &str, wanted: StatusCode) {
    eventually("the gateway follows", Duration::from_secs(2), async || {
        (status(app, credential).await == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_key_lives_until_it_is_revoked_or_expires() {
    let app = app::start(&[]).await;
    let create = format!(
        "admin key create --tenant {} --scopes jobs:read",
        app.tenant
    );
    let created = app.admin(&format!(
        "{create} --role admin --subject user_a --expires-in 1h"
    ));
    let key = created["key"].as_str().unwrap();
    assert_eq!(
        (&created["tenant_id"], &created["subject"]),
        (&json!(app.tenant), &json!("user_a"))
    );
    becomes(&app, key, StatusCode::OK).await;
    app.admin(&format!(
        "admin key revoke {}",
        created["key_id"].as_str().unwrap()
    ));
    becomes(&app, key, StatusCode::UNAUTHORIZED).await;
    let short = app.admin(&format!("{create} --expires-in 2s"));
    let short = short["key"].as_str().unwrap();
    becomes(&app, short, StatusCode::OK).await;
    eventually("the key expires", Duration::from_secs(5), async || {
        (status(&app, short).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let listed = app.admin("admin key list").to_string();
    assert!(
        listed.contains("user_a") && !listed.contains("secret"),
        "{listed}"
    );
    // Nothing in the database is a key.
    let stored = app.database.pool().get().await.unwrap();
    let rows = stored
        .query("SELECT api_keys::text FROM gateway.api_keys", &[])
        .await
        .unwrap();
    let secret = &key[37..85];
    assert!(
        rows.iter()
            .all(|row| !row.get::<_, &str>(0).contains(secret))
    );
}

#[tokio::test]
async fn tokens_subjects_and_tenants_can_be_revoked() {
    let app = app::start(&[]).await;
    let mut claims = Issuer::claims(&app.tenant, "jobs:read");
    claims["jti"] = json!("token-1");
    let token = app.issuer.sign(&claims);
    let other = app.issuer.sign(&Issuer::claims(&app.tenant, "jobs:read"));
    assert_eq!(status(&app, &token).await, StatusCode::OK);
    let revoke = |kind: &str, value: &str| app.admin(&format!("admin revoke {kind} {value}"));
    revoke("jti", "token-1");
    becomes(&app, &token, StatusCode::UNAUTHORIZED).await;
    assert_eq!(status(&app, &other).await, StatusCode::OK);
    // Another tenant's subject may have the same name.
    let elsewhere = app.admin("admin tenant create t2 --plan test");
    let elsewhere = elsewhere["tenant_id"].as_str().unwrap();
    let namesake = app.issuer.sign(&Issuer::claims(elsewhere, "jobs:read"));
    becomes(&app, &namesake, StatusCode::OK).await;
    revoke("subject", &format!("user_token --tenant {}", app.tenant));
    becomes(&app, &other, StatusCode::UNAUTHORIZED).await;
    assert_eq!(status(&app, &app.key).await, StatusCode::OK);
    assert_eq!(status(&app, &namesake).await, StatusCode::OK);
    revoke("tenant", &app.tenant);
    becomes(&app, &app.key, StatusCode::UNAUTHORIZED).await;
}

#[tokio::test]
async fn revocations_of_tokens_that_must_have_ended_are_forgotten_and_no_others() {
    let mut app = app::start(&[]).await;
    let tenant = app.tenant.clone();
    let client = app.database.pool().get().await.unwrap();
    let sql = format!(
        "INSERT INTO gateway.revocations VALUES ('jti', 'old', now() - interval '2 days'),
         ('jti', 'young', now() - interval '1 hour'),
         ('subject', '{tenant}/user', now() - interval '2 days'),
         ('tenant', 'nobody', now() - interval '2 days')"
    );
    client.batch_execute(&sql).await.unwrap();
    app.kill_and_restart(&[]).await;
    let left = async || {
        let sql = "SELECT string_agg(value, ' ' ORDER BY kind) FROM gateway.revocations";
        let left: String = client.query_one(sql, &[]).await.unwrap().get(0);
        (left == format!("young {tenant}/user nobody")).then_some(())
    };
    eventually("one is forgotten", Duration::from_secs(3), left).await;
}

#[tokio::test]
async fn a_new_key_of_the_issuer_is_found_when_a_token_names_it() {
    let app = app::start(&[]).await;
    let second = Issuer::new("k2");
    Issuer::write(&[&app.issuer, &second], &app.jwks);
    let claims = Issuer::claims(&app.tenant, "jobs:read");
    assert_eq!(status(&app, &second.sign(&claims)).await, StatusCode::OK);
    assert_eq!(
        status(&app, &app.issuer.sign(&claims)).await,
        StatusCode::OK
    );
}

#[tokio::test]
async fn keys_by_url_are_fetched_once_for_everyone_and_kept_while_the_issuer_is_away() {
    let (first, second) = (Issuer::new("u1"), Issuer::new("u2"));
    let server = Server::start(&[&first]).await;
    let app = app::start(&[("JWKS_URL", &server.jwks_url())]).await;
    let claims = Issuer::claims(&app.tenant, "jobs:read");
    assert_eq!(status(&app, &first.sign(&claims)).await, StatusCode::OK);
    assert_eq!(server.fetched(), [1, 0]);
    server.publish(&[&first, &second]);
    // Many tokens of the new key, and of keys that nobody has: one fetch, and perhaps one more for
    // those that came while it was under way.
    let strangers: Vec<Issuer> = (0..8).map(|n| Issuer::new(&format!("x{n}"))).collect();
    let tokens = strangers
        .iter()
        .chain([&second])
        .map(|issuer| issuer.sign(&claims));
    let statuses = join_all(tokens.map(async |token| status(&app, &token).await)).await;
    let accepted = statuses
        .iter()
        .filter(|status| **status == StatusCode::OK)
        .count();
    assert_eq!(accepted, 1);
    assert!(
        matches!(server.fetched(), [2, 0 | 1]),
        "{:?}",
        server.fetched()
    );
    server.refuse();
    assert_eq!(status(&app, &first.sign(&claims)).await, StatusCode::OK);
}

#[tokio::test]
async fn wrong_orders_are_refused_in_words() {
    let app = app::start(&[]).await;
    for (command, code, words) in [
        ("admin tenant create t --plan nonsense", 1, "does not exist"),
        ("admin plan create test", 1, "exists already"),
        ("admin plan create bad --burst 0", 1, "out of its range"),
        (
            "admin key revoke key_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a",
            1,
            "There is no key",
        ),
        (
            "admin key create --tenant nonsense --scopes jobs:read",
            64,
            "tenant_",
        ),
        ("admin nonsense", 64, "nonsense"),
    ] {
        let output = app.run(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{command}: {said}");
        assert!(said.contains(words), "{command}: {said}");
    }
    assert!(app.admin("admin plan list").to_string().contains("default"));
    assert!(
        app.admin("admin tenant list")
            .to_string()
            .contains(&app.tenant)
    );
    let check = app.run("check");
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stderr)
    );
}
