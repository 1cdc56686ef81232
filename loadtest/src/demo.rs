//! `loadtest demo`: bad input, jobs with faults in between, every stage, one job in full, and the
//! audit.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    audit::{self, Share, Verdict},
    exit::{BadUsage, EXIT_CODES, Exit},
    faults::{FaultPlan, FaultReport},
    load::{Load, LoadReport, WhenFull},
    log::{Actor, Submission},
    refusals::{self, Row, Suspects, TokenSource},
    report::{self, Progress, line},
    request::Credential,
    scenario::Scenario,
    schedule::{Bursts, Rate},
    session::{Session, Target, TargetOptions, describe_stuck},
    show::{self, Bill, ShownJob},
    stages::StageSummaries,
    work::Submissions,
};

/// The jobs of the demo.
const SCENARIO: &str = include_str!("../scenarios/demo.toml");
/// One webhook in so many is answered 500 when it comes first, to see it come again.
const REFUSE_EVERY: usize = 40;
/// Without `--rate`, the submissions take about this long at most.
const SUBMIT_SECONDS_MAX: f64 = 80.0;
/// Without `--rate`, the submissions take at least this long per fault, so that each hits them.
const FAULT_SECONDS: f64 = 5.0;
/// Most jobs that are submitted together right before a fault.
const BURST: u64 = 24;
/// In a burst, the last job of each so many sleeps, so that a worker is at it when the fault
/// strikes.
const SLEEPER_EVERY: u64 = 3;
/// … for so long.
const SLEEPER_MS: u32 = 2_000;
/// How much longer the last job may take for each fault.
const FAULT_PATIENCE: Duration = Duration::from_secs(20);
/// How much longer the last job may take for each job.
const JOB_PATIENCE: Duration = Duration::from_millis(40);
/// How long what is shown may take to be fetched.
const SHOW_PATIENCE: Duration = Duration::from_secs(20);

/// Drives jobs through a live system and shows everything: the answers to bad input, the stages,
/// one job with its proof and its webhook, usage and invoice, and the audit's verdict.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct DemoOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// A file that holds an API key of another tenant, on a plan whose rate limit is small.
    #[arg(long, value_name = "FILE")]
    other_api_key_file: PathBuf,
    /// The folder of the JWT issuer that the gateway trusts (`loadtest issuer`).
    #[arg(long, value_name = "DIR")]
    issuer_dir: PathBuf,
    /// The claim `iss` that the gateway wants.
    #[arg(long, env = "JWT_ISSUER")]
    jwt_issuer: String,
    /// The claim `aud` that the gateway wants.
    #[arg(long, env = "JWT_AUDIENCE")]
    jwt_audience: String,
    /// The tenant's id.
    #[arg(long, value_name = "TENANT_ID")]
    tenant: String,
    /// How many jobs.
    #[arg(long, default_value_t = 50, value_name = "N")]
    jobs: u64,
    /// Jobs per second; without it, 50 jobs take five seconds and any number about a minute.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<Rate>,
    /// A shell command that makes a fault and returns when the process is up again. May be given
    /// several times: they are run at evenly spaced fractions of the submitted jobs, the last of
    /// which come all at once, and meanwhile the last one is submitted again and again by many.
    #[arg(long = "fault", value_name = "COMMAND")]
    faults: Vec<String>,
    /// Also write the result here.
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
}

#[derive(Serialize)]
struct DemoReport {
    jobs: u64,
    stages: StageSummaries,
    audit: Verdict,
    refusals: Vec<Row>,
    load: LoadReport,
    faults: Vec<FaultReport>,
    webhooks_refused_once: u64,
    shown_job: Option<ShownJob>,
    bill: Bill,
}

