//! Connections: how many one address may have, when one is closed, and how its language is found.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
};

use crate::{
    app::{self, App},
    frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, block, frame},
    raw,
};

fn get(app: &App, lines: &str) -> Vec<u8> {
    let key = &app.key;
    format!("GET /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n{lines}\r\n").into()
}

/// A connection from another address of this machine.
async fn connect(app: &App, last: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind((Ipv4Addr::new(127, 0, 0, last), 0).into())
        .unwrap();
    socket.connect(app.listen).await.unwrap()
}

async fn is_served(app: &App, stream: &mut TcpStream) -> bool {
    stream.write_all(&get(app, "")).await.unwrap();
    raw::answer(stream).await.starts_with("HTTP/1.1 200 ")
}

#[tokio::test]
async fn one_address_leaves_places_for_others() {
    let app = app::start(&[("ADDRESS_CONNECTIONS_MAX", "4")]).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(&app, 7).await;
        assert!(is_served(&app, &mut stream).await);
        held.push(stream);
    }
    let mut fifth = connect(&app, 7).await;
    fifth.write_all(&get(&app, "")).await.unwrap();
    let answer = raw::to_the_end(&mut fifth).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 429 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n") && answer.contains("from your address"));
    assert!(is_served(&app, &mut connect(&app, 8).await).await);
    assert!(is_served(&app, &mut held[0]).await);
    held.pop();
    let free = async || {
        let mut stream = connect(&app, 7).await;
        stream.write_all(&get(&app, "")).await.unwrap();
        raw::answer(&mut stream)
            .await
            .starts_with("HTTP/1.1 200 ")
            .then_some(())
    };
    ops::testing::eventually("there is a place", Duration::from_secs(5), free).await;
    // Behind a trusted proxy stand many.
    let trusted = [
        ("ADDRESS_CONNECTIONS_MAX", "4"),
        ("TRUSTED_PROXIES", "127.0.0.7/32"),
    ];
    let app = app::start(&trusted).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(&app, 7).await;
        assert!(is_served(&app, &mut stream).await);
        held.push(stream);
    }
}

#[tokio::test]
async fn who_is_held_up_is_answered_and_loses_the_connection() {
    let app = app::start(&[("FAILED_AUTH_PER_MINUTE", "2")]).await;
    let mut stream = connect(&app, 7).await;
    let bad = "GET /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a.b.c\r\n\r\n";
    for _ in 0..2 {
        stream.write_all(bad.as_bytes()).await.unwrap();
        let answer = raw::answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    }
    stream.write_all(bad.as_bytes()).await.unwrap();
    let answer = raw::to_the_end(&mut stream).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 429 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_request_shorter_than_what_http2_begins_with_is_answered() {
    let app = app::start(&[("H2C", "true"), ("HEADERS_DEADLINE_MS", "5000")]).await;
    for (sent, status) in [
        ("GET / HTTP/1.0\r\n\r\n", 404),
        ("PRI / HTTP/1.0\r\n\r\n", 404),
    ] {
        let begun = std::time::Instant::now();
        let mut stream = connect(&app, 7).await;
        // As slowly as it may come.
        for byte in sent.as_bytes() {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let answer = raw::to_the_end(&mut stream).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{sent}: {answer}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "it waited for more"
        );
    }
}

#[tokio::test]
async fn a_head_that_is_refused_over_http2_has_no_body() {
    let app = app::start(&[("H2C", "true")]).await;
    let bearer = format!("Bearer {}", app.key);
    let of = |method, number| {
        let fields = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/v1/jobs"),
            ("authorization", bearer.as_str()),
        ];
        frame(HEADERS, END_HEADERS | END_STREAM, number, &block(&fields))
    };
    let mut stream = frames::connect(app.listen).await.unwrap();
    stream.write_all(&of("HEAD", 1)).await.unwrap();
    let mut begun = false;
    loop {
        let (kind, number, payload) = frames::next(&mut stream).await.expect("it goes on");
        match (kind, number) {
            (HEADERS, 1) => {
                begun = true;
                stream.write_all(&of("GET", 3)).await.unwrap();
            }
            // The end of a stream may be a frame of its own.
            (DATA, 1) => assert!(payload.is_empty(), "a body"),
            (DATA, 3) => break,
            _ => {}
        }
    }
    assert!(begun);
    // Over HTTP/1 its length is told all the same.
    let head = b"HEAD /v1/jobs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = raw::exchange(app.listen, head).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 405 ") && body.is_empty(),
        "{answer}"
    );
}

#[tokio::test]
async fn what_is_malformed_over_http2_is_held_against_the_address() {
    let app = app::start(&[("H2C", "true"), ("DEMERITS_MAX", "40")]).await;
    let of = |authority: &str, path: &str, name: &str, number: u32| {
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", authority),
            (":path", path),
            (name, "a"),
        ];
        frame(HEADERS, END_HEADERS | END_STREAM, number, &block(&fields))
    };
    // What Pingora refuses, what the h2 crate resets, and what it ends a connection for.
    for (last, times, authority, path, name) in [
        (7, 1, "u@a", "/v1/jobs", "a"),
        (8, 1, "a", "/v1/jobs a", "a"),
        (10, 30, "a", "/v1/jobs", "UPPER"),
    ] {
        for _ in 0..times {
            let mut stream = connect(&app, last).await;
            let mut bytes = frames::hello();
            for number in 0..40 {
                bytes.extend(of(authority, path, name, 2 * number + 1));
            }
            stream.write_all(&bytes).await.ok();
            while frames::next(&mut stream).await.is_some() {}
        }
        let mut stream = connect(&app, last).await;
        stream.write_all(&get(&app, "")).await.unwrap();
        let answer = raw::answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 429 "), "{last}: {answer}");
    }
    assert!(is_served(&app, &mut connect(&app, 9).await).await);
}
