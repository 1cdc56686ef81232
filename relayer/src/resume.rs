//! `relayer resume`: what a person does about a batch that stalled, once the cause is gone. The
//! running relayer takes it up at its next look.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use ops::{config::CommandOptions, postgres};

use crate::store::{self, SCHEMA, batches};

/// Gives every batch that stalled another set of tries, and says which.
///
/// # Errors
/// When the database is not as it must be.
pub async fn resume(options: &CommandOptions) -> anyhow::Result<ExitCode> {
    let pool = postgres::open(&options.database, SCHEMA, &store::migrations()).await?;
    let client = pool.get().await.context("connect to Postgres")?;
    let resumed = batches::resume(&client).await?;
    let mut out = std::io::stdout();
    if resumed.is_empty() {
        writeln!(out, "no batch is stalled")?;
    }
    for (registry, number) in resumed {
        writeln!(out, "batch {number} of {registry} is tried again")?;
    }
    Ok(ExitCode::SUCCESS)
}
