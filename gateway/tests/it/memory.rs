//! Ten minutes of mixed load (seconds by default): the gateway's memory stays flat and small.

use std::time::{Duration, Instant};

use reqwest::Method;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use crate::{
    app::{self, App},
    frames::{END_HEADERS, END_STREAM, HEADERS, Outcome, block, frame, outcome},
    load::rss_mib,
    seconds,
    upstream::Seen,
};

/// What the gateway may have resident, as built for tests.
const RESIDENT_MIB: f64 = 96.0;
/// What it may grow by after it has warmed up.
const GROWTH_MIB: f64 = 8.0;
/// Clients at once.
const CLIENTS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_mixed_load_memory_is_flat_and_at_most_96_mib() {
    let plan = "--per-minute 6000000 --burst 100000 --per-hour 100000000";
    let app = app::start_with_plan(&[("H2C", "true")], plan).await;
    let (pid, time) = (app.gateway.id(), seconds(600, 6));
    load(&app, time / 3).await;
    let warm = rss_mib(pid);
    load(&app, time * 2 / 3).await;
    let after = rss_mib(pid);
    println!("{warm:.1} MiB warm, {after:.1} MiB after {time:?}");
    assert!(after <= RESIDENT_MIB, "{after}");
    assert!(after - warm <= GROWTH_MIB, "{warm} to {after}");
}

async fn load(app: &App, time: Duration) {
    let until = Instant::now() + time;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let target = Target::of(app);
        clients.spawn(async move {
            let mut number = 0;
            while Instant::now() < until {
                target.round(client, number).await;
                number += 1;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

/// What a client needs to know.
struct Target {
    client: reqwest::Client,
    url: String,
    listen: std::net::SocketAddr,
    key: String,
    seen: Seen,
}

impl Target {
    fn of(app: &App) -> Self {
        Self {
            client: app.client.clone(),
            url: app.url.clone(),
            listen: app.listen,
            key: app.key.clone(),
            seen: app.upstreams.seen.clone(),
        }
    }

    /// One of everything.
    async fn round(&self, client: usize, number: usize) {
        self.seen.forget();
        let send = |method: Method, path: &str| {
            let request = self.client.request(method, format!("{}{path}", self.url));
            request.bearer_auth(&self.key)
        };
        assert_eq!(
            send(Method::GET, "/v1/jobs").send().await.unwrap().status(),
            200
        );
        let text = "x".repeat(1_000 * (number % 50));
        let post = send(Method::POST, "/v1/jobs")
            .header("idempotency-key", format!("{client}-{number}"))
            .json(&app::job(&text));
        let post = post.send().await.unwrap();
        assert!(
            matches!(post.status().as_u16(), 202 | 409),
            "{}",
            post.status()
        );
        let missing = send(Method::GET, "/v1/nothing").send().await.unwrap();
        assert!(matches!(missing.status().as_u16(), 404 | 429));
        let refused = self
            .client
            .get(format!("{}/v1/jobs", self.url))
            .bearer_auth("a.b.c");
        assert_eq!(refused.send().await.unwrap().status(), 401);
        let mut events = send(Method::GET, "/v1/jobs/job_1/events")
            .send()
            .await
            .unwrap();
        // The rest of the stream is nobody's any more.
        events.chunk().await.unwrap();
        drop(events);
        let mut aborted = TcpStream::connect(self.listen).await.unwrap();
        let half = format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
             Idempotency-Key: a\r\nContent-Type: application/json\r\n\
             Content-Length: 100000\r\n\r\n{{",
            self.key
        );
        aborted.write_all(half.as_bytes()).await.unwrap();
        drop(aborted);
        let bearer = format!("Bearer {}", self.key);
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/v1/jobs"),
            ("authorization", bearer.as_str()),
        ];
        let whole = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        assert_eq!(outcome(self.listen, &whole).await, Outcome::Status(200));
    }
}
