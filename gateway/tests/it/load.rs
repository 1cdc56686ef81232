//! What is measured under load: a client's latencies, and the gateway's memory.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{app::App, raw};

/// How often a victim asks: often enough for a slowest hundredth, too seldom to be the load.
const PAUSE: Duration = Duration::from_millis(5);

/// A client that asks one thing after another on one connection, and on another when it is told.
pub(crate) struct Victim {
    listen: SocketAddr,
    stream: TcpStream,
    request: Vec<u8>,
}

/// How it fared.
pub(crate) struct Measured {
    pub(crate) requests: usize,
    pub(crate) p99: Duration,
}

impl Victim {
    pub(crate) async fn connect(app: &App) -> Self {
        let request = format!(
            "GET /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n",
            app.key
        );
        Self {
            listen: app.listen,
            stream: TcpStream::connect(app.listen).await.unwrap(),
            request: request.into_bytes(),
        }
    }

    /// Asks for as long as `time`; each answer must be a good one.
    pub(crate) async fn measure(&mut self, time: Duration) -> Measured {
        let (begun, mut took) = (Instant::now(), Vec::new());
        while begun.elapsed() < time {
            let asked = Instant::now();
            self.stream.write_all(&self.request).await.unwrap();
            let answer = raw::answer(&mut self.stream).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            took.push(asked.elapsed());
            if answer
                .to_ascii_lowercase()
                .contains("\r\nconnection: close\r\n")
            {
                self.stream = TcpStream::connect(self.listen).await.unwrap();
            }
            tokio::time::sleep(PAUSE).await;
        }
        took.sort_unstable();
        let p99 = took[took.len() * 99 / 100];
        Measured {
            requests: took.len(),
            p99,
        }
    }
}

/// Resident memory of a process.
pub(crate) fn rss_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u32 = line.unwrap().trim_end_matches("kB").trim().parse().unwrap();
    f64::from(kib) / 1_024.0
}
