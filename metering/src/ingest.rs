//! `metering ingest`: two inboxes, one for each topic, so that a flood of calls delays no job. What
//! they apply is [`store::record`](crate::store::record) and nothing else.

use contracts::event::{JOBS_EVENTS, USAGE_RECORDED};
use deadpool_postgres::Transaction;
use ops::{
    admin::{Flag, Readiness},
    clock::Clock,
    config::KafkaOptions,
    inbox::{Consumer, Event, Handler, Handling, Poison},
    kafka::Topics,
    lifecycle::Lifecycle,
    postgres::Pool,
    retention,
};

use crate::{
    SCHEMA,
    event::{self, Fact},
    progress::Follower,
    store::{
        Store,
        record::{Recorded, record},
    },
};

/// The inbox of `usage.recorded.v1`.
pub const USAGE: &str = "metering-usage";
/// The inbox of `jobs.events.v1`.
pub const JOBS: &str = "metering-jobs";

/// Records the facts of an inbox.
pub struct Intake {
    read: fn(&Event) -> Result<Vec<Fact>, Poison>,
    clock: Clock,
}

/// Both inboxes: their names, their topics, and how a record becomes facts.
#[must_use]
pub fn handlings(clock: &Clock) -> [Handling<Intake>; 2] {
    [
        Handling {
            name: USAGE,
            topics: &[USAGE_RECORDED],
            handler: Intake {
                read: event::of_usage,
                clock: clock.clone(),
            },
        },
        Handling {
            name: JOBS,
            topics: &[JOBS_EVENTS],
            handler: Intake {
                read: event::of_job,
                clock: clock.clone(),
            },
        },
    ]
}

/// Starts both inboxes and what follows their progress; returns when the process is ready.
///
/// # Errors
/// When a Kafka client cannot be made.
pub fn start(
    kafka: &KafkaOptions,
    pool: &Pool,
    clock: &Clock,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Readiness> {
    let topics = Topics::new(kafka)?;
    let mut readiness = Readiness::default().with_database(pool.clone());
    for handling in handlings(clock) {
        let (name, topic, ready) = (handling.name, handling.topics[0], Flag::default());
        readiness = readiness.with_flag(name, ready.clone());
        let consumer = Consumer {
            pool: pool.clone(),
            schema: SCHEMA,
            kafka: kafka.clone(),
            handling,
            ready,
        };
        lifecycle.spawn(name, consumer.run(lifecycle.stopping()));
        let follower = Follower {
            store: Store::new(pool.clone()),
            topics: topics.clone(),
            consumer: name,
            topic,
            clock: clock.clone(),
        };
        lifecycle.spawn("progress", follower.run(lifecycle.stopping()));
    }
    let retention = retention::run(pool.clone(), SCHEMA, lifecycle.stopping());
    lifecycle.spawn("retention", retention);
    Ok(readiness)
}

impl Handler for Intake {
    type Item = Vec<Fact>;

    fn decode(&self, event: &Event) -> Result<Option<Vec<Fact>>, Poison> {
        let facts = (self.read)(event)?;
        Ok(Some(facts).filter(|facts| !facts.is_empty()))
    }

    async fn apply(
        &self,
        transaction: &Transaction<'_>,
        items: &[Vec<Fact>],
    ) -> anyhow::Result<()> {
        let facts: Vec<&Fact> = items.iter().flatten().collect();
        let recorded = record(transaction, &facts, self.clock.now()).await?;
        observe(&recorded);
        Ok(())
    }
}

/// Counts for the operator. A transaction that fails after this is counted again when repeated; the
/// tables are the truth.
fn observe(recorded: &Recorded) {
    for (meter, unit, facts) in &recorded.counted {
        metrics::counter!("metering_facts_total", "meter" => meter.clone(), "unit" => unit.clone())
            .increment(u64::try_from(*facts).unwrap_or(0));
    }
    metrics::counter!("metering_repeated_total")
        .increment(u64::try_from(recorded.repeated).unwrap_or(0));
    for reason in &recorded.quarantined {
        metrics::counter!("metering_quarantined_total", "reason" => reason.as_str()).increment(1);
        tracing::warn!(reason = reason.as_str(), "a fact is quarantined");
    }
}
