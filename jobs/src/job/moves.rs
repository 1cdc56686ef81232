//! The moves of a job, and the rules they follow: attempts, backoff, what is sealed.

use std::time::Duration;

use alloy::primitives::{B256, keccak256};
use contracts::api::jobs::JobFailure;
use jiff::{SignedDuration, Timestamp};

use super::{
    Confirmation, Event, Facts, Failure, Finality, Happening, Illegal, Job, Moved, Outcome, State,
    Verdict,
};

/// Pause before the second attempt, before jitter; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

impl Job {
    /// A job that was just accepted.
    #[must_use]
    pub fn submit(facts: Facts) -> Moved {
        let now = facts.created_at;
        let confirmation = match facts.mode {
            Some(_) => Confirmation::Queued,
            None => Confirmation::NotRequired,
        };
        let state = State::Pending { run_after: now };
        let job = Self {
            facts,
            state,
            attempts: 0,
            confirmation,
            events: 0,
            updated_at: now,
        };
        job.tell(now, Happening::Submitted)
    }

    /// A worker begins an attempt.
    pub fn start(mut self, now: Timestamp) -> Result<Moved, Illegal> {
        match self.state {
            State::Pending { .. } if self.attempts < self.facts.max_attempts => {
                self.attempts += 1;
                self.state = State::Processing { started_at: now };
                Ok(self.tell(now, Happening::Started))
            }
            _ => Err(self.illegal("start")),
        }
    }

    /// The attempt has a result, a JSON text.
    pub fn complete(mut self, now: Timestamp, result: String) -> Result<Moved, Illegal> {
        let State::Processing { started_at } = self.state else {
            return Err(self.illegal("complete"));
        };
        let outcome = self.facts.outcome(result, elapsed(started_at, now));
        self.state = State::Completed { ended_at: now };
        Ok(self.tell(now, Happening::Completed(outcome)))
    }

    /// The attempt failed: the job waits for another one, or failed for good. `jitter`, from 0 to
    /// 1, is where in the upper half of the backoff the next attempt falls.
    pub fn fail(
        mut self,
        now: Timestamp,
        failure: &Failure,
        jitter: f64,
    ) -> Result<Verdict, Illegal> {
        let State::Processing { started_at } = self.state else {
            return Err(self.illegal("fail"));
        };
        self.updated_at = now;
        if failure.may_retry() && self.attempts < self.facts.max_attempts {
            self.state = State::Pending {
                run_after: now + backoff(self.attempts, jitter),
            };
            return Ok(Verdict::Again(self));
        }
        let error = failure.describe(self.attempts);
        let text = serde_json::to_string(&error).expect("two strings have a JSON form");
        let outcome = self.facts.outcome(text, elapsed(started_at, now));
        self.state = State::Failed { ended_at: now };
        Ok(Verdict::Over(
            self.tell(now, Happening::Failed(error, outcome)),
        ))
    }

    /// A worker that must stop gives the attempt back, as if it had not begun: it is not the job's
    /// fault.
    pub fn give_back(mut self, now: Timestamp) -> Result<Self, Illegal> {
        match self.state {
            State::Processing { .. } => {
                self.attempts -= 1;
                self.state = State::Pending { run_after: now };
                self.updated_at = now;
                Ok(self)
            }
            _ => Err(self.illegal("be given back")),
        }
    }

    /// The job is not wanted any more. There is then nothing to confirm.
    pub fn cancel(mut self, now: Timestamp) -> Result<Moved, Illegal> {
        match self.state {
            State::Pending { .. } | State::Processing { .. } => {
                self.state = State::Cancelled { ended_at: now };
                self.confirmation = Confirmation::NotRequired;
                Ok(self.tell(now, Happening::Cancelled))
            }
            _ => Err(self.illegal("be cancelled")),
        }
    }

    /// The outcome is final on chain.
    pub fn confirm(mut self, now: Timestamp, finality: Finality) -> Result<Moved, Illegal> {
        match (self.state, self.confirmation) {
            (State::Completed { .. } | State::Failed { .. }, Confirmation::Queued) => {
                self.confirmation = Confirmation::Finalized(finality);
                Ok(self.tell(now, Happening::Confirmed(finality)))
            }
            _ => Err(self.illegal("be confirmed")),
        }
    }

