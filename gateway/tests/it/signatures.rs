//! Signed requests (RFC 9421) of tenants that must sign them.

use std::{fmt::Write as _, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ops::{
    clock::Clock,
    testing::{eventually, free_address},
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use ring::{digest, hmac};
use serde_json::{Value, json};

use crate::app::{self, App, problem};

const KEY: &str = "5555555555555555555555555555555555555555555555555555555555555555";

/// A client that signs.
struct Signer {
    id: String,
    key: hmac::Key,
}

/// What is signed, and how.
struct Wish<'a> {
    method: &'a str,
    path: &'a str,
    components: &'a [&'a str],
    headers: &'a [(&'a str, String)],
    age: i64,
    parameters: String,
}

impl Signer {
    fn new(created: &Value) -> Self {
        let secret = STANDARD
            .decode(created["secret"].as_str().unwrap())
            .unwrap();
        Self {
            id: created["signing_key_id"].as_str().unwrap().to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
        }
    }

    fn sign(&self, app: &App, wish: &Wish<'_>) -> [(&'static str, String); 2] {
        let host = app.listen.to_string();
        let (path, query) = wish.path.split_once('?').unwrap_or((wish.path, ""));
        let mut base = String::new();
        for name in wish.components {
            let value = match *name {
                "@method" => wish.method.to_owned(),
                "@target-uri" => format!("https://{host}{}", wish.path),
                "@path" => path.to_owned(),
                "@query" => format!("?{query}"),
                field => {
                    let found = wish.headers.iter().find(|(name, _)| *name == field);
                    found.map(|(_, value)| value.clone()).unwrap_or_default()
                }
            };
            writeln!(base, "\"{name}\": {value}").unwrap();
        }
        let names: Vec<String> = wish
            .components
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect();
        let created = Clock::system().now().as_second() - wish.age;
        let input = format!(
            "({});created={created};keyid=\"{}\"{}",
            names.join(" "),
            self.id,
            wish.parameters
        );
        write!(base, "\"@signature-params\": {input}").unwrap();
        let tag = STANDARD.encode(hmac::sign(&self.key, base.as_bytes()));
        let (input, signature) = (format!("sig1={input}"), format!("sig1=:{tag}:"));
        [("signature-input", input), ("signature", signature)]
    }
}

fn nonce() -> String {
    format!(";alg=\"hmac-sha256\";nonce=\"{}\"", uuid::Uuid::new_v4())
}

fn digest_of(body: &str) -> String {
    let hash = digest::digest(&digest::SHA256, body.as_bytes());
    format!("sha-256=:{}:", STANDARD.encode(hash))
}

