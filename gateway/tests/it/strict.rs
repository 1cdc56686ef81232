//! Requests of which two parsers could make two things, over raw sockets, before an upstream that
//! records bytes: each is refused and its connection closed, or forwarded in one form.

use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    app::{self, App},
    raw,
    recorder::{Recorded, Recorder},
};

/// What follows a request on its connection: it must never be answered, nor arrive.
const SMUGGLED: &str = "GET /v1/jobs?smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

const BODY: &str = r#"{"type":"digest","payload":{"text":"a"}}"#;
/// Transfer codings that are not `chunked` and nothing else.
const CODINGS: [&str; 17] = [
    "chunked, identity",
    "identity, chunked",
    "gzip, chunked",
    "chunked, chunked",
    "chunked,",
    ", chunked",
    "xchunked",
    " chunked",
    "\tchunked",
    "chunked ",
    "chunked\t",
    "chunked;q=1",
    "\"chunked\"",
    "chunked\u{b}",
    "identity",
    "gzip",
    "",
];

struct Stage {
    app: App,
    upstream: Recorder,
}

async fn stage(changes: &[(&str, &str)]) -> Stage {
    let upstream = Recorder::start().await;
    let jobs = [("JOBS_URL", upstream.url.as_str())];
    let app = app::start(&[changes, &jobs].concat()).await;
    Stage { app, upstream }
}

impl Stage {
    /// A submission with these header lines and this body, credential and all.
    fn post(&self, lines: &str, body: &str) -> String {
        format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
             Idempotency-Key: {}\r\nContent-Type: application/json\r\n{lines}\r\n{body}",
            self.app.key,
            uuid::Uuid::new_v4()
        )
    }

    fn get(&self, target: &str, lines: &str) -> String {
        format!(
            "GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n{lines}\r\n",
            self.app.key
        )
    }

    /// Answered well; the answer, and the one request that arrived.
    async fn passes(&self, request: &str) -> (String, Recorded) {
        let mut stream = TcpStream::connect(self.app.listen).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = raw::answer(&mut stream).await;
        assert!(answer.contains(" 200 OK"), "{request}: {answer}");
        let mut arrived = self.upstream.take();
        assert_eq!(arrived.len(), 1, "{request}: {arrived:?}");
        (answer, arrived.remove(0))
    }

    /// Refused with this status; the connection is closed, nothing else answered or forwarded.
    async fn refused(&self, status: u16, request: &[u8]) {
        let case = String::from_utf8_lossy(request).into_owned();
        let case = &case[..case.len().min(400)];
        let whole = [request, SMUGGLED.as_bytes()].concat();
        let answer = raw::exchange(self.app.listen, &whole).await;
        let line = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&line), "{case:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{case:?}: {answer}");
        let folded = answer.to_lowercase();
        assert!(folded.contains("connection: close"), "{case:?}: {answer}");
        assert!(
            folded.contains("application/problem+json"),
            "{case:?}: {answer}"
        );
        assert!(
            folded.contains("x-content-type-options: nosniff"),
            "{answer}"
        );
        assert_eq!(self.upstream.take(), [], "{case:?}");
    }
}

