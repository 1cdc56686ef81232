//! `gateway run` and `gateway check`: all components, built in order on one page, and the way out.

use std::{
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use ops::{
    admin::{self, Readiness},
    clock::Clock,
    config::EXIT_UNAVAILABLE,
    lifecycle::Lifecycle,
    postgres,
    telemetry::{Spans, Telemetry},
};
use pingora::{
    listeners::{L4BufferSettings, ListenerConfig},
    server::{RunArgs, Server, configuration::ServerConf},
    services::listening::Service,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    abuse::Abuse,
    auth::{Authenticator, jwt::Tokens},
    budget::Budget,
    config::RunOptions,
    door::{Door, Hall, open::Open, tls::Tls},
    drain::Drain,
    handover::{self, Offer},
    health::Doctor,
    keys::Keys,
    limit::Limiter,
    pages::Pages,
    proxy::Gateway,
    route::Routes,
    sight::Sight,
    signature::replay::Replays,
    spool::Spool,
    store,
    upstream::Upstreams,
};

use parts::{
    follow_issuer, generation, idempotency, jwks, prune, readiness, records, redis, rules,
    snapshots, streams, tls, upstreams,
};

mod parts;

/// What is sent to a client together: the header and body of nearly every answer. What is read of
/// one goes where it is needed, so there is no buffer for it.
const CLIENT_WRITE_BYTES: usize = 4 * 1_024;
/// Threads for everything that is not a request.
const BACKGROUND_THREADS: usize = 2;
/// What leaving takes beside the lame duck and the last request.
pub(crate) const LEAVING: Duration = LAST_ARRIVALS
    .saturating_add(STREAMS_END)
    .saturating_add(BACKGROUND_DRAIN);
/// A connection accepted just before closing may still bring a request.
const LAST_ARRIVALS: Duration = Duration::from_millis(200);
/// What the components may take of the drain after the last request.
const BACKGROUND_DRAIN: Duration = Duration::from_secs(5);
/// How long streams may take to end once they are told to.
const STREAMS_END: Duration = Duration::from_secs(1);

/// What runs beside the requests.
struct Background {
    readiness: Readiness,
    limiter: Arc<Limiter>,
    drain: Drain,
    tls: Option<Arc<Tls>>,
}

/// Why the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It was told to, or a component ended.
    Told,
    /// A new process accepts on our sockets.
    Relieved,
}

/// Runs until a signal, drains, and says how it went.
///
/// # Errors
/// When a component cannot be built.
pub fn run(options: &RunOptions, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let runtime = background_runtime()?;
    let lifecycle = Lifecycle::default();
    let spans = telemetry.spans.clone();
    let (gateway, background) = runtime.block_on(build(options, spans, &lifecycle))?;
    let Background {
        readiness,
        limiter,
        drain,
        tls,
    } = background;
    let sockets = match runtime.block_on(handover::sockets(options, &readiness)) {
        Ok(sockets) => sockets,
        Err(cause) => {
            lifecycle.stop();
            runtime.block_on(lifecycle.run_until_stopped(BACKGROUND_DRAIN));
            return Err(cause);
        }
    };
    let given_away = CancellationToken::new();
    runtime.block_on(async {
        let admin = tokio::net::TcpListener::from_std(sockets.admin)?;
        let (metrics, stopping) = (telemetry.metrics.clone(), lifecycle.stopping());
        let serve = admin::serve(admin, readiness, metrics, stopping, given_away.clone());
        lifecycle.spawn("admin", serve);
        anyhow::Ok(())
    })?;
    let accepting = CancellationToken::new();
    let public = vec![(options.listen, sockets.public)];
    let server = server(options, gateway, tls, public, accepting.clone());
    let listening = drain.listening();
    let serve = move || {
        server.run(RunArgs {
            shutdown_signal: Box::new(listening),
        });
    };
    std::thread::Builder::new()
        .name("pingora".to_owned())
        .spawn(serve)?;
    runtime.block_on(accepting.cancelled());
    info!(http.address = %options.listen, admin.address = %options.process.admin_listen,
        "gateway listens");
    let code = runtime.block_on(async {
        let offer = sockets.next.settle();
        let reason = until_told(&lifecycle, offer).await;
        if reason == Reason::Relieved {
            given_away.cancel();
        }
        leave(options, &drain, reason).await;
        limiter.surrender().await;
        lifecycle.stop();
        lifecycle.run_until_stopped(BACKGROUND_DRAIN).await
    });
    Ok(code)
}

