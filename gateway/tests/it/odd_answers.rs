//! Answers of upstreams in a form that they should not have: what goes out has one form.

use std::time::{Duration, Instant};

use crate::{
    app::{self, App},
    raw,
    recorder::Recorder,
};

/// Status line, lower-case header fields about the length, and body of the answer to a GET, as
/// bytes.
async fn get(app: &App) -> (String, Vec<String>, String) {
    let request = format!(
        "GET /v1/jobs HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
        app.key
    );
    let answer = raw::exchange(app.listen, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines().map(str::to_owned);
    let status = lines.next().unwrap();
    let of_length = lines.map(|line| line.to_ascii_lowercase()).filter(|line| {
        line.starts_with("content-length:") || line.starts_with("transfer-encoding:")
    });
    (status, of_length.collect(), body.to_owned())
}

#[tokio::test]
async fn a_length_goes_out_once_as_a_number_and_only_with_a_body() {
    let upstream = Recorder::start().await;
    let app = app::start(&[("JOBS_URL", &upstream.url)]).await;
    upstream.answer("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n");
    for _ in 0..2 {
        let (status, lengths, body) = get(&app).await;
        assert!(status.starts_with("HTTP/1.1 204"), "{status}");
        assert_eq!((lengths, &body[..]), (Vec::new(), ""));
    }
    upstream.answer("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello");
    for _ in 0..2 {
        let (status, lengths, body) = get(&app).await;
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        assert_eq!(lengths, ["content-length: 5"]);
        assert_eq!(body, "hello");
    }
    upstream.answer("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\nconnection: close\r\n\r\nhello");
    let (status, lengths, body) = get(&app).await;
    assert!(status.starts_with("HTTP/1.1 200"), "{status}");
    assert!(
        !lengths.contains(&"content-length: 5, 5".to_owned()),
        "{lengths:?}"
    );
    assert!(body.contains("hello"), "{body}");
}

#[tokio::test]
async fn another_protocol_that_nobody_asked_for_is_502_at_once() {
    let upstream = Recorder::start().await;
    let app = app::start(&[("JOBS_URL", &upstream.url)]).await;
    upstream.answer(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n",
    );
    let asked = Instant::now();
    let (status, ..) = get(&app).await;
    assert!(status.starts_with("HTTP/1.1 502"), "{status}");
    // It would have ten seconds.
    assert!(asked.elapsed() < Duration::from_secs(5));
}
