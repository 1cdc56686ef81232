//! The gateway as tests see it: a process of its own on a database, prefix and topic of its own.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use ops::testing::{
    TestDatabase, TestProcess, eventually, free_address, prefix, service, status, until_ready,
};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    issuer::{AUDIENCE, ISSUER, Issuer},
    upstream::Upstreams,
};

/// Every scope there is.
pub(crate) const ALL_SCOPES: &str = "jobs:submit,jobs:read,jobs:read:team,jobs:admin,\
    webhooks:read,webhooks:write,billing:read,keys:admin";

pub(crate) struct App {
    // First, so that they are gone before what they use.
    pub(crate) gateway: TestProcess,
    others: Vec<TestProcess>,
    pub(crate) url: String,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) database: TestDatabase,
    pub(crate) upstreams: Upstreams,
    pub(crate) issuer: Issuer,
    pub(crate) jwks: PathBuf,
    pub(crate) tenant: String,
    pub(crate) key: String,
    pub(crate) client: reqwest::Client,
    environment: HashMap<String, String>,
    _folder: tempfile::TempDir,
}

/// Starts an app with `changes` to the gateway's environment and a generous plan.
pub(crate) async fn start(changes: &[(&str, &str)]) -> App {
    start_with_plan(
        changes,
        "--per-minute 60000 --burst 5000 --per-hour 1000000",
    )
    .await
}

pub(crate) async fn start_with_plan(changes: &[(&str, &str)], plan: &str) -> App {
    let database = TestDatabase::create().await;
    let upstreams = Upstreams::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (issuer, jwks) = (Issuer::new("k1"), folder.path().join("jwks.json"));
    Issuer::write(&[&issuer], &jwks);
    let (listen, admin) = (free_address(), free_address());
    let mut environment: HashMap<String, String> = [
        ("DATABASE_URL", database.url().to_owned()),
        ("REDIS_URL", service("REDIS_URL")),
        ("REDIS_PREFIX", prefix("gw")),
        ("KAFKA_BROKERS", service("KAFKA_BROKERS")),
        ("TOPIC_PREFIX", prefix("gw") + "."),
        ("LISTEN", listen.to_string()),
        ("ADMIN_LISTEN", admin.to_string()),
        (
            "SPOOL_DIR",
            folder.path().join("spool").display().to_string(),
        ),
        ("JWKS_FILE", jwks.display().to_string()),
        ("JWT_ISSUER", ISSUER.to_owned()),
        ("JWT_AUDIENCE", AUDIENCE.to_owned()),
        ("LAME_DUCK_MS", "300".to_owned()),
        ("PROXY_THREADS", "1".to_owned()),
        ("RUST_LOG", "warn,rdkafka=off,librdkafka=off".to_owned()),
        // The cores are shared with everything else that is being tested.
        ("REDIS_DEADLINE_MS", "250".to_owned()),
        // All tests come from one address; those of budgets set their own.
        ("FAILED_AUTH_PER_MINUTE", "0".to_owned()),
        ("MISSES_PER_MINUTE", "0".to_owned()),
        ("DEMERITS_MAX", "0".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for (name, value) in &upstreams.environment {
        environment.insert((*name).to_owned(), value.clone());
    }
    for (name, value) in changes {
        environment.insert((*name).to_owned(), (*value).to_owned());
    }
    // The file is what is there if a test asks for nothing else.
    let has_other = environment.contains_key("JWKS_URL") || environment["JWT_ISSUER"] != ISSUER;
    if has_other {
        environment.remove("JWKS_FILE");
    }
    assert!(run(&environment, "migrate").status.success());
    let plan: Vec<&str> = plan.split(' ').collect();
    let plan = [&["admin", "plan", "create", "test"], &plan[..]]
        .concat()
        .join(" ");
    json(&environment, &plan);
    let tenant = json(&environment, "admin tenant create t1 --plan test");
    let tenant = tenant["tenant_id"].as_str().unwrap().to_owned();
    let key = key(&environment, &tenant, ALL_SCOPES);
    let app = App {
        url: format!("http://{listen}"),
        listen,
        admin,
        database,
        upstreams,
        issuer,
        jwks,
        tenant,
        key,
        client: client(),
        gateway: process(&environment),
        others: Vec::new(),
        environment,
        _folder: folder,
    };
    app.ready().await;
    app
}

impl App {
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.key)
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// Submits a job of this text under this key.
    pub(crate) async fn submit(&self, key: &str, text: &str) -> Response {
        let job = job(text).to_string();
        self.post("/v1/jobs", key, &job).send().await.unwrap()
    }

    pub(crate) fn post(&self, path: &str, key: &str, body: &str) -> RequestBuilder {
        self.request(Method::POST, path)
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(body.to_owned())
    }

    /// A command of the gateway's binary with this app's environment, and its JSON.
    pub(crate) fn admin(&self, command: &str) -> Value {
        json(&self.environment, command)
    }

    /// The binary with this app's environment.
    pub(crate) fn binary(&self) -> Command {
        binary(&self.environment)
    }

    /// The same, as a process's output.
    pub(crate) fn run(&self, command: &str) -> std::process::Output {
        run(&self.environment, command)
    }

    /// A new key with these scopes.
    pub(crate) fn new_key(&self, tenant: &str, scopes: &str) -> String {
        key(&self.environment, tenant, scopes)
    }

    /// SIGKILL, then a new process with the same environment but `changes`.
    pub(crate) async fn kill_and_restart(&mut self, changes: &[(&str, &str)]) {
        self.gateway.kill();
        for (name, value) in changes {
            self.environment
                .insert((*name).to_owned(), (*value).to_owned());
        }
        self.gateway = process(&self.environment);
        self.ready().await;
    }

    /// Another gateway beside this one; its URL.
    pub(crate) async fn second(&mut self) -> String {
        let (listen, admin) = (free_address(), free_address());
        let mut environment = self.environment.clone();
        environment.insert("LISTEN".to_owned(), listen.to_string());
        environment.insert("ADMIN_LISTEN".to_owned(), admin.to_string());
        self.others.push(process(&environment));
        ready(admin, listen).await;
        format!("http://{listen}")
    }

    /// A gateway process with this environment but `changes`, and `arguments` after `run`.
    pub(crate) fn process(&self, changes: &[(&str, &str)], arguments: &[&str]) -> TestProcess {
        TestProcess::start(&mut self.command(changes, arguments))
    }

    /// What would start it.
    pub(crate) fn command(&self, changes: &[(&str, &str)], arguments: &[&str]) -> Command {
        let mut command = binary(&self.environment);
        command.arg("run").args(arguments).stdin(Stdio::null());
        command.envs(changes.iter().copied());
        command
    }

    pub(crate) fn variable(&self, name: &str) -> &str {
        &self.environment[name]
    }

    pub(crate) async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.admin);
        self.client
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    pub(crate) async fn ready(&self) {
        ready(self.admin, self.listen).await;
    }

    pub(crate) fn gateway_pid(&self) -> String {
        self.gateway.id().to_string()
    }

    pub(crate) async fn not_ready(&self, what: &str) {
        eventually(what, Duration::from_secs(10), async || {
            (status(self.admin, "/readyz").await != Some(200)).then_some(())
        })
        .await;
    }
}

