//! What clients do not notice: a new binary that takes over, a reload a second, the end of one of
//! two gateways. A few seconds of load by default, a minute with `JOBSEAL_LONG=1`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use contracts::event::{USAGE_RECORDED, UsageRecorded};
use futures::future::join_all;
use ops::{
    config::KafkaOptions,
    kafka::ensure_topics,
    testing::{TestProcess, eventually, free_address, records::from_the_start, service, status},
};
use rdkafka::Message as _;
use reqwest::{Client, Response, StatusCode};

use crate::{
    app::{self, App},
    seconds,
};

const CALLERS: usize = 6;
const END: Duration = Duration::from_secs(20);

/// Calls from several sides for as long as it is told, and panics when one call fails.
struct Load {
    client: Client,
    key: String,
    stop: AtomicBool,
    answered: Mutex<Vec<String>>,
}

impl Load {
    fn new(app: &App) -> Self {
        Self {
            client: app.client.clone(),
            key: app.key.clone(),
            stop: AtomicBool::new(false),
            answered: Mutex::default(),
        }
    }

    /// Calls the gateway at the address that `pick` says, each time.
    async fn run(&self, pick: impl Fn() -> SocketAddr) {
        let callers = (0..CALLERS).map(|caller| {
            let pick = &pick;
            async move {
                let mut number = 0;
                while !self.stop.load(Ordering::Relaxed) {
                    number += 1;
                    self.call(pick(), caller, number).await;
                }
            }
        });
        join_all(callers).await;
    }

    async fn call(&self, at: SocketAddr, caller: usize, number: usize) {
        let url = format!("http://{at}/v1/jobs");
        let (request, wanted) = if number.is_multiple_of(2) {
            (self.client.get(url), StatusCode::OK)
        } else {
            // Some take so long that they are under way when something happens.
            let text = if number.is_multiple_of(5) {
                "sleep:100"
            } else {
                "a"
            };
            let key = format!("{caller}-{number}");
            let request = self.client.post(url).header("idempotency-key", key);
            (request.json(&app::job(text)), StatusCode::ACCEPTED)
        };
        let response = request.bearer_auth(&self.key).send().await;
        let response = response.expect("no call fails");
        let id = id(&response);
        assert_eq!(response.status(), wanted);
        response.bytes().await.expect("no answer is cut");
        self.answered.lock().unwrap().push(id);
    }

    fn count(&self) -> usize {
        self.answered.lock().unwrap().len()
    }

    /// Waits until some more calls were answered.
    async fn go_on(&self) {
        let before = self.count();
        let more = async || (self.count() > before + 20).then_some(());
        eventually("calls are answered", END, more).await;
    }
}

/// Waits until a process has ended by itself; its exit code.
async fn end(process: &mut TestProcess) -> Option<i32> {
    let ended = || std::future::ready(process.ended());
    eventually("the process ends", END, ended).await.code()
}

fn id(response: &Response) -> String {
    let id = &response.headers()["x-request-id"];
    id.to_str().unwrap().to_owned()
}

