//! The jobs to submit: a mix of kinds in fixed proportions, evenly interleaved, each with a key of
//! its own.

use contracts::job_type::JobType;
use serde::Deserialize;

use crate::{exit::BadUsage, log::Submission};

/// Largest text of a digest job.
const TEXT_MAX_BYTES: usize = 1_000_000;
/// Longest sleep of a job.
const SLEEP_MAX_MS: u32 = 60_000;

/// One kind of job in a mix.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase", tag = "type")]
pub(crate) enum Work {
    /// Hashes a text.
    Digest {
        /// Its share of the jobs.
        weight: u32,
        /// Whether to seal it.
        confirm: bool,
        /// How long the text is.
        text_bytes: usize,
    },
    /// Waits.
    Sleep {
        /// Its share of the jobs.
        weight: u32,
        /// Whether to seal it.
        confirm: bool,
        /// How long.
        milliseconds: u32,
    },
    /// Fails for good.
    Fail {
        /// Its share of the jobs.
        weight: u32,
        /// Whether to seal it.
        confirm: bool,
    },
}

/// Endless submissions of a mix.
pub(crate) struct Submissions {
    run: String,
    mix: Vec<Work>,
    credits: Vec<i64>,
    n: u64,
}

impl Work {
    /// What is wrong with it, if anything.
    pub(crate) fn check(&self) -> Result<(), BadUsage> {
        let complaint = match self {
            Self::Digest { text_bytes, .. } if *text_bytes > TEXT_MAX_BYTES => {
                format!("mix: text_bytes is at most {TEXT_MAX_BYTES}")
            }
            Self::Sleep { milliseconds, .. } if *milliseconds > SLEEP_MAX_MS => {
                format!("mix: milliseconds is at most {SLEEP_MAX_MS}")
            }
            _ => return Ok(()),
        };
        Err(BadUsage(complaint))
    }

    fn weight(&self) -> u32 {
        match self {
            Self::Digest { weight, .. }
            | Self::Sleep { weight, .. }
            | Self::Fail { weight, .. } => *weight,
        }
    }

    fn submission(&self, key: String) -> Submission {
        let (job_type, requires_confirmation, payload) = match self {
            Self::Digest {
                confirm,
                text_bytes,
                ..
            } => {
                let text: String = key
                    .chars()
                    .chain(std::iter::repeat('.'))
                    .take(*text_bytes)
                    .collect();
                (JobType::Digest, confirm, format!(r#"{{"text":"{text}"}}"#))
            }
            Self::Sleep {
                confirm,
                milliseconds,
                ..
            } => (JobType::Sleep, confirm, sleep_payload(*milliseconds)),
            Self::Fail { confirm, .. } => (
                JobType::Fail,
                confirm,
                r#"{"message":"asked to fail"}"#.to_owned(),
            ),
        };
        Submission {
            key,
            job_type,
            payload,
            requires_confirmation: *requires_confirmation,
        }
    }
}

impl Submission {
    /// A job that sleeps instead.
    pub(crate) fn asleep(self, milliseconds: u32) -> Self {
        Self {
            job_type: JobType::Sleep,
            payload: sleep_payload(milliseconds),
            ..self
        }
    }
}

impl Submissions {
    /// Submissions of `mix` whose keys begin with `run`, which is letters, digits and dashes.
    pub(crate) fn new(run: String, mix: Vec<Work>) -> Result<Self, BadUsage> {
        mix.iter().try_for_each(Work::check)?;
        if mix.iter().all(|work| work.weight() == 0) {
            return Err(BadUsage("mix: no kind of job has a weight".into()));
        }
        let credits = vec![0; mix.len()];
        Ok(Self {
            run,
            mix,
            credits,
            n: 0,
        })
    }
}

impl Iterator for Submissions {
    type Item = Submission;

    /// Smooth weighted round robin: every kind earns its weight, the richest one goes and pays all.
    fn next(&mut self) -> Option<Submission> {
        let mut total = 0;
        for (credit, work) in self.credits.iter_mut().zip(&self.mix) {
            *credit += i64::from(work.weight());
            total += i64::from(work.weight());
        }
        let richest =
            (0..self.mix.len()).max_by_key(|&index| (self.credits[index], usize::MAX - index))?;
        self.credits[richest] -= total;
        self.n += 1;
        Some(self.mix[richest].submission(format!("{}-{}", self.run, self.n)))
    }
}

fn sleep_payload(milliseconds: u32) -> String {
    format!(r#"{{"milliseconds":{milliseconds}}}"#)
}

#[cfg(test)]
mod tests {
    use contracts::api::jobs::validate_submit;

    use super::*;
    use crate::request::body_of;

    fn mix() -> Vec<Work> {
        vec![
            Work::Digest {
                weight: 7,
                confirm: true,
                text_bytes: 1_500,
            },
            Work::Sleep {
                weight: 2,
                confirm: true,
                milliseconds: 20,
            },
            Work::Fail {
                weight: 1,
                confirm: false,
            },
            Work::Digest {
                weight: 0,
                confirm: false,
                text_bytes: 1,
            },
        ]
    }

    #[test]
    fn a_mix_keeps_its_proportions_and_every_job_is_valid() {
        let jobs: Vec<_> = Submissions::new("run".into(), mix())
            .unwrap()
            .take(20)
            .collect();
        let of = |job_type| jobs.iter().filter(|job| job.job_type == job_type).count();
        assert_eq!(
            [of(JobType::Digest), of(JobType::Sleep), of(JobType::Fail)],
            [14, 4, 2]
        );
        for job in &jobs {
            validate_submit(body_of(job).as_bytes()).unwrap();
        }
        let keys: std::collections::BTreeSet<_> = jobs.iter().map(|job| &job.key).collect();
        assert_eq!(keys.len(), jobs.len());
    }

    #[test]
    fn a_mix_without_jobs_is_refused() {
        let none = vec![Work::Fail {
            weight: 0,
            confirm: true,
        }];
        assert!(Submissions::new("run".into(), none).is_err());
        let long = vec![Work::Sleep {
            weight: 1,
            confirm: true,
            milliseconds: 60_001,
        }];
        assert!(Submissions::new("run".into(), long).is_err());
    }
}