    fn tell(mut self, now: Timestamp, what: Happening) -> Moved {
        self.events += 1;
        self.updated_at = now;
        let event = Event {
            number: self.events,
            at: now,
            what,
        };
        Moved { job: self, event }
    }

    fn illegal(&self, wanted: &'static str) -> Illegal {
        Illegal {
            status: self.status(),
            confirmation: self.confirmation.status(),
            wanted,
        }
    }
}

impl Facts {
    fn outcome(&self, text: String, compute: Duration) -> Outcome {
        let hash = salted_hash(&self.salt, text.as_bytes());
        Outcome {
            text,
            hash,
            compute,
        }
    }
}

impl Failure {
    fn may_retry(&self) -> bool {
        !matches!(self, Self::Permanent(_))
    }

    fn describe(&self, attempts: u32) -> JobFailure {
        let (code, detail) = match self {
            Self::Permanent(detail) => ("EXECUTION_FAILED", detail.clone()),
            Self::Retryable(detail) => ("RETRIES_EXHAUSTED", detail.clone()),
            Self::TimedOut(limit) => (
                "TIMEOUT",
                format!("Attempt {attempts} took longer than {limit:?}."),
            ),
            Self::WorkerLost => (
                "WORKER_LOST",
                format!("The worker of attempt {attempts} did not come back."),
            ),
        };
        JobFailure {
            code: code.to_owned(),
            detail,
        }
    }
}

/// keccak256(salt ‖ bytes): what stands on chain in place of `bytes`.
#[must_use]
pub fn salted_hash(salt: &B256, bytes: &[u8]) -> B256 {
    keccak256([salt.as_slice(), bytes].concat())
}

fn elapsed(started_at: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(started_at)
        .try_into()
        .unwrap_or_default()
}

