//! HTTP/2: what is malformed there is refused, what passes is forwarded as the same HTTP/1.1, and
//! floods of frames leave the gateway's memory and others' latency bounded.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use crate::{
    app::{self, App},
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, PING, RST_STREAM, SETTINGS,
        block, connect, frame, outcome,
    },
    load::{Victim, rss_mib},
    recorder::Recorder,
    seconds,
};

type Fields<'a> = Vec<(&'a str, &'a str)>;

/// Connections that flood at once.
const ATTACKERS: usize = 4;
/// What a flood may add to the gateway's memory.
const GROWTH_MIB: f64 = 24.0;
/// What it may add to a victim's slowest hundredth, besides ten times what that was: attackers,
/// gateway and victim share two cores here.
const DELAY: Duration = Duration::from_millis(400);

fn request<'a>(bearer: &'a str, path: &'a str) -> Fields<'a> {
    vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", path),
        ("authorization", bearer),
    ]
}

async fn try_one(app: &App, fields: &[(&str, &str)]) -> Outcome {
    let whole = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
    outcome(app.listen, &whole).await
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let upstream = Recorder::start().await;
    let app = app::start(&[("JOBS_URL", &upstream.url), ("H2C", "true")]).await;
    let bearer = format!("Bearer {}", app.key);
    let good = request(&bearer, "/v1/jobs?limit=1");
    let with = |more: (&'static str, &'static str)| [&good[..], &[more]].concat();
    let without =
        |name: &str| -> Fields<'_> { good.iter().copied().filter(|(n, _)| *n != name).collect() };
    let large = "a".repeat(40_000);
    let long = format!("/v1/jobs?{}", "q".repeat(9_000));
    for bad in [
        with(("Accept", "a")),
        with(("accept ", "a")),
        with(("a", "b\r\nc: d")),
        with(("a", "b\0")),
        with(("connection", "close")),
        with(("connection", "jobseal-assertion")),
        with(("keep-alive", "1")),
        with(("proxy-connection", "close")),
        with(("transfer-encoding", "chunked")),
        with(("upgrade", "websocket")),
        with(("te", "gzip")),
        with((":path", "/v1/usage")),
        with((":method", "GET")),
        with((":status", "200")),
        with((":unknown", "a")),
        with(("host", "b")),
        with(("content-length", "4")),
        with(("content-length", "+0")),
        with(("expect", "200-ok")),
        with(("jobseal_assertion", "forged")),
        without(":path"),
        without(":method"),
        without(":scheme"),
        without(":authority"),
        request(&bearer, ""),
        request(&bearer, "v1/jobs"),
        request(&bearer, "*"),
        request(&bearer, "http://a/v1/jobs"),
        request(&bearer, "/v1/jobs a"),
        request(&bearer, "/v1\\jobs"),
        request(&bearer, "/v1/jobs\r\nX: y"),
        request(&bearer, "/v1/../v1/jobs"),
        request(&bearer, "/v1//jobs"),
        request(&bearer, "/v1/jobs/%2e%2e"),
        request(&bearer, &long),
        vec![
            (":method", "CONNECT"),
            (":authority", "a:80"),
            ("authorization", &bearer),
        ],
        [&good[..], &[("a", &large)]].concat(),
        [&good[..], &[("a", "b"); 101]].concat(),
    ] {
        let found = try_one(&app, &bad).await;
        assert_ne!(found, Outcome::Status(200), "{bad:?}");
        assert_eq!(upstream.take(), [], "{bad:?}");
    }
}

#[tokio::test]
async fn good_requests_are_forwarded_as_the_same_http1_and_http1_stays_served() {
    let upstream = Recorder::start().await;
    let app = app::start(&[("JOBS_URL", &upstream.url), ("H2C", "true")]).await;
    let bearer = format!("Bearer {}", app.key);
    let good = request(&bearer, "/v1/jobs?limit=1");
    let with = |more| [&good[..], &[more]].concat();
    for fine in [
        good.clone(),
        with(("te", "trailers")),
        with(("content-length", "0")),
        // The h2 crate cuts a fragment off, so that nobody behind it sees one.
        request(&bearer, "/v1/jobs?limit=1#a"),
    ] {
        assert_eq!(try_one(&app, &fine).await, Outcome::Status(200), "{fine:?}");
        let arrived = upstream.take();
        assert_eq!(arrived.len(), 1);
        assert_eq!(arrived[0].line, "GET /v1/jobs?limit=1 HTTP/1.1");
        assert_eq!(arrived[0].framing(), "");
        assert_eq!(
            arrived[0].names(),
            ["host", "jobseal-assertion", "traceparent"]
        );
    }
    // Without the preface the same listener speaks HTTP/1.1.
    assert!(app.get("/v1/jobs").await.status().is_success());
}

