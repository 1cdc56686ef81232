//! Bytes that requests hold have a bound in sum: however many clients send slowly, read slowly or
//! send long heads, over HTTP/1 and HTTP/2, memory stays small, and others are served.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ops::testing::eventually;
use reqwest::{Method, StatusCode};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::{
    app::{self, App},
    frames::{self, END_HEADERS, END_STREAM, HEADERS, SETTINGS, WINDOW_UPDATE, block, frame},
    load::rss_mib,
    raw,
};

/// What the gateway may have resident, as built for tests.
const RESIDENT_MIB: f64 = 96.0;
/// How long the attack lasts once all of it is there.
const TIME: Duration = Duration::from_secs(3);
/// Most of a body that never comes to its end.
const PART_BYTES: usize = 900_000;
const BODY_BYTES: usize = 1_000_000;
/// Attackers of each kind over HTTP/1, and over HTTP/2 connections with so many requests each.
const CLIENTS: usize = 80;
const CONNECTIONS: usize = 10;
const REQUESTS: u32 = 20;
/// Connections that say nothing: nearly all places that the others leave.
const IDLE: usize = 500;
const PLAN: &str = "--per-minute 6000000 --burst 100000 --per-hour 100000000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_slow_readers_and_long_heads_leave_memory_small_and_others_served() {
    let app = app::start_with_plan(
        &[("H2C", "true"), ("ADDRESS_CONNECTIONS_MAX", "2000")],
        PLAN,
    )
    .await;
    let other = app.admin("admin tenant create t2 --plan test");
    let key = app.new_key(other["tenant_id"].as_str().unwrap(), app::ALL_SCOPES);
    let known = async || small(&app, &key, 0).await.then_some(());
    eventually("the other tenant is known", Duration::from_secs(3), known).await;
    let held = attack(&app).await;
    let (begun, mut most, mut number) = (Instant::now(), 0.0_f64, 0);
    while begun.elapsed() < TIME {
        number += 1;
        assert!(small(&app, &key, number).await, "another tenant is refused");
        most = most.max(rss_mib(app.gateway.id()));
    }
    println!("{most:.1} MiB at most, {number} rounds of others");
    assert!(
        number > 20 && most <= RESIDENT_MIB,
        "{most:.1} MiB, {number} rounds"
    );
    let metrics = app.metrics().await;
    for limit in ["tenant", "address"] {
        let refused = sample(
            &metrics,
            &format!("gateway_held_refused_total{{limit=\"{limit}\"}}"),
        );
        assert!(refused > 0.0, "{limit}: {metrics}");
    }
    drop(held);
    let given_back = async || {
        let metrics = app.metrics().await;
        let held = ["wire", "tenants"]
            .map(|of| sample(&metrics, &format!("gateway_held_bytes{{of=\"{of}\"}}")));
        (held == [0.0, 0.0]).then_some(())
    };
    eventually("all is given back", Duration::from_secs(15), given_back).await;
    let large = app.submit("large", &"x".repeat(BODY_BYTES)).await;
    assert_eq!(large.status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn who_finds_no_room_is_told_when_to_come_again() {
    let app = app::start_with_plan(&[], PLAN).await;
    let mut held = Vec::new();
    for number in 0..8 {
        held.push(slow_body(app.listen, &app.key, number).await.unwrap());
    }
    let mut answers: JoinSet<String> = held
        .into_iter()
        .map(async |mut stream| raw::to_the_end(&mut stream).await)
        .collect();
    let answer = answers.join_next().await.unwrap().unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 429 "), "{answer}");
    for part in [
        "retry-after: 1",
        "connection: close",
        "application/problem+json",
    ] {
        assert!(answer.contains(part), "{answer}");
    }
    assert_eq!(app.upstreams.seen.count(), 0);
}

/// Whether a small request of each kind is served.
async fn small(app: &App, key: &str, number: usize) -> bool {
    let of = |method, path| {
        let request = app.client.request(method, format!("{}{path}", app.url));
        request.bearer_auth(key)
    };
    let get = of(Method::GET, "/v1/jobs").send().await.unwrap();
    let post = of(Method::POST, "/v1/jobs").json(&app::job("a"));
    let post = post.header("idempotency-key", format!("{number}"));
    let post = post.send().await.unwrap();
    get.status() == StatusCode::OK && post.status().is_success()
}

/// Everything at once; what is returned keeps it up.
async fn attack(app: &App) -> (Vec<TcpStream>, JoinSet<()>) {
    let (mut streams, mut tasks) = (Vec::new(), JoinSet::new());
    for _ in 0..IDLE {
        streams.push(idle(app).await);
    }
    for number in 0..CLIENTS {
        streams.extend(slow_body(app.listen, &app.key, number).await);
        streams.push(slow_reader(app.listen, &app.key).await);
        for _ in 0..4 {
            streams.push(long_head(app.listen).await);
        }
    }
    for number in 0..CONNECTIONS {
        streams.push(slow_h2_reader(app.listen, &app.key).await);
        tasks.spawn(slow_h2_bodies(app.listen, app.key.clone(), number));
    }
    (streams, tasks)
}

/// A connection that was of use once.
async fn idle(app: &App) -> TcpStream {
    let mut stream = TcpStream::connect(app.listen).await.unwrap();
    let request = format!(
        "GET /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n",
        app.key
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    raw::answer(&mut stream).await;
    stream
}

/// A body that stops short of its end; `None` when it is refused before.
async fn slow_body(listen: SocketAddr, key: &str, number: usize) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(listen).await.unwrap();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\
         Idempotency-Key: slow{number}\r\nContent-Type: application/json\r\n\
         Content-Length: {BODY_BYTES}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(&vec![b'a'; PART_BYTES]).await.ok()?;
    Some(stream)
}

/// A large answer that nobody reads, beyond what the kernel takes.
async fn slow_reader(listen: SocketAddr, key: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(listen).await.unwrap();
    let request = format!(
        "GET /v1/jobs/job_large HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// A head of which the last bytes are missing.
async fn long_head(listen: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(listen).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "a".repeat(30_000));
    stream.write_all(head.as_bytes()).await.ok();
    stream
}

/// Large answers on one connection of HTTP/2, of which nobody reads a byte.
async fn slow_h2_reader(listen: SocketAddr, key: &str) -> TcpStream {
    let mut stream = frames::connect(listen).await.unwrap();
    let bearer = format!("Bearer {key}");
    let fields = block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/v1/jobs/job_large"),
        ("authorization", &bearer),
    ]);
    // As large windows as there are: all of it may come.
    let mut bytes = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()));
    for number in 0..REQUESTS {
        let head = frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &fields);
        bytes.extend(head);
    }
    stream.write_all(&bytes).await.ok();
    stream
}

/// Bodies that stop short of their end, on one connection of HTTP/2.
async fn slow_h2_bodies(listen: SocketAddr, key: String, connection: usize) {
    let stream = TcpStream::connect(listen).await.unwrap();
    let Ok((mut client, driver)) = h2::client::handshake(stream).await else {
        return;
    };
    let requests = async {
        let mut held = Vec::new();
        for number in 0..REQUESTS {
            let request = http::Request::post("http://a/v1/jobs")
                .header("authorization", format!("Bearer {key}"))
                .header("idempotency-key", format!("h2-{connection}-{number}"))
                .header("content-type", "application/json")
                .body(())
                .unwrap();
            let Ok((answer, mut body)) = client.send_request(request, false) else {
                break;
            };
            body.send_data(Bytes::from(vec![b'a'; PART_BYTES]), false)
                .ok();
            held.push((answer, body));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! { _ = driver => {}, () = requests => {} }
}

/// The value of a metric, by its name and labels.
fn sample(metrics: &str, name: &str) -> f64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.map_or(0.0, |value| value.trim().parse().unwrap())
}
