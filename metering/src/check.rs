//! `metering check`: is the configuration right, does everything it names answer, and, if asked,
//! does the sum over raw events equal the sum over aggregates?

use std::{
    io::{self, Write},
    process::ExitCode,
};

use ops::{kafka, postgres};

use crate::{SCHEMA, config::CheckOptions, schema, store::Store};

/// Reaches for Postgres and Kafka and prints what answered; exit code 1 when sums differ.
///
/// # Errors
/// When something does not answer.
pub async fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout();
    let pool = postgres::open(&options.command.database, SCHEMA, &schema()).await?;
    writeln!(out, "postgres: answers, the schema is this program's")?;
    kafka::ping(&kafka::producer(&options.kafka)?).await?;
    writeln!(out, "kafka: answers")?;
    if !options.reconcile {
        return Ok(ExitCode::SUCCESS);
    }
    let found = Store::new(pool).reconcile().await?;
    writeln!(
        out,
        "raw events: {}, quarantined: {}, dead letters: {}",
        found.events, found.quarantined, found.dead_letters
    )?;
    for difference in &found.differences {
        writeln!(out, "differs: {difference}")?;
    }
    if found.differences.is_empty() {
        writeln!(out, "sums: raw events and aggregates are equal")?;
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::FAILURE)
    }
}
