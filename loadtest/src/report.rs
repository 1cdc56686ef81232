//! What is printed, on standard output: lines, tables, and a progress bar that becomes a line every
//! few seconds where there is no terminal.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    sync::Mutex,
    time::Duration,
};

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    schedule::GeneratorReport,
    stages::{Stage, StageSummaries},
};

/// How often progress is told where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How often the bar is drawn anew.
const DRAW_HERTZ: u8 = 5;
/// Widest table where there is no terminal.
const TABLE_WIDTH: u16 = 110;

/// How far something is, on a bar or in lines.
pub(crate) struct Progress {
    bar: ProgressBar,
    what: &'static str,
    told: Mutex<Option<Instant>>,
}

impl Progress {
    /// Progress of `what`, up to `total`.
    pub(crate) fn new(what: &'static str, total: u64) -> Self {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr_with_hz(DRAW_HERTZ)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template("{prefix:>12} {bar:30} {pos}/{len} {msg}");
        bar.set_style(style.expect("the template is a constant"));
        bar.set_prefix(what);
        Self {
            bar,
            what,
            told: Mutex::new(None),
        }
    }

    /// `done` of the total are done; `details` says more.
    pub(crate) fn set(&self, done: u64, details: &str) {
        self.bar.set_position(done);
        self.bar.set_message(details.to_owned());
        if self.bar.is_hidden() && self.is_time() {
            let total = self.bar.length().unwrap_or_default();
            line(format_args!("{}: {done}/{total} {details}", self.what));
        }
    }

    /// Prints a line without disturbing the bar.
    pub(crate) fn say(&self, text: fmt::Arguments<'_>) {
        self.bar.suspend(|| line(text));
    }

    fn is_time(&self) -> bool {
        let mut told = self.told.lock().expect("no teller panics");
        let due = told.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if due {
            *told = Some(Instant::now());
        }
        due
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Prints a line. Nobody reading is no reason to fail.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Prints an error with its causes, on standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let _ = writeln!(io::stderr().lock(), "loadtest: {error:#}");
}

/// Prints a heading.
pub(crate) fn heading(text: &str) {
    line(format_args!("\n{text}"));
}

/// Prints rows under a header.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic);
    if !io::stdout().is_terminal() {
        table.set_width(TABLE_WIDTH);
    }
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    line(format_args!("{table}"));
}

/// Prints the table of stages.
pub(crate) fn stages(stages: &StageSummaries) {
    heading("Stages (milliseconds from the intended start of each job)");
    table(
        ["stage", "count", "p50", "p95", "max"],
        Stage::ALL
            .iter()
            .filter_map(|stage| stages.get(stage).map(|s| (stage, s)))
            .map(|(stage, s)| {
                let ms = |value: f64| format!("{value:.1}");
                [
                    stage.to_string(),
                    s.count.to_string(),
                    ms(s.p50_ms),
                    ms(s.p95_ms),
                    ms(s.max_ms),
                ]
            }),
    );
}

/// Prints what the generator did to the schedule.
pub(crate) fn generator(report: &GeneratorReport) {
    line(format_args!(
        "generator: lag p50 {:.1} ms, max {:.1} ms, {} late starts: run {}; {} skipped",
        report.lag.p50_ms,
        report.lag.max_ms,
        report.late_starts,
        if report.valid {
            "valid"
        } else {
            "INVALID, the generator was the bottleneck"
        },
        report.skipped,
    ));
}

/// Writes `value` to `file` as JSON.
pub(crate) fn write_json(file: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}
