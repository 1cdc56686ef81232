//! `relayer check`: everything `run` needs, without running.

use std::{io::Write as _, process::ExitCode};

use ops::kafka;

use crate::{config::RunOptions, run};

/// Says on standard output what was found in order.
///
/// # Errors
/// When something is not.
pub async fn check(options: &RunOptions) -> anyhow::Result<ExitCode> {
    let setup = run::prepare(options).await?;
    kafka::ping(&kafka::producer(&options.kafka)?).await?;
    writeln!(
        std::io::stdout(),
        "configuration, keys, schema and Kafka are in order\nchain {}, registry {}, gas key {}",
        setup.key.chain_id,
        setup.key.registry,
        setup.keys.gas.address()
    )?;
    Ok(ExitCode::SUCCESS)
}
