//! What only the operating system sees of a gateway: its system calls, and the names it looks up.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use ops::testing::{TestProcess, eventually, free_address};
use reqwest::StatusCode;
use tokio::net::TcpListener;

use crate::{
    app::{self, job, ready},
    namespace::with_hosts,
    upstream::Upstreams,
};

const SOON: Duration = Duration::from_secs(10);

/// Writes down from now on what a process forces to the disk. It does not end with us.
fn watch(pid: &str, log: &Path) -> TestProcess {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-e", "trace=fdatasync", "-p", pid, "-o"]);
    TestProcess::start(command.arg(log).stdin(Stdio::null()))
}

#[tokio::test]
async fn a_record_is_forced_to_the_disk_soon_after_its_answer() {
    let app = app::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("calls");
    let _watcher = watch(&app.gateway_pid(), &log);
    let forced = || {
        let calls = fs::read_to_string(&log).unwrap_or_default();
        let of_it = |line: &&str| line.contains("fdatasync(") && line.contains(".segment>");
        calls.lines().filter(of_it).count()
    };
    let watched = async || {
        app.get("/v1/jobs").await;
        (forced() > 0).then_some(())
    };
    eventually("records are forced to the disk", SOON, watched).await;
    for _ in 0..3 {
        let before = forced();
        app.get("/v1/jobs").await;
        let again = async || (forced() > before).then_some(());
        eventually("this one is", SOON, again).await;
    }
}

#[tokio::test]
async fn of_the_addresses_of_a_name_the_one_that_lives_answers() {
    let app = app::start(&[]).await;
    let (listen, admin, dead) = (free_address(), free_address(), free_address());
    let listener = TcpListener::bind(("127.0.0.2", dead.port())).await.unwrap();
    let seen = Upstreams::start_at(listener);
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let names = "127.0.0.1 localhost\n127.0.0.1 jobs.test\n127.0.0.2 jobs.test\n";
    fs::write(&hosts, names).unwrap();
    let url = format!("http://jobs.test:{}", dead.port());
    let (ours, sight) = (listen.to_string(), admin.to_string());
    let changes = [
        ("JOBS_URL", url.as_str()),
        ("LISTEN", &ours),
        ("ADMIN_LISTEN", &sight),
    ];
    let _gateway = TestProcess::start(&mut with_hosts(&hosts, &app.command(&changes, &[])));
    ready(admin, listen).await;
    let jobs = format!("http://{listen}/v1/jobs");
    for number in 0..20 {
        let request = app.client.get(&jobs).bearer_auth(&app.key);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
        let request = app.client.post(&jobs).bearer_auth(&app.key);
        let request = request.header("idempotency-key", number.to_string());
        let answer = request.json(&job("a")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
    }
    assert_eq!(seen.count(), 40);
    let both_known = async || {
        let metrics = app.client.get(format!("http://{admin}/metrics")).send();
        let metrics = metrics.await.unwrap().text().await.unwrap();
        let of = |state| {
            metrics.lines().any(|line| {
                line.starts_with("gateway_upstream_addresses{")
                    && line.contains("upstream=\"jobs\"")
                    && line.contains(state)
                    && line.ends_with(" 1")
            })
        };
        (of("state=\"in\"") && of("state=\"out\"")).then_some(())
    };
    eventually("both are known, and one is out", SOON, both_known).await;
}