/// `loadtest demo`.
pub(crate) async fn run(options: &DemoOptions) -> anyhow::Result<Exit> {
    let scenario = options.scenario()?;
    let plan = FaultPlan::new(&options.faults, options.jobs)?;
    let other = Credential::from_file(&options.other_api_key_file, Actor::Other)?;
    let run = uuid::Uuid::new_v4().simple().to_string();
    let target = options.target.connect().await?;
    let mut session = Session::open(&target, REFUSE_EVERY).await?;
    let refusals = options.bad_input(&target, &session, &other, &run).await?;
    let progress = Progress::new("submitting", options.jobs);
    let bursts = Bursts::before(plan.due(), BURST);
    let submissions = with_sleepers(Submissions::new(run, scenario.mix.clone())?, bursts.clone());
    let (load, faults) = session
        .load(load_of(&scenario, bursts), submissions, plan, &progress)
        .await?;
    drop(progress);
    if !all_accepted(options.jobs, &load) {
        line(format_args!("{}", load.describe_not_accepted()));
        return Ok(Exit::NotAccepted);
    }
    let patience = scenario.drain
        + JOB_PATIENCE * u32::try_from(options.jobs).unwrap_or(u32::MAX)
        + FAULT_PATIENCE * u32::try_from(faults.len()).unwrap_or(u32::MAX);
    let drained = session.drain(patience).await;
    session.stop_watching().await;
    let stages = session.tracker.summaries();
    report::stages(&stages);
    report::generator(&load.generator);
    if let Err(stuck) = drained {
        anyhow::bail!("{}", describe_stuck(&stuck, &target.work_dir));
    }
    let deadline = Instant::now() + SHOW_PATIENCE;
    let shown_job = match session.receiver.sample() {
        None => None,
        Some(sample) => {
            let shown = show::job(&target, sample.job_id, deadline).await?;
            show::webhook(&sample);
            Some(shown)
        }
    };
    // Whoever runs the demo is alone on its registry, but for the job of the other tenant.
    let share = Share::Whole {
        others: vec![other],
    };
    let audit = audit::audit(&target, &share).await?;
    let bill = show::bill(&target, Instant::now() + SHOW_PATIENCE).await?;
    audit::show(&audit);
    let webhooks_refused_once = session.receiver.refused();
    let report = DemoReport {
        jobs: options.jobs,
        stages,
        audit,
        refusals,
        load,
        faults,
        webhooks_refused_once,
        shown_job,
        bill,
    };
    report::write_json(&options.json, &report)?;
    session.close().await?;
    Ok(verdict(&report))
}

impl DemoOptions {
    fn scenario(&self) -> Result<Scenario, BadUsage> {
        let mut scenario = Scenario::parse(SCENARIO)?;
        if self.jobs == 0 {
            return Err(BadUsage("--jobs must be at least 1".into()));
        }
        scenario.count = Some(self.jobs);
        scenario.rate = match self.rate {
            Some(rate) => rate,
            None => default_rate(scenario.rate, self.jobs, self.faults.len()),
        };
        Ok(scenario)
    }

    async fn bad_input(
        &self,
        target: &Target,
        session: &Session<'_>,
        other: &Credential,
        run: &str,
    ) -> anyhow::Result<Vec<Row>> {
        let tokens = TokenSource {
            dir: &self.issuer_dir,
            issuer: &self.jwt_issuer,
            audience: &self.jwt_audience,
            tenant: &self.tenant,
        };
        let suspects = Suspects::new(
            &target.api,
            (&target.credential, other),
            &tokens,
            run.to_owned(),
        )?;
        let deadline = Instant::now() + SHOW_PATIENCE;
        let rows = suspects
            .send_all(deadline, |job, at| {
                session.tracker.accepted(job, true, None, at);
            })
            .await?;
        refusals::show(&rows);
        Ok(rows)
    }
}

/// A few seconds for few jobs, a bit more than a minute for many, and time for every fault.
fn default_rate(few: Rate, jobs: u64, faults: usize) -> Rate {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let (jobs, faults) = (jobs as f64, faults as f64);
    let rate = few.per_second().max(jobs / SUBMIT_SECONDS_MAX);
    let spread = if faults > 0.0 {
        rate.min(jobs / (faults * FAULT_SECONDS))
    } else {
        rate
    };
    Rate::try_from(spread).unwrap_or(few)
}

/// Some jobs of each burst take long instead of what they are.
fn with_sleepers(
    submissions: impl Iterator<Item = Submission>,
    bursts: Bursts,
) -> impl Iterator<Item = Submission> {
    (0..).zip(submissions).map(move |(n, submission)| {
        let following = bursts.following(n);
        if following.is_some_and(|following| following.is_multiple_of(SLEEPER_EVERY)) {
            submission.asleep(SLEEPER_MS)
        } else {
            submission
        }
    })
}

