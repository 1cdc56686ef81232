//! Usage: one record in Kafka for each answered request, whatever is killed in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use contracts::event::{Attributes, USAGE_RECORDED, UsageRecorded};
use futures::future::join_all;
use ops::{
    config::KafkaOptions,
    kafka::ensure_topics,
    testing::{broker::Broker, eventually, free_address, records::from_the_start, service},
};
use rdkafka::{Message as _, message::Headers as _};
use reqwest::{Method, StatusCode};

use crate::{
    app::{self, App, problem},
    seconds,
};

/// A topic that says nothing for so long has said everything.
const SILENT: Duration = Duration::from_secs(20);

/// The usage records in Kafka, by `ce_id`, once all of `wanted` are there.
pub(crate) async fn shipped(
    app: &App,
    wanted: BTreeSet<String>,
) -> BTreeMap<String, UsageRecorded> {
    let kafka = KafkaOptions {
        kafka_brokers: app.variable("KAFKA_BROKERS").to_owned(),
        topic_prefix: app.variable("TOPIC_PREFIX").to_owned(),
    };
    ensure_topics(&kafka, &[USAGE_RECORDED]).await.unwrap();
    let consumer = from_the_start(&kafka, USAGE_RECORDED).await;
    let read = move || {
        let (mut found, mut missing) = (BTreeMap::new(), wanted);
        let mut heard = Instant::now();
        while !missing.is_empty() {
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) else {
                let silent = heard.elapsed();
                let missing = missing.len();
                assert!(silent < SILENT, "{missing} records are missing");
                continue;
            };
            heard = Instant::now();
            let headers = message.headers().unwrap().iter();
            let headers = headers.map(|header| (header.key, header.value.unwrap_or_default()));
            let attributes = Attributes::from_headers(headers).unwrap();
            let record = UsageRecorded::from_value(message.payload().unwrap()).unwrap();
            assert_eq!(attributes.id, record.request_id);
            assert_eq!(message.key().unwrap(), record.tenant_id.as_bytes());
            // Shipping again after a crash is the same record, never another one.
            missing.remove(&attributes.id);
            let before = found.insert(attributes.id, record.clone());
            assert!(before.is_none_or(|before| before == record));
        }
        found
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

pub(crate) fn id(response: &reqwest::Response) -> String {
    response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned()
}

/// Asks from several sides until told to stop; the ids of what was answered completely.
async fn load(app: &App, until: &AtomicBool) -> BTreeSet<String> {
    let answered = Arc::new(Mutex::new(BTreeSet::new()));
    let workers = (0..4).map(|worker| {
        let answered = Arc::clone(&answered);
        async move {
            let mut number = 0;
            while !until.load(Ordering::Relaxed) {
                number += 1;
                let request = if number % 2 == 0 {
                    app.request(Method::GET, "/v1/jobs")
                } else {
                    let job = app::job("a").to_string();
                    app.post("/v1/jobs", &format!("{worker}-{number}"), &job)
                };
                let Ok(response) = request.send().await else {
                    continue;
                };
                let (id, status) = (id(&response), response.status());
                assert!(!status.is_server_error(), "{status}");
                if status.is_success() && response.bytes().await.is_ok() {
                    answered.lock().unwrap().insert(id);
                }
            }
        }
    });
    join_all(workers).await;
    Arc::try_unwrap(answered).unwrap().into_inner().unwrap()
}

fn spools(app: &App) -> Vec<PathBuf> {
    let folders = fs::read_dir(app.variable("SPOOL_DIR")).unwrap();
    folders.map(|folder| folder.unwrap().path()).collect()
}

async fn kill_under_load(app: &mut App, changes: &[(&str, &str)]) -> BTreeSet<String> {
    let until = AtomicBool::new(false);
    let pid = app.gateway_pid();
    let (answered, ()) = tokio::join!(load(app, &until), async {
        tokio::time::sleep(Duration::from_millis(800)).await;
        let killed = std::process::Command::new("kill")
            .args(["-KILL", &pid])
            .status();
        assert!(killed.unwrap().success());
        tokio::time::sleep(Duration::from_millis(100)).await;
        until.store(true, Ordering::Relaxed);
    });
    assert!(answered.len() > 20, "only {} answers", answered.len());
    app.kill_and_restart(changes).await;
    answered
}

#[tokio::test]
async fn what_a_request_cost_is_recorded_with_its_id() {
    let app = app::start(&[]).await;
    let submitted = app.submit("k", "a").await;
    let replayed = app.submit("k", "a").await;
    let refused = app.post("/v1/jobs", "k3", "{").send().await.unwrap();
    let failed = app.submit("k4", "status:500").await;
    let free = app.get("/v1/usage").await;
    let stream = app.get("/v1/jobs/job_1/events").await;
    let ids = [&submitted, &replayed, &refused, &failed, &free, &stream].map(id);
    // Neither of these was admitted: no record.
    let unknown = app
        .client
        .get(format!("{}/v1/jobs", app.url))
        .send()
        .await
        .unwrap();
    let page = app
        .client
        .get(format!("{}/docs", app.url))
        .send()
        .await
        .unwrap();
    let found = shipped(&app, ids.iter().cloned().collect()).await;
    assert!(!found.contains_key(&id(&unknown)) && !found.contains_key(&id(&page)));
    let facts = ids.map(|id| {
        let record = &found[&id];
        (
            record.status_code,
            record.billable,
            record.replayed,
            record.endpoint.as_str(),
        )
    });
    assert_eq!(
        facts,
        [
            (202, true, false, "/v1/jobs"),
            (202, true, true, "/v1/jobs"),
            (400, true, false, "/v1/jobs"),
            (500, false, false, "/v1/jobs"),
            (200, false, false, "/v1/usage"),
            (200, true, false, "/v1/jobs/{job_id}/events"),
        ]
    );
    let record = &found[&id(&submitted)];
    assert_eq!(
        (&record.tenant_id, record.method.as_str()),
        (&app.tenant, "POST")
    );
    assert!(record.key_id.as_deref().unwrap().starts_with("key_"));
    assert_eq!(record.request_bytes, app::job("a").to_string().len() as u64);
}

#[tokio::test]
async fn kill_9_under_load_ten_times_loses_no_record_of_an_answer() {
    let mut app = app::start(&[]).await;
    let mut answered = BTreeSet::new();
    for _ in 0..10 {
        answered.append(&mut kill_under_load(&mut app, &[]).await);
    }
    shipped(&app, answered).await;
}

#[tokio::test]
async fn kafka_killed_under_load_costs_no_5xx_and_no_record() {
    let mut broker = Broker::start().await;
    let brokers = broker.brokers().to_owned();
    let app = app::start(&[("KAFKA_BROKERS", &brokers)]).await;
    let until = AtomicBool::new(false);
    let (answered, ()) = tokio::join!(load(&app, &until), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        broker.kill();
        tokio::time::sleep(seconds(120, 5)).await;
        broker.restart().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        until.store(true, Ordering::Relaxed);
    });
    let found = shipped(&app, answered.clone()).await;
    // One more than what was asked for would be billed to somebody.
    assert!(found.keys().all(|id| answered.contains(id)));
}

