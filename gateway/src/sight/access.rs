//! The access log: one line of JSON a request. A request only puts its line into a buffer, which a
//! task hands to standard error; when that cannot keep up, lines are dropped and counted, since
//! nobody may wait for a log.

use std::{
    cell::RefCell,
    io::{self, Write as _},
    mem,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use contracts::id::{KeyId, RequestId, TenantId};
use jiff::Timestamp;
use metrics::{Counter, counter};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// Lines that wait to be written, in bytes: what a hundred thousand requests a second leave behind
/// between two writes.
const WAITING_MAX_BYTES: usize = 4 * 1_024 * 1_024;
/// How long a line may wait.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// What a line has room for before it grows.
const LINE_BYTES: usize = 512;

/// One request that has ended, in the order of its members.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names of the members say it")]
pub struct Line<'a> {
    pub timestamp: Timestamp,
    pub level: &'static str,
    pub message: &'static str,
    #[serde(rename = "http.method")]
    pub method: &'a str,
    #[serde(rename = "http.path")]
    pub path: &'a str,
    #[serde(rename = "http.route")]
    pub route: &'static str,
    #[serde(rename = "http.status_code")]
    pub status: u16,
    #[serde(rename = "problem.code", skip_serializing_if = "Option::is_none")]
    pub problem: Option<&'static str>,
    #[serde(rename = "request.id")]
    pub request_id: RequestId,
    #[serde(rename = "request.bytes")]
    pub request_bytes: u64,
    #[serde(rename = "response.bytes")]
    pub response_bytes: u64,
    pub duration_us: u64,
    #[serde(rename = "client.address")]
    pub address: IpAddr,
    #[serde(rename = "tenant.id", skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    #[serde(rename = "key.id", skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    pub replayed: bool,
    pub target: &'static str,
}

/// Lines on their way to standard error.
pub struct AccessLog {
    waiting: Mutex<Vec<u8>>,
    dropped: Counter,
}

impl AccessLog {
    /// Nothing waits yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            dropped: counter!("gateway_access_lines_dropped_total"),
        }
    }

    /// Adds a line, or drops it when too much waits.
    pub fn add(&self, line: &Line<'_>) {
        // Formatted outside the lock, in memory that the next line uses again.
        thread_local! {
            static TEXT: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(LINE_BYTES));
        }
        TEXT.with_borrow_mut(|text| {
            text.clear();
            serde_json::to_writer(&mut *text, line).expect("a line has a JSON form");
            text.push(b'\n');
            let mut waiting = self.waiting();
            if waiting.len() + text.len() > WAITING_MAX_BYTES {
                drop(waiting);
                self.dropped.increment(1);
            } else {
                waiting.extend_from_slice(text);
            }
        });
    }

    /// Writes lines out, again and again, until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep_written(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        loop {
            let last = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(WRITE_EVERY) => false,
            };
            mem::swap(&mut lines, &mut *self.waiting());
            if !lines.is_empty() {
                lines = write(lines).await?;
            }
            if last {
                return Ok(());
            }
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes lines out and gives their memory back. Whoever reads our standard error may be slow, so
/// no thread of the runtime does it.
async fn write(mut lines: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let work = move || {
        let outcome = io::stderr().lock().write_all(&lines);
        lines.clear();
        (lines, outcome)
    };
    let (emptied, outcome) = tokio::task::spawn_blocking(work).await?;
    if let Err(cause) = outcome {
        error!(error = %cause, "the access log cannot be written");
    }
    Ok(emptied)
}

impl Default for AccessLog {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn line(path: &str) -> Line<'_> {
        let now = "2026-01-02T03:04:05.678Z".parse().unwrap();
        Line {
            timestamp: now,
            level: "INFO",
            message: "request",
            method: "GET",
            path,
            route: "none",
            status: 404,
            problem: None,
            request_id: RequestId::generate(now),
            request_bytes: 0,
            response_bytes: 7,
            duration_us: 11,
            address: "::1".parse().unwrap(),
            tenant: Some(TenantId::generate(now)),
            key: None,
            replayed: false,
            target: "gateway::access",
        }
    }

    #[test]
    fn each_line_is_one_json_object_whatever_the_path_holds() {
        let log = AccessLog::new();
        let paths = ["/a", "/\"},{\"", "/\\", "/\u{2028}é"];
        for path in paths {
            log.add(&line(path));
        }
        let text = String::from_utf8(log.waiting().clone()).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let logged: Vec<&str> = lines
            .iter()
            .map(|line| line["http.path"].as_str().unwrap())
            .collect();
        assert_eq!(logged, paths);
        assert_eq!(lines[0]["http.status_code"], 404);
        assert!(lines[0].get("key.id").is_none());
    }

    #[test]
    fn lines_beyond_the_bound_are_dropped_whole() {
        let log = AccessLog::new();
        let path = "/".repeat(1_000);
        for _ in 0..WAITING_MAX_BYTES / 1_000 {
            log.add(&line(&path));
        }
        let waiting = log.waiting();
        assert!(waiting.len() <= WAITING_MAX_BYTES && waiting.len() > WAITING_MAX_BYTES - 2_000);
        assert_eq!(waiting.last(), Some(&b'\n'));
    }
    #[tokio::test]
    async fn what_waits_when_the_process_stops_is_written() {
        let log = Arc::new(AccessLog::new());
        log.add(&line("/last"));
        let stop = CancellationToken::new();
        stop.cancel();
        Arc::clone(&log).keep_written(stop).await.unwrap();
        assert!(log.waiting().is_empty());
    }
}