fn load_of(scenario: &Scenario, bursts: Bursts) -> Load {
    Load {
        arrivals: scenario.arrivals().in_bursts(bursts),
        in_flight: scenario.in_flight,
        when_full: WhenFull::Wait,
        patience: scenario.patience,
        lag_max: scenario.lag_max,
    }
}

/// The demo shows what becomes of jobs, so each of its own has to be one.
fn all_accepted(jobs: u64, load: &LoadReport) -> bool {
    load.accepted == jobs && load.not_accepted() == 0
}

fn verdict(report: &DemoReport) -> Exit {
    let wrong: Vec<_> = report
        .refusals
        .iter()
        .filter(|row| !row.ok)
        .map(|row| row.case)
        .collect();
    if !wrong.is_empty() {
        line(format_args!(
            "wrong answers to bad input: {}",
            wrong.join(", ")
        ));
        return Exit::Error;
    }
    let proven = report.shown_job.as_ref().map(|shown| shown.proof_verified);
    if proven.is_none() {
        line(format_args!("no job was told to be confirmed"));
    }
    outcome(report.audit.clean, proven, report.load.generator.valid)
}

/// `proven` is whether the registry accepts the proof of the job that is shown, if there is one.
fn outcome(clean: bool, proven: Option<bool>, valid: bool) -> Exit {
    if !clean || proven != Some(true) {
        Exit::Findings
    } else if !valid {
        Exit::GeneratorTooSlow
    } else {
        Exit::Clean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{faults::FAULT_TIMEOUT, schedule::Generator};

    #[test]
    fn a_demo_whose_jobs_were_not_all_accepted_fails() {
        let load = |accepted, refused, unknown| LoadReport {
            accepted,
            refused,
            unknown,
            generator: Generator::default().report(Duration::ZERO),
        };
        assert!(all_accepted(40, &load(40, 0, 0)));
        for lost in [load(9, 0, 31), load(39, 1, 0), load(0, 0, 0)] {
            assert!(!all_accepted(40, &lost), "{lost:?}");
        }
    }

    #[test]
    fn a_demo_that_shows_no_proven_job_is_not_clean() {
        assert_eq!(outcome(true, Some(true), true), Exit::Clean);
        for proven in [None, Some(false)] {
            assert_eq!(outcome(true, proven, true), Exit::Findings);
        }
        assert_eq!(outcome(false, Some(true), true), Exit::Findings);
        assert_eq!(outcome(true, Some(true), false), Exit::GeneratorTooSlow);
    }

    #[test]
    fn jobs_are_under_way_when_a_fault_strikes() {
        let mut scenario = Scenario::parse(SCENARIO).unwrap();
        scenario.count = Some(60);
        let commands = vec![String::new(); 6];
        let plan = FaultPlan::new(&commands, 60).unwrap();
        let bursts = Bursts::before(plan.due(), BURST);
        let mix = Submissions::new("run".into(), scenario.mix.clone()).unwrap();
        let jobs: Vec<_> = with_sleepers(mix, bursts.clone()).take(60).collect();
        let payload = format!(r#"{{"milliseconds":{SLEEPER_MS}}}"#);
        let arrivals: Vec<_> = scenario.arrivals().in_bursts(bursts).collect();
        let index = |n: u64| usize::try_from(n).unwrap();
        for due in plan.due().map(index) {
            let together = arrivals.iter().filter(|at| **at == arrivals[due - 1]);
            assert!(together.count() >= 8, "before {due}");
            let burst = &jobs[due - 8..due];
            let asleep = burst.iter().filter(|job| job.payload == payload).count();
            assert!(asleep >= 2, "{asleep} before {due}");
            assert_eq!(burst[7].payload, payload, "the one that is repeated");
        }
    }

    #[test]
    fn a_submission_is_tried_for_longer_than_any_fault_may_take() {
        let scenario = Scenario::parse(SCENARIO).unwrap();
        assert!(scenario.patience > FAULT_TIMEOUT);
    }

    #[test]
    fn the_default_rate_leaves_time_for_the_faults() {
        let few: Rate = "10".parse().unwrap();
        let rate = |jobs, faults| default_rate(few, jobs, faults).to_string();
        assert_eq!([rate(50, 0), rate(2_000, 0)], ["10/s", "25/s"]);
        assert_eq!(
            [rate(50, 6), rate(2_000, 6), rate(1, 64)],
            ["1.667/s", "25/s", "0.003/s"]
        );
    }
}
