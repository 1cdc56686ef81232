//! What was measured, as a table, as JSON, and as a chart.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::load::Run;

/// One measurement.
pub(crate) struct Measured {
    cpu_us: f64,
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Requests since the meter of Redis was read, the warm-up's included.
    requests: u64,
}

/// Bare Pingora and ours at the same fixed rate.
pub(crate) struct Paced {
    pub(crate) bare: Run,
    pub(crate) ours: Run,
}

/// Trips to Redis for each request.
pub(crate) struct Trips {
    what: &'static str,
    each: f64,
}

#[derive(Default)]
pub(crate) struct Report {
    measured: Vec<(&'static str, &'static str, Measured)>,
    pub(crate) paced: Vec<Paced>,
    pub(crate) trips: Vec<Trips>,
}

/// One line of the result.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    baseline: Option<f64>,
    ratio: Option<f64>,
    /// Least and greatest of the rounds: of the ratio where there is one, else of the value.
    spread: [f64; 2],
}

/// How one proxy did with one kind of request.
#[derive(Serialize)]
struct Proxy {
    name: &'static str,
    request: &'static str,
    cpu_us: f64,
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// The rows that compare CPU time: name, who is compared with ours, on what, and what ours does.
const COMPARED: [(&str, &str, &str, &str); 5] = [
    ("get", "bare", "get", "get"),
    ("get.jwt", "bare", "get", "get.jwt"),
    ("post", "bare", "post", "post"),
    ("get.nginx", "nginx", "get", "get"),
    ("get.haproxy", "haproxy", "get", "get"),
];
const PROXIES: [(&str, &str); 7] = [
    ("bare", "get"),
    ("nginx", "get"),
    ("haproxy", "get"),
    ("ours", "get"),
    ("ours", "get.jwt"),
    ("bare", "post"),
    ("ours", "post"),
];

impl Measured {
    pub(crate) fn new(cpu: Duration, run: &Run, warm_up: &Run) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 requests")]
        let requests = run.requests as f64;
        Self {
            cpu_us: cpu.as_secs_f64() * 1e6 / requests,
            rate: run.rate(),
            p50_ms: run.quantile_ms(0.5),
            p99_ms: run.quantile_ms(0.99),
            requests: run.requests + warm_up.requests,
        }
    }
}

impl Trips {
    pub(crate) fn new(what: &'static str, calls: u64, measured: &Measured) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 calls")]
        let each = calls as f64 / measured.requests as f64;
        Self { what, each }
    }
}

impl Report {
    pub(crate) fn add(&mut self, proxy: &'static str, what: &'static str, measured: Measured) {
        self.measured.push((proxy, what, measured));
    }

    /// Requests a second of a proxy, the median.
    pub(crate) fn rate_of(&self, proxy: &str, what: &str) -> f64 {
        median(&self.all(proxy, what, |measured| measured.rate))
    }