#[tokio::test]
async fn a_body_is_as_long_as_it_says_and_is_forwarded_with_its_length() {
    let upstream = Recorder::start().await;
    let app = app::start(&[("JOBS_URL", &upstream.url), ("H2C", "true")]).await;
    let (bearer, body) = (format!("Bearer {}", app.key), app::job("a").to_string());
    let length = body.len().to_string();
    let post = |length: Option<&str>, key: &str, body: &str| {
        let mut fields = request(&bearer, "/v1/jobs");
        fields[0].1 = "POST";
        fields.push(("content-type", "application/json"));
        fields.push(("idempotency-key", key));
        fields.extend(length.map(|length| ("content-length", length)));
        let head = frame(HEADERS, END_HEADERS, 1, &block(&fields));
        [head, frame(DATA, END_STREAM, 1, body.as_bytes())].concat()
    };
    for wrong in ["3", "300"] {
        let found = outcome(app.listen, &post(Some(wrong), "k1", &body)).await;
        assert_ne!(found, Outcome::Status(200));
        assert_eq!(upstream.take(), []);
    }
    for (length_field, key) in [(Some(length.as_str()), "k2"), (None, "k3")] {
        let found = outcome(app.listen, &post(length_field, key, &body)).await;
        assert_eq!(found, Outcome::Status(200));
        let arrived = upstream.take();
        assert_eq!(arrived.len(), 1);
        assert_eq!(arrived[0].framing(), format!("content-length: {length}"));
        assert_eq!(arrived[0].body, body.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_leave_memory_and_others_latency_bounded() {
    let upstream = Recorder::start().await;
    let changes = [
        ("JOBS_URL", upstream.url.as_str()),
        ("H2C", "true"),
        // The flood takes the cores from Redis too; how long that is, the victim's p99 says.
        ("REDIS_DEADLINE_MS", "1000"),
    ];
    let app = app::start(&changes).await;
    let pid = app.gateway.id();
    let mut victim = Victim::connect(&app).await;
    let time = seconds(60, 2);
    victim.measure(Duration::from_secs(1)).await;
    let calm = victim.measure(time).await;
    let before = rss_mib(pid);
    let bearer = format!("Bearer {}", app.key);
    for flood in [
        Flood::Reset,
        Flood::Continuation,
        Flood::Settings,
        Flood::Ping,
        Flood::Data,
    ] {
        let mut attackers = JoinSet::new();
        for _ in 0..ATTACKERS {
            attackers.spawn(attack(flood, app.listen, bearer.clone()));
        }
        let begun = Instant::now();
        let stormy = victim.measure(time).await;
        let grown = rss_mib(pid) - before;
        attackers.shutdown().await;
        upstream.take();
        let summary = format!(
            "{flood:?}: p99 {:?} before, {:?} in {:?} of flood; {grown:.1} MiB more",
            calm.p99,
            stormy.p99,
            begun.elapsed()
        );
        println!("{summary}");
        assert!(stormy.requests > 20, "{summary}");
        assert!(stormy.p99 <= calm.p99 * 10 + DELAY, "{summary}");
        assert!(grown <= GROWTH_MIB, "{summary}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Flood {
    /// CVE-2023-44487: requests that are reset at once.
    Reset,
    /// CVE-2024-27316: a header block without an end.
    Continuation,
    /// Settings, whose acknowledgements nobody reads.
    Settings,
    /// Pings, whose answers nobody reads.
    Ping,
    /// Empty frames of a body.
    Data,
}

/// Floods, and connects again when the gateway has had enough.
async fn attack(flood: Flood, listen: SocketAddr, bearer: String) {
    loop {
        let Ok(mut stream) = connect(listen).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        flood_once(flood, &mut stream, &bearer).await.ok();
    }
}

async fn flood_once(flood: Flood, stream: &mut TcpStream, bearer: &str) -> std::io::Result<()> {
    let head = block(&request(bearer, "/v1/jobs"));
    let mut number = 1;
    match flood {
        Flood::Continuation => {
            stream
                .write_all(&frame(HEADERS, END_STREAM, 1, &head))
                .await?;
        }
        Flood::Data => {
            stream
                .write_all(&frame(HEADERS, END_HEADERS, 1, &head))
                .await?;
        }
        _ => {}
    }
    loop {
        let mut bytes = Vec::with_capacity(64 * 1_024);
        for _ in 0..64 {
            match flood {
                Flood::Reset => {
                    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, number, &head));
                    bytes.extend(frame(RST_STREAM, 0, number, &8_u32.to_be_bytes()));
                    number += 2;
                }
                Flood::Continuation => {
                    let filler = block(&[("x", &"y".repeat(1_000))]);
                    bytes.extend(frame(CONTINUATION, 0, 1, &filler));
                }
                Flood::Settings => bytes.extend(frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
                Flood::Ping => bytes.extend(frame(PING, 0, 0, &[1; 8])),
                Flood::Data => bytes.extend(frame(DATA, 0, 1, &[])),
            }
        }
        stream.write_all(&bytes).await?;
    }
}
