//! Open streams of events: they last as long as whoever opened them would be let in, and no longer,
//! even while they say nothing.

use std::time::{Duration, Instant};

use ops::testing::eventually;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    app::{self, App},
    issuer::{Issuer, Server},
    raw,
};

/// A stream that said one thing, and will say no more.
async fn open(app: &App, credential: &str) -> Response {
    let request = app
        .client
        .get(format!("{}/v1/jobs/job_idle/events", app.url))
        .bearer_auth(credential);
    let mut stream = request.send().await.unwrap();
    assert_eq!(stream.status(), StatusCode::OK);
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let first = stream.chunk().await.unwrap().unwrap();
    assert!(first.starts_with(b"id: 1"));
    stream
}

/// Whether it ends, in good order, within `deadline`.
async fn ends_within(mut stream: Response, deadline: Duration) -> bool {
    let end = tokio::time::timeout(deadline, stream.chunk()).await;
    matches!(end, Ok(Ok(None)))
}

async fn is_open(stream: &mut Response) -> bool {
    let quiet = Duration::from_millis(300);
    tokio::time::timeout(quiet, stream.chunk()).await.is_err()
}

fn claims(app: &App, subject: &str, seconds: i64) -> Value {
    let mut claims = Issuer::claims(&app.tenant, "jobs:read");
    claims["sub"] = json!(subject);
    claims["exp"] = json!(claims["iat"].as_i64().unwrap() + seconds);
    claims
}

#[tokio::test]
async fn a_silent_stream_ends_within_a_second_of_its_credential() {
    const AT_ONCE: Duration = Duration::from_secs(1);
    let (first, second) = (Issuer::new("st1"), Issuer::new("st2"));
    let server = Server::start(&[&first, &second]).await;
    let app = app::start(&[("JWKS_URL", &server.jwks_url())]).await;
    let listed = app.admin("admin key list");
    let id = listed[0]["key_id"].as_str().unwrap();
    let mut by_key = open(&app, &app.key).await;
    let by_revoked = open(&app, &first.sign(&claims(&app, "user_a", 600))).await;
    let mut by_good = open(&app, &first.sign(&claims(&app, "user_b", 600))).await;
    let by_withdrawn = open(&app, &second.sign(&claims(&app, "user_b", 600))).await;

    let tenant = &app.tenant;
    app.admin(&format!("admin revoke subject user_a --tenant {tenant}"));
    assert!(ends_within(by_revoked, AT_ONCE).await);
    assert!(is_open(&mut by_key).await && is_open(&mut by_good).await);
    // Of the issuer's keys one goes and one stays.
    server.publish(&[&first]);
    app.admin("admin jwks refresh");
    assert!(ends_within(by_withdrawn, AT_ONCE).await);
    assert!(is_open(&mut by_good).await);
    app.admin(&format!("admin key revoke {id}"));
    assert!(ends_within(by_key, AT_ONCE).await);
    assert!(is_open(&mut by_good).await);
    app.admin(&format!("admin tenant allow {} 192.0.2.0/24", app.tenant));
    assert!(ends_within(by_good, AT_ONCE).await);
}

#[tokio::test]
async fn an_answer_that_comes_piece_by_piece_is_cut_within_a_second_of_its_credentials_end() {
    let app = app::start(&[]).await;
    let token = |subject: &str| {
        let mut claims = Issuer::claims(&app.tenant, "billing:read");
        claims["sub"] = json!(subject);
        app.issuer.sign(&claims)
    };
    let open = async |subject: &str, what: &str| {
        let url = format!("{}/v1/usage/events?{what}", app.url);
        let request = app.client.get(url).bearer_auth(token(subject));
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.chunk().await.unwrap().is_some());
        answer
    };
    let mut revoked = [
        open("user_a", "endless").await,
        open("user_a", "silent").await,
    ];
    let mut good = open("user_b", "endless").await;
    let tenant = &app.tenant;
    app.admin(&format!("admin revoke subject user_a --tenant {tenant}"));
    for answer in &mut revoked {
        let cut = async {
            loop {
                match answer.chunk().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("it looks complete"),
                    Err(_) => return,
                }
            }
        };
        let cut = tokio::time::timeout(Duration::from_secs(1), cut).await;
        cut.expect("it is cut");
    }
    assert!(good.chunk().await.unwrap().is_some());
}

#[tokio::test]
async fn a_stream_ends_when_its_token_does() {
    let app = app::start(&[]).await;
    let claims = claims(&app, "user_a", 2);
    let ends = claims["exp"].as_i64().unwrap();
    let stream = open(&app, &app.issuer.sign(&claims)).await;
    assert!(ends_within(stream, Duration::from_secs(4)).await);
    let now = ops::clock::Clock::system().now().as_second();
    assert!((ends..=ends + 1).contains(&now), "{ends} {now}");
}