    /// Prints both tables.
    pub(crate) fn show(&self) -> io::Result<()> {
        let mut proxies = table(&[
            "proxy",
            "request",
            "CPU us",
            "requests/s",
            "p50 ms",
            "p99 ms",
        ]);
        for proxy in self.proxies() {
            proxies.add_row([
                proxy.name.to_owned(),
                proxy.request.to_owned(),
                format!("{:.1}", proxy.cpu_us),
                format!("{:.0}", proxy.requests_per_second),
                format!("{:.3}", proxy.p50_ms),
                format!("{:.3}", proxy.p99_ms),
            ]);
        }
        let mut rows = table(&["row", "value", "unit", "baseline", "ratio", "spread"]);
        for row in self.rows() {
            let shown = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.3}"));
            rows.add_row([
                row.name.to_owned(),
                format!("{:.4}", row.value),
                row.unit.to_owned(),
                shown(row.baseline),
                shown(row.ratio),
                format!("{:.3} to {:.3}", row.spread[0], row.spread[1]),
            ]);
        }
        writeln!(io::stdout(), "{proxies}\n{rows}")
    }

    /// Writes rows and proxies as JSON to `file`, and a chart beside it.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let (rows, proxies) = (self.rows(), self.proxies());
        let json = serde_json::json!({ "rows": rows, "proxies": proxies });
        fs::write(file, serde_json::to_vec_pretty(&json)?)?;
        let chart = file.with_extension("html");
        fs::write(&chart, html(&proxies))?;
        say(&format!("{} and {}", file.display(), chart.display()))?;
        Ok(())
    }

    fn all(&self, proxy: &str, what: &str, of: impl Fn(&Measured) -> f64) -> Vec<f64> {
        let its = self.measured.iter();
        its.filter(|(by, request, _)| *by == proxy && *request == what)
            .map(|(_, _, measured)| of(measured))
            .collect()
    }

    fn proxies(&self) -> Vec<Proxy> {
        let proxies = PROXIES.iter().map(|&(proxy, request)| {
            let of = |of: fn(&Measured) -> f64| median(&self.all(proxy, request, of));
            Proxy {
                name: proxy,
                request,
                cpu_us: of(|measured| measured.cpu_us),
                requests_per_second: of(|measured| measured.rate),
                p50_ms: of(|measured| measured.p50_ms),
                p99_ms: of(|measured| measured.p99_ms),
            }
        });
        proxies.collect()
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = COMPARED
            .iter()
            .map(|&(name, proxy, theirs, ours)| {
                let theirs = self.all(proxy, theirs, |measured| measured.cpu_us);
                let ours = self.all("ours", ours, |measured| measured.cpu_us);
                // Of each round by itself: what disturbs one disturbs both.
                let ratios: Vec<f64> = theirs.iter().zip(&ours).map(|(t, o)| t / o).collect();
                Row {
                    name,
                    value: median(&ours),
                    unit: "us CPU/request",
                    baseline: Some(median(&theirs)),
                    ratio: Some(median(&ratios)),
                    spread: spread(&ratios),
                }
            })
            .collect();
        rows.push(self.added("added_p50_ms", 0.5));
        rows.push(self.added("added_p99_ms", 0.99));
        rows.push(self.trips("redis_trips_per_get", "get"));
        rows.push(self.trips("redis_trips_per_post", "post"));
        rows
    }

    fn added(&self, name: &'static str, quantile: f64) -> Row {
        let of = |run: &Run| run.quantile_ms(quantile);
        let bare: Vec<f64> = self.paced.iter().map(|paced| of(&paced.bare)).collect();
        let ours: Vec<f64> = self.paced.iter().map(|paced| of(&paced.ours)).collect();
        let added: Vec<f64> = ours.iter().zip(&bare).map(|(o, b)| o - b).collect();
        Row {
            name,
            value: median(&added),
            unit: "ms",
            baseline: Some(median(&bare)),
            ratio: None,
            spread: spread(&added),
        }
    }

    fn trips(&self, name: &'static str, what: &str) -> Row {
        let its = self.trips.iter().filter(|trips| trips.what == what);
        let each: Vec<f64> = its.map(|trips| trips.each).collect();
        Row {
            name,
            value: median(&each),
            unit: "calls/request",
            baseline: None,
            ratio: None,
            spread: spread(&each),
        }
    }
}

/// Says something to whoever watches.
pub(crate) fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

fn table(names: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(names);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

fn spread(values: &[f64]) -> [f64; 2] {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    [least, most]
}

/// A page with one bar a proxy and kind of request: its CPU time.
fn html(proxies: &[Proxy]) -> String {
    let (bar, left, width) = (26.0, 130.0, 520.0);
    let most = proxies.iter().map(|proxy| proxy.cpu_us).fold(1.0, f64::max);
    let mut bars = String::new();
    let mut top = 0.0;
    for proxy in proxies {
        let (length, middle) = (proxy.cpu_us / most * width, top + bar * 0.65);
        let colour = if proxy.name == "ours" {
            "#2563eb"
        } else {
            "#94a3b8"
        };
        writeln!(
            bars,
            "<text x=\"0\" y=\"{middle:.0}\">{} {}</text>\
             <rect x=\"{left}\" y=\"{:.0}\" width=\"{length:.0}\" height=\"18\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"{middle:.0}\">{:.1}</text>",
            proxy.name,
            proxy.request,
            top + 4.0,
            left + length + 6.0,
            proxy.cpu_us,
        )
        .ok();
        top += bar;
    }
    format!(
        "<!doctype html><meta charset=\"utf-8\"><title>ops/bench gateway</title>\n\
         <h1>CPU time for each request, in microseconds</h1>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"{top:.0}\" \
         font-family=\"sans-serif\" font-size=\"14\">\n{bars}</svg>\n"
    )
}