#[tokio::test]
async fn framing_with_two_readings_is_refused_and_the_connection_closed() {
    let stage = stage(&[]).await;
    let (body, length) = (BODY, BODY.len());
    let cl = format!("Content-Length: {length}\r\n");
    let te = "Transfer-Encoding: chunked\r\n";
    let mut cases = vec![
        format!("{cl}{te}"),
        format!("{te}{cl}"),
        format!("{te}{te}"),
        format!("{cl}{cl}"),
        format!("{cl}Content-Length: {}\r\n", length + 1),
        format!("Content-Length: {length}, {length}\r\n"),
        format!("Content-Length : {length}\r\n"),
        format!("Content-Length: {length} \r\n"),
        format!("Content-Length:  {length}\r\n"),
        format!("Content-Length:\t{length}\r\n"),
        format!(" {cl}"),
        format!("X: y\r\n {cl}"),
        format!("X: y\r\n\t{cl}"),
        format!("X: y\n{cl}"),
        format!("X: y\r{cl}"),
        format!("X: y\rz\r\n{cl}"),
        format!("X\r\n{cl}"),
        format!(": y\r\n{cl}"),
        format!("X Y: z\r\n{cl}"),
        format!("X\0: z\r\n{cl}"),
        format!("X: a\0b\r\n{cl}"),
        format!("X: a\u{7}b\r\n{cl}"),
        format!("X: a\u{7f}b\r\n{cl}"),
        format!("Content_Length: 3\r\n{cl}"),
        format!("Transfer_Encoding: chunked\r\n{cl}"),
        format!("Connection: content-length\r\n{cl}"),
        format!("Connection: close, jobseal-assertion\r\n{cl}"),
        format!("Connection: keep-alive\r\nConnection: authorization\r\n{cl}"),
        format!("Upgrade: websocket\r\nConnection: upgrade\r\n{cl}"),
        format!("Upgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: AAMAAABkAAQAAP\r\n{cl}"),
        format!("Expect: 200-ok\r\n{cl}"),
        format!("Expect: 100-continue, x\r\n{cl}"),
        format!("Jobseal_Assertion: forged\r\n{cl}"),
        format!("jobseal-assertion_: forged\r\nX_Tenant_Id: a\r\n{cl}"),
        format!("Host: b\r\n{cl}"),
    ];
    for value in ["+4", "-4", "0x4", "", "4 4", "18446744073709551616", "4.0"] {
        cases.push(format!("Content-Length: {value}\r\n"));
    }
    for coding in CODINGS {
        cases.push(format!("Transfer-Encoding: {coding}\r\n"));
    }
    for lines in &cases {
        stage.refused(400, stage.post(lines, body).as_bytes()).await;
    }
    let old = stage
        .post(te, "0\r\n\r\n")
        .replacen("HTTP/1.1", "HTTP/1.0", 1);
    stage.refused(400, old.as_bytes()).await;
}

#[tokio::test]
async fn request_lines_that_are_not_plain_are_refused_and_the_connection_closed() {
    let stage = stage(&[]).await;
    let rest = "Host: a\r\n\r\n";
    for line in [
        "GET /v1/jobs HTTP/1.1\n",
        "GET /v1/jobs\rHTTP/1.1\r\n",
        "\r\nGET /v1/jobs HTTP/1.1\r\n",
        "\nGET /v1/jobs HTTP/1.1\r\n",
        " GET /v1/jobs HTTP/1.1\r\n",
        "GET  /v1/jobs HTTP/1.1\r\n",
        "GET\t/v1/jobs HTTP/1.1\r\n",
        "GET /v1/jobs HTTP/1.1 \r\n",
        "GET /v1/jobs x HTTP/1.1\r\n",
        "GET /v1/jobs\r\n",
        "GET /v1/jobs HTTP/0.9\r\n",
        "GET /v1/jobs HTTP/1.2\r\n",
        "GET /v1/jobs HTTP/2.0\r\n",
        "GET /v1/jobs http/1.1\r\n",
        "get /v1/jobs HTTP/1.1\r\n",
        "Get /v1/jobs HTTP/1.1\r\n",
        "G@T /v1/jobs HTTP/1.1\r\n",
        "GET http://a/v1/jobs HTTP/1.1\r\n",
        "GET a:80 HTTP/1.1\r\n",
        "GET * HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "CONNECT a:80 HTTP/1.1\r\n",
        "GET /v1/jobs#fragment HTTP/1.1\r\n",
        "GET /v1\\jobs HTTP/1.1\r\n",
        "GET /v1/jobs\0 HTTP/1.1\r\n",
        "GET /v1/jobs\u{7f} HTTP/1.1\r\n",
        "GET /v1/jobs?a=<b> HTTP/1.1\r\n",
        "GET /v1/jobs?a=\u{e4} HTTP/1.1\r\n",
        "GET /v1/../v1/jobs HTTP/1.1\r\n",
        "GET /v1/jobs/.. HTTP/1.1\r\n",
        "GET /v1/./jobs HTTP/1.1\r\n",
        "GET /v1/jobs/. HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\n",
    ] {
        stage.refused(400, format!("{line}{rest}").as_bytes()).await;
    }
    for hosts in [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host:\r\n",
        "Host: a, b\r\n",
        "Host: u@a\r\n",
    ] {
        let request = format!("GET /v1/jobs HTTP/1.1\r\n{hosts}\r\n");
        stage.refused(400, request.as_bytes()).await;
    }
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    stage.refused(400, preface.as_bytes()).await;
    let long = stage.get(&format!("/v1/jobs?{}", "q".repeat(9_000)), "");
    stage.refused(414, long.as_bytes()).await;
    let unfinished = format!("GET /v1/jobs?{}", "q".repeat(20_000));
    stage.refused(414, unfinished.as_bytes()).await;
    let many = stage.get("/v1/jobs", &"A: b\r\n".repeat(120));
    stage.refused(431, many.as_bytes()).await;
    let large = stage.get("/v1/jobs", &format!("A: {}\r\n", "b".repeat(40_000)));
    stage.refused(431, large.as_bytes()).await;
}

