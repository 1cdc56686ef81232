//! The components one by one, each with what follows it beside the requests.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ops::{admin::Readiness, clock::Clock, lifecycle::Lifecycle, postgres::Pool, retention};
use tokio::sync::watch;

use crate::{
    auth::{issuer::Source, jwks::Jwks, jwt::Rules},
    config::{RunOptions, SNAPSHOT_STALE, TokenOptions},
    door::tls::Tls,
    drain::Drain,
    idempotency::Idempotency,
    keys::uses,
    limit::{generation::Generation, quota::Seeder},
    redis::Redis,
    sight::access::AccessLog,
    snapshot::Snapshots,
    spool::{Spool, ship::Shipper},
    store,
    streams::Streams,
    upstream::Upstreams,
};

/// What is known of tenants, keys and rules, followed; and what is noted of the keys' use.
pub(super) fn snapshots(
    options: &RunOptions,
    pool: &Pool,
    lifecycle: &Lifecycle,
) -> Arc<Snapshots> {
    let stop = || lifecycle.stopping();
    let snapshots = Arc::new(Snapshots::empty(Instant::now()));
    let (database, sealing) = (options.database.clone(), options.signatures_key.clone());
    let follow = store::follow(database, sealing, Arc::clone(&snapshots), stop());
    lifecycle.spawn("snapshot", follow);
    let note = uses::write(pool.clone(), Arc::clone(&snapshots), stop());
    lifecycle.spawn("key uses", note);
    snapshots
}

/// What is written down of requests: usage and access lines, and what carries them on.
pub(super) fn records(
    options: &RunOptions,
    lifecycle: &Lifecycle,
) -> anyhow::Result<(Arc<Spool>, Arc<AccessLog>)> {
    let stop = || lifecycle.stopping();
    let (root, most) = (&options.spool_dir, options.spool_max_bytes);
    let spool = Arc::new(Spool::create(root, most, Clock::system())?);
    lifecycle.spawn("spool", Arc::clone(&spool).keep_synced(stop()));
    let shipper = Shipper::new(Arc::clone(&spool), options.kafka.clone());
    lifecycle.spawn("shipper", shipper.run(stop()));
    let access = Arc::new(AccessLog::new());
    lifecycle.spawn("access log", Arc::clone(&access).keep_written(stop()));
    Ok((spool, access))
}

pub(super) fn streams(options: &RunOptions) -> Streams {
    Streams::new(
        options.streams_max,
        options.tenant_streams_max,
        Duration::from_secs(options.stream_idle_seconds),
        Duration::from_secs(options.stream_max_seconds),
    )
}

/// The APIs behind, with what follows where they are, how they are, and which version is whose.
pub(super) fn upstreams(
    options: &RunOptions,
    snapshots: &Arc<Snapshots>,
    lifecycle: &Lifecycle,
) -> Arc<Upstreams> {
    let stop = || lifecycle.stopping();
    let upstreams = Arc::new(Upstreams::new(&options.upstreams));
    lifecycle.spawn("names", Arc::clone(&upstreams).resolve(stop()));
    lifecycle.spawn("checks", Arc::clone(&upstreams).check(stop()));
    let rollouts = Arc::clone(&upstreams).follow(Arc::clone(snapshots), Clock::system(), stop());
    lifecycle.spawn("rollouts", rollouts);
    upstreams
}

/// What deletes rows that nobody needs any more.
pub(super) fn prune(options: &RunOptions, pool: &Pool, lifecycle: &Lifecycle) {
    let retention = retention::run(pool.clone(), store::SCHEMA, lifecycle.stopping());
    lifecycle.spawn("retention", retention);
    let lifetime = options.tokens.jwt_lifetime_max_seconds;
    let lifetime = Duration::from_secs(u64::try_from(lifetime).unwrap_or(0));
    let revocations = store::prune::revocations(pool.clone(), lifetime, lifecycle.stopping());
    lifecycle.spawn("revocations", revocations);
}

