//! The gateway as it is shipped, on a database, prefix and topic of its own, with everything on:
//! keys and tokens, shared limits, the usage spool and its shipping, the access log as JSON.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ops::{
    clock::Clock,
    testing::{TestDatabase, free_address, prefix, service, until_ready},
};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use crate::{peers::Peer, process::Process};

const ISSUER: &str = "https://issuer.bench";
const AUDIENCE: &str = "jobseal";
/// Longer than the benchmark takes.
const TOKEN_SECONDS: i64 = 900;
/// One busy tenant who never comes near a limit.
const PLAN: &str = "--per-minute 60000000 --burst 1000000 --per-hour 2000000000";
const SCOPES: &str = "jobs:submit,jobs:read";
/// How long Kafka may take to have what the spool holds.
const SHIP_DEADLINE: Duration = Duration::from_mins(1);
const READY_DEADLINE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// The gateway, its credentials and its database.
pub(crate) struct Ours {
    pub(crate) peer: Peer,
    pub(crate) key: String,
    pub(crate) token: String,
    spool: PathBuf,
    _database: TestDatabase,
}

impl Ours {
    pub(crate) async fn start(folder: &Path, upstream: SocketAddr) -> anyhow::Result<Self> {
        let database = TestDatabase::create().await;
        let (listen, admin) = (free_address(), free_address());
        let (spool, jwks) = (folder.join("spool"), folder.join("jwks.json"));
        let issuer = Issuer::new(&jwks)?;
        let mut environment = environment(&database, upstream);
        for (name, value) in [
            ("LISTEN", listen.to_string()),
            ("ADMIN_LISTEN", admin.to_string()),
            ("SPOOL_DIR", spool.display().to_string()),
            ("JWKS_FILE", jwks.display().to_string()),
        ] {
            environment.insert(name.to_owned(), value);
        }
        call(&environment, "migrate")?;
        call(&environment, &format!("admin plan create bench {PLAN}"))?;
        let tenant = ask(&environment, "admin tenant create bench --plan bench")?;
        let tenant = tenant["tenant_id"]
            .as_str()
            .context("no tenant")?
            .to_owned();
        let command = format!("admin key create --tenant {tenant} --scopes {SCOPES}");
        let key = ask(&environment, &command)?;
        let key = key["key"].as_str().context("no key")?.to_owned();
        let mut command = gateway(&environment);
        let process = Process::start("gateway", command.arg("run"), listen, folder).await?;
        until_ready(admin, READY_DEADLINE).await;
        Ok(Self {
            peer: Peer {
                process,
                address: listen,
            },
            key,
            token: issuer.token(&tenant),
            spool,
            _database: database,
        })
    }

    /// Waits until Kafka has acknowledged the usage of every request, as the checkpoint says: what
    /// that costs belongs to those requests. Only looks at files, so that the wait costs nothing.
    pub(crate) async fn shipped(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.is_shipped()? {
            ensure!(
                began.elapsed() < SHIP_DEADLINE,
                "the usage spool is not shipped within {SHIP_DEADLINE:?}"
            );
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn is_shipped(&self) -> anyhow::Result<bool> {
        for folder in fs::read_dir(&self.spool)? {
            let folder = folder?.path();
            let checkpoint = fs::read_to_string(folder.join("checkpoint")).unwrap_or_default();
            let mut words = checkpoint.split(' ');
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            let (segment, offset) = (number().unwrap_or(1), number().unwrap_or(0));
            for file in fs::read_dir(&folder)? {
                let file = file?.path();
                if file.extension().is_none_or(|kind| kind != "segment") {
                    continue;
                }
                let number = file.file_stem().and_then(|stem| stem.to_str());
                let number: u64 = number.context("a segment without a number")?.parse()?;
                // Shipped and removed, perhaps meanwhile.
                let Ok(opened) = fs::File::open(&file) else {
                    continue;
                };
                let from = if number == segment { offset } else { 0 };
                let mut next = [0; 8];
                opened.read_at(&mut next, from)?;
                if number >= segment && next != [0; 8] {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn environment(database: &TestDatabase, upstream: SocketAddr) -> HashMap<String, String> {
    let mut environment: HashMap<String, String> = [
        ("DATABASE_URL", database.url().to_owned()),
        ("REDIS_URL", service("REDIS_URL")),
        ("REDIS_PREFIX", prefix("bench")),
        ("KAFKA_BROKERS", service("KAFKA_BROKERS")),
        ("TOPIC_PREFIX", prefix("bench") + "."),
        ("JWT_ISSUER", ISSUER.to_owned()),
        ("JWT_AUDIENCE", AUDIENCE.to_owned()),
        ("PROXY_THREADS", "1".to_owned()),
        ("GATEWAYS_MAX", "1".to_owned()),
        ("LOG_FORMAT", "json".to_owned()),
        ("LAME_DUCK_MS", "0".to_owned()),
        // The cores are shared with the load.
        ("REDIS_DEADLINE_MS", "250".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for name in ["JOBS", "RELAYER", "METERING", "WEBHOOKS"] {
        environment.insert(format!("{name}_URL"), format!("http://{upstream}"));
        environment.insert(format!("{name}_ASSERTION_KEY"), "07".repeat(32));
    }
    environment
}

fn gateway(environment: &HashMap<String, String>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.env_remove("RUST_LOG").envs(environment);
    command
}

fn call(environment: &HashMap<String, String>, command: &str) -> anyhow::Result<Vec<u8>> {
    let output = gateway(environment).args(command.split(' ')).output()?;
    ensure!(
        output.status.success(),
        "gateway {command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

fn ask(environment: &HashMap<String, String>, command: &str) -> anyhow::Result<Value> {
    let said = call(environment, &format!("{command} --json"))?;
    Ok(serde_json::from_slice(&said)?)
}

/// Who issues the tokens: an Ed25519 key whose public half lies in a file.
struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new(jwks: &Path) -> anyhow::Result<Self> {
        let random = SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random)
            .map_err(|_| anyhow::anyhow!("no key could be made"))?;
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).map_err(anyhow::Error::msg)?;
        let x = URL_SAFE_NO_PAD.encode(key.public_key());
        let set = json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "bench", "x": x,
        }] });
        fs::write(jwks, set.to_string())?;
        Ok(Self(key))
    }

    fn token(&self, tenant: &str) -> String {
        let now = Clock::system().now().as_second();
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            part(json!({ "typ": "JWT", "alg": "EdDSA", "kid": "bench" })),
            part(json!({
                "iss": ISSUER, "aud": AUDIENCE, "sub": "user_bench", "tenant_id": tenant,
                "scope": SCOPES.replace(',', " "), "iat": now, "exp": now + TOKEN_SECONDS,
                "jti": "bench",
            }))
        );
        let signature = self.0.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