/// Reaches for every dependency and says what is wrong with them.
///
/// # Errors
/// When the runtime cannot be set up.
pub fn check(options: &RunOptions) -> anyhow::Result<ExitCode> {
    let runtime = background_runtime()?;
    let failures = runtime.block_on(reach(options));
    for (name, cause) in &failures {
        warn!(
            dependency = name,
            error = format!("{cause:#}"),
            "cannot be used"
        );
    }
    if failures.is_empty() {
        info!("configuration and dependencies are fine");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::from(EXIT_UNAVAILABLE))
}

/// Builds the components and starts those that run beside the requests.
async fn build(
    options: &RunOptions,
    spans: Option<Spans>,
    lifecycle: &Lifecycle,
) -> anyhow::Result<(Gateway, Background)> {
    let stop = || lifecycle.stopping();
    let pool = postgres::open(&options.database, store::SCHEMA, &store::migrations()).await?;
    let snapshots = snapshots(options, &pool, lifecycle);
    prune(options, &pool, lifecycle);
    let keys = Keys::new(pool.clone(), Clock::system());
    let redis = redis(options)?;
    redis.start().await;
    let generation = generation(&redis, &pool, lifecycle).await;
    let limiter = Limiter::new(redis.clone(), generation.clone(), options.gateways_max);
    let limiter = Arc::new(limiter);
    let idempotency = idempotency(options, &redis, &generation, lifecycle)?;
    let replays = Replays::new(redis.clone());
    let jwks = follow_issuer(options, &snapshots, lifecycle)?;
    let tokens = jwks.clone();
    let tokens = tokens.map(|jwks| Tokens::new(jwks, rules(&options.tokens)));
    let upstreams = upstreams(options, &snapshots, lifecycle);
    let (spool, access) = records(options, lifecycle)?;
    let snapshot_max_age = Duration::from_secs(options.snapshot_max_age_seconds);
    let doctor = Doctor::new(
        pool,
        redis,
        &options.kafka,
        Arc::clone(&upstreams),
        Arc::clone(&snapshots),
        snapshot_max_age,
    )?;
    let health = doctor.findings();
    lifecycle.spawn("health", doctor.follow(stop()));
    let drain = Drain::default();
    let readiness = readiness(&drain, &snapshots, &spool, jwks);
    let tls = tls(options, lifecycle)?;
    let background = Background {
        readiness,
        limiter: Arc::clone(&limiter),
        drain: drain.clone(),
        tls,
    };
    let abuse = Abuse::new(options.edge.abuse(), options.trusted_proxies.0.clone());
    let gateway = Gateway {
        clock: Clock::system(),
        routes: Routes::new(),
        snapshots,
        snapshot_max_age,
        authenticator: Authenticator::new(tokens),
        limiter,
        idempotency,
        keys,
        replays,
        signature_window: options.signature_window_seconds,
        upstreams,
        upstream_deadline: options.upstream_deadline(),
        streams: streams(options),
        body_deadline: Duration::from_millis(options.body_deadline_ms),
        trusted_proxies: options.trusted_proxies.0.clone(),
        spool,
        health,
        pages: Pages::new(contracts::OPENAPI_JSON),
        sight: Arc::new(Sight::new(&access)),
        abuse: Arc::new(abuse),
        budget: Arc::new(Budget::new(options.edge.held_max_bytes)),
        spans,
        drain,
    };
    Ok((gateway, background))
}

