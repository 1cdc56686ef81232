//! How far ingest has come: the time up to which everything that had reached Kafka is counted.
//!
//! Note the time, note where every partition ends, wait until the inbox's offsets have passed
//! those ends: then everything told before that time is counted. The answers of the API say so
//! (`as_of`), and the age of that time is ingest's lag, also while nobody uses anything.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use ops::{clock::Clock, kafka::Topics};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::store::Store;

/// How often the offsets are compared with the ends.
const INTERVAL: Duration = Duration::from_millis(500);

/// The ends of all partitions, as they were at some time or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The time.
    pub noted_at: Timestamp,
    /// Next offset that Kafka would give, by partition.
    pub ends: BTreeMap<i32, i64>,
}

/// Follows one inbox.
pub struct Follower {
    /// Where offsets are read and progress is kept.
    pub store: Store,
    /// Where the ends are read.
    pub topics: Topics,
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
    pub fn is_reached(&self, offsets: &BTreeMap<i32, i64>) -> bool {
        !self.ends.is_empty()
            && self
                .ends
                .iter()
                .all(|(partition, end)| offsets.get(partition).is_some_and(|at| at >= end))
    }
}

impl Follower {
    /// Follows until the process stops.
    ///
    /// # Errors
    /// Never by itself: outages are waited out.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut goal = None;
        while !stop.is_cancelled() {
            match self.look(goal.take()).await {
                Ok(next) => goal = next,
                Err(cause) => debug!(
                    consumer = self.consumer,
                    error = ops::postgres::explain(&cause),
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
    async fn look(&self, goal: Option<Goal>) -> anyhow::Result<Option<Goal>> {
        let goal = match goal {
            Some(goal) => goal,
            None => Goal {
                noted_at: self.clock.now(),
                ends: self.topics.ends(self.topic).await?,
            },
        };
        let lag = self.clock.now().duration_since(goal.noted_at);
        metrics::gauge!("metering_ingest_lag_seconds", "consumer" => self.consumer)
            .set(lag.as_secs_f64());
        let offsets = self.store.offsets(self.consumer, self.topic).await?;
        if !goal.is_reached(&offsets) {
            return Ok(Some(goal));
        }
        self.store.caught_up(self.consumer, goal.noted_at).await?;
        Ok(None)
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_reached_when_every_partition_is_at_its_end() {
        let goal = |ends: &[(i32, i64)]| Goal {
            noted_at: Timestamp::UNIX_EPOCH,
            ends: ends.iter().copied().collect(),
        };
        let reached = |goal: &Goal, offsets: &[(i32, i64)]| {
            goal.is_reached(&offsets.iter().copied().collect())
        };
        let ends = goal(&[(0, 5), (1, 0)]);
        assert!(reached(&ends, &[(0, 5), (1, 0)]));
        assert!(reached(&ends, &[(0, 9), (1, 1), (2, 0)]));
        assert!(!reached(&ends, &[(0, 4), (1, 0)]));
        assert!(!reached(&ends, &[(0, 5)]));
        assert!(!reached(&goal(&[]), &[(0, 5)]));
    }
}