fn backoff(attempts: u32, jitter: f64) -> SignedDuration {
    let doublings = attempts.saturating_sub(1).min(16);
    let whole = (BACKOFF_FIRST * 2_u32.pow(doublings)).min(BACKOFF_MAX);
    let part = whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
    SignedDuration::try_from(part).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use alloy::primitives::Address;
    use contracts::{
        api::jobs::{ConfirmationMode, Priority},
        id::{JobId, TenantId},
        job_type::JobType,
    };

    use super::*;
    use crate::job::{MAX_ATTEMPTS, is_last};

    #[derive(Clone, Copy, Debug)]
    enum Attempted {
        Start,
        Complete,
        Fail { retryable: bool },
        GiveBack,
        Cancel,
        Confirm,
    }

    fn facts(mode: Option<ConfirmationMode>) -> Facts {
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        Facts {
            id: JobId::generate(now),
            tenant: TenantId::generate(now),
            subject: "user_1".parse().unwrap(),
            team: None,
            job_type: JobType::Digest,
            payload_bytes: 2,
            salt: B256::repeat_byte(7),
            content_hash: salted_hash(&B256::repeat_byte(7), b"{}"),
            submitter: Address::ZERO,
            priority: Priority::try_from(5).unwrap(),
            mode,
            max_attempts: MAX_ATTEMPTS,
            traceparent: None,
            created_at: now,
        }
    }

    fn finality(now: Timestamp) -> Finality {
        Finality {
            chain_id: 1,
            registry: Address::ZERO,
            batch_number: 2,
            sequence: 3,
            transaction_hash: B256::ZERO,
            block_number: 4,
            confirmed_at: now,
        }
    }

    /// The job after a move, and the event of the move, if it was legal.
    fn attempt(job: Job, what: Attempted) -> Result<(Job, Option<Event>), Illegal> {
        let now = job.updated_at + SignedDuration::from_millis(10);
        let told = |moved: Moved| (moved.job, Some(moved.event));
        match what {
            Attempted::Start => job.start(now).map(told),
            Attempted::Complete => job.complete(now, "{}".to_owned()).map(told),
            Attempted::Fail { retryable } => {
                let failure = if retryable {
                    Failure::Retryable("r".to_owned())
                } else {
                    Failure::Permanent("p".to_owned())
                };
                job.fail(now, &failure, 0.5).map(|verdict| match verdict {
                    Verdict::Again(job) => (job, None),
                    Verdict::Over(moved) => told(moved),
                })
            }
            Attempted::GiveBack => job.give_back(now).map(|job| (job, None)),
            Attempted::Cancel => job.cancel(now).map(told),
            Attempted::Confirm => job.confirm(now, finality(now)).map(told),
        }
    }

    fn attempted() -> impl Strategy<Value = Attempted> {
        prop_oneof![
            4 => Just(Attempted::Start),
            1 => Just(Attempted::Complete),
            3 => any::<bool>().prop_map(|retryable| Attempted::Fail { retryable }),
            1 => Just(Attempted::GiveBack),
            1 => Just(Attempted::Cancel),
            2 => Just(Attempted::Confirm),
        ]
    }

    fn mode() -> impl Strategy<Value = Option<ConfirmationMode>> {
        prop_oneof![Just(None), Just(Some(ConfirmationMode::Batch))]
    }

    proptest! {
        #[test]
        fn whatever_is_attempted_a_job_ends_once_and_its_events_have_no_gaps(
            mode in mode(),
            moves in prop::collection::vec(attempted(), 0..40),
        ) {
            let Moved { mut job, event } = Job::submit(facts(mode));
            let mut events = vec![event];
            for what in moves {
                let before = job.clone();
                match attempt(job, what) {
                    Ok((moved, event)) => {
                        prop_assert!(moved.updated_at > before.updated_at);
                        // Only an active job changes its status.
                        prop_assert!(before.is_active() || moved.state == before.state);
                        events.extend(event);
                        job = moved;
                    }
                    Err(illegal) => {
                        prop_assert_eq!(illegal.status, before.status());
                        job = before.clone();
                    }
                }
                prop_assert!(job.attempts <= MAX_ATTEMPTS);
                prop_assert_eq!(&job.facts, &before.facts);
            }
            let numbers: Vec<u64> = events.iter().map(|event| event.number).collect();
            prop_assert_eq!(&numbers, &(1..=job.events).collect::<Vec<_>>());
            let last: Vec<bool> = events
                .iter()
                .map(|event| is_last(event.what.event_type(), job.confirmation.status()))
                .collect();
            let (end, rest) = last.split_last().unwrap();
            prop_assert!(!rest.contains(&true), "nothing follows the last event");
            let to_come = job.is_active() || job.confirmation == Confirmation::Queued;
            prop_assert_eq!(*end, !to_come);
        }

        #[test]
        fn the_backoff_grows_within_bounds(attempts in 1_u32..100, jitter in 0.0..1.0) {
            let pause = backoff(attempts, jitter);
            prop_assert!(pause >= SignedDuration::try_from(BACKOFF_FIRST / 2).unwrap());
            prop_assert!(pause <= SignedDuration::try_from(BACKOFF_MAX).unwrap());
            prop_assert!(backoff(attempts + 2, 0.0) >= backoff(attempts, 1.0).min(
                SignedDuration::try_from(BACKOFF_MAX / 2).unwrap()));
        }
    }

    #[test]
    fn retryable_failures_are_tried_as_often_as_allowed_and_no_more() {
        let mut job = Job::submit(facts(None)).job;
        for left in (0..MAX_ATTEMPTS).rev() {
            let now = job.updated_at;
            let started = job.start(now).unwrap().job;
            match started.fail(now, &Failure::WorkerLost, 0.0).unwrap() {
                Verdict::Again(again) if left > 0 => job = again,
                Verdict::Over(Moved { job, event }) if left == 0 => {
                    let Happening::Failed(failure, outcome) = event.what else {
                        panic!()
                    };
                    assert_eq!(failure.code, "WORKER_LOST");
                    assert_eq!(outcome.text, serde_json::to_string(&failure).unwrap());
                    assert_eq!(job.attempts, MAX_ATTEMPTS);
                    return;
                }
                verdict => panic!("{left} attempts left: {verdict:?}"),
            }
        }
    }

    #[test]
    fn an_outcome_is_sealed_with_the_salt() {
        let started = Job::submit(facts(None))
            .job
            .start(Timestamp::UNIX_EPOCH)
            .unwrap()
            .job;
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_millis(1_500);
        let moved = started.complete(now, "[1]".to_owned()).unwrap();
        let Happening::Completed(outcome) = moved.event.what else {
            panic!()
        };
        let mut preimage = vec![7; 32];
        preimage.extend_from_slice(b"[1]");
        assert_eq!(outcome.hash, keccak256(preimage));
        assert_eq!(outcome.compute, Duration::from_millis(1_500));
    }
}
