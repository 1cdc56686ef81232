//! `ops/bench gateway-parts`: what the parts of the gateway's request path cost, each by itself.

use std::{collections::HashMap, fs, hint::black_box, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Parser;
use contracts::{
    assertion::{Audience, Role, SHA256_OF_NOTHING, Scope},
    id::{KeyId, RequestId, TenantId},
};
use criterion::Criterion;
use futures::FutureExt as _;
use gateway::{
    auth::{
        Authenticator, Principal,
        api_key::Presented,
        issuer::Source,
        jwks::Jwks,
        jwt::{Rules, Tokens},
        stated::Ready,
    },
    config::UpstreamOptions,
    headers,
    keys::uses::LastUse,
    limit::{
        bucket::{Policy, Taken},
        lease::{self, Decision},
    },
    route::ROUTES,
    sight::{
        PlanLabel,
        access::{AccessLog, Line},
    },
    snapshot::{ApiKey, Identity, Plan, Snapshot, Tenant},
    spool::Spool,
    upstream::{Facts, Upstreams},
    usage::{self, Admitted},
};
use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use ops::clock::Clock;
use pingora::http::{RequestHeader, ResponseHeader};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tokio::sync::watch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PATH: &str = "/v1/jobs/job_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const WARM_UP: Duration = Duration::from_millis(500);
const WINDOW: Duration = Duration::from_secs(2);
/// What the parts may cost together, at the goal of 4 microseconds for a GET.
const BUDGET_NS: f64 = 4_000.0;

#[derive(Parser)]
struct Cli {
    /// Write the rows here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A tenant with a key and a token, and what they are checked with.
struct World {
    now: Timestamp,
    snapshot: Snapshot,
    authenticator: Authenticator,
    key: HeaderMap,
    token: HeaderMap,
    tokens: tokio::runtime::Runtime,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let folder = tempfile::tempdir()?;
    let mut criterion = Criterion::default()
        .without_plots()
        .warm_up_time(WARM_UP)
        .measurement_time(WINDOW)
        .output_directory(folder.path());
    let world = World::new(folder.path().join("jwks.json"))?;
    who(&mut criterion, &world)?;
    how_often(&mut criterion);
    form(&mut criterion)?;
    upstream(&mut criterion, &world)?;
    told(&mut criterion, &world, &folder.path().join("spool"))?;
    if let Some(file) = cli.json {
        let rows = rows(folder.path())?;
        fs::write(file, serde_json::to_vec_pretty(&json!({ "rows": rows }))?)?;
    }
    Ok(())
}

/// Authentication.
fn who(criterion: &mut Criterion, world: &World) -> anyhow::Result<()> {
    criterion.bench_function("api_key", |bencher| {
        bencher.iter(|| world.principal(black_box(&world.key)).is_some());
    });
    world.learn()?;
    criterion.bench_function("cached_jwt", |bencher| {
        bencher.iter(|| world.principal(black_box(&world.token)).is_some());
    });
    Ok(())
}

/// A decision from a lease.
fn how_often(criterion: &mut Criterion) {
    let policies = Policy::of(&plan());
    let mut tokens = lease::Tokens::new(policies, 1, 0);
    let lease = Taken {
        granted: u32::MAX,
        retry_ms: 0,
        violated: [false; 2],
        remaining: [u32::MAX; 2],
        at_ms: 0,
    };
    criterion.bench_function("limit", |bencher| {
        bencher.iter(|| match tokens.decide(black_box(1)) {
            Decision::Known(outcome) => outcome,
            Decision::Ask(_) => tokens.granted(&lease, 1),
        });
    });
}

/// Form and headers of a request, and headers of its answer.
fn form(criterion: &mut Criterion) -> anyhow::Result<()> {
    let raw = format!(
        "GET {PATH} HTTP/1.1\r\nHost: api\r\nAccept: application/json\r\nUser-Agent: bench\r\n\
         Authorization: Bearer {}\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
        "a".repeat(100)
    );
    let mut request = RequestHeader::build("GET", PATH.as_bytes(), None)?;
    for line in raw.lines().skip(1).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").context("a header")?;
        request.append_header(name.to_owned(), value)?;
    }
    criterion.bench_function("check_form", |bencher| {
        bencher.iter(|| headers::check_form(black_box(&request)).is_ok());
    });
    let assertion = "a".repeat(900);
    let ours = headers::Upstream {
        assertion: &assertion,
        traceparent: TRACEPARENT,
        key: None,
        replay_only: false,
        length: None,
        websocket: None,
    };
    criterion.bench_function("headers_upstream", |bencher| {
        bencher.iter(|| headers::for_upstream(black_box(&request), &ours, "127.0.0.1:8080"));
    });
    let mut answer = ResponseHeader::build(200, None)?;
    for (name, value) in [
        ("Server", "nginx"),
        ("Date", "Sat, 21 Nov 2026 18:34:24 GMT"),
        ("Content-Type", "application/json"),
        ("Content-Length", "300"),
        ("Connection", "keep-alive"),
    ] {
        answer.append_header(name, value)?;
    }
    let id = RequestId::generate(Clock::system().now());
    criterion.bench_function("headers_client", |bencher| {
        bencher.iter(|| {
            let mut answer = headers::from_upstream(&answer);
            headers::complete(&mut answer, id, |_| ()).is_ok()
        });
    });
    Ok(())
}

/// The statement about who asks.
fn upstream(criterion: &mut Criterion, world: &World) -> anyhow::Result<()> {
    let (url, key) = ("http://127.0.0.1:1".parse()?, "07".repeat(32).parse()?);
    let options = UpstreamOptions {
        upstream_check_path: None,
        jobs_url: url,
        jobs_assertion_key: key,
        relayer_url: "http://127.0.0.1:2".parse()?,
        relayer_assertion_key: "08".repeat(32).parse()?,
        metering_url: "http://127.0.0.1:3".parse()?,
        metering_assertion_key: "09".repeat(32).parse()?,
        webhooks_url: "http://127.0.0.1:4".parse()?,
        webhooks_assertion_key: "0a".repeat(32).parse()?,
    };
    let upstreams = Upstreams::new(&options);
    let principal = world.principal(&world.key).context("the key is good")?;
    let facts = Facts {
        method: "GET",
        target: PATH,
        body_sha256: SHA256_OF_NOTHING,
        address: "192.0.2.1".parse()?,
        request_id: RequestId::generate(world.now),
        traceparent: TRACEPARENT,
    };
    criterion.bench_function("assertion", |bencher| {
        let upstream = upstreams.get(Audience::Jobs);
        bencher.iter(|| upstream.assertion(black_box(&principal), &facts, world.now));
    });
    Ok(())
}

/// The usage record and the line of the access log.
fn told(criterion: &mut Criterion, world: &World, root: &std::path::Path) -> anyhow::Result<()> {
    let spool = Spool::create(root, u64::MAX, Clock::system())?;
    let principal = world.principal(&world.key).context("the key is good")?;
    let route = ROUTES.iter().find(|route| route.billable());
    let admitted = Admitted {
        request_id: RequestId::generate(world.now),
        arrived_at: world.now,
        took: Duration::from_micros(300),
        principal: &principal,
        route: route.context("a route is billable")?,
        status: 200,
        request_bytes: 0,
        response_bytes: 300,
        replayed: false,
    };
    criterion.bench_function("usage_record", |bencher| {
        bencher.iter(|| usage::record(&spool, black_box(&admitted)).is_ok());
    });
    let (line, log) = (line(world, &admitted)?, Arc::new(AccessLog::new()));
    criterion.bench_function("access_line", |bencher| {
        bencher.iter(|| log.add(black_box(&line)));
    });
    Ok(())
}

fn line(world: &World, admitted: &Admitted<'_>) -> anyhow::Result<Line<'static>> {
    Ok(Line {
        timestamp: world.now,
        level: "INFO",
        message: "request",
        method: "GET",
        path: PATH,
        route: admitted.route.template,
        status: 200,
        problem: None,
        request_id: admitted.request_id,
        request_bytes: 0,
        response_bytes: 300,
        duration_us: 300,
        address: "192.0.2.1".parse()?,
        tenant: Some(admitted.principal.tenant.id),
        key: admitted.principal.key_id(),
        replayed: false,
        target: "gateway::access",
    })
}

impl World {
    fn new(jwks: PathBuf) -> anyhow::Result<Self> {
        let now = Clock::system().now();
        let tenant = Arc::new(Tenant {
            id: TenantId::generate(now),
            unique_content: false,
            allowed: Vec::new(),
            signing: None,
            plan: Arc::new(plan()),
        });
        let presented = Presented::generate(KeyId::generate(now));
        let key = ApiKey {
            id: presented.id,
            last_use: LastUse::default(),
            ready: Ready::default(),
            secret_hash: presented.secret_hash(),
            expires_at: now + Duration::from_hours(1),
            identity: Identity {
                tenant: tenant.id,
                subject: "user_1".parse()?,
                team: None,
                submitter: None,
                role: Role::Developer,
                scopes: vec![Scope::JobsSubmit, Scope::JobsRead],
            },
        };
        let token = token(tenant.id, now, &jwks)?;
        let rules = Rules {
            issuer: "bench".to_owned(),
            audience: "jobseal".to_owned(),
            lifetime_max: 900,
        };
        let jwks = Arc::new(Jwks::new(
            Source::File(jwks),
            Duration::from_mins(5),
            Duration::from_hours(24),
            watch::Sender::default(),
        )?);
        let snapshot = Snapshot {
            tenants: HashMap::from([(tenant.id, tenant)]),
            keys: HashMap::from([(key.id, Arc::new(key))]),
            ..Snapshot::default()
        };
        Ok(Self {
            now,
            snapshot,
            authenticator: Authenticator::new(Some(Tokens::new(jwks, rules))),
            key: bearer(presented.text().expose_secret())?,
            token: bearer(&token)?,
            tokens: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        })
    }

    /// Whom a credential is, when nothing must be waited for.
    fn principal(&self, headers: &HeaderMap) -> Option<Principal> {
        let who = self
            .authenticator
            .authenticate(headers, &self.snapshot, self.now);
        who.now_or_never()?.ok()
    }

    /// Verifies the token once, which reads the keys.
    fn learn(&self) -> anyhow::Result<()> {
        let who = self
            .authenticator
            .authenticate(&self.token, &self.snapshot, self.now);
        self.tokens.block_on(who)?;
        Ok(())
    }
}

fn bearer(credential: &str) -> anyhow::Result<HeaderMap> {
    let value = HeaderValue::try_from(format!("Bearer {credential}"))?;
    Ok(HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]))
}

