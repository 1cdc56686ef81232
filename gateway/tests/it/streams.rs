//! Streams: how many there may be and for how long, and how they end.

use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use nix::sys::socket::{setsockopt, sockopt};
use ops::testing::eventually;
use reqwest::{Method, Response, StatusCode};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self, Message, client::IntoClientRequest as _, protocol::frame::coding::CloseCode,
    },
};

use crate::{
    app::{self, App, problem},
    upstream::Upstreams,
};

async fn follow(app: &App, job: &str) -> Response {
    let path = format!("/v1/jobs/{job}/events");
    let response = app.request(Method::GET, &path).send().await.unwrap();
    // A client that comes back comes by a new connection.
    assert_eq!(response.headers()["connection"], "close");
    response
}

/// Reads a stream to its end, which must be a clean one.
async fn read(mut stream: Response) -> usize {
    let mut events = 0;
    while let Some(chunk) = stream.chunk().await.expect("it ends cleanly") {
        events += chunk.windows(4).filter(|bytes| bytes == b"id: ").count();
    }
    events
}

#[tokio::test]
async fn streams_are_told_to_come_back_when_the_process_ends() {
    let mut app = app::start(&[]).await;
    let mut stream = follow(&app, "job_endless").await;
    stream.chunk().await.unwrap().unwrap();
    let reading = async {
        let started = Instant::now();
        (read(stream).await, started.elapsed())
    };
    let ending = async {
        app.gateway.stop();
    };
    let ((events, took), ()) = tokio::join!(reading, ending);
    assert!(events > 3, "they go on through the drain: {events}");
    assert!(
        took < Duration::from_secs(8),
        "nobody waits for them: {took:?}"
    );
    assert_eq!(app.gateway.exit_code(Duration::from_secs(5)), Some(0));
}