/// A job that computes a digest of `text`.
pub(crate) fn job(text: &str) -> Value {
    json!({ "type": "digest", "payload": { "text": text } })
}

/// The problem that an answer is, once its form is checked.
pub(crate) async fn problem(response: Response) -> Value {
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let status = response.status().as_u16();
    let id = response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["request_id"], id);
    problem
}

/// Waits until a gateway is ready and open: its admin listener is up before the public one.
pub(crate) async fn ready(admin: SocketAddr, listen: SocketAddr) {
    const DEADLINE: Duration = Duration::from_secs(30);
    until_ready(admin, DEADLINE).await;
    let open = async || TcpStream::connect(listen).await.ok();
    eventually("the gateway is open", DEADLINE, open).await;
}

fn client() -> reqwest::Client {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .build()
        .unwrap()
}

fn process(environment: &HashMap<String, String>) -> TestProcess {
    TestProcess::start(binary(environment).arg("run").stdin(Stdio::null()))
}

fn binary(environment: &HashMap<String, String>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.envs(environment);
    command
}

fn run(environment: &HashMap<String, String>, command: &str) -> std::process::Output {
    binary(environment)
        .args(command.split(' '))
        .output()
        .unwrap()
}

fn json(environment: &HashMap<String, String>, command: &str) -> Value {
    let output = run(environment, &format!("{command} --json"));
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn key(environment: &HashMap<String, String>, tenant: &str, scopes: &str) -> String {
    let command = format!("admin key create --tenant {tenant} --scopes {scopes}");
    json(environment, &command)["key"]
        .as_str()
        .unwrap()
        .to_owned()
}
