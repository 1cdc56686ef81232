//! The command line and environment of each subcommand; `--help` is the reference.

use clap::{Args, Parser, Subcommand};
use ops::{
    config::{
        CommandOptions, DatabaseOptions, HttpOptions, KafkaOptions, LogOptions, ProcessOptions,
    },
    inbox::letters::DeadLetters,
};

/// Counts what tenants use, exactly once, and says what it costs.
#[derive(Debug, Parser)]
#[command(name = "metering", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take in usage and job events from Kafka, until stopped.
    Ingest(IngestOptions),
    /// Serve usage, raw events, invoices and prices over HTTP, until stopped.
    Api(HttpOptions),
    /// Create or update the database schema.
    Migrate(CommandOptions),
    /// Show the Kafka records that could not be taken in, or hand them in again.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Check the configuration and reach for what it names.
    Check(CheckOptions),
}

/// Configuration of `metering ingest`.
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "flattened: their own types are documented")]
pub struct IngestOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    #[command(flatten)]
    pub kafka: KafkaOptions,
    #[command(flatten)]
    pub process: ProcessOptions,
}

/// Configuration of `metering check`.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// Also add up all raw events and compare them with the aggregates; exit 1 when they differ.
    #[arg(long)]
    pub reconcile: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub kafka: KafkaOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub command: CommandOptions,
}

impl Command {
    /// How every command speaks of itself.
    #[must_use]
    pub fn log(&self) -> &LogOptions {
        match self {
            Self::Ingest(options) => &options.process.log,
            Self::Api(options) => &options.process.log,
            Self::Migrate(options) => &options.log,
            Self::DeadLetters(letters) => letters.log(),
            Self::Check(options) => &options.command.log,
        }
    }
}
