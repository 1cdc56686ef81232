//! The open loop: submissions start when the schedule says, whatever became of those before.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    client::{Api, Submitted},
    faults::Started,
    log::Submission,
    report::Progress,
    request::Credential,
    schedule::{Arrivals, Generator, GeneratorReport},
    watch::Tracker,
};

/// What to do with an arrival when too many requests are in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Leave it out, and count that.
    Skip,
    /// Send it later: every job is wanted, and its latency counts from its intended start anyway.
    Wait,
}

/// How to submit.
pub(crate) struct Load {
    /// When.
    pub(crate) arrivals: Arrivals,
    /// Most submissions in flight.
    pub(crate) in_flight: usize,
    /// Beyond that.
    pub(crate) when_full: WhenFull,
    /// How long one submission is tried.
    pub(crate) patience: Duration,
    /// The run is invalid if 1 % of the starts lag by more than this.
    pub(crate) lag_max: Duration,
}

/// What came of the submissions.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LoadReport {
    /// Accepted.
    pub(crate) accepted: u64,
    /// Refused for good.
    pub(crate) refused: u64,
    /// Of unknown fate when patience ended.
    pub(crate) unknown: u64,
    /// What the generator itself did.
    pub(crate) generator: GeneratorReport,
}

impl LoadReport {
    /// How many arrivals came to no accepted job.
    pub(crate) fn not_accepted(&self) -> u64 {
        self.refused + self.unknown + self.generator.skipped
    }

    /// … and how, in words.
    pub(crate) fn describe_not_accepted(&self) -> String {
        format!(
            "{} of {} jobs were not accepted: {} refused, {} of unknown fate when patience \
             ended, {} never sent because too many were in flight",
            self.not_accepted(),
            self.accepted + self.not_accepted(),
            self.refused,
            self.unknown,
            self.generator.skipped,
        )
    }
}

/// Submits. `started` is told which submissions have been started.
pub(crate) async fn submit_all(
    load: Load,
    submissions: impl Iterator<Item = Submission>,
    (api, credential): (&Api, &Credential),
    tracker: &Arc<Tracker>,
    started: watch::Sender<Started>,
    progress: &Progress,
) -> anyhow::Result<LoadReport> {
    let start = Instant::now();
    let permits = Arc::new(Semaphore::new(load.in_flight));
    let mut generator = Generator::default();
    let mut running = JoinSet::new();
    let mut tally = Tally::default();
    let mut released = start;
    let mut sent = 0;
    for (offset, submission) in load.arrivals.zip(submissions) {
        let intended = start + offset;
        sleep_until(intended).await;
        // Waiting for the target to answer is not the generator's fault.
        generator.started(intended.max(released).elapsed());
        while let Some(ended) = running.try_join_next() {
            tally.add(ended)?;
        }
        let permit = match load.when_full {
            WhenFull::Skip => Arc::clone(&permits).try_acquire_owned().ok(),
            WhenFull::Wait => Some(Arc::clone(&permits).acquire_owned().await?),
        };
        released = Instant::now();
        let Some(permit) = permit else {
            generator.skipped();
            continue;
        };
        let (api, credential, tracker) = (api.clone(), credential.clone(), Arc::clone(tracker));
        let deadline = Instant::now() + load.patience;
        let last = submission.clone();
        running.spawn(async move {
            let _permit = permit;
            let submitted = api.submit(&credential, &submission, deadline).await?;
            if let Submitted::Accepted(job) = submitted {
                let confirm = submission.requires_confirmation;
                tracker.accepted(job, confirm, Some(intended), Instant::now());
            }
            anyhow::Ok(submitted)
        });
        sent += 1;
        started.send_replace(Started {
            jobs: sent,
            last: Some(last),
        });
        progress.set(sent, &format!("submitted, {} in flight", running.len()));
    }
    drop(started);
    while let Some(ended) = running.join_next().await {
        tally.add(ended)?;
    }
    Ok(tally.report(generator.report(load.lag_max)))
}

#[derive(Default)]
struct Tally {
    accepted: u64,
    refused: u64,
    unknown: u64,
}

impl Tally {
    fn add(
        &mut self,
        ended: Result<anyhow::Result<Submitted>, tokio::task::JoinError>,
    ) -> anyhow::Result<()> {
        let count = match ended.context("a submission panicked")?? {
            Submitted::Accepted(_) => &mut self.accepted,
            Submitted::Refused(..) => &mut self.refused,
            Submitted::Unknown => &mut self.unknown,
        };
        *count += 1;
        Ok(())
    }

    fn report(self, generator: GeneratorReport) -> LoadReport {
        let Self {
            accepted,
            refused,
            unknown,
        } = self;
        LoadReport {
            accepted,
            refused,
            unknown,
            generator,
        }
    }
}
