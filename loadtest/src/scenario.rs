//! A scenario: how many jobs of which kinds, how fast, and how soon they have to be where.

use std::{collections::BTreeMap, path::Path, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    exit::BadUsage,
    schedule::{Arrivals, Rate},
    stages::{Stage, StageSummaries},
    work::Work,
};

/// Most requests in flight that a scenario may ask for.
const IN_FLIGHT_MAX: usize = 10_000;
/// Most jobs of one run.
const COUNT_MAX: u64 = 10_000_000;

/// What `loadtest run` reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// For the report.
    pub(crate) name: String,
    /// Arrivals per second.
    pub(crate) rate: Rate,
    /// How many jobs; this or `duration`.
    pub(crate) count: Option<u64>,
    /// For how long; this or `count`.
    #[serde(default, deserialize_with = "optional_duration")]
    pub(crate) duration: Option<Duration>,
    /// Most submissions in flight.
    pub(crate) in_flight: usize,
    /// The run is invalid if 1 % of the starts lag by more than this.
    #[serde(deserialize_with = "duration")]
    pub(crate) lag_max: Duration,
    /// How long one submission is tried, again with the same key, until its fate is known.
    #[serde(deserialize_with = "duration")]
    pub(crate) patience: Duration,
    /// How long after the last submission the last job may take to its last stage.
    #[serde(deserialize_with = "duration")]
    pub(crate) drain: Duration,
    /// The jobs.
    pub(crate) mix: Vec<Work>,
    /// Longest p95 per stage; a stage that no job reached was not fast enough.
    #[serde(default, deserialize_with = "durations")]
    pub(crate) slo: BTreeMap<Stage, Duration>,
}

/// A stage that was slower than the scenario allows, or that no job reached.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Miss {
    /// The stage.
    pub(crate) stage: Stage,
    /// Its p95, in milliseconds; none where no job reached it.
    pub(crate) p95_ms: Option<f64>,
    /// What it may be.
    pub(crate) allowed_ms: f64,
}

impl Scenario {
    /// The scenario in a file.
    pub(crate) fn read(path: &Path) -> Result<Self, BadUsage> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| BadUsage(format!("cannot read {}: {error}", path.display())))?;
        Self::parse(&text).map_err(|error| BadUsage(format!("{}: {error}", path.display())))
    }

    /// The scenario that `text` is.
    pub(crate) fn parse(text: &str) -> Result<Self, BadUsage> {
        let scenario: Self = toml::from_str(text).map_err(|error| BadUsage(error.to_string()))?;
        let complain = |message: &str| Err(BadUsage(message.to_owned()));
        if scenario.count.is_some() == scenario.duration.is_some() {
            return complain("give either `count` or `duration`");
        }
        if !(1..=COUNT_MAX).contains(&scenario.jobs()) {
            return complain("the number of jobs must be from 1 to 10000000");
        }
        if !(1..=IN_FLIGHT_MAX).contains(&scenario.in_flight) {
            return complain("`in_flight` must be from 1 to 10000");
        }
        scenario.mix.iter().try_for_each(Work::check)?;
        Ok(scenario)
    }

    /// How many jobs.
    pub(crate) fn jobs(&self) -> u64 {
        let timed = self.duration.map(|duration| self.rate.count_in(duration));
        self.count.or(timed).unwrap_or_default()
    }

    /// When each is meant to start.
    pub(crate) fn arrivals(&self) -> Arrivals {
        Arrivals::new(self.rate, self.jobs())
    }

    /// The stages that were too slow.
    pub(crate) fn misses(&self, stages: &StageSummaries) -> Vec<Miss> {
        let mut misses = Vec::new();
        for (stage, allowed) in &self.slo {
            let allowed_ms = allowed.as_secs_f64() * 1_000.0;
            let reached = stages.get(stage).filter(|summary| summary.count > 0);
            let p95_ms = reached.map(|summary| summary.p95_ms);
            if p95_ms.is_none_or(|p95_ms| p95_ms > allowed_ms) {
                misses.push(Miss {
                    stage: *stage,
                    p95_ms,
                    allowed_ms,
                });
            }
        }
        misses
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|_| D::Error::custom(format!("`{text}` is no duration such as \"250ms\"")))
}

fn optional_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

fn durations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Stage, Duration>, D::Error> {
    #[derive(Deserialize)]
    struct Text(#[serde(deserialize_with = "duration")] Duration);
    let texts: BTreeMap<Stage, Text> = BTreeMap::deserialize(deserializer)?;
    Ok(texts
        .into_iter()
        .map(|(stage, Text(duration))| (stage, duration))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::Summary;

    const STEADY: &str = include_str!("../scenarios/steady.toml");

    fn complaint(text: &str) -> String {
        Scenario::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_checked_in_scenarios_are_read() {
        assert_eq!(Scenario::parse(STEADY).unwrap().jobs(), 600);
        let demo = Scenario::parse(include_str!("../scenarios/demo.toml")).unwrap();
        assert_eq!(demo.arrivals().count(), 50);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let unknown = complaint(&STEADY.replace("in_flight", "in_fight"));
        assert!(
            unknown.contains("in_fight") && unknown.contains("line"),
            "{unknown}"
        );
        assert!(complaint(&STEADY.replace("\"30s\"\nin", "\"soon\"\nin")).contains("soon"));
        assert!(complaint(&STEADY.replace("rate = 20.0", "rate = 0.0")).contains("per second"));
        assert!(complaint(&STEADY.replace("[slo]", "[slo]\nlost = \"1s\"")).contains("lost"));
        assert!(
            complaint(&STEADY.replace("in_flight = 256", "in_flight = 0")).contains("in_flight")
        );
        let both = complaint(&STEADY.replace("in_flight", "count = 1\nin_flight"));
        assert!(both.contains("either"), "{both}");
        assert!(complaint(&STEADY.replace("text_bytes", "text_bites")).contains("text_bites"));
    }

    #[test]
    fn a_slow_or_empty_stage_is_a_miss() {
        let scenario = Scenario::parse(STEADY).unwrap();
        let summary = |count, p95_ms| Summary {
            count,
            p50_ms: p95_ms,
            p95_ms,
            max_ms: p95_ms,
        };
        let mut stages = Stage::ALL.map(|stage| (stage, summary(1, 250.0)));
        assert_eq!(scenario.misses(&stages.into()), []);
        stages[2].1 = summary(1, 10_000.1);
        stages[4].1 = summary(0, 0.0);
        let misses = scenario.misses(&stages.into());
        let found: Vec<_> = misses
            .iter()
            .map(|miss| (miss.stage, miss.p95_ms))
            .collect();
        let expected = [(Stage::Sealed, Some(10_000.1)), (Stage::Delivered, None)];
        assert_eq!(found, expected);
        let none = scenario.misses(&StageSummaries::new());
        assert_eq!(none.len(), Stage::ALL.len(), "nothing was measured");
    }
}
