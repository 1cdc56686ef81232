//! The command line and environment of each subcommand; `--help` is the reference.

use std::{net::SocketAddr, time::Duration};

use clap::{Args, Parser, Subcommand};
use ops::config::{DatabaseOptions, KafkaOptions, Key32, LogOptions, ProcessOptions};

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
    Migrate(MigrateOptions),
    /// Check the configuration and reach for what it names.
    Check(CheckOptions),
}

/// Configuration of `jobs api`.
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
    /// Largest number of event streams open at a time.
    #[arg(long, env = "STREAMS_MAX", default_value_t = 256, value_name = "N")]
    pub streams_max: u32,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub database: DatabaseOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub process: ProcessOptions,
}

/// Configuration of `jobs worker`.
#[derive(Args, Clone, Debug)]
pub struct WorkerOptions {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub slots: SlotOptions,
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

/// How much one worker computes at a time, and how long it is believed to be alive.
#[derive(Args, Clone, Copy, Debug)]
pub struct SlotOptions {
    /// Jobs computed at a time.
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

/// Configuration of `jobs migrate`.
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "flattened: their own types are documented")]
pub struct MigrateOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    #[command(flatten)]
    pub log: LogOptions,
}

/// Configuration of `jobs check`.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// Kafka bootstrap brokers to reach for, as a worker would; the API needs none.
    #[arg(long, env = "KAFKA_BROKERS", value_name = "HOST:PORT,…")]
    pub kafka_brokers: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub database: DatabaseOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub log: LogOptions,
}

impl SlotOptions {
    /// The lease's time.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
}

impl Command {
    /// What every command has: where the truth is kept, and how to speak of oneself.
    #[must_use]
    pub fn common(&self) -> (&DatabaseOptions, &LogOptions) {
        match self {
            Self::Api(options) => (&options.database, &options.process.log),
            Self::Worker(options) => (&options.database, &options.process.log),
            Self::Migrate(options) => (&options.database, &options.log),
            Self::Check(options) => (&options.database, &options.log),
        }
    }
}
