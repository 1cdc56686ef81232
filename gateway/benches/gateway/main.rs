//! `ops/bench gateway`: what a request costs through the gateway with everything on, beside bare
//! Pingora, nginx and `HAProxy` as plain proxies, in one run on the same cores.
//!
//! Cost is CPU time of the process for each request, from rest to rest: what a request leaves to
//! do in the background counts. The rounds take turns between the proxies and a row is the median
//! over rounds, so that a noisy machine does not decide. The load runs in this process, on one
//! thread; the upstream of all is nginx, which answers without looking.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use clap::{Parser, Subcommand};
use http::{Method, Request, StatusCode};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::{
    load::{Crowd, Demand, Make, Run},
    ours::Ours,
    peers::Peer,
    report::{Measured, Paced, Report, Trips},
};

mod bare;
mod load;
mod ours;
mod peers;
mod process;
mod redis;
mod report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds of every measurement.
const ROUNDS: usize = 5;
/// Load before the meter is read.
const WARM_UP: Duration = Duration::from_millis(300);
/// Load between two readings of the meter.
const WINDOW: Duration = Duration::from_millis(1_500);
/// Rounds at half load, and the length of each.
const PACED_ROUNDS: usize = 9;
const PACED_WINDOW: Duration = Duration::from_millis(1_500);
/// The part of what ours can take that the open loop sends.
const HALF: f64 = 0.5;

const JOB_PATH: &str = "/v1/jobs/job_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a";
const SUBMIT_PATH: &str = "/v1/jobs";
/// Size of the body of a POST.
const BODY_BYTES: usize = 1_024;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    /// Write the rows here, and a chart beside it.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Serve as the baseline.
    #[command(hide = true)]
    Bare {
        listen: SocketAddr,
        upstream: SocketAddr,
    },
}

/// Everything that is measured, and the load for each.
struct Bench {
    ours: Ours,
    bare: Peer,
    nginx: Peer,
    haproxy: Peer,
    redis: redis::Counter,
    crowds: Crowds,
    _upstream: Peer,
}

struct Crowds {
    bare_get: Crowd,
    bare_post: Crowd,
    nginx_get: Crowd,
    haproxy_get: Crowd,
    ours_get: Crowd,
    ours_jwt: Crowd,
    ours_post: Crowd,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(Part::Bare { listen, upstream }) = cli.part {
        bare::serve(listen, upstream);
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            outcome = run(cli.json.as_deref()) => outcome,
            _ = terminate.recv() => bail!("stopped"),
            _ = interrupt.recv() => bail!("stopped"),
        }
    })
}

async fn run(json: Option<&Path>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut bench = Bench::start(folder.path()).await?;
    let mut report = Report::default();
    for round in 1..=ROUNDS {
        report::say(&format!("round {round} of {ROUNDS}"))?;
        bench.round(&mut report).await?;
    }
    let rate = HALF * report.rate_of("ours", "get");
    for round in 1..=PACED_ROUNDS {
        report::say(&format!(
            "half load ({rate:.0} requests/s), round {round} of {PACED_ROUNDS}"
        ))?;
        bench.paced_round(rate, &mut report).await?;
    }
    drop(bench);
    report.show()?;
    if let Some(json) = json {
        report.write(json)?;
    }
    Ok(())
}

impl Bench {
    async fn start(folder: &Path) -> anyhow::Result<Self> {
        let upstream = peers::upstream(folder).await?;
        let behind = upstream.address;
        let bare = peers::bare(folder, behind).await?;
        let nginx = peers::nginx_proxy(folder, behind).await?;
        let haproxy = peers::haproxy(folder, behind).await?;
        let ours = Ours::start(folder, behind).await?;
        let (key, token) = (ours.key.as_str(), ours.token.as_str());
        let crowds = Crowds {
            bare_get: get(&bare, key),
            bare_post: post(&bare, key),
            nginx_get: get(&nginx, key),
            haproxy_get: get(&haproxy, key),
            ours_get: get(&ours.peer, key),
            ours_jwt: get(&ours.peer, token),
            ours_post: post(&ours.peer, key),
        };
        Ok(Self {
            bare,
            nginx,
            haproxy,
            redis: redis::Counter::connect().await?,
            crowds,
            ours,
            _upstream: upstream,
        })
    }

