//! Following a job by server-sent events.

use std::collections::BTreeMap;

use axum::{
    body::to_bytes,
    http::{Request, StatusCode},
};
use contracts::assertion::HEADER;
use futures::{StreamExt as _, future::join};
use jobs::store::{Batch, Place, confirm};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use crate::{
    app::{PATIENCE, TestApp, Who, digest, sealed},
    confirm::{finality, root},
};

/// The numbers and types of a stream's events, read until it closes.
async fn follow(app: &TestApp, who: &Who, job: &str, last: Option<u64>) -> Vec<(u64, String)> {
    let mut request = Request::get(format!("/v1/jobs/{job}/events"));
    if let Some(last) = last {
        request = request.header("last-event-id", last.to_string());
    }
    let response = app.send(who, request.body(String::new()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let whole = tokio::time::timeout(PATIENCE, to_bytes(response.into_body(), 1 << 20));
    let text = String::from_utf8(whole.await.unwrap().unwrap().to_vec()).unwrap();
    let events = text.split("\n\n").filter(|event| event.contains("data:"));
    events.map(|event| parse(event, job)).collect()
}

fn parse(event: &str, job: &str) -> (u64, String) {
    let fields: BTreeMap<&str, &str> = event
        .lines()
        .filter_map(|line| line.split_once(": "))
        .collect();
    let data: Value = serde_json::from_str(fields["data"]).unwrap();
    assert_eq!(data["job"]["job_id"], job);
    assert_eq!(data["event_number"].to_string(), fields["id"]);
    assert_eq!(data["type"], fields["event"]);
    (fields["id"].parse().unwrap(), fields["event"].to_owned())
}

fn expected(events: &[(u64, &str)]) -> Vec<(u64, String)> {
    events
        .iter()
        .map(|(number, kind)| (*number, format!("job.{kind}")))
        .collect()
}

#[tokio::test]
async fn a_stream_tells_everything_in_order_and_closes_after_the_end() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &digest("a")).await;
    let worker = app.worker(1);
    let (told, stepped) = join(follow(&app, &who, &job, None), worker.step()).await;
    stepped.unwrap();
    assert_eq!(
        told,
        expected(&[(1, "submitted"), (2, "started"), (3, "completed")])
    );
    assert_eq!(
        follow(&app, &who, &job, Some(2)).await,
        expected(&[(3, "completed")])
    );
    let path = format!("/v1/jobs/{job}/events");
    let nothing_more = Request::get(&path)
        .header("last-event-id", "3")
        .body(String::new());
    let answer = app.ask(&who, nothing_more.unwrap()).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let nonsense = Request::get(&path)
        .header("last-event-id", "x")
        .body(String::new());
    assert_eq!(
        app.ask(&who, nonsense.unwrap()).await.code(),
        "INVALID_REQUEST"
    );
}

#[tokio::test]
async fn a_stream_waits_for_the_confirmation_that_was_asked_for() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &sealed("a")).await;
    app.worker(1).step().await.unwrap();
    let confirming = async {
        let mut client = app.pool.get().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let place = Place {
            tenant: who.claims.tenant,
            finality: finality(&app),
        };
        let batch = Batch {
            jobs_root: root(&app, &[(&job, place.finality.sequence)]).await,
            places: [(job.parse().unwrap(), place)].into(),
        };
        let confirmed = confirm(&transaction, &batch, app.clock.now()).await;
        confirmed.unwrap().unwrap();
        transaction.commit().await.unwrap();
    };
    let (told, ()) = join(follow(&app, &who, &job, Some(2)), confirming).await;
    assert_eq!(told, expected(&[(3, "completed"), (4, "confirmed")]));
}

#[tokio::test]
async fn one_tenant_opens_no_more_streams_than_its_share() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &digest("a")).await;
    let request = || {
        Request::get(format!("/v1/jobs/{job}/events"))
            .body(String::new())
            .unwrap()
    };
    let (first, second) = join(app.send(&who, request()), app.send(&who, request())).await;
    assert_eq!(
        (first.status(), second.status()),
        (StatusCode::OK, StatusCode::OK)
    );
    let third = app.ask(&who, request()).await;
    assert_eq!(third.code(), "SERVICE_UNAVAILABLE");

    let other = app.somebody();
    let others = app.submit(&other, &digest("b")).await;
    let path = format!("/v1/jobs/{others}/events");
    let others = Request::get(path).body(String::new()).unwrap();
    assert_eq!(app.send(&other, others).await.status(), StatusCode::OK);
    drop((first, second));
    assert_eq!(app.send(&who, request()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_websocket_tells_the_same_from_the_event_that_is_asked_for() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &digest("a")).await;
    app.worker(1).step().await.unwrap();
    let path = format!("/v1/jobs/{job}/events?after=1");
    let address = app.serve().await;
    let mut request = format!("ws://{address}{path}")
        .into_client_request()
        .unwrap();
    let assertion = app.assertion(&who, "GET", &path, b"").parse().unwrap();
    request.headers_mut().insert(HEADER, assertion);
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    let mut told = Vec::new();
    while let Some(message) = socket.next().await {
        match message.unwrap() {
            Message::Text(text) => {
                let event: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(event["job"]["job_id"], job);
                let kind = event["type"].as_str().unwrap().to_owned();
                told.push((event["event_number"].as_u64().unwrap(), kind));
            }
            Message::Close(_) => break,
            _ => {}
        }
    }
    assert_eq!(told, expected(&[(2, "started"), (3, "completed")]));
}
