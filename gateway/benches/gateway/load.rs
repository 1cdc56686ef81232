//! The load: a few connections that are always busy (closed loop), or requests at times that are
//! fixed beforehand, with latencies from those times (open loop). It runs in the benchmark's own
//! process, on one thread, and costs none of the measured processes anything.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet};

/// Connections of the closed loop, and of the open one.
pub(crate) const CONNECTIONS: usize = 32;

/// Longest latency that is told apart from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(10);
const SIGNIFICANT_DIGITS: u8 = 3;

/// Makes the next request.
pub(crate) type Make = Arc<dyn Fn() -> Request<Full<Bytes>> + Send + Sync>;

/// What is asked of whom, and what must be answered.
#[derive(Clone)]
pub(crate) struct Demand {
    pub(crate) address: SocketAddr,
    pub(crate) make: Make,
    pub(crate) expected: StatusCode,
}

/// How it went.
pub(crate) struct Run {
    pub(crate) requests: u64,
    pub(crate) took: Duration,
    latencies: Histogram<u64>,
}

/// One connection, made anew when the server has closed it.
struct Connection {
    demand: Demand,
    sender: Option<SendRequest<Full<Bytes>>>,
    driver: JoinSet<Result<(), hyper::Error>>,
}

/// Connections that are kept from run to run.
pub(crate) struct Crowd {
    idle: Vec<Connection>,
}

impl Crowd {
    pub(crate) fn new(demand: &Demand) -> Self {
        let idle = (0..CONNECTIONS).map(|_| Connection::new(demand.clone()));
        Self {
            idle: idle.collect(),
        }
    }

    /// As much as the other side takes, for `duration`.
    pub(crate) async fn saturate(&mut self, duration: Duration) -> anyhow::Result<Run> {
        let began = Instant::now();
        let mut workers = JoinSet::new();
        for mut connection in self.idle.drain(..) {
            workers.spawn(async move {
                let mut latencies = histogram();
                while began.elapsed() < duration {
                    let asked = Instant::now();
                    connection.ask().await?;
                    latencies.saturating_record(nanoseconds(asked.elapsed()));
                }
                anyhow::Ok((connection, latencies))
            });
        }
        self.gather(workers, began).await
    }

    /// `rate` requests a second for `duration`, whatever becomes of them.
    pub(crate) async fn pace(&mut self, rate: f64, duration: Duration) -> anyhow::Result<Run> {
        let began = Instant::now();
        let (mut workers, mut desks) = (JoinSet::new(), Vec::new());
        for mut connection in self.idle.drain(..) {
            let (desk, mut due) = mpsc::unbounded_channel::<Instant>();
            desks.push(desk);
            workers.spawn(async move {
                let mut latencies = histogram();
                while let Some(due) = due.recv().await {
                    connection.ask().await?;
                    latencies.saturating_record(nanoseconds(due.elapsed()));
                }
                anyhow::Ok((connection, latencies))
            });
        }
        // A thread of its own, since the runtime's timers are as coarse as what is measured.
        let clock = std::thread::spawn(move || keep_time(&desks, rate, duration));
        let run = self.gather(workers, began).await;
        clock.join().ok();
        run
    }

    async fn gather(
        &mut self,
        mut workers: JoinSet<anyhow::Result<(Connection, Histogram<u64>)>>,
        began: Instant,
    ) -> anyhow::Result<Run> {
        let mut latencies = histogram();
        while let Some(worker) = workers.join_next().await {
            let (connection, its) = worker??;
            latencies.add(&its)?;
            self.idle.push(connection);
        }
        Ok(Run {
            requests: latencies.len(),
            took: began.elapsed(),
            latencies,
        })
    }
}

/// Tells each connection in turn that a request is due.
fn keep_time(desks: &[mpsc::UnboundedSender<Instant>], rate: f64, duration: Duration) {
    let began = Instant::now();
    let mut due = Duration::ZERO;
    for desk in desks.iter().cycle() {
        due += Duration::from_secs_f64(1.0 / rate);
        if due > duration {
            break;
        }
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        if desk.send(began + due).is_err() {
            break;
        }
    }
}

impl Connection {
    fn new(demand: Demand) -> Self {
        Self {
            demand,
            sender: None,
            driver: JoinSet::new(),
        }
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        let request = (self.demand.make)();
        let sent = self.sender().await?.send_request(request);
        let answer = sent
            .await
            .with_context(|| format!("no answer from {}", self.demand.address))?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(
            status == self.demand.expected,
            "{} answered {status}: {}",
            self.demand.address,
            String::from_utf8_lossy(&body)
        );
        Ok(())
    }

    async fn sender(&mut self) -> anyhow::Result<&mut SendRequest<Full<Bytes>>> {
        let open = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !open {
            self.driver.abort_all();
            let stream = TcpStream::connect(self.demand.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            self.driver.spawn(connection);
            self.sender = Some(sender);
        }
        self.sender.as_mut().context("it was just made")
    }
}

impl Run {
    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 requests")]
        let requests = self.requests as f64;
        requests / self.took.as_secs_f64()
    }

    /// A latency in milliseconds.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "bounded by the longest latency")]
        let latency = self.latencies.value_at_quantile(quantile) as f64;
        latency / 1e6
    }
}

fn histogram() -> Histogram<u64> {
    let most = nanoseconds(LATENCY_MAX);
    Histogram::new_with_max(most, SIGNIFICANT_DIGITS).expect("the bounds are sound")
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
