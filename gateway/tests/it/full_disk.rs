//! The usage spool on a real disk without room: whoever would be billed is refused before anybody
//! is asked, nothing recorded is lost, and it heals by itself.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use ops::testing::{TestProcess, eventually, free_address, service, status};
use reqwest::{Client, Response, StatusCode};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    app::{self, App, job, problem},
    cut::Line,
    issuer::Issuer,
    namespace::Disk,
    raw,
    spool::{id, shipped},
};

/// How long a gateway may take to heal: Kafka's client looks for its broker now and then.
const HEALS: Duration = Duration::from_secs(30);

/// A gateway whose spool is on a disk of its own. The app's own gateway is not asked.
struct Small {
    app: App,
    disk: Disk,
    gateway: TestProcess,
    listen: SocketAddr,
    admin: SocketAddr,
    client: Client,
    token: String,
}

impl Small {
    async fn start(disk: Disk, kafka: &str) -> Self {
        // More than a disk holds the records of.
        let plan = "--per-minute 600000 --burst 100000 --per-hour 1000000";
        let app = app::start_with_plan(&[], plan).await;
        let (listen, admin) = (free_address(), free_address());
        let gateway = run(&app, &disk, listen, admin, kafka);
        // With as long a record as there may be.
        let mut claims = Issuer::claims(&app.tenant, "jobs:read jobs:submit billing:read");
        claims["sub"] = "s".repeat(128).into();
        let token = app.issuer.sign(&claims);
        let client = app.client.clone();
        let small = Self {
            app,
            disk,
            gateway,
            listen,
            admin,
            client,
            token,
        };
        let works = async || {
            let url = format!("http://{listen}/v1/health");
            small.client.get(url).send().await.ok()
        };
        eventually("the gateway listens", HEALS, works).await;
        small
    }

    /// SIGKILL, then a new process.
    fn restart(&mut self, kafka: &str) {
        self.gateway.kill();
        self.gateway = run(&self.app, &self.disk, self.listen, self.admin, kafka);
    }

    async fn get(&self, path: &str) -> Response {
        let url = format!("http://{}{path}", self.listen);
        let request = self.client.get(url).bearer_auth(&self.token);
        request.send().await.unwrap()
    }

    /// What is free still works; the id of the request that shows it.
    async fn serves_what_is_free(&self) -> String {
        let free = self.get("/v1/usage").await;
        assert_eq!(free.status(), StatusCode::OK);
        id(&free)
    }

    async fn refuses(&self) {
        let hits = self.hits();
        let for_want_of_room = async || {
            let refusal = problem(self.get("/v1/jobs").await).await;
            assert_eq!(refusal["code"], "SERVICE_UNAVAILABLE");
            // Just started, it knows nobody yet.
            let detail = refusal["detail"].as_str().unwrap();
            detail.contains("Usage").then_some(())
        };
        eventually("it refuses for want of room", HEALS, for_want_of_room).await;
        assert_eq!(self.hits(), hits, "nobody is asked");
        assert_eq!(status(self.admin, "/readyz").await, Some(503));
    }