#[tokio::test]
async fn paths_and_methods_that_no_route_has_never_arrive() {
    let stage = stage(&[]).await;
    for (status, target) in [
        (404, "/v1/jobs/a%2fb"),
        (404, "/v1/jobs/%2e%2e/usage"),
        (404, "/v1/jobs%00"),
        (404, "/v1//jobs"),
        (404, "//v1/jobs"),
        (404, "/v1/jobs/"),
        (404, "/v1/jobs;a=b"),
        (404, "/V1/jobs"),
    ] {
        let mut stream = TcpStream::connect(stage.app.listen).await.unwrap();
        let request = stage.get(target, "Connection: close\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = raw::to_the_end(&mut stream).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{target}: {answer}"
        );
    }
    for method in ["TRACE", "OPTIONS", "PUT", "FOO"] {
        let request = stage
            .get("/v1/jobs", "Connection: close\r\n")
            .replacen("GET", method, 1);
        let answer = raw::exchange(stage.app.listen, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
    }
    assert_eq!(stage.upstream.take(), []);
}

#[tokio::test]
async fn a_body_is_forwarded_in_one_form_however_it_was_framed() {
    let stage = stage(&[]).await;
    let (first, second) = BODY.split_at(11);
    let (a, b, n) = (first.len(), second.len(), BODY.len());
    let te = "Transfer-Encoding: chunked\r\n";
    let trailer = "Content-Length: 1\r\nJobseal-Assertion: forged\r\n";
    for (lines, sent) in [
        (format!("Content-Length: {n}\r\n"), BODY.to_owned()),
        (
            format!("content-length:{n}\r\nTE: trailers\r\n"),
            BODY.to_owned(),
        ),
        (format!("Content-Length: 000{n}\r\n"), BODY.to_owned()),
        (te.to_uppercase(), format!("{n:X}\r\n{BODY}\r\n0\r\n\r\n")),
        (
            te.to_owned(),
            format!("{a:x}\r\n{first}\r\n{b:x}\r\n{second}\r\n0\r\n\r\n"),
        ),
        (
            te.to_owned(),
            format!("00{n:x};ext=\"a\"\r\n{BODY}\r\n0;x\r\n\r\n"),
        ),
        // Pingora is lenient with what follows a chunk's size, and lets none of it pass.
        (te.to_owned(), format!("{n:x};a\nb\r\n{BODY}\r\n0\r\n\r\n")),
        (
            te.to_owned(),
            format!("{n:x};{}\r\n{BODY}\r\n0\r\n\r\n", "e".repeat(20_000)),
        ),
        (
            format!("{te}Trailer: Content-Length\r\n"),
            format!("{n:x}\r\n{BODY}\r\n0\r\n{trailer}\r\n"),
        ),
    ] {
        let request = stage.post(&lines, &sent);
        let (answer, arrived) = stage.passes(&request).await;
        // What a lenient parser left over from chunks is nobody's next request.
        let closes = answer.to_lowercase().contains("connection: close");
        assert_eq!(
            closes,
            lines.to_lowercase().contains("chunked"),
            "{request}: {answer}"
        );
        assert_eq!(arrived.line, "POST /v1/jobs HTTP/1.1");
        assert_eq!(
            arrived.framing(),
            format!("content-length: {n}"),
            "{request}"
        );
        assert_eq!(arrived.body, BODY.as_bytes());
        let expected = [
            "content-length",
            "content-type",
            "host",
            "idempotency-key",
            "jobseal-assertion",
            "traceparent",
        ];
        assert_eq!(arrived.names(), expected, "{request}");
    }
}

#[tokio::test]
async fn a_request_without_a_body_is_forwarded_in_one_form() {
    let stage = stage(&[]).await;
    let target = "/v1/jobs?a=%00&b=../c";
    let plain = stage.get(target, "X-Tenant-Id: b\r\nJobseal-Assertion: forged\r\n");
    for request in [
        plain.replacen("HTTP/1.1", "HTTP/1.0", 1),
        plain.clone(),
        stage.get(target, "Content-Length: 0\r\n"),
        stage.get(target, "Connection: keep-alive, TE\r\nTE: trailers\r\n"),
    ] {
        let (_, arrived) = stage.passes(&request).await;
        assert_eq!(arrived.line, format!("GET {target} HTTP/1.1"));
        assert_eq!(arrived.framing(), "", "{request}");
        let expected = ["host", "jobseal-assertion", "traceparent"];
        assert_eq!(arrived.names(), expected, "{request}");
        assert!(!arrived.fields.concat().contains("forged"));
    }
    // The first of two requests at once is answered, and the second left to be sent again.
    let two = format!("{plain}{SMUGGLED}");
    let answer = raw::exchange(stage.app.listen, two.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert_eq!(stage.upstream.take().len(), 1);
}

#[tokio::test]
async fn chunks_that_are_none_are_refused_and_the_connection_closed() {
    let stage = stage(&[]).await;
    let (body, n) = (BODY, BODY.len());
    for sent in [
        format!("0x{n:x}\r\n{body}\r\n0\r\n\r\n"),
        format!("+{n:x}\r\n{body}\r\n0\r\n\r\n"),
        format!("-1\r\n{body}\r\n0\r\n\r\n"),
        format!("ffffffffffffffffff\r\n{body}\r\n0\r\n\r\n"),
        format!("{n:x}\r\n{body}x0\r\n\r\n"),
        format!("{n:x}\r\n{body}0\r\n\r\n"),
        format!("{:x}\r\n{body}\r\n0\r\n\r\n", n - 1),
        format!("{n:x}\n{body}\r\n0\r\n\r\n"),
        format!("{n:x}\r\n{body}\n0\r\n\r\n"),
        format!("{n:x}\r{body}\r\n0\r\n\r\n"),
    ] {
        let request = stage.post("Transfer-Encoding: chunked\r\n", &sent);
        stage.refused(400, request.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_head_is_cut_at_its_deadline_however_often_a_byte_comes() {
    let stage = stage(&[("HEADERS_DEADLINE_MS", "600")]).await;
    for start in ["G", "GET /v1/jobs HTTP/1.1\r\nHost: a\r\n"] {
        let mut stream = TcpStream::connect(stage.app.listen).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let begun = std::time::Instant::now();
        let (mut read, mut write) = stream.split();
        let drip = async {
            while write.write_all(b"A").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut answer = Vec::new();
        tokio::select! {
            () = drip => {}
            read = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answer) => { read.ok(); }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    // Who says nothing at all is told nothing.
    let mut silent = TcpStream::connect(stage.app.listen).await.unwrap();
    assert_eq!(raw::to_the_end(&mut silent).await, "");
    assert_eq!(stage.upstream.take(), []);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_to_come_again() {
    let stage = stage(&[("CONNECTIONS_MAX", "8")]).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(stage.app.listen).await.unwrap();
        stream
            .write_all(stage.get("/v1/jobs", "").as_bytes())
            .await
            .unwrap();
        assert!(raw::answer(&mut stream).await.contains(" 200 OK"));
        held.push(stream);
    }
    let request = stage.get("/v1/jobs", "");
    let answer = raw::exchange(stage.app.listen, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after: 1"), "{answer}");
    // Those who have a place keep it, and one that is left is free for another.
    let mut kept = held.pop().unwrap();
    kept.write_all(request.as_bytes()).await.unwrap();
    assert!(raw::answer(&mut kept).await.contains(" 200 OK"));
    drop(kept);
    ops::testing::eventually("there is a place", Duration::from_secs(5), async || {
        let mut stream = TcpStream::connect(stage.app.listen).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        raw::answer(&mut stream)
            .await
            .contains(" 200 OK")
            .then_some(())
    })
    .await;
}
