//! Which tokens are believed: each algorithm with real keys, only as its key says, and an issuer
//! that is found by its name alone.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ops::testing::{eventually, status as admin_status};
use reqwest::StatusCode;
use ring::hmac;
use serde_json::json;

use crate::{
    app::{self, App, problem},
    issuer::{Issuer, Server},
};

async fn status(app: &App, token: &str) -> StatusCode {
    let request = app.client.get(format!("{}/v1/jobs", app.url));
    request.bearer_auth(token).send().await.unwrap().status()
}

#[tokio::test]
async fn each_algorithm_is_believed_and_only_that_of_the_key() {
    let issuers = [Issuer::rsa("rs"), Issuer::p256("es"), Issuer::new("ed")];
    let server = Server::start(&issuers.each_ref()).await;
    let app = app::start(&[("JWKS_URL", &server.jwks_url())]).await;
    let claims = Issuer::claims(&app.tenant, "jobs:read");
    for issuer in &issuers {
        let algorithm = issuer.algorithm();
        let good = issuer.sign(&claims);
        assert_eq!(status(&app, &good).await, StatusCode::OK, "{algorithm}");
        let kid = &issuer.jwk()["kid"];
        // Signed by the right key, but it says another algorithm.
        for other in [
            "RS256", "ES256", "EdDSA", "HS256", "RS512", "PS256", "none", "None",
        ] {
            if other == algorithm {
                continue;
            }
            let token = issuer.sign_as(&json!({ "alg": other, "kid": kid }), &claims);
            let answered = status(&app, &token).await;
            assert_eq!(answered, StatusCode::UNAUTHORIZED, "{algorithm} as {other}");
        }
        // Signed by another key under its name.
        for other in issuers
            .iter()
            .filter(|other| other.algorithm() != algorithm)
        {
            let token = other.sign_as(&json!({ "alg": other.algorithm(), "kid": kid }), &claims);
            assert_eq!(status(&app, &token).await, StatusCode::UNAUTHORIZED);
        }
        // The public key, which everyone has, as if it were a shared secret.
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "alg": "HS256", "kid": kid });
        let signed = format!("{}.{}", part(&header), part(&claims));
        for secret in [issuer.jwk().to_string(), issuer.jwk()["x"].to_string()] {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
            let answered = status(&app, &format!("{signed}.{tag}")).await;
            assert_eq!(answered, StatusCode::UNAUTHORIZED);
        }
        // No signature at all.
        let header = json!({ "alg": "none", "kid": kid });
        let bare = format!("{}.{}.", part(&header), part(&claims));
        assert_eq!(status(&app, &bare).await, StatusCode::UNAUTHORIZED);
        // One bit of the signature.
        let mut altered = good.into_bytes();
        let at = altered.len() - 10;
        altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
        let altered = String::from_utf8(altered).unwrap();
        assert_eq!(status(&app, &altered).await, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn an_issuer_is_found_by_its_name_alone_and_must_say_that_it_is_the_one() {
    let (first, second) = (Issuer::p256("d1"), Issuer::new("d2"));
    let server = Server::start(&[&first]).await;
    let changes = [("JWT_ISSUER", &server.url[..]), ("JWKS_TTL_SECONDS", "1")];
    let app = app::start(&changes).await;
    let mut claims = Issuer::claims(&app.tenant, "jobs:read");
    claims["iss"] = json!(server.url);
    assert_eq!(status(&app, &first.sign(&claims)).await, StatusCode::OK);
    server.publish(&[&first, &second]);
    assert_eq!(status(&app, &second.sign(&claims)).await, StatusCode::OK);
    // Another's configuration leads nowhere; what is known stays in use.
    server.claim_to_be("https://other.example");
    server.publish(&[&second]);
    let asked = server.asked();
    let again = async || (server.asked() > asked + 1).then_some(());
    eventually("it was asked twice", Duration::from_secs(8), again).await;
    assert_eq!(status(&app, &first.sign(&claims)).await, StatusCode::OK);
    assert_eq!(admin_status(app.admin, "/readyz").await, Some(200));
    server.claim_to_be(&server.url);
    eventually("the issuer is back", Duration::from_secs(5), async || {
        let answered = status(&app, &first.sign(&claims)).await;
        (answered == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
}

#[tokio::test]
async fn tokens_end_and_are_not_good_for_others() {
    let app = app::start(&[]).await;
    let good = Issuer::claims(&app.tenant, "jobs:read");
    let now = good["iat"].as_i64().unwrap();
    for (change, words) in [
        (json!({ "exp": now - 1 }), "expired"),
        (json!({ "exp": now + 3_600 }), "lifetime"),
        (json!({ "iss": "https://other" }), "issuer"),
        (json!({ "aud": "other" }), "audience"),
        (json!({ "nbf": now + 60 }), "not valid yet"),
        (json!({ "tenant_id": "nonsense" }), "claim"),
    ] {
        let mut claims = good.clone();
        let change = change.as_object().unwrap();
        claims.as_object_mut().unwrap().extend(change.clone());
        let request = app.client.get(format!("{}/v1/jobs", app.url));
        let answer = request.bearer_auth(app.issuer.sign(&claims)).send().await;
        let problem = problem(answer.unwrap()).await;
        assert_eq!(problem["code"], "INVALID_TOKEN");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{detail}");
    }
}