#[tokio::test]
async fn a_tenant_may_have_so_many_streams_and_the_process_so_many_more() {
    let app = app::start(&[("TENANT_STREAMS_MAX", "2"), ("STREAMS_MAX", "3")]).await;
    let first = follow(&app, "job_endless").await;
    let second = follow(&app, "job_endless").await;
    let refused = app.get("/v1/jobs/job_endless/events").await;
    assert_eq!(refused.headers()["retry-after"], "5");
    assert_eq!(problem(refused).await["code"], "RATE_LIMIT_EXCEEDED");
    let tenant = app.admin("admin tenant create t2 --plan test");
    let key = app.new_key(tenant["tenant_id"].as_str().unwrap(), "jobs:read");
    let others = || {
        let url = format!("{}/v1/jobs/job_endless/events", app.url);
        app.client.get(url).bearer_auth(&key).send()
    };
    let opened = async || {
        let response = others().await.unwrap();
        (response.status() == StatusCode::OK).then_some(response)
    };
    let third = eventually("the key is known", Duration::from_secs(5), opened).await;
    let refused = problem(others().await.unwrap()).await;
    assert_eq!(refused["code"], "SERVICE_UNAVAILABLE");
    let metrics = app.metrics().await;
    assert!(metrics.contains("gateway_streams_open 3"), "{metrics}");
    drop((first, second, third));
    let gone = async || {
        app.metrics()
            .await
            .contains("gateway_streams_open 0")
            .then_some(())
    };
    eventually("who left is not counted", Duration::from_secs(5), gone).await;
    assert_eq!(follow(&app, "job_1").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn streams_end_cleanly_when_they_are_silent_or_old() {
    let app = app::start(&[("STREAM_IDLE_SECONDS", "1"), ("STREAM_MAX_SECONDS", "2")]).await;
    assert_eq!(read(follow(&app, "job_silent").await).await, 1);
    assert!(read(follow(&app, "job_endless").await).await > 5);
    let metrics = app.metrics().await;
    for reason in ["idle", "longest"] {
        let line = format!("gateway_streams_ended_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

/// Waits until the only stream is over, and how it ended.
async fn over(app: &App, reason: &str) {
    let line = format!("gateway_streams_ended_total{{reason=\"{reason}\"}} 1");
    let over = async || {
        let metrics = app.metrics().await;
        let ended = metrics.contains(&line) && metrics.contains("gateway_streams_open 0");
        ended.then_some(())
    };
    // Much sooner than a write is given up.
    eventually("it is over", Duration::from_secs(10), over).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_not_waited_for_beyond_a_limit() {
    for limit in ["STREAM_MAX_SECONDS", "STREAM_IDLE_SECONDS"] {
        let app = app::start(&[(limit, "2")]).await;
        let mut client = TcpStream::connect(app.listen).await.unwrap();
        let path = "/v1/jobs/job_flood/events";
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer");
        let request = format!("{head} {}\r\n\r\n", app.key);
        client.write_all(request.as_bytes()).await.unwrap();
        over(&app, "client").await;
        drop(client);
    }
}

#[tokio::test]
async fn an_upstream_that_takes_nothing_is_not_waited_for_beyond_a_limit() {
    for (limit, reason) in [
        ("STREAM_MAX_SECONDS", "longest"),
        ("STREAM_IDLE_SECONDS", "idle"),
    ] {
        // So small that it is full before a client has said as much as it may.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        setsockopt(&socket, sockopt::TcpMaxSeg, &536).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(16).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Upstreams::start_at(listener);
        let app = app::start(&[("JOBS_URL", &url), (limit, "2")]).await;
        let path = "/v1/jobs/job_deaf/events";
        let mut socket = open_socket(&app, path, &app.key).await.unwrap();
        for _ in 0..20 {
            let said = Message::text("x".repeat(10_000));
            socket.send(said).await.unwrap();
        }
        over(&app, reason).await;
    }
}

type Socket = WebSocketStream<TcpStream>;

async fn open_socket(app: &App, path: &str, key: &str) -> Result<Socket, tungstenite::Error> {
    let mut request = format!("ws://{}{path}", app.listen)
        .into_client_request()
        .unwrap();
    let bearer = format!("Bearer {key}").parse().unwrap();
    request.headers_mut().insert("authorization", bearer);
    let stream = TcpStream::connect(app.listen).await.unwrap();
    let (socket, answer) = client_async(request, stream).await?;
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    Ok(socket)
}

fn refused(outcome: Result<Socket, tungstenite::Error>) -> u16 {
    let Err(tungstenite::Error::Http(answer)) = outcome else {
        return 0;
    };
    answer.status().as_u16()
}

#[tokio::test]
async fn a_websocket_carries_events_one_way_and_pings_both() {
    let app = app::start(&[("TENANT_STREAMS_MAX", "1")]).await;
    let path = "/v1/jobs/job_1/events?after=2";
    let mut socket = open_socket(&app, path, &app.key).await.unwrap();
    for number in 1..=3 {
        let message = socket.next().await.unwrap().unwrap();
        assert_eq!(message.into_text().unwrap(), format!("event {number}"));
    }
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap().into_text().unwrap(),
        "hello"
    );
    let seen = app.upstreams.seen.last();
    assert_eq!(seen.target, path);
    assert!(!seen.headers.contains_key("authorization"));
    // It counts as any other stream, and needs what any other needs.
    assert_eq!(refused(open_socket(&app, path, &app.key).await), 429);
    assert_eq!(refused(open_socket(&app, path, "jsk_wrong").await), 401);
    let list = open_socket(&app, "/v1/jobs", &app.key).await;
    assert_eq!(refused(list), 400);
    socket.close(None).await.unwrap();
    let gone = async || {
        app.metrics()
            .await
            .contains("gateway_streams_open 0")
            .then_some(())
    };
    eventually("it is over", Duration::from_secs(5), gone).await;
}

#[tokio::test]
async fn a_client_that_talks_too_much_on_a_websocket_is_cut_off() {
    let app = app::start(&[]).await;
    let socket = open_socket(&app, "/v1/jobs/job_1/events", &app.key);
    let mut socket = socket.await.unwrap();
    let flood = async { while socket.send(Message::text("x".repeat(10_000))).await.is_ok() {} };
    let cut = tokio::time::timeout(Duration::from_secs(10), flood).await;
    assert!(cut.is_ok(), "it may talk for ever");
}

#[tokio::test]
async fn a_websocket_is_closed_in_good_order_when_the_process_ends() {
    let mut app = app::start(&[]).await;
    let mut socket = open_socket(&app, "/v1/jobs/job_1/events", &app.key)
        .await
        .unwrap();
    app.gateway.stop();
    let farewell = loop {
        if let Message::Close(farewell) = socket.next().await.unwrap().unwrap() {
            break farewell.unwrap();
        }
    };
    assert_eq!(farewell.code, CloseCode::Away);
    assert_eq!(app.gateway.exit_code(Duration::from_secs(5)), Some(0));
}