#[tokio::test]
async fn a_stream_ends_when_what_is_believed_is_too_old() {
    let app = app::start(&[("SNAPSHOT_MAX_AGE_SECONDS", "3")]).await;
    let stream = open(&app, &app.key).await;
    let client = app.database.pool().get().await.unwrap();
    let started = Instant::now();
    // Nobody hears of anything while this is held.
    let lock = "BEGIN; LOCK TABLE gateway.changes IN ACCESS EXCLUSIVE MODE";
    client.batch_execute(lock).await.unwrap();
    assert!(ends_within(stream, Duration::from_secs(8)).await);
    assert!(started.elapsed() > Duration::from_secs(1));
    client.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn what_is_no_stream_passes_too() {
    let app = app::start(&[]).await;
    for _ in 0..2 {
        let settled = app.get("/v1/jobs/job_settled/events").await;
        assert_eq!(settled.status(), StatusCode::NO_CONTENT);
        assert!(!settled.headers().contains_key("transfer-encoding"));
        assert_eq!(settled.bytes().await.unwrap().len(), 0);
    }
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_stream_along() {
    let app = app::start(&[]).await;
    drop(open(&app, &app.key).await);
    // The gateway lets go of the upstream too, and says how it went.
    let deadline = Duration::from_secs(5);
    eventually("the stream is noted", deadline, async || {
        let metrics = app.metrics().await;
        let ended = "gateway_requests_total{route=\"/v1/jobs/{job_id}/events\",\
                     method=\"GET\",plan=\"test\",status=\"2xx\"} 1";
        metrics.contains(ended).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_took_long_to_send_is_stated_with_the_plan_of_its_end() {
    let app = app::start(&[]).await;
    let stated = || {
        let claims = app.upstreams.seen.last().claims;
        (claims.active_jobs_limit, claims.priority)
    };
    let body = app::job("a").to_string();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k\r\n\
         Expect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        app.key,
        body.len()
    );
    let (most, last) = body.split_at(body.len() - 1);
    let mut stream = TcpStream::connect(app.listen).await.unwrap();
    stream.write_all((head + most).as_bytes()).await.unwrap();
    let let_in = raw::answer(&mut stream).await;
    assert!(let_in.starts_with("HTTP/1.1 100 "), "{let_in}");
    app.get("/v1/jobs").await;
    assert_eq!(stated(), (Some(50), 5));
    app.admin("admin plan update test --active-jobs 3 --priority 7");
    let known = async || {
        app.get("/v1/jobs").await;
        (stated() == (Some(3), 7)).then_some(())
    };
    eventually("the plan is known", Duration::from_secs(3), known).await;
    stream.write_all(last.as_bytes()).await.unwrap();
    let answer = raw::answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    assert_eq!(app.upstreams.seen.last().target, "/v1/jobs");
    assert_eq!(app.upstreams.seen.last().method, "POST");
    assert_eq!(stated(), (Some(3), 7));
}

#[tokio::test]
async fn what_a_revoked_key_had_begun_to_send_is_not_done() {
    let app = app::start(&[]).await;
    let scopes = "jobs:submit,jobs:read,keys:admin";
    let revoked = app.new_key(&app.tenant, scopes);
    let known = async || {
        let request = app.client.get(format!("{}/v1/jobs", app.url));
        Some(request.bearer_auth(&revoked).send().await.unwrap().status())
    };
    let until = async |wanted: StatusCode| {
        let is = async || known().await.filter(|status| *status == wanted);
        eventually("the key is known", Duration::from_secs(3), is).await;
    };
    until(StatusCode::OK).await;
    let mut begun = Vec::new();
    for (path, body) in [
        ("/v1/jobs", r#"{"type":"digest","payload":{"text":"a"}}"#),
        ("/v1/api-keys", r#"{"scopes":["jobs:read"]}"#),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {revoked}\r\n\
             Idempotency-Key: k\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(app.listen).await.unwrap();
        let (most, last) = body.split_at(body.len() - 1);
        stream.write_all((head + most).as_bytes()).await.unwrap();
        begun.push((stream, last));
    }
    let id = revoked.split('_').nth(1).unwrap();
    app.admin(&format!("admin key revoke key_{id}"));
    until(StatusCode::UNAUTHORIZED).await;
    let hits = app.upstreams.seen.count();
    for (mut stream, last) in begun {
        stream.write_all(last.as_bytes()).await.unwrap();
        let answer = raw::answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
    assert_eq!(app.upstreams.seen.count(), hits);
}