/// How often each usage record is in Kafka, once all of `wanted` are.
async fn told(app: &App, wanted: Vec<String>) -> BTreeMap<String, usize> {
    let kafka = KafkaOptions {
        kafka_brokers: service("KAFKA_BROKERS"),
        topic_prefix: app.variable("TOPIC_PREFIX").to_owned(),
    };
    ensure_topics(&kafka, &[USAGE_RECORDED]).await.unwrap();
    let consumer = from_the_start(&kafka, USAGE_RECORDED).await;
    let read = move || {
        let (mut found, started) = (BTreeMap::new(), Instant::now());
        let mut quiet = false;
        // Read on until nothing comes any more: a second copy would come late.
        while !quiet || !wanted.iter().all(|id| found.contains_key(id)) {
            assert!(started.elapsed() < 2 * END, "records are missing");
            let message = consumer.poll(Duration::from_secs(1));
            quiet = message.is_none();
            if let Some(Ok(message)) = message {
                let record = UsageRecorded::from_value(message.payload().unwrap()).unwrap();
                *found.entry(record.request_id).or_default() += 1;
            }
        }
        found
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test]
async fn a_new_binary_takes_over_unnoticed_and_no_usage_is_lost_or_told_twice() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("upgrade.sock");
    let socket = socket.to_str().unwrap();
    let mut app = app::start(&[("UPGRADE_SOCK", socket)]).await;
    let load = Load::new(&app);
    let (listen, admin) = (app.listen, app.admin);
    let watch = async {
        while !load.stop.load(Ordering::Relaxed) {
            assert_eq!(status(admin, "/readyz").await, Some(200), "always ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let upgrade = async {
        let started = Instant::now();
        while started.elapsed() < seconds(60, 4) {
            load.go_on().await;
            let new = app.process(&[], &["--upgrade"]);
            let mut old = std::mem::replace(&mut app.gateway, new);
            assert_eq!(end(&mut old).await, Some(0));
        }
        load.go_on().await;
        load.stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(load.run(|| listen), watch, upgrade);
    assert_eq!(app.gateway.terminate(END), Some(0));
    let answered = load.answered.into_inner().unwrap();
    let told = told(&app, answered.clone()).await;
    assert_eq!(told.len(), answered.len(), "one record an answer");
    assert!(told.values().all(|times| *times == 1), "each told once");
}

#[tokio::test]
async fn a_new_binary_that_cannot_work_leaves_the_old_one_alone() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("upgrade.sock");
    let mut app = app::start(&[("UPGRADE_SOCK", socket.to_str().unwrap())]).await;
    let elsewhere = ("UPGRADE_SOCK", "/nowhere/upgrade.sock");
    let mut lost = app.process(&[elsewhere], &["--upgrade"]);
    let mut broken = app.process(&[("SPOOL_DIR", "/dev/null/spool")], &["--upgrade"]);
    // Nor does one that was not told to take over.
    let mut second = app.process(&[], &[]);
    for process in [&mut lost, &mut broken, &mut second] {
        assert_eq!(end(process).await, Some(69));
    }
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
    assert!(app.gateway.ended().is_none());
}

#[tokio::test]
async fn a_reload_every_second_is_unnoticed() {
    let app = app::start(&[]).await;
    let load = Load::new(&app);
    let client = app.database.pool().get().await.unwrap();
    let change = async {
        let started = Instant::now();
        let pause = seconds(60, 4) / 60;
        for number in 0..60 {
            let sql = format!(
                "UPDATE gateway.plans SET per_minute = 60000 + {number};
                 INSERT INTO gateway.tenants (id, name, plan)
                 VALUES (gen_random_uuid(), 'another', 'test');
                 INSERT INTO gateway.revocations VALUES ('jti', 'token-{number}')"
            );
            client.batch_execute(&sql).await.unwrap();
            tokio::time::sleep(
                pause
                    .saturating_mul(number + 1)
                    .saturating_sub(started.elapsed()),
            )
            .await;
        }
        load.stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(load.run(|| app.listen), change);
    assert!(load.count() > 60);
}

#[tokio::test]
async fn the_end_of_one_of_two_behind_a_balancer_is_unnoticed() {
    let mut app = app::start(&[("LAME_DUCK_MS", "500")]).await;
    let (listen, admin) = (free_address(), free_address());
    let changes = [
        ("LISTEN", listen.to_string()),
        ("ADMIN_LISTEN", admin.to_string()),
    ];
    let changes = changes.each_ref().map(|(name, value)| (*name, &value[..]));
    let mut second = app.process(&changes, &[]);
    app::ready(admin, listen).await;
    let gateways = [(app.listen, app.admin), (listen, admin)];
    let ready = [AtomicBool::new(true), AtomicBool::new(true)];
    let (load, turn) = (Load::new(&app), AtomicUsize::new(0));
    // As a balancer does: it looks at the readiness, and picks one that was ready.
    let pick = || {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let picked = (turn..turn + 2).find(|at| ready[at % 2].load(Ordering::Relaxed));
        gateways[picked.expect("one is ready") % 2].0
    };
    let watch = async {
        while !load.stop.load(Ordering::Relaxed) {
            for (gateway, ready) in gateways.iter().zip(&ready) {
                let answer = status(gateway.1, "/readyz").await;
                ready.store(answer == Some(200), Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    let stop_and_start = async {
        let started = Instant::now();
        while started.elapsed() < seconds(60, 4) {
            load.go_on().await;
            let pid = second.id().to_string();
            let kill = Command::new("kill").args(["-TERM", &pid]).status();
            assert!(kill.unwrap().success());
            assert_eq!(end(&mut second).await, Some(0));
            load.go_on().await;
            second = app.process(&changes, &[]);
            app::ready(admin, listen).await;
        }
        load.stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(load.run(pick), watch, stop_and_start);
    assert_eq!(app.gateway.terminate(END), Some(0));
}
