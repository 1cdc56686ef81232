//! What is known of each job so far, from whatever source saw it first: the answer to its
//! submission, a webhook, the job list, the chain, the usage events.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard},
};

use contracts::{
    api::{
        jobs::{ConfirmationStatus, JobEventType, JobStatus, JobView},
        usage::{Meter, UsageEvent},
    },
    id::JobId,
};
use tokio::time::Instant;

use crate::stages::{self, Stage, StageSummaries, Timeline};

/// Everything known of the jobs of a run. Shared by the watchers.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<JobId, Tracked>,
    batches: Vec<SeenBatch>,
}

#[derive(Debug, Default)]
struct Tracked {
    /// When it was meant to be sent; absent for jobs that are not part of the measured load.
    intended: Option<Instant>,
    /// Absent until its submission was answered; a webhook may be faster than that.
    requires_confirmation: Option<bool>,
    ended: Option<JobStatus>,
    sequence: Option<u64>,
    told_ended: Option<Instant>,
    told_confirmed: Option<Instant>,
    billed: Billed,
    timeline: Timeline,
}

#[derive(Debug, Default)]
struct Billed {
    submission: bool,
    completion: bool,
    confirmation: bool,
}

#[derive(Debug)]
struct SeenBatch {
    first_sequence: u64,
    job_count: u32,
    at: Instant,
}

/// How many of the accepted jobs reached each stage, and how many have to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Per stage: reached, of how many that have to.
    pub(crate) stages: BTreeMap<Stage, (u64, u64)>,
    /// Jobs with nothing left to reach.
    pub(crate) done: u64,
    /// Jobs that were accepted.
    pub(crate) accepted: u64,
}

impl Tracker {
    /// A submission was answered at `at`. `intended` is given for the jobs to be measured.
    pub(crate) fn accepted(
        &self,
        job: JobId,
        requires_confirmation: bool,
        intended: Option<Instant>,
        at: Instant,
    ) {
        let mut state = self.lock();
        let tracked = state.jobs.entry(job).or_default();
        tracked.requires_confirmation = Some(requires_confirmation);
        tracked.intended = intended;
        tracked.timeline.reach(Stage::Submitted, at);
    }

    /// A verified webhook told of `event`.
    pub(crate) fn told(&self, job: JobId, event: JobEventType, sequence: Option<u64>, at: Instant) {
        let mut state = self.lock();
        // Told before the submission's answer was read: kept until that comes.
        let tracked = state.jobs.entry(job).or_default();
        tracked.sequence = tracked.sequence.or(sequence);
        let ended = match event {
            JobEventType::Completed => JobStatus::Completed,
            JobEventType::Failed => JobStatus::Failed,
            JobEventType::Cancelled => JobStatus::Cancelled,
            JobEventType::Confirmed => {
                tracked.told_confirmed.get_or_insert(at);
                tracked.timeline.reach(Stage::Finalized, at);
                return;
            }
            _ => return,
        };
        tracked.ended = Some(ended);
        tracked.told_ended.get_or_insert(at);
        tracked.timeline.reach(Stage::Completed, at);
    }

    /// The API showed the job.
    pub(crate) fn viewed(&self, view: &JobView, at: Instant) {
        let mut state = self.lock();
        let Some(tracked) = state.jobs.get_mut(&view.job_id) else {
            return;
        };
        let confirmation = &view.blockchain_confirmation;
        tracked.sequence = tracked.sequence.or(confirmation.sequence);
        if !matches!(view.status, JobStatus::Pending | JobStatus::Processing) {
            tracked.ended = Some(view.status);
            tracked.timeline.reach(Stage::Completed, at);
        }
        if confirmation.status == ConfirmationStatus::Finalized {
            tracked.timeline.reach(Stage::Finalized, at);
        }
    }

    /// The chain showed a batch.
    pub(crate) fn sealed(&self, first_sequence: u64, job_count: u32, at: Instant) {
        let mut state = self.lock();
        state.batches.push(SeenBatch {
            first_sequence,
            job_count,
            at,
        });
    }

