//! `loadtest run`: a scenario against a live system, and whether it was fast enough.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::{
    exit::{EXIT_CODES, Exit},
    faults::FaultPlan,
    load::{Load, LoadReport, WhenFull},
    report::{self, Progress, line},
    scenario::{Miss, Scenario},
    session::{Session, TargetOptions, describe_stuck},
    stages::StageSummaries,
    work::Submissions,
};

/// Drives a TOML scenario at a constant rate against a live system and prints how long jobs took to
/// each stage. `loadtest audit` with the same work folder then checks that everything adds up.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct RunOptions {
    /// The scenario; loadtest/scenarios has examples.
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    #[command(flatten)]
    target: TargetOptions,
    /// Also write the result here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct RunReport {
    scenario: String,
    stages: StageSummaries,
    load: LoadReport,
    slo_misses: Vec<Miss>,
    drained: bool,
}

/// `loadtest run`.
pub(crate) async fn run(options: &RunOptions) -> anyhow::Result<Exit> {
    let scenario = Scenario::read(&options.scenario)?;
    let run = uuid::Uuid::new_v4().simple().to_string();
    let submissions = Submissions::new(run, scenario.mix.clone())?;
    let target = options.target.connect().await?;
    let mut session = Session::open(&target, 0).await?;
    let load = Load {
        arrivals: scenario.arrivals(),
        in_flight: scenario.in_flight,
        when_full: WhenFull::Skip,
        patience: scenario.patience,
        lag_max: scenario.lag_max,
    };
    line(format_args!(
        "scenario {}: {} jobs at {}",
        scenario.name,
        scenario.jobs(),
        scenario.rate
    ));
    let progress = Progress::new("submitting", scenario.jobs());
    let (load, _) = session
        .load(
            load,
            submissions,
            FaultPlan::new(&[], scenario.jobs())?,
            &progress,
        )
        .await?;
    drop(progress);
    let drained = session.drain(scenario.drain).await;
    session.stop_watching().await;
    let stages = session.tracker.summaries();
    report::stages(&stages);
    report::generator(&load.generator);
    let report = RunReport {
        scenario: scenario.name.clone(),
        slo_misses: scenario.misses(&stages),
        stages,
        load,
        drained: drained.is_ok(),
    };
    if let Some(file) = &options.json {
        report::write_json(file, &report)?;
    }
    if let Err(stuck) = drained {
        anyhow::bail!("{}", describe_stuck(&stuck, &target.work_dir));
    }
    session.close().await?;
    Ok(verdict(&report))
}

fn verdict(report: &RunReport) -> Exit {
    for Miss {
        stage,
        p95_ms,
        allowed_ms,
    } in &report.slo_misses
    {
        match p95_ms {
            Some(p95_ms) => line(format_args!(
                "too slow: {stage}: p95 {p95_ms:.1} ms, allowed {allowed_ms:.1} ms"
            )),
            None => line(format_args!(
                "no job was seen {stage}; allowed {allowed_ms:.1} ms"
            )),
        }
    }
    let too_few = report.load.not_accepted() > 0;
    if too_few {
        line(format_args!("{}", report.load.describe_not_accepted()));
    }
    // A slow generator says nothing about the target, so it comes before what it measured. What
    // was not accepted is not among what was measured either.
    if !report.load.generator.valid {
        Exit::GeneratorTooSlow
    } else if too_few {
        Exit::NotAccepted
    } else if report.slo_misses.is_empty() {
        Exit::Clean
    } else {
        Exit::SloMissed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{schedule::Generator, stages::Stage};

    fn report(refused: u64, unknown: u64, skipped: u64) -> RunReport {
        let mut generator = Generator::default();
        (0..skipped).for_each(|_| generator.skipped());
        RunReport {
            scenario: String::new(),
            stages: StageSummaries::new(),
            load: LoadReport {
                accepted: 25,
                refused,
                unknown,
                generator: generator.report(Duration::ZERO),
            },
            slo_misses: Vec::new(),
            drained: true,
        }
    }

    #[test]
    fn a_run_whose_jobs_were_not_accepted_is_not_clean() {
        assert_eq!(verdict(&report(0, 0, 0)), Exit::Clean);
        for lost in [report(1, 0, 0), report(0, 175, 0), report(0, 0, 1)] {
            assert_eq!(verdict(&lost), Exit::NotAccepted);
        }
    }

    #[test]
    fn what_comes_first_is_what_the_rest_stands_on() {
        let mut slow = report(0, 0, 0);
        slow.slo_misses.push(Miss {
            stage: Stage::Billed,
            p95_ms: None,
            allowed_ms: 1.0,
        });
        assert_eq!(verdict(&slow), Exit::SloMissed);
        slow.load.unknown = 3;
        assert_eq!(verdict(&slow), Exit::NotAccepted);
        slow.load.generator.valid = false;
        assert_eq!(verdict(&slow), Exit::GeneratorTooSlow);
    }
}
