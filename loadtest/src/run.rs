//! `loadtest run`: a scenario against a live system, and whether it was fast enough.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::{
    exit::Exit,
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
    for miss in &report.slo_misses {
        line(format_args!(
            "too slow: {}: p95 {:.1} ms, allowed {:.1} ms",
            miss.stage, miss.p95_ms, miss.allowed_ms
        ));
    }
    // A slow generator says nothing about the target, so it comes before what it measured.
    if !report.load.generator.valid {
        Exit::GeneratorTooSlow
    } else if report.slo_misses.is_empty() {
        Exit::Clean
    } else {
        Exit::SloMissed
    }
}