#[tokio::test]
async fn kill_9_while_kafka_is_away_loses_none_either_and_a_torn_end_is_cut() {
    let (brokers, nowhere) = (service("KAFKA_BROKERS"), free_address().to_string());
    let mut app = app::start(&[("KAFKA_BROKERS", &nowhere)]).await;
    let first = kill_under_load(&mut app, &[]).await;
    let second = kill_under_load(&mut app, &[]).await;
    app.gateway.kill();
    // As if the power had gone in the middle of a record.
    for folder in spools(&app) {
        tear(&folder);
    }
    let left = spools(&app);
    assert!(left.len() >= 2);
    app.kill_and_restart(&[("KAFKA_BROKERS", &brokers)]).await;
    shipped(&app, first.union(&second).cloned().collect()).await;
    eventually(
        "adopted spools are gone",
        Duration::from_secs(10),
        async || left.iter().all(|folder| !folder.exists()).then_some(()),
    )
    .await;
}

#[tokio::test]
async fn a_dead_spool_that_cannot_be_read_holds_up_nobody() {
    let (brokers, nowhere) = (service("KAFKA_BROKERS"), free_address().to_string());
    let mut app = app::start(&[("KAFKA_BROKERS", &nowhere)]).await;
    let first = id(&app.get("/v1/jobs").await);
    app.gateway.kill();
    let dead = spools(&app).pop().unwrap();
    // As if it belonged to another user, or the disk were damaged.
    let (segment, aside) = (dead.join("0000000001.segment"), dead.join("aside"));
    fs::rename(&segment, &aside).unwrap();
    fs::create_dir(&segment).unwrap();
    app.kill_and_restart(&[("KAFKA_BROKERS", &brokers)]).await;
    let second = id(&app.get("/v1/jobs").await);
    shipped(&app, BTreeSet::from([second])).await;
    fs::remove_dir(&segment).unwrap();
    fs::rename(&aside, &segment).unwrap();
    shipped(&app, BTreeSet::from([first])).await;
}

