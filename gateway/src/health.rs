//! `GET /v1/health`: the gateway and what it depends on, looked at in the background, so that
//! asking costs nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use contracts::{
    api::health::{Dependency, Health, HealthStatus},
    assertion::Audience,
};
use ops::{config::KafkaOptions, kafka::Topics, postgres::Pool};
use tokio_util::sync::CancellationToken;

use crate::{redis::Redis, snapshot::Snapshots, upstream::Upstreams};

/// How often the dependencies are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a dependency may take to answer.
const LOOK_DEADLINE: Duration = Duration::from_millis(1_500);

/// Looks at the dependencies.
pub struct Doctor {
    pool: Pool,
    redis: Redis,
    kafka: Topics,
    upstreams: Arc<Upstreams>,
    snapshots: Arc<Snapshots>,
    snapshot_max_age: Duration,
    last: Arc<ArcSwap<Health>>,
}

impl Doctor {
    /// A doctor who has not looked yet.
    ///
    /// # Errors
    /// When the Kafka client cannot be set up.
    pub fn new(
        pool: Pool,
        redis: Redis,
        kafka: &KafkaOptions,
        upstreams: Arc<Upstreams>,
        snapshots: Arc<Snapshots>,
        snapshot_max_age: Duration,
    ) -> anyhow::Result<Self> {
        let kafka = Topics::new(kafka)?;
        let unknown = Health {
            status: HealthStatus::Unhealthy,
            dependencies: Vec::new(),
        };
        let last = Arc::new(ArcSwap::from_pointee(unknown));
        Ok(Self {
            pool,
            redis,
            kafka,
            upstreams,
            snapshots,
            snapshot_max_age,
            last,
        })
    }

    /// Where the last findings are.
    #[must_use]
    pub fn findings(&self) -> Arc<ArcSwap<Health>> {
        Arc::clone(&self.last)
    }

    /// Looks again and again until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn follow(self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            self.last.store(Arc::new(self.look().await));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn look(&self) -> Health {
        let upstreams = self.upstreams.all().iter().map(|upstream| async {
            let name = upstream.audience.as_str();
            // Without the Jobs API there is nothing to sell; without another, most still works.
            let missing = match upstream.audience {
                Audience::Jobs => HealthStatus::Unhealthy,
                _ => HealthStatus::Degraded,
            };
            ask(name, missing, upstream.ping()).await
        });
        let (postgres, redis, kafka, upstreams) = tokio::join!(
            ask(
                "postgres",
                HealthStatus::Degraded,
                ops::postgres::ping(&self.pool)
            ),
            ask("redis", HealthStatus::Degraded, self.redis.ping()),
            ask("kafka", HealthStatus::Degraded, self.kafka.ping()),
            futures::future::join_all(upstreams),
        );
        let found: Vec<_> = [postgres, redis, kafka]
            .into_iter()
            .chain(upstreams)
            .collect();
        let fresh = self
            .snapshots
            .fresh_within(self.snapshot_max_age, Instant::now());
        let worst = found.iter().map(|(_, weight)| *weight);
        let status = worst
            .chain((!fresh).then_some(HealthStatus::Unhealthy))
            .fold(HealthStatus::Healthy, |worst, next| {
                if rank(next) > rank(worst) {
                    next
                } else {
                    worst
                }
            });
        let dependencies = found
            .into_iter()
            .map(|(dependency, _)| dependency)
            .collect();
        Health {
            status,
            dependencies,
        }
    }
}

impl std::fmt::Debug for Doctor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doctor").finish_non_exhaustive()
    }
}

/// One dependency, and what it makes of the whole; `missing` is what its absence does.
async fn ask(
    name: &str,
    missing: HealthStatus,
    look: impl Future<Output = anyhow::Result<()>>,
) -> (Dependency, HealthStatus) {
    let started = Instant::now();
    let answered = matches!(tokio::time::timeout(LOOK_DEADLINE, look).await, Ok(Ok(())));
    let latency = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let name = name.to_owned();
    let (status, latency_ms, whole) = if answered {
        (HealthStatus::Healthy, Some(latency), HealthStatus::Healthy)
    } else {
        (HealthStatus::Unhealthy, None, missing)
    };
    (
        Dependency {
            name,
            status,
            latency_ms,
        },
        whole,
    )
}

fn rank(status: HealthStatus) -> u8 {
    match status {
        HealthStatus::Healthy => 0,
        HealthStatus::Degraded => 1,
        HealthStatus::Unhealthy => 2,
    }
}