    /// Asks so often, which must work; the ids.
    async fn serve(&self, times: usize) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        for _ in 0..times {
            let answer = self.get("/v1/jobs").await;
            assert_eq!(answer.status(), StatusCode::OK);
            ids.insert(id(&answer));
        }
        ids
    }

    async fn heals(&self) {
        let ready = async || (status(self.admin, "/readyz").await == Some(200)).then_some(());
        eventually("it heals", HEALS, ready).await;
        let open = async || {
            let url = format!("http://{}/v1/health", self.listen);
            self.client.get(url).send().await.ok()
        };
        eventually("it is open", HEALS, open).await;
    }

    /// Asks from several sides until it refuses; the ids of what was answered.
    async fn exhaust(&self) -> BTreeSet<String> {
        let (answered, refused) = (Mutex::new(BTreeSet::new()), AtomicBool::new(false));
        let callers = (0..8).map(async |_| {
            while !refused.load(Ordering::Relaxed) {
                let answer = self.get("/v1/jobs").await;
                if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
                    refused.store(true, Ordering::Relaxed);
                    continue;
                }
                assert_eq!(answer.status(), StatusCode::OK);
                let mut answered = answered.lock().unwrap();
                answered.insert(id(&answer));
                assert!(answered.len() < 100_000, "it never refuses");
            }
        });
        join_all(callers).await;
        answered.into_inner().unwrap()
    }

    /// A job that is let in, of which the body is still to come.
    async fn begin_to_submit(&self, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.listen).await.unwrap();
        let head = format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nIdempotency-Key: slow\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            self.token,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let told = raw::answer(&mut stream).await;
        assert!(told.starts_with("HTTP/1.1 100"), "{told}");
        stream
    }

    /// How many requests for jobs reached the upstream.
    fn hits(&self) -> usize {
        let all = self.app.upstreams.seen.all().into_iter();
        all.filter(|request| request.target == "/v1/jobs").count()
    }

    /// Of each answered request, and of no other, there is the record in Kafka.
    async fn recorded(&self, ids: BTreeSet<String>) {
        let found = shipped(&self.app, ids.clone()).await;
        assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), ids);
    }
}

fn run(app: &App, disk: &Disk, listen: SocketAddr, admin: SocketAddr, kafka: &str) -> TestProcess {
    let (listen, admin) = (listen.to_string(), admin.to_string());
    let changes = [
        ("LISTEN", listen.as_str()),
        ("ADMIN_LISTEN", &admin),
        ("SPOOL_DIR", disk.path().to_str().unwrap()),
        ("KAFKA_BROKERS", kafka),
        ("BODY_DEADLINE_MS", "60000"),
    ];
    TestProcess::start(&mut disk.command(&app.command(&changes, &[])))
}

#[tokio::test]
async fn started_on_a_full_disk_it_waits_for_room_and_restarted_there_it_makes_some() {
    let disk = Disk::start(12 * 1_024).await;
    disk.fill();
    let mut small = Small::start(disk, &free_address().to_string()).await;
    small.refuses().await;
    small.disk.clear();
    small.heals().await;
    let mut ids = small.serve(20).await;
    ids.insert(small.serves_what_is_free().await);
    // What it left takes the room that the next one needs.
    small.gateway.kill();
    small.disk.fill();
    small.restart(&service("KAFKA_BROKERS"));
    small.heals().await;
    ids.append(&mut small.serve(5).await);
    small.recorded(ids).await;
    assert_eq!(small.hits(), 25);
}

#[tokio::test]
async fn a_disk_that_fills_up_refuses_before_anybody_is_asked_until_kafka_is_back() {
    // Room for one segment, and not for another.
    let disk = Disk::start(6 * 1_024).await;
    let line = Line::to(service("KAFKA_BROKERS")).await;
    line.cut();
    let kafka = line.address.to_string();
    let mut small = Small::start(disk, &kafka).await;
    small.heals().await;
    let body = job("a").to_string();
    let mut slow = small.begin_to_submit(&body).await;
    let mut ids = small.exhaust().await;
    slow.write_all(body.as_bytes()).await.unwrap();
    let told = raw::answer(&mut slow).await;
    assert!(told.starts_with("HTTP/1.1 503"), "{told}");
    assert_eq!(
        small.hits(),
        ids.len(),
        "each that was asked for was answered"
    );
    // Now there is not a byte left: all that follows must do without.
    small.disk.fill();
    small.refuses().await;
    ids.insert(small.serves_what_is_free().await);
    line.mend();
    small.heals().await;
    ids.append(&mut small.serve(20).await);
    small.restart(&kafka);
    small.heals().await;
    ids.append(&mut small.serve(5).await);
    assert_eq!(small.hits(), ids.len() - 1);
    small.recorded(ids).await;
}