    /// The usage events held this one.
    pub(crate) fn billed(&self, event: &UsageEvent, at: Instant) {
        let mut state = self.lock();
        let Some(tracked) = event.job_id.and_then(|job| state.jobs.get_mut(&job)) else {
            return;
        };
        match event.meter {
            Meter::JobSubmission => tracked.billed.submission = true,
            Meter::JobCompletion => tracked.billed.completion = true,
            Meter::BlockchainConfirmation => tracked.billed.confirmation = true,
            Meter::ApiUsage => {}
        }
        if tracked.is_billed() {
            tracked.timeline.reach(Stage::Billed, at);
        }
    }

    /// How far the accepted jobs are.
    pub(crate) fn reached(&self) -> Reached {
        let state = self.lock_settled();
        let mut reached = Reached {
            stages: Stage::ALL
                .into_iter()
                .map(|stage| (stage, (0, 0)))
                .collect(),
            done: 0,
            accepted: 0,
        };
        for tracked in state.jobs.values() {
            let Some(requires_confirmation) = tracked.requires_confirmation else {
                continue;
            };
            reached.accepted += 1;
            if tracked.timeline.missing(requires_confirmation).is_none() {
                reached.done += 1;
            }
            for (stage, (have, want)) in &mut reached.stages {
                if requires_confirmation || !stage.needs_confirmation() {
                    *want += 1;
                    *have += u64::from(tracked.timeline.at(*stage).is_some());
                }
            }
        }
        reached
    }

    /// Accepted jobs by the first stage they have not reached.
    pub(crate) fn stuck(&self) -> BTreeMap<Stage, Vec<JobId>> {
        let state = self.lock_settled();
        let mut stuck: BTreeMap<Stage, Vec<JobId>> = BTreeMap::new();
        for (job, tracked) in &state.jobs {
            let missing = tracked
                .requires_confirmation
                .and_then(|c| tracked.timeline.missing(c));
            if let Some(stage) = missing {
                stuck.entry(stage).or_default().push(*job);
            }
        }
        for jobs in stuck.values_mut() {
            jobs.sort_unstable();
        }
        stuck
    }

    /// The oldest accepted job whose end or finality nobody has told of yet.
    pub(crate) fn oldest_unsettled(&self) -> Option<JobId> {
        let state = self.lock();
        let open = state
            .jobs
            .iter()
            .filter(|(_, tracked)| tracked.is_open())
            .map(|(job, _)| *job);
        open.min()
    }

    /// Whether an accepted job still waits for a billable fact to appear.
    pub(crate) fn awaits_billing(&self) -> bool {
        let waits = |tracked: &Tracked| {
            tracked.requires_confirmation.is_some() && tracked.timeline.at(Stage::Billed).is_none()
        };
        self.lock().jobs.values().any(waits)
    }

    /// The stages of the measured jobs.
    pub(crate) fn summaries(&self) -> StageSummaries {
        let state = self.lock_settled();
        stages::summarise(
            state
                .jobs
                .values()
                .filter_map(|t| t.intended.map(|start| (start, &t.timeline))),
        )
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no watcher panics")
    }

    /// The state, with what follows from several sources worked out.
    fn lock_settled(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let State { jobs, batches } = &mut *state;
        for tracked in jobs.values_mut() {
            tracked.settle(batches);
        }
        state
    }
}

impl Tracked {
    fn settle(&mut self, batches: &[SeenBatch]) {
        let last = match self.requires_confirmation {
            // Its end may be told after its confirmation, by whoever took over from a dead worker.
            Some(true) => self
                .told_confirmed
                .max(self.told_ended)
                .filter(|_| self.told_confirmed.is_some() && self.told_ended.is_some()),
            Some(false) => self.told_ended,
            None => None,
        };
        if let Some(at) = last {
            self.timeline.reach(Stage::Delivered, at);
        }
        if self.timeline.at(Stage::Sealed).is_none()
            && let Some(sequence) = self.sequence
            && let Some(batch) = batches.iter().find(|batch| batch.holds(sequence))
        {
            self.timeline.reach(Stage::Sealed, batch.at);
        }
    }

