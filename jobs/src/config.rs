//! The command line and environment of each subcommand; `--help` is the reference.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ops::{
    config::{
        CommandOptions, DatabaseOptions, HttpOptions, KafkaOptions, LogOptions, ProcessOptions,
    },
    inbox::letters::DeadLetters,
};

/// Accepts jobs, computes them, and knows all about them.
#[derive(Debug, Parser)]
#[command(name = "jobs", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the jobs API to the gateway, until stopped.
    Api(ApiOptions),
    /// Compute jobs, publish their events and take in confirmations, until stopped.
    Worker(WorkerOptions),
    /// Create or update the database schema.
    Migrate(CommandOptions),
    /// Show the Kafka records that could not be taken in, or hand them in again.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Check the configuration and reach for what it names.
    Check(CheckOptions),
}

/// Configuration of `jobs api`.
#[derive(Args, Clone, Debug)]
pub struct ApiOptions {
    /// Largest number of event streams open at a time.
    #[arg(long, env = "STREAMS_MAX", default_value_t = 256, value_name = "N")]
    pub streams_max: usize,
    /// Largest number of them that are one tenant's.
    #[arg(
        long,
        env = "TENANT_STREAMS_MAX",
        default_value_t = 32,
        value_name = "N"
    )]
    pub tenant_streams_max: usize,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub http: HttpOptions,
}

/// Configuration of `jobs worker`.
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "flattened: their own types are documented")]
pub struct WorkerOptions {
    #[command(flatten)]
    pub slots: SlotOptions,
    #[command(flatten)]
    pub database: DatabaseOptions,
    #[command(flatten)]
    pub kafka: KafkaOptions,
    #[command(flatten)]
    pub process: ProcessOptions,
}

/// How much one worker computes at a time, and how long it is believed to be alive.
#[derive(Args, Clone, Copy, Debug)]
pub struct SlotOptions {
    /// Jobs computed at a time; of more than one, a quarter is never the same tenant's as the rest.
    #[arg(
        long = "slots",
        env = "WORKER_SLOTS",
        default_value_t = 8,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1_000)
    )]
    pub count: u16,
    /// How long a silent worker keeps a job, in milliseconds; renewed every third of it.
    #[arg(
        long,
        env = "WORKER_LEASE_MS",
        default_value_t = 15_000,
        value_name = "MS",
        value_parser = clap::value_parser!(u64).range(300..=600_000)
    )]
    pub lease_ms: u64,
}

/// Configuration of `jobs check`.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// Kafka bootstrap brokers to reach for, as a worker would; the API needs none.
    #[arg(long, env = "KAFKA_BROKERS", value_name = "HOST:PORT,…")]
    pub kafka_brokers: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub command: CommandOptions,
}

impl SlotOptions {
    /// The lease's time.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
}

impl Command {
    /// How every command speaks of itself.
    #[must_use]
    pub fn log(&self) -> &LogOptions {
        match self {
            Self::Api(options) => &options.http.process.log,
            Self::Worker(options) => &options.process.log,
            Self::Migrate(options) => &options.log,
            Self::DeadLetters(letters) => letters.log(),
            Self::Check(options) => &options.command.log,
        }
    }
}
