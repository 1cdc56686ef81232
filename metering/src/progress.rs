//! How far ingest has come: the time up to which everything that had reached Kafka is counted.
//!
//! Note the time, note where every partition ends, wait until the inbox's offsets have passed
//! those ends: then everything told before that time is counted. The answers of the API say so
//! (`as_of`), and the age of that time is ingest's lag, also while nobody uses anything.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use jiff::Timestamp;
use ops::{clock::Clock, config::KafkaOptions};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::store::Store;

/// How often the offsets are compared with the ends.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long Kafka may take to name one end.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// A partition of a topic, without the deployment's prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
}

/// The ends of all partitions, as they were at some time or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The time.
    pub noted_at: Timestamp,
    /// Next offset that Kafka would give.
    pub ends: BTreeMap<Place, i64>,
}

/// Follows one inbox.
pub struct Follower {
    /// Where offsets are read and progress is kept.
    pub store: Store,
    /// Brokers and prefix.
    pub kafka: KafkaOptions,
    /// The inbox's name.
    pub consumer: &'static str,
    /// Its topic, without prefix.
    pub topic: &'static str,
    /// The clock.
    pub clock: Clock,
}

impl Goal {
    /// Whether the offsets have passed every end.
    #[must_use]
    pub fn is_reached(&self, offsets: &BTreeMap<Place, i64>) -> bool {
        !self.ends.is_empty()
            && self
                .ends
                .iter()
                .all(|(place, end)| offsets.get(place).is_some_and(|at| at >= end))
    }
}

impl Follower {
    /// Follows until the process stops.
    ///
    /// # Errors
    /// When the Kafka client cannot be made; outages are waited out.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka.kafka_brokers)
            .set("client.id", format!("{}-progress", self.consumer))
            .create()
            .context("set up the Kafka client")?;
        let client = Arc::new(client);
        let mut goal = None;
        while !stop.is_cancelled() {
            match self.look(&client, goal.take()).await {
                Ok(next) => goal = next,
                Err(cause) => debug!(
                    consumer = self.consumer,
                    error = format!("{cause:#}"),
                    "cannot tell the progress"
                ),
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
        Ok(())
    }

    /// Records the goal as reached, or returns it to be looked at again.
    async fn look(
        &self,
        client: &Arc<BaseConsumer>,
        goal: Option<Goal>,
    ) -> anyhow::Result<Option<Goal>> {
        let goal = match goal {
            Some(goal) => goal,
            None => self.note(client).await?,
        };
        let lag = self.clock.now().duration_since(goal.noted_at);
        metrics::gauge!("metering_ingest_lag_seconds", "consumer" => self.consumer)
            .set(lag.as_secs_f64());
        if !goal.is_reached(&self.store.offsets(self.consumer).await?) {
            return Ok(Some(goal));
        }
        self.store.caught_up(self.consumer, goal.noted_at).await?;
        Ok(None)
    }

    async fn note(&self, client: &Arc<BaseConsumer>) -> anyhow::Result<Goal> {
        let noted_at = self.clock.now();
        let (client, topic) = (Arc::clone(client), self.topic);
        let name = self.kafka.topic(topic);
        let ends = tokio::task::spawn_blocking(move || ends(&client, topic, &name)).await??;
        Ok(Goal { noted_at, ends })
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}

fn ends(client: &BaseConsumer, topic: &str, name: &str) -> anyhow::Result<BTreeMap<Place, i64>> {
    let metadata = client.fetch_metadata(Some(name), REQUEST_DEADLINE)?;
    let known = metadata
        .topics()
        .first()
        .context("no answer about the topic")?;
    // A topic that is being created is known before its partitions are.
    anyhow::ensure!(
        !known.partitions().is_empty(),
        "the topic does not exist yet"
    );
    let mut ends = BTreeMap::new();
    for partition in known.partitions() {
        let partition = partition.id();
        let (_, end) = client.fetch_watermarks(name, partition, REQUEST_DEADLINE)?;
        ends.insert(
            Place {
                topic: topic.to_owned(),
                partition,
            },
            end,
        );
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(of: &[(i32, i64)]) -> BTreeMap<Place, i64> {
        let place = |partition| Place {
            topic: "t".to_owned(),
            partition,
        };
        of.iter()
            .map(|(partition, offset)| (place(*partition), *offset))
            .collect()
    }

    #[test]
    fn a_goal_is_reached_when_every_partition_is_at_its_end() {
        let goal = |ends| Goal {
            noted_at: Timestamp::UNIX_EPOCH,
            ends,
        };
        let ends = goal(offsets(&[(0, 5), (1, 0)]));
        assert!(ends.is_reached(&offsets(&[(0, 5), (1, 0)])));
        assert!(ends.is_reached(&offsets(&[(0, 9), (1, 1), (2, 0)])));
        assert!(!ends.is_reached(&offsets(&[(0, 4), (1, 0)])));
        assert!(!ends.is_reached(&offsets(&[(0, 5)])));
        assert!(!goal(offsets(&[])).is_reached(&offsets(&[(0, 5)])));
    }
}
