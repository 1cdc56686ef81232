//! The worker: claim as many jobs as there are free slots, compute each under its lease, finish.
//!
//! An attempt ends in one of four ways: with a result, with a failure, given back because the
//! process stops, or not at all, because its lease was lost; then someone else decides.

use std::{sync::Arc, time::Duration};

use ops::{
    admin::{Flag, Readiness},
    clock::Clock,
    kafka,
    lease::Lease,
    lifecycle::Lifecycle,
    outbox::Publisher,
    postgres::Pool,
    retention, telemetry,
};
use rand::{TryRng as _, rngs::SysRng};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, error, info, info_span, warn};
use uuid::Uuid;

use crate::{
    SCHEMA,
    config::{SlotOptions, WorkerOptions},
    executor::Task,
    inbox,
    job::{Failure, Illegal, Job, Verdict},
    store::{Slots, Store, StoreError, Work},
    upkeep,
};

/// Pause between looks at an empty queue.
const IDLE_POLL: Duration = Duration::from_millis(50);
/// Pause after Postgres failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Computes jobs.
#[derive(Clone, Debug)]
pub struct Worker {
    store: Store,
    clock: Clock,
    slots: SlotOptions,
    grace: Duration,
    owner: Uuid,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
enum Ended {
    Result(String),
    Failure(Failure),
    GivenBack,
    LeaseLost,
}

/// Spawns everything `jobs worker` does; returns when it is ready.
#[must_use]
pub fn start(
    options: &WorkerOptions,
    pool: &Pool,
    clock: &Clock,
    lifecycle: &Lifecycle,
) -> Readiness {
    let store = Store::new(pool.clone());
    // The last quarter of the drain is for giving back what did not end in the first three.
    let grace = options.process.drain().mul_f64(0.75);
    let worker = Worker::new(store.clone(), clock.clone(), options.slots, grace);
    lifecycle.spawn("worker", worker.run(lifecycle.stopping()));
    let lease = options.slots.lease();
    lifecycle.spawn(
        "upkeep",
        upkeep::run(store, clock.clone(), lease, lifecycle.stopping()),
    );
    let publisher = Publisher::new(pool.clone(), SCHEMA, options.kafka.clone());
    let (kafka, stop) = (options.kafka.clone(), lifecycle.stopping());
    lifecycle.spawn("publisher", async move {
        let topics = [contracts::event::JOBS_EVENTS];
        while let Err(cause) = kafka::ensure_topics(&kafka, &topics).await {
            warn!(error = format!("{cause:#}"), "no topics to publish to yet");
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(RETRY_PAUSE) => {}
            }
        }
        publisher.run(stop).await
    });
    let ready = Flag::default();
    let readiness = Readiness::default()
        .with_database(pool.clone())
        .with_flag("confirmations", ready.clone());
    let inbox = inbox::consumer(pool.clone(), options.kafka.clone(), clock.clone(), ready);
    lifecycle.spawn("inbox", inbox.run(lifecycle.stopping()));
    let retention = retention::run(pool.clone(), SCHEMA, lifecycle.stopping());
    lifecycle.spawn("retention", retention);
    readiness
}

impl Worker {
    /// A worker that, told to stop, lets jobs run on for `grace` before it gives them back.
    #[must_use]
    pub fn new(store: Store, clock: Clock, slots: SlotOptions, grace: Duration) -> Self {
        Self {
            store,
            clock,
            slots,
            grace,
            owner: Uuid::now_v7(),
        }
    }

