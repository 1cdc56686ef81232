//! The command line and environment of each subcommand; `--help` is the reference.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};
use ops::config::{DatabaseOptions, KafkaOptions, Key32, ProcessOptions};

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
    Api(ApiOptions),
    /// Create or update the database schema.
    Migrate(MigrateOptions),
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

/// Configuration of `metering api`.
#[derive(Args, Clone, Debug)]
pub struct ApiOptions {
    /// Address of the HTTP API.
    #[arg(long, env = "LISTEN", value_name = "HOST:PORT")]
    pub listen: SocketAddr,
    /// The key of the gateway's assertions, as 64 hexadecimal digits.
    #[arg(
        long,
        env = "ASSERTION_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    pub assertion_key: Key32,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub database: DatabaseOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub process: ProcessOptions,
}

/// Configuration of `metering migrate`.
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "flattened: their own types are documented")]
pub struct MigrateOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
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
    pub database: DatabaseOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub kafka: KafkaOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub process: ProcessOptions,
}

impl Command {
    /// What every command has: where the truth is kept, and how the process runs.
    #[must_use]
    pub fn common(&self) -> (&DatabaseOptions, &ProcessOptions) {
        match self {
            Self::Ingest(options) => (&options.database, &options.process),
            Self::Api(options) => (&options.database, &options.process),
            Self::Migrate(options) => (&options.database, &options.process),
            Self::Check(options) => (&options.database, &options.process),
        }
    }
}