    fn is_open(&self) -> bool {
        self.requires_confirmation
            .is_some_and(|requires_confirmation| {
                self.timeline.at(Stage::Completed).is_none()
                    || requires_confirmation
                        && (self.sequence.is_none() || self.timeline.at(Stage::Finalized).is_none())
            })
    }

    fn is_billed(&self) -> bool {
        let completion = match self.ended {
            None => return false,
            Some(status) => self.billed.completion || status != JobStatus::Completed,
        };
        let confirmation = self
            .requires_confirmation
            .is_some_and(|c| self.billed.confirmation || !c);
        self.billed.submission && completion && confirmation
    }
}

impl SeenBatch {
    fn holds(&self, sequence: u64) -> bool {
        let end = self.first_sequence + u64::from(self.job_count);
        (self.first_sequence..end).contains(&sequence)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use contracts::api::usage::Unit;

    use super::*;
    use crate::clock;

    fn fact(job: JobId, meter: Meter) -> UsageEvent {
        UsageEvent {
            event_id: String::new(),
            source: "/jobs".into(),
            meter,
            quantity: 1.into(),
            unit: Unit::Job,
            occurred_at: clock::now(),
            job_id: Some(job),
            request_id: None,
            endpoint: None,
            status_code: None,
        }
    }

    #[test]
    fn a_job_is_followed_to_its_last_stage() {
        let (tracker, job) = (Tracker::default(), JobId::generate(clock::now()));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // The webhook of the end overtakes the answer to the submission.
        tracker.told(job, JobEventType::Completed, None, at(2));
        assert_eq!(tracker.reached().accepted, 0);
        tracker.accepted(job, true, Some(start), at(1));
        assert_eq!(tracker.oldest_unsettled(), Some(job));
        assert_eq!(tracker.stuck()[&Stage::Sealed], [job]);
        tracker.sealed(7, 3, at(3));
        tracker.told(job, JobEventType::Confirmed, Some(9), at(5));
        assert_eq!(tracker.oldest_unsettled(), None);
        assert_eq!(tracker.stuck()[&Stage::Billed], [job]);
        for meter in [
            Meter::JobSubmission,
            Meter::JobCompletion,
            Meter::BlockchainConfirmation,
        ] {
            assert!(tracker.awaits_billing());
            tracker.billed(&fact(job, meter), at(6));
        }
        assert!(!tracker.awaits_billing());
        let reached = tracker.reached();
        assert_eq!((reached.accepted, reached.done), (1, 1));
        let max: Vec<_> = tracker.summaries().values().map(|s| s.max_ms).collect();
        assert_eq!(max, [1_000.0, 2_000.0, 3_000.0, 5_000.0, 5_000.0, 6_000.0]);
    }

    #[test]
    fn a_confirmed_job_is_delivered_once_its_end_was_told_too() {
        let (tracker, job) = (Tracker::default(), JobId::generate(clock::now()));
        tracker.accepted(job, true, None, Instant::now());
        let delivered = || tracker.reached().stages[&Stage::Delivered];
        tracker.told(job, JobEventType::Confirmed, Some(1), Instant::now());
        assert_eq!(delivered(), (0, 1));
        tracker.told(job, JobEventType::Completed, None, Instant::now());
        assert_eq!(delivered(), (1, 1));
    }

    #[test]
    fn a_job_without_confirmation_ends_with_its_result() {
        let (tracker, job) = (Tracker::default(), JobId::generate(clock::now()));
        tracker.accepted(job, false, None, Instant::now());
        tracker.told(job, JobEventType::Failed, None, Instant::now());
        tracker.billed(&fact(job, Meter::JobSubmission), Instant::now());
        assert_eq!(tracker.reached().done, 1);
        assert_eq!(
            tracker.summaries()[&Stage::Billed].count,
            0,
            "it is not part of the load"
        );
    }
}
