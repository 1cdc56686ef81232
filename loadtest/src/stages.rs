//! The stages of a job as seen from outside, and how long jobs took to reach them.
//!
//! Every time counts from the moment the job was *meant* to be sent, by the harness' clock.

use std::{collections::BTreeMap, fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Longest time that is told apart, in microseconds; longer ones count as this.
const LONGEST_MICROS: u64 = 24 * 3_600 * 1_000_000;
/// Precision of the histograms, in decimal digits.
const DIGITS: u8 = 3;

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// Accepted: 202 was received.
    Submitted,
    /// Ended, with a result or an error.
    Completed,
    /// Its batch's log was seen on the chain.
    Sealed,
    /// Told final, by the API or by webhook.
    Finalized,
    /// The webhooks of its end and, if it asked for one, of its confirmation were received and
    /// verified.
    Delivered,
    /// All its billable facts are among the usage events.
    Billed,
}

/// When a job reached which stage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timeline {
    reached: [Option<Instant>; Stage::ALL.len()],
}

/// Durations in a histogram, with their exact maximum.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    histogram: Histogram<u64>,
    max: Duration,
}

/// Count and quantiles of some durations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// How many.
    pub(crate) count: u64,
    /// Half of them took no longer, in milliseconds.
    pub(crate) p50_ms: f64,
    /// 95 % of them took no longer, in milliseconds.
    pub(crate) p95_ms: f64,
    /// None took longer, in milliseconds.
    pub(crate) max_ms: f64,
}

/// A summary per stage, in order.
pub(crate) type StageSummaries = BTreeMap<Stage, Summary>;

impl Stage {
    /// Every stage, in order.
    pub(crate) const ALL: [Self; 6] = [
        Self::Submitted,
        Self::Completed,
        Self::Sealed,
        Self::Finalized,
        Self::Delivered,
        Self::Billed,
    ];

    /// Whether only jobs that asked for confirmation reach it.
    pub(crate) fn needs_confirmation(self) -> bool {
        matches!(self, Self::Sealed | Self::Finalized)
    }

    /// The stage as it stands in tables and JSON.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Completed => "completed",
            Self::Sealed => "sealed",
            Self::Finalized => "finalized",
            Self::Delivered => "delivered",
            Self::Billed => "billed",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Timeline {
    /// The stage was seen at `at`; the earliest sight counts.
    pub(crate) fn reach(&mut self, stage: Stage, at: Instant) {
        let reached = &mut self.reached[stage as usize];
        *reached = Some(reached.map_or(at, |before| before.min(at)));
    }

    /// When the stage was first seen.
    pub(crate) fn at(&self, stage: Stage) -> Option<Instant> {
        self.reached[stage as usize]
    }

    /// The first stage a job has not reached, if it has to.
    pub(crate) fn missing(&self, requires_confirmation: bool) -> Option<Stage> {
        Stage::ALL.into_iter().find(|stage| {
            self.at(*stage).is_none() && (requires_confirmation || !stage.needs_confirmation())
        })
    }
}

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_MICROS, DIGITS);
        Self {
            histogram: histogram.expect("the bounds are constants"),
            max: Duration::ZERO,
        }
    }
}

impl Latencies {
    /// Adds one.
    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_MICROS);
        self.histogram.saturating_record(micros.max(1));
        self.max = self.max.max(latency);
    }

    /// What the share `quantile` of them did not exceed.
    pub(crate) fn quantile(&self, quantile: f64) -> Duration {
        // A histogram's bucket may end beyond the largest value in it.
        Duration::from_micros(self.histogram.value_at_quantile(quantile)).min(self.max)
    }

    /// The figures to show.
    pub(crate) fn summary(&self) -> Summary {
        Summary {
            count: self.histogram.len(),
            p50_ms: milliseconds(self.quantile(0.5)),
            p95_ms: milliseconds(self.quantile(0.95)),
            max_ms: milliseconds(self.max),
        }
    }
}

/// Summaries of jobs, each given by its intended start and its timeline.
pub(crate) fn summarise<'a>(jobs: impl Iterator<Item = (Instant, &'a Timeline)>) -> StageSummaries {
    let mut stages: BTreeMap<Stage, Latencies> = Stage::ALL
        .into_iter()
        .map(|stage| (stage, Latencies::default()))
        .collect();
    for (intended, timeline) in jobs {
        for (stage, latencies) in &mut stages {
            if let Some(at) = timeline.at(*stage) {
                latencies.record(at.saturating_duration_since(intended));
            }
        }
    }
    stages
        .into_iter()
        .map(|(stage, latencies)| (stage, latencies.summary()))
        .collect()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_never_exceed_the_maximum() {
        let mut latencies = Latencies::default();
        for ms in [3, 100_003, 7] {
            latencies.record(Duration::from_millis(ms));
        }
        let summary = latencies.summary();
        assert_eq!((summary.count, summary.max_ms), (3, 100_003.0));
        assert!(summary.p95_ms <= summary.max_ms && (6.9..7.1).contains(&summary.p50_ms));
        assert_eq!(
            format!("{:.1}", Latencies::default().summary().max_ms),
            "0.0"
        );
    }

    #[test]
    fn the_earliest_sight_of_a_stage_counts() {
        let start = Instant::now();
        let mut timeline = Timeline::default();
        timeline.reach(Stage::Completed, start + Duration::from_secs(2));
        timeline.reach(Stage::Completed, start + Duration::from_secs(1));
        timeline.reach(Stage::Completed, start + Duration::from_secs(3));
        let summaries = summarise([(start, &timeline)].into_iter());
        let of = |stage| (summaries[&stage].count, summaries[&stage].max_ms);
        assert_eq!(
            [of(Stage::Completed), of(Stage::Billed)],
            [(1, 1_000.0), (0, 0.0)]
        );
    }

    #[test]
    fn a_job_without_confirmation_skips_the_chain() {
        let mut timeline = Timeline::default();
        assert_eq!(timeline.missing(false), Some(Stage::Submitted));
        for stage in [Stage::Submitted, Stage::Completed] {
            timeline.reach(stage, Instant::now());
        }
        assert_eq!(timeline.missing(true), Some(Stage::Sealed));
        assert_eq!(timeline.missing(false), Some(Stage::Delivered));
    }
}