fn with(mut request: RequestBuilder, headers: &[(&'static str, String)]) -> RequestBuilder {
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    request
}

/// A GET that is signed as it must be, but for the change.
async fn get(app: &App, signer: &Signer, change: impl Fn(&mut Wish<'_>)) -> Response {
    let mut wish = Wish {
        method: "GET",
        path: "/v1/jobs?limit=3",
        components: &["@method", "@path", "@query"],
        headers: &[],
        age: 0,
        parameters: nonce(),
    };
    change(&mut wish);
    let request = app.request(Method::GET, "/v1/jobs?limit=3");
    let fields = signer.sign(app, &wish);
    with(request, &fields).send().await.unwrap()
}

async fn detail(response: Response) -> String {
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let problem = problem(response).await;
    problem["detail"].as_str().unwrap().to_owned()
}

/// An app whose tenant must sign, with a key to do so.
async fn start() -> (App, Signer) {
    start_with(&[]).await
}

async fn start_with(changes: &[(&str, &str)]) -> (App, Signer) {
    let app = app::start(&[changes, &[("SIGNATURES_KEY", KEY)]].concat()).await;
    let early = app.run(&format!("admin tenant require-signatures {}", app.tenant));
    assert_eq!(early.status.code(), Some(1), "it has no key to sign with");
    let signer = Signer::new(&app.admin(&format!("admin signing-key create {}", app.tenant)));
    app.admin(&format!("admin tenant require-signatures {}", app.tenant));
    eventually(
        "signatures are wanted",
        Duration::from_secs(2),
        async || {
            let answer = app.get("/v1/jobs").await;
            (answer.status() == StatusCode::UNAUTHORIZED).then_some(())
        },
    )
    .await;
    (app, signer)
}

#[tokio::test]
async fn a_signed_request_passes_once() {
    let (mut app, signer) = start().await;
    assert_eq!(get(&app, &signer, |_| ()).await.status(), StatusCode::OK);
    let by_uri = get(&app, &signer, |wish| {
        wish.components = &["@method", "@target-uri"];
    })
    .await;
    assert_eq!(by_uri.status(), StatusCode::OK);
    // The same one again, here and at another gateway; then another one with the same nonce.
    let wish = |age| Wish {
        method: "GET",
        path: "/v1/jobs",
        components: &["@method", "@path", "@query"],
        headers: &[],
        age,
        parameters: ";alg=\"hmac-sha256\";nonce=\"once\"".to_owned(),
    };
    let second = app.second().await;
    let fields = signer.sign(&app, &wish(0));
    let send = async |url: &str, fields: &[(&'static str, String)]| {
        let request = app
            .client
            .get(format!("{url}/v1/jobs"))
            .bearer_auth(&app.key);
        with(request, fields).send().await.unwrap()
    };
    assert_eq!(send(&app.url, &fields).await.status(), StatusCode::OK);
    for url in [&app.url, &second] {
        assert!(
            detail(send(url, &fields).await)
                .await
                .contains("used before")
        );
    }
    let other = signer.sign(&app, &wish(1));
    assert!(
        detail(send(&app.url, &other).await)
            .await
            .contains("used before")
    );
}

#[tokio::test]
async fn without_redis_a_gateway_still_knows_what_it_saw() {
    let nowhere = format!("redis://{}", free_address());
    let (app, signer) = start_with(&[("REDIS_URL", &nowhere)]).await;
    let once =
        |wish: &mut Wish<'_>| ";alg=\"hmac-sha256\";nonce=\"1\"".clone_into(&mut wish.parameters);
    // Without Redis limits start empty. What they refuse uses no signature up.
    let answered = async || {
        eventually("there is room", Duration::from_secs(3), async || {
            let answer = get(&app, &signer, once).await;
            (answer.status() != StatusCode::TOO_MANY_REQUESTS).then_some(answer)
        })
        .await
    };
    assert_eq!(answered().await.status(), StatusCode::OK);
    assert!(detail(answered().await).await.contains("used before"));
}

#[tokio::test]
async fn a_body_is_signed_by_its_digest() {
    let (app, signer) = start().await;
    let body = app::job("hello").to_string();
    let seen = app.upstreams.seen.count();
    let headers = [
        ("idempotency-key", "k1".to_owned()),
        ("content-digest", digest_of(&body)),
    ];
    let all = [
        "@method",
        "@target-uri",
        "content-digest",
        "idempotency-key",
    ];
    let post = async |components: &[&str], sent: &str, headers: &[(&'static str, String)]| {
        let wish = Wish {
            method: "POST",
            path: "/v1/jobs",
            components,
            headers,
            age: 0,
            parameters: nonce(),
        };
        let request = app.request(Method::POST, "/v1/jobs").body(sent.to_owned());
        let request = request.header("content-type", "application/json");
        let fields = signer.sign(&app, &wish);
        with(with(request, headers), &fields).send().await.unwrap()
    };
    assert_eq!(
        post(&all, &body, &headers).await.status(),
        StatusCode::ACCEPTED
    );
    // A retry is signed anew, and replayed.
    let again = post(&all, &body, &headers).await;
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    let altered = body.replace("hello", "jello");
    assert!(
        detail(post(&all, &altered, &headers).await)
            .await
            .contains("not that of the body")
    );
    let unsigned = post(
        &["@method", "@target-uri", "idempotency-key"],
        &body,
        &headers,
    )
    .await;
    assert!(detail(unsigned).await.contains("content-digest"));
    let keyless = post(
        &["@method", "@target-uri", "content-digest"],
        &body,
        &headers,
    )
    .await;
    assert!(detail(keyless).await.contains("idempotency-key"));
    let sha512 = [
        headers[0].clone(),
        ("content-digest", "sha-512=:AAAA:".to_owned()),
    ];
    assert!(
        detail(post(&all, &body, &sha512).await)
            .await
            .contains("sha-256")
    );
    assert_eq!(app.upstreams.seen.count(), seen + 1);
}

#[tokio::test]
async fn what_is_not_signed_as_it_must_be_is_refused_in_words() {
    let (app, signer) = start().await;
    let refused =
        async |change: &dyn Fn(&mut Wish<'_>)| detail(get(&app, &signer, change).await).await;
    let plain = |text: &'static str| move |wish: &mut Wish<'_>| wish.parameters = text.to_owned();
    assert!(
        detail(app.get("/v1/jobs").await)
            .await
            .contains("must be signed")
    );
    for (words, said) in [
        (
            "@method",
            refused(&|wish| wish.components = &["@path", "@query"]).await,
        ),
        (
            "@target-uri",
            refused(&|wish| wish.components = &["@method", "@path"]).await,
        ),
        (
            "does not fit",
            refused(&|wish| wish.path = "/v1/jobs?limit=4").await,
        ),
        ("does not fit", refused(&|wish| wish.method = "POST").await),
        (
            "does not fit",
            refused(&|wish| wish.components = &["@method", "@target-uri", "x"]).await,
        ),
        (
            "twice",
            refused(&|wish| wish.components = &["@method", "@method"]).await,
        ),
        ("created", refused(&|wish| wish.age = 301).await),
        ("created", refused(&|wish| wish.age = -60).await),
        ("alg", refused(&plain("")).await),
        ("alg", refused(&plain(";alg=\"rsa-pss-sha512\"")).await),
        (
            "nonce",
            refused(&plain(";alg=\"hmac-sha256\";nonce=5")).await,
        ),
        (
            "expired",
            refused(&plain(";alg=\"hmac-sha256\";expires=1")).await,
        ),
        ("malformed", refused(&plain(";alg=\"hmac-sha256")).await),
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // One of another tenant, and one that was altered.
    let other = app.admin("admin tenant create t2 --plan test");
    let other = format!(
        "admin signing-key create {}",
        other["tenant_id"].as_str().unwrap()
    );
    let others = Signer::new(&app.admin(&other));
    assert!(
        detail(get(&app, &others, |_| ()).await)
            .await
            .contains("keyid")
    );
    let forger = Signer {
        id: signer.id.clone(),
        key: others.key,
    };
    assert!(
        detail(get(&app, &forger, |_| ()).await)
            .await
            .contains("does not fit")
    );
}

#[tokio::test]
async fn signing_keys_are_rotated_with_an_overlap_and_lie_encrypted() {
    let (app, old) = start().await;
    let rotated = app.admin(&format!("admin signing-key rotate {} --overlap 2s", old.id));
    let secret = rotated["secret"].as_str().unwrap();
    let new = Signer::new(&rotated);
    let deadline = Duration::from_secs(4);
    eventually("the new key is known", deadline, async || {
        (get(&app, &new, |_| ()).await.status() == StatusCode::OK).then_some(())
    })
    .await;
    eventually("the old key ends", deadline, async || {
        (get(&app, &old, |_| ()).await.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let client = app.database.pool().get().await.unwrap();
    let sql = "SELECT encode(sealed, 'base64') FROM gateway.signing_keys";
    for row in client.query(sql, &[]).await.unwrap() {
        assert!(!row.get::<_, &str>(0).contains(&secret[..20]));
    }
    let listed = app
        .admin(&format!("admin signing-key list {}", app.tenant))
        .to_string();
    assert!(
        listed.contains(&new.id) && !listed.contains("secret"),
        "{listed}"
    );
    app.admin(&format!("admin signing-key revoke {}", new.id));
    eventually("the key is revoked", deadline, async || {
        (get(&app, &new, |_| ()).await.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    app.admin(&format!(
        "admin tenant require-signatures {} --off",
        app.tenant
    ));
    eventually("nothing need be signed", deadline, async || {
        (app.get("/v1/jobs").await.status() == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(
        json!(null),
        app.get("/v1/jobs").await.json::<Value>().await.unwrap()["secret"]
    );
}
