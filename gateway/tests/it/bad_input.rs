//! Everything that is refused: with which status, code, pointer and headers, and that nothing of it
//! reaches the upstream.

use std::time::Duration;

use ops::clock::Clock;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    app::{self, App, job, problem},
    issuer::Issuer,
};

const MIB: usize = 1_024 * 1_024;

/// The answer to `bytes` on a connection of their own, up to its end.
async fn raw(app: &App, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(app.listen).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("it closes")
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn refusal(app: &App, credential: Option<&str>) -> Value {
    let mut request = app.client.get(format!("{}/v1/jobs", app.url));
    if let Some(credential) = credential {
        request = request.bearer_auth(credential);
    }
    let response = request.send().await.unwrap();
    if response.status() == StatusCode::UNAUTHORIZED {
        assert!(response.headers().contains_key("www-authenticate"));
    }
    problem(response).await
}

#[tokio::test]
async fn a_bad_credential_is_401_and_a_missing_scope_403() {
    let app = app::start(&[]).await;
    let other = Issuer::new("k1");
    let claims = Issuer::claims(&app.tenant, "jobs:read");
    let with = |change: Value| {
        let mut claims = claims.clone();
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        app.issuer.sign(&claims)
    };
    let now = Clock::system().now().as_second();
    let unknown = Issuer::new("k9").sign(&claims);
    let none = {
        let token = app
            .issuer
            .sign_as(&json!({ "alg": "none", "kid": "k1" }), &claims);
        format!("{}.", token.rsplit_once('.').unwrap().0)
    };
    let mistyped = format!("{}0", &app.key[..app.key.len() - 1]).replace("jsk_0", "jsk_1");
    let swapped = format!(
        "{}{}",
        &app.key[..8],
        app.key[8..].chars().rev().collect::<String>()
    );
    for credential in [
        None,
        Some("jsk_nonsense"),
        Some(mistyped.as_str()),
        Some(swapped.as_str()),
        Some("a.b.c"),
        Some(none.as_str()),
        Some(unknown.as_str()),
        Some(other.sign(&claims).as_str()),
        Some(with(json!({ "exp": now - 1 })).as_str()),
        Some(with(json!({ "iss": "https://other" })).as_str()),
        Some(with(json!({ "aud": "other" })).as_str()),
        Some(with(json!({ "exp": now + 3_600 })).as_str()),
        Some(with(json!({ "tenant_id": "tenant_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a" })).as_str()),
        // HS256 with the public key as secret: the algorithm is the key's, never the token's.
        Some(
            app.issuer
                .sign_as(&json!({ "alg": "HS256", "kid": "k1" }), &claims)
                .as_str(),
        ),
    ] {
        let problem = refusal(&app, credential).await;
        assert_eq!(problem["code"], "INVALID_TOKEN", "{credential:?}");
    }
    assert_eq!(app.upstreams.seen.count(), 0);
    // The same claims under the right key are fine, also from the cache.
    for _ in 0..2 {
        let request = app.client.get(format!("{}/v1/jobs", app.url));
        let response = request
            .bearer_auth(app.issuer.sign(&claims))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    let token = app.issuer.sign(&claims);
    let request = app
        .client
        .post(format!("{}/v1/jobs", app.url))
        .bearer_auth(token);
    let problem = problem(request.send().await.unwrap()).await;
    assert_eq!(
        (&problem["status"], &problem["code"]),
        (&json!(403), &json!("ACCESS_DENIED"))
    );
    assert!(problem["detail"].as_str().unwrap().contains("jobs:submit"));
}

#[tokio::test]
async fn a_bad_body_is_refused_with_the_pointer_of_the_member_at_fault() {
    let app = app::start(&[]).await;
    let before = app.upstreams.seen.count();
    for (body, pointer) in [
        ("{", None),
        ("[]", None),
        (r#"{"payload":{"text":"a"}}"#, Some("/type")),
        (r#"{"type":"digest"}"#, Some("/payload")),
        (r#"{"type":"nonsense","payload":{}}"#, Some("/type")),
        (
            r#"{"type":"sleep","payload":{"milliseconds":"x"}}"#,
            Some("/payload/milliseconds"),
        ),
    ] {
        let problem = problem(app.post("/v1/jobs", "k", body).send().await.unwrap()).await;
        assert_eq!(problem["code"], "JOB_VALIDATION_FAILED", "{body}");
        if let Some(pointer) = pointer {
            assert_eq!(
                problem["errors"][0]["pointer"], pointer,
                "{body}: {problem}"
            );
        }
    }
    let plain = app
        .request(Method::POST, "/v1/jobs")
        .header("idempotency-key", "k");
    let plain = plain
        .header("content-type", "text/plain")
        .body(job("a").to_string());
    let answer = problem(plain.send().await.unwrap()).await;
    assert_eq!(
        (&answer["status"], &answer["code"]),
        (&json!(415), &json!("INVALID_CONTENT_TYPE"))
    );
    let keyless = app
        .request(Method::POST, "/v1/jobs")
        .json(&job("a"))
        .send()
        .await
        .unwrap();
    assert_eq!(problem(keyless).await["code"], "IDEMPOTENCY_KEY_REQUIRED");
    for key in ["", "a b", &"k".repeat(256), "\"unclosed"] {
        let answer = problem(app.submit(key, "a").await).await;
        assert_eq!(
            (&answer["status"], &answer["code"]),
            (&json!(400), &json!("INVALID_REQUEST")),
            "{key}"
        );
    }
    assert_eq!(app.upstreams.seen.count(), before);
}

#[tokio::test]
async fn one_byte_too_many_is_413_however_it_is_sent_and_300_kb_pass() {
    let app = app::start(&[]).await;
    let large = job(&"x".repeat(MIB)).to_string();
    let with_length = app.post("/v1/jobs", "k1", &large).send().await.unwrap();
    let answer = problem(with_length).await;
    assert_eq!(
        (&answer["code"], &answer["max_size"]),
        (&json!("PAYLOAD_TOO_LARGE"), &json!(MIB))
    );
    let chunks: Vec<Result<Vec<u8>, std::io::Error>> = large
        .as_bytes()
        .chunks(60_000)
        .map(|chunk| Ok(chunk.to_vec()))
        .collect();
    let chunked = app
        .request(Method::POST, "/v1/jobs")
        .header("content-type", "application/json")
        .header("idempotency-key", "k2")
        .body(reqwest::Body::wrap_stream(futures::stream::iter(chunks)));
    let answer = problem(chunked.send().await.unwrap()).await;
    assert_eq!(
        (&answer["code"], &answer["max_size"]),
        (&json!("PAYLOAD_TOO_LARGE"), &json!(MIB))
    );
    assert_eq!(app.upstreams.seen.count(), 0);
    let accepted = app.submit("k3", &"x".repeat(300_000)).await;
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    assert!(app.upstreams.seen.last().body.len() > 300_000);
}

#[tokio::test]
async fn routes_that_do_not_exist_are_404_and_methods_405() {
    let app = app::start(&[]).await;
    let answer = problem(app.get("/v1/nothing").await).await;
    assert_eq!(
        (&answer["code"], &answer["instance"]),
        (&json!("NOT_FOUND"), &json!("/..."))
    );
    let response = app.request(Method::PUT, "/v1/jobs").send().await.unwrap();
    assert_eq!(response.headers()["allow"], "POST, GET");
    assert_eq!(problem(response).await["code"], "METHOD_NOT_ALLOWED");
    let with_body = app
        .request(Method::GET, "/v1/jobs")
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(problem(with_body).await["code"], "INVALID_REQUEST");
    for path in ["/v1/jobs/a%2fb", "/v1//jobs", "/v1/jobs/"] {
        assert_eq!(
            app.get(path).await.status(),
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_the_connection_closed() {
    let app = app::start(&[]).await;
    let smuggled = "0\r\n\r\nGET /v1/jobs HTTP/1.1\r\nHost: a\r\n\r\n";
    for headers in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 4\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: +4\r\n",
        "Upgrade: websocket\r\nConnection: upgrade\r\n",
        "Jobseal_Assertion: forged\r\n",
        "X_Tenant_Id: forged\r\n",
        "A: b\nC: d\r\n",
    ] {
        let request = format!("POST /v1/jobs HTTP/1.1\r\nHost: a\r\n{headers}\r\n{smuggled}");
        let answer = raw(&app, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{headers}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{headers}: {answer}"
        );
    }
    let old = "POST /v1/jobs HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(raw(&app, old.as_bytes()).await.contains(" 400 "));
    let tunnel = raw(&app, b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n").await;
    assert!(
        tunnel.contains(" 400 ") && tunnel.contains("INVALID_REQUEST"),
        "{tunnel}"
    );
    assert_eq!(app.upstreams.seen.count(), 0);
}

#[tokio::test]
async fn malformed_chunks_are_400_and_close_the_connection() {
    let app = app::start(&[]).await;
    for body in [
        "0x28\r\n{}\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}x0\r\n\r\n",
    ] {
        let request = format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
             Idempotency-Key: k\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\n\r\n{body}",
            app.key
        );
        let answer = raw(&app, request.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("INVALID_REQUEST"),
            "{body:?}: {answer}"
        );
    }
    assert_eq!(app.upstreams.seen.count(), 0);
}

#[tokio::test]
async fn a_slow_body_is_cut() {
    let app = app::start(&[("BODY_DEADLINE_MS", "400")]).await;
    let request = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{",
        app.key
    );
    let answer = raw(&app, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(
        answer.contains("REQUEST_TIMEOUT") && answer.contains("onnection: close"),
        "{answer}"
    );
}