fn tear(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "segment")
        {
            let mut bytes = fs::read(&path).unwrap();
            let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else {
                continue;
            };
            let torn = bytes[..(last + 1).min(30)].to_vec();
            bytes[last + 1..][..torn.len()].copy_from_slice(&torn);
            fs::write(&path, bytes).unwrap();
        }
    }
}

#[tokio::test]
async fn a_full_spool_refuses_what_is_billed_and_is_not_ready() {
    let (brokers, nowhere) = (service("KAFKA_BROKERS"), free_address().to_string());
    let full = [
        ("KAFKA_BROKERS", nowhere.as_str()),
        ("SPOOL_MAX_BYTES", "2000"),
    ];
    let mut app = app::start(&full).await;
    let mut ids = BTreeSet::new();
    let refused = loop {
        let response = app.get("/v1/jobs").await;
        if response.status() != StatusCode::OK {
            break response;
        }
        ids.insert(id(&response));
        assert!(ids.len() < 50);
    };
    assert_eq!(problem(refused).await["code"], "SERVICE_UNAVAILABLE");
    app.not_ready("a full spool").await;
    assert!(figure(&app, "refused_total").await > 0);
    // Looking at the bill is free and still works.
    assert_eq!(app.get("/v1/usage").await.status(), StatusCode::OK);
    app.gateway.kill();
    app.kill_and_restart(&[("KAFKA_BROKERS", &brokers)]).await;
    shipped(&app, ids).await;
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
}

/// What a metric of the spool says, in whole units.
async fn figure(app: &App, name: &str) -> u64 {
    let metrics = app.metrics().await;
    let name = format!("gateway_spool_{name} ");
    let mut values = metrics.lines().filter_map(|line| line.strip_prefix(&name));
    let value = values.next().expect("it is there from the beginning");
    value.split('.').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn metrics_say_how_full_it_is_how_old_the_oldest_and_what_was_shipped() {
    const SOON: Duration = Duration::from_secs(10);
    let (brokers, nowhere) = (service("KAFKA_BROKERS"), free_address().to_string());
    let away = [
        ("KAFKA_BROKERS", nowhere.as_str()),
        ("SPOOL_MAX_BYTES", "100000"),
    ];
    let mut app = app::start(&away).await;
    for name in [
        "waiting_bytes",
        "oldest_seconds",
        "shipped_total",
        "refused_total",
    ] {
        assert_eq!(figure(&app, name).await, 0, "{name}");
    }
    assert_eq!(figure(&app, "max_bytes").await, 100_000);
    let asked = Instant::now();
    let mut ids = BTreeSet::new();
    for _ in 0..5 {
        ids.insert(id(&app.get("/v1/jobs").await));
    }
    let grows = async || (figure(&app, "oldest_seconds").await > 1).then_some(());
    eventually("it waits", SOON, grows).await;
    assert!(figure(&app, "oldest_seconds").await <= asked.elapsed().as_secs());
    let waiting = figure(&app, "waiting_bytes").await;
    assert!((500..5_000).contains(&waiting), "{waiting}");
    // What a dead process left is as old as it is.
    app.kill_and_restart(&[]).await;
    let restarted = Instant::now();
    let adopted = async || (figure(&app, "waiting_bytes").await == waiting).then_some(());
    eventually("it is counted", SOON, adopted).await;
    let older = async || {
        let age = figure(&app, "oldest_seconds").await;
        (age > restarted.elapsed().as_secs() + 1).then_some(())
    };
    eventually("it is as old as it was", SOON, older).await;
    app.kill_and_restart(&[("KAFKA_BROKERS", &brokers)]).await;
    shipped(&app, ids).await;
    let empty = async || (figure(&app, "waiting_bytes").await == 0).then_some(());
    eventually("nothing waits", SOON, empty).await;
    let young = async || (figure(&app, "oldest_seconds").await == 0).then_some(());
    eventually("nothing is old", SOON, young).await;
    assert_eq!(figure(&app, "shipped_total").await, 5);
}

#[tokio::test]
async fn what_is_shipped_counts_once_though_it_cannot_be_noted() {
    let app = app::start(&[]).await;
    let checkpoint = spools(&app).pop().unwrap().join("checkpoint");
    fs::remove_file(&checkpoint).unwrap();
    fs::create_dir(&checkpoint).unwrap();
    // So long that whoever ships something again has done so in between.
    for round in 1..=10 {
        for _ in 0..5 {
            assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
        }
        let counted = async || {
            let shipped = figure(&app, "shipped_total").await;
            let waiting = figure(&app, "waiting_bytes").await;
            ((shipped, waiting) == (5 * round, 0)).then_some(())
        };
        eventually("each counts once", Duration::from_secs(10), counted).await;
    }
}
