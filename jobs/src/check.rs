//! `jobs check`: is the configuration right, and does everything it names answer?

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use ops::{config::KafkaOptions, kafka, postgres};

use crate::{SCHEMA, config::CheckOptions, migrations};

/// Reaches for Postgres, and Kafka where it is named, and prints what answered.
///
/// # Errors
/// When something does not answer.
pub async fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout();
    postgres::open(&options.command.database, SCHEMA, &migrations()).await?;
    writeln!(out, "postgres: answers, the schema is this program's")?;
    if let Some(brokers) = &options.kafka_brokers {
        let kafka = KafkaOptions {
            kafka_brokers: brokers.clone(),
            topic_prefix: String::new(),
        };
        kafka::ping(&kafka::producer(&kafka)?).await?;
        writeln!(out, "kafka: answers")?;
    }
    Ok(ExitCode::SUCCESS)
}