fn token(tenant: TenantId, now: Timestamp, jwks: &PathBuf) -> anyhow::Result<String> {
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).map_err(anyhow::Error::msg)?;
    let x = URL_SAFE_NO_PAD.encode(key.public_key());
    let set = json!({ "keys": [{
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "bench", "x": x,
    }] });
    fs::write(jwks, set.to_string())?;
    let now = now.as_second();
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!(
        "{}.{}",
        part(json!({ "typ": "JWT", "alg": "EdDSA", "kid": "bench" })),
        part(json!({
            "iss": "bench", "aud": "jobseal", "sub": "user_1", "tenant_id": tenant, "jti": "1",
            "scope": "jobs:submit jobs:read", "iat": now, "exp": now + 600,
        }))
    );
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()));
    Ok(format!("{signed}.{signature}"))
}

fn plan() -> Plan {
    Plan {
        name: "bench".to_owned(),
        per_minute: u32::MAX,
        burst: u32::MAX,
        per_hour: u32::MAX,
        quota: None,
        active_jobs: 1,
        priority: 5,
        label: PlanLabel::default(),
    }
}

/// What criterion has estimated, beside the whole budget.
fn rows(folder: &std::path::Path) -> anyhow::Result<Vec<Value>> {
    let mut rows = Vec::new();
    for part in fs::read_dir(folder)? {
        let part = part?;
        let Ok(text) = fs::read(part.path().join("new/estimates.json")) else {
            continue;
        };
        let estimates: Value = serde_json::from_slice(&text)?;
        let mean = estimates["median"]["point_estimate"].as_f64();
        let mean = mean.context("criterion's estimate")?;
        rows.push(json!({
            "name": part.file_name().to_string_lossy(), "value": mean, "unit": "ns",
            "baseline": BUDGET_NS, "ratio": mean / BUDGET_NS,
        }));
    }
    Ok(rows)
}