fn server(
    options: &RunOptions,
    gateway: Gateway,
    tls: Option<Arc<Tls>>,
    sockets: Vec<(SocketAddr, TcpListener)>,
    accepting: CancellationToken,
) -> Server {
    let conf = ServerConf {
        threads: usize::from(options.proxy_threads),
        // Never slept through: the process ends once everyone is served.
        grace_period_seconds: Some(options.process.drain_seconds),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let hall = Hall {
        clock: gateway.clock.clone(),
        sight: Arc::clone(&gateway.sight),
        drain: gateway.drain.clone(),
        abuse: Arc::clone(&gateway.abuse),
    };
    let door = Door::new(&server.configuration, gateway, tls, &options.edge, hall);
    let mut service = Service::new("gateway".to_owned(), door);
    let listener = ListenerConfig::tcp(options.listen.to_string());
    service.add_listener(listener.l4_buffer(L4BufferSettings::new(0, CLIENT_WRITE_BYTES)));
    server.add_service(Open::new(service, sockets, accepting));
    server
}

/// Waits for a signal, for a process that takes over, or for a component that ended.
async fn until_told(lifecycle: &Lifecycle, offer: Option<Offer>) -> Reason {
    let mut terminate = signal(SignalKind::terminate()).expect("signal handlers can be set");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signal handlers can be set");
    let relieved = async {
        match offer {
            Some(offer) => offer.until_relieved().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: draining"),
        _ = interrupt.recv() => info!("SIGINT: draining"),
        () = lifecycle.stopping().cancelled_owned() => warn!("a component ended: draining"),
        () = relieved => {
            info!("a new process accepts: draining");
            return Reason::Relieved;
        }
    }
    Reason::Told
}

/// Not ready first; then no new connections; then until everyone is served; then the streams end.
async fn leave(options: &RunOptions, drain: &Drain, reason: Reason) {
    drain.begin();
    let lame_duck = match reason {
        Reason::Told => Duration::from_millis(options.lame_duck_ms),
        // Nobody needs to go elsewhere: the sockets stay open.
        Reason::Relieved => Duration::ZERO,
    };
    tokio::time::sleep(lame_duck).await;
    drain.close();
    tokio::time::sleep(LAST_ARRIVALS).await;
    let rest = options.process.drain().saturating_sub(lame_duck + LEAVING);
    if tokio::time::timeout(rest, drain.quiet()).await.is_err() {
        warn!("the drain deadline: dropping the requests that are left");
    }
    let streams = tokio::time::timeout(STREAMS_END, drain.end_streams()).await;
    if streams.is_err() {
        warn!("streams did not end");
    }
}

async fn reach(options: &RunOptions) -> Vec<(&'static str, anyhow::Error)> {
    let mut failures = Vec::new();
    let mut note = |name, outcome: anyhow::Result<()>| {
        if let Err(cause) = outcome {
            failures.push((name, cause));
        }
    };
    let database = postgres::open(&options.database, store::SCHEMA, &store::migrations()).await;
    note("postgres", database.map(drop));
    let redis = async {
        let redis = redis(options)?;
        redis.connect_and_ping().await
    };
    note("redis", redis.await);
    let kafka = async { ops::kafka::ping(&ops::kafka::producer(&options.kafka)?).await };
    note("kafka", kafka.await);
    let keys = async {
        match jwks(&options.tokens, watch::Sender::new(()))? {
            Some(jwks) => jwks.read().await,
            None => Ok(()),
        }
    };
    note("jwks", keys.await);
    let files = options.edge.tls().map(|files| files.load());
    note("tls", files.transpose().map(drop));
    note("spool", Spool::probe(&options.spool_dir));
    for upstream in Upstreams::new(&options.upstreams).all() {
        note(upstream.audience.as_str(), upstream.ping().await);
    }
    failures
}

fn background_runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(BACKGROUND_THREADS)
        .thread_name("background")
        .enable_all()
        .build()
        .context("set up the background runtime")
}