/// When Redis was last found empty or restarted, followed.
pub(super) async fn generation(redis: &Redis, pool: &Pool, lifecycle: &Lifecycle) -> Generation {
    let generation = Generation::default();
    // Before the first request, if possible: after a flush buckets start empty.
    let aside = redis.aside();
    generation.look(&aside, pool).await.ok();
    let stop = lifecycle.stopping();
    let follow = generation.clone().follow(aside, pool.clone(), stop);
    lifecycle.spawn("generation", follow);
    generation
}

/// What was answered before, and what the month's submissions cost.
pub(super) fn idempotency(
    options: &RunOptions,
    redis: &Redis,
    generation: &Generation,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Idempotency> {
    let (redis, generation) = (redis.clone(), generation.clone());
    let upstreams = &options.upstreams;
    let clock = Clock::system();
    let (seeder, seeding) = Seeder::new(redis.aside(), generation.clone(), upstreams, clock)?;
    lifecycle.spawn("quota", seeding.run(lifecycle.stopping()));
    let deadline = options.upstream_deadline();
    Ok(Idempotency::new(redis, generation, seeder, deadline))
}

/// The issuer's keys, which are kept true beside the requests.
pub(super) fn follow_issuer(
    options: &RunOptions,
    snapshots: &Arc<Snapshots>,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Option<Arc<Jwks>>> {
    let jwks = jwks(&options.tokens, snapshots.news().clone())?;
    if let Some(jwks) = &jwks {
        let follow = Arc::clone(jwks).follow(Arc::clone(snapshots), lifecycle.stopping());
        lifecycle.spawn("jwks", follow);
    }
    Ok(jwks)
}

pub(super) fn readiness(
    drain: &Drain,
    snapshots: &Arc<Snapshots>,
    spool: &Arc<Spool>,
    jwks: Option<Arc<Jwks>>,
) -> Readiness {
    let (drain, snapshots, spool) = (drain.clone(), Arc::clone(snapshots), Arc::clone(spool));
    let holds = |holds: bool, otherwise: &'static str| async move {
        anyhow::ensure!(holds, otherwise);
        Ok(())
    };
    Readiness::default()
        .with("drain", move || holds(!drain.has_begun(), "stopping"))
        .with("snapshot", move || {
            holds(
                snapshots.fresh_within(SNAPSHOT_STALE, Instant::now()),
                "Postgres is not heard",
            )
        })
        .with("spool", move || {
            holds(spool.has_room(), "the usage spool is full")
        })
        .with("jwks", move || {
            let known = jwks.as_ref().is_none_or(|jwks| jwks.is_known());
            holds(
                known,
                "the issuer's keys were never read, or not for too long",
            )
        })
}

/// The certificates, if there are any, followed as they are renewed.
pub(super) fn tls(options: &RunOptions, lifecycle: &Lifecycle) -> anyhow::Result<Option<Arc<Tls>>> {
    let Some(files) = options.edge.tls() else {
        return Ok(None);
    };
    let tls = Arc::new(Tls::open(files)?);
    lifecycle.spawn("tls", Arc::clone(&tls).follow(lifecycle.stopping()));
    Ok(Some(tls))
}

pub(super) fn redis(options: &RunOptions) -> anyhow::Result<Redis> {
    let deadline = Duration::from_millis(options.redis_deadline_ms);
    Redis::new(&options.redis_url, &options.redis_prefix, deadline)
}

pub(super) fn jwks(
    options: &TokenOptions,
    news: watch::Sender<()>,
) -> anyhow::Result<Option<Arc<Jwks>>> {
    let source = match (&options.jwks_file, &options.jwks_url) {
        (Some(file), _) => Source::File(file.clone()),
        (None, Some(url)) => Source::Url(url.clone()),
        (None, None) if options.jwt_issuer.is_empty() => return Ok(None),
        (None, None) => Source::Issuer(options.jwt_issuer.clone()),
    };
    let ttl = Duration::from_secs(options.jwks_ttl_seconds);
    let stale_max = Duration::from_secs(options.jwks_stale_max_seconds);
    Ok(Some(Arc::new(Jwks::new(source, ttl, stale_max, news)?)))
}

pub(super) fn rules(options: &TokenOptions) -> Rules {
    Rules {
        issuer: options.jwt_issuer.clone(),
        audience: options.jwt_audience.clone(),
        lifetime_max: options.jwt_lifetime_max_seconds,
    }
}