    /// Computes until the process stops, then finishes or gives back what it holds.
    ///
    /// # Errors
    /// Never by itself: outages of Postgres are waited out.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let this = Arc::new(self);
        let hurry = CancellationToken::new();
        let mut running = JoinSet::new();
        while !stop.is_cancelled() {
            let pause = match this.fill(&mut running, &hurry).await {
                Ok(()) => IDLE_POLL,
                Err(error) => {
                    warn!(
                        error = ops::postgres::explain(&error.into()),
                        "cannot claim"
                    );
                    RETRY_PAUSE
                }
            };
            let full = running.len() >= usize::from(this.slots.count);
            tokio::select! {
                () = stop.cancelled() => {}
                Some(ended) = running.join_next() => report(ended),
                () = sleep(pause), if !full => {}
            }
            while let Some(ended) = running.try_join_next() {
                report(ended);
            }
        }
        let drained = timeout(this.grace, drain(&mut running)).await;
        if drained.is_err() {
            hurry.cancel();
            drain(&mut running).await;
        }
        Ok(())
    }

    /// Claims as many jobs as there are slots and computes them to the end; returns how many.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn step(&self) -> Result<usize, StoreError> {
        let slots = Slots::free(usize::from(self.slots.count));
        let claimed = self
            .store
            .claim(self.owner, self.slots.lease(), slots, self.clock.now())
            .await?;
        let never = CancellationToken::new();
        let attempts = claimed
            .into_iter()
            .map(|work| self.attempt(work, never.clone()));
        Ok(futures::future::join_all(attempts).await.len())
    }

    async fn fill(
        self: &Arc<Self>,
        running: &mut JoinSet<()>,
        hurry: &CancellationToken,
    ) -> Result<(), StoreError> {
        let all = usize::from(self.slots.count);
        let free = all.saturating_sub(running.len());
        if free == 0 {
            return Ok(());
        }
        let slots = Slots { all, free };
        let claimed = self
            .store
            .claim(self.owner, self.slots.lease(), slots, self.clock.now())
            .await?;
        for work in claimed {
            let (this, hurry) = (Arc::clone(self), hurry.clone());
            running.spawn(async move { this.attempt(work, hurry).await });
        }
        Ok(())
    }

    /// One attempt, from the claim to the record of how it ended.
    async fn attempt(&self, work: Work, hurry: CancellationToken) {
        let facts = &work.job.facts;
        let span = info_span!(
            "worker.job.attempt",
            job.id = %facts.id,
            tenant.id = %facts.tenant,
            job.type = %facts.job_type,
            job.attempt = work.job.attempts,
        );
        telemetry::continue_trace(&span, facts.traceparent.as_deref());
        self.compute_and_record(work, &hurry).instrument(span).await;
    }

    async fn compute_and_record(&self, work: Work, hurry: &CancellationToken) {
        let Work {
            mut lease,
            job,
            payload,
        } = work;
        let job_type = job.facts.job_type.as_str();
        let started = Instant::now();
        metrics::gauge!("jobs_running").increment(1.0);
        let ended = tokio::select! {
            biased;
            () = self.keep(&mut lease) => Ended::LeaseLost,
            () = hurry.cancelled() => Ended::GivenBack,
            ended = compute(&job, &payload) => ended,
        };
        metrics::gauge!("jobs_running").decrement(1.0);
        // Only while the lease holds is there anything to say; the sweep does the rest.
        let recorded = timeout_at(lease.until.into(), self.record(&lease, &ended)).await;
        let end = if let Ok(Some(job)) = recorded {
            job.status().as_str()
        } else {
            info!("the lease is lost, and with it this attempt");
            "LEASE_LOST"
        };
        metrics::histogram!("jobs_attempt_seconds", "type" => job_type, "end" => end)
            .record(started.elapsed());
    }

    /// Renews the lease every third of its time; returns when it is lost.
    async fn keep(&self, lease: &mut Lease<Uuid>) {
        let ttl = self.slots.lease();
        loop {
            sleep(ttl / 3).await;
            let deadline = lease.until;
            match timeout_at(deadline.into(), self.store.renew(lease, ttl)).await {
                Ok(Ok(())) => {}
                Ok(Err(StoreError::Fenced)) | Err(_) => return,
                Ok(Err(error)) => {
                    debug!(
                        error = ops::postgres::explain(&error.into()),
                        "not renewed yet"
                    );
                }
            }
        }
    }

    /// Records how the attempt ended, waiting out an outage; `None` when the lease is lost.
    async fn record(&self, lease: &Lease<Uuid>, ended: &Ended) -> Option<Job> {
        let jitter = jitter();
        loop {
            let now = self.clock.now();
            let decide = |job: Job| -> Result<Verdict, Illegal> {
                match ended {
                    Ended::Result(text) => job.complete(now, text.clone()).map(Verdict::Over),
                    Ended::Failure(failure) => job.fail(now, failure, jitter),
                    Ended::GivenBack => job.give_back(now).map(Verdict::Again),
                    Ended::LeaseLost => job.fail(now, &Failure::WorkerLost, jitter),
                }
            };
            match self.store.finish(lease, decide).await {
                Ok(job) => return Some(job),
                Err(StoreError::Fenced) => return None,
                Err(error) => {
                    let error = ops::postgres::explain(&error.into());
                    warn!(error, "not recorded yet");
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}

async fn compute(job: &Job, payload: &[u8]) -> Ended {
    let limit = job.facts.job_type.timeout();
    let task = match Task::parse(job.facts.job_type, payload) {
        Ok(task) => task,
        Err(failure) => return Ended::Failure(failure),
    };
    match timeout(limit, task.run(job.attempts)).await {
        Ok(Ok(result)) => Ended::Result(result),
        Ok(Err(failure)) => Ended::Failure(failure),
        Err(_) => Ended::Failure(Failure::TimedOut(limit)),
    }
}

async fn drain(running: &mut JoinSet<()>) {
    while let Some(ended) = running.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(cause) = ended {
        // Its lease runs out and the sweep takes the job over.
        error!(error = %cause, "an attempt panicked");
    }
}

/// From 0 to 1, so that jobs that failed together do not come back together.
pub(crate) fn jitter() -> f64 {
    let random = SysRng.try_next_u32().unwrap_or(u32::MAX / 2);
    f64::from(random) / f64::from(u32::MAX)
}