    /// Each proxy once, close after each other.
    async fn round(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let crowds = &mut self.crowds;
        report.add(
            "bare",
            "get",
            plain(&self.bare, &mut crowds.bare_get).await?,
        );
        let trips = self.redis.calls().await?;
        let measured = full(&self.ours, &mut crowds.ours_get).await?;
        let trips = self.redis.calls().await? - trips;
        report.trips.push(Trips::new("get", trips, &measured));
        report.add("ours", "get", measured);
        let nginx = plain(&self.nginx, &mut crowds.nginx_get).await?;
        report.add("nginx", "get", nginx);
        let haproxy = plain(&self.haproxy, &mut crowds.haproxy_get).await?;
        report.add("haproxy", "get", haproxy);
        report.add(
            "ours",
            "get.jwt",
            full(&self.ours, &mut crowds.ours_jwt).await?,
        );
        report.add(
            "bare",
            "post",
            plain(&self.bare, &mut crowds.bare_post).await?,
        );
        let trips = self.redis.calls().await?;
        let measured = full(&self.ours, &mut crowds.ours_post).await?;
        let trips = self.redis.calls().await? - trips;
        report.trips.push(Trips::new("post", trips, &measured));
        report.add("ours", "post", measured);
        Ok(())
    }

    async fn paced_round(&mut self, rate: f64, report: &mut Report) -> anyhow::Result<()> {
        let bare = pace(&mut self.crowds.bare_get, rate).await?;
        let ours = pace(&mut self.crowds.ours_get, rate).await?;
        self.ours.shipped().await?;
        report.paced.push(Paced { bare, ours });
        Ok(())
    }
}

async fn pace(crowd: &mut Crowd, rate: f64) -> anyhow::Result<Run> {
    crowd.pace(rate, WARM_UP).await?;
    crowd.pace(rate, PACED_WINDOW).await
}

/// A proxy that has done all when it has answered.
async fn plain(peer: &Peer, crowd: &mut Crowd) -> anyhow::Result<Measured> {
    let warm_up = crowd.saturate(WARM_UP).await?;
    let before = peer.process.cpu()?;
    let run = crowd.saturate(WINDOW).await?;
    let cpu = peer.process.cpu()?.saturating_sub(before);
    Ok(Measured::new(cpu, &run, &warm_up))
}

/// Ours, from rest to rest.
async fn full(ours: &Ours, crowd: &mut Crowd) -> anyhow::Result<Measured> {
    let warm_up = crowd.saturate(WARM_UP).await?;
    ours.shipped().await?;
    let before = ours.peer.process.cpu()?;
    let run = crowd.saturate(WINDOW).await?;
    ours.shipped().await?;
    let cpu = ours.peer.process.cpu()?.saturating_sub(before);
    Ok(Measured::new(cpu, &run, &warm_up))
}

fn get(peer: &Peer, credential: &str) -> Crowd {
    let credential = format!("Bearer {credential}");
    let make: Make = Arc::new(move || {
        Request::builder()
            .uri(JOB_PATH)
            .header("host", "bench")
            .header("accept", "application/json")
            .header("user-agent", "jobseal-bench")
            .header("authorization", credential.as_str())
            .body(http_body_util::Full::default())
            .expect("the request is sound")
    });
    Crowd::new(&Demand {
        address: peer.address,
        make,
        expected: StatusCode::OK,
    })
}

/// A job of a fixed size, each under a key of its own.
fn post(peer: &Peer, credential: &str) -> Crowd {
    let credential = format!("Bearer {credential}");
    let frame = r#"{"type":"digest","payload":{"text":""}}"#;
    let text = "x".repeat(BODY_BYTES - frame.len());
    let body = bytes::Bytes::from(frame.replace("\"\"", &format!("\"{text}\"")));
    let make: Make = Arc::new(move || {
        Request::builder()
            .method(Method::POST)
            .uri(SUBMIT_PATH)
            .header("host", "bench")
            .header("accept", "application/json")
            .header("user-agent", "jobseal-bench")
            .header("content-type", "application/json")
            .header("idempotency-key", Uuid::new_v4().simple().to_string())
            .header("authorization", credential.as_str())
            .body(http_body_util::Full::new(body.clone()))
            .expect("the request is sound")
    });
    Crowd::new(&Demand {
        address: peer.address,
        make,
        expected: StatusCode::ACCEPTED,
    })
}
