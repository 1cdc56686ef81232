//! Configuration: one command line for the service, a struct for each of its processes.

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use ops::{
    config::{
        CommandOptions, DatabaseOptions, HttpOptions, KafkaOptions, Key32, LogOptions,
        ProcessOptions,
    },
    inbox::letters::DeadLetters,
};

/// Tells tenants what happened to their jobs, by signed webhooks.
#[derive(Debug, Parser)]
#[command(name = "webhooks", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The processes and commands of the service.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve endpoints, deliveries and replay over HTTP, to the gateway.
    Api(ApiOptions),
    /// Take in events and send webhooks.
    Worker(WorkerOptions),
    /// Create or update the database schema.
    Migrate(CommandOptions),
    /// Show the Kafka records that could not be taken in, or hand them in again.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Validate the worker's configuration and reach for what it needs.
    Check(WorkerOptions),
}

/// `webhooks api`.
#[derive(Args, Debug)]
#[expect(missing_docs, reason = "flattened: their own types are documented")]
pub struct ApiOptions {
    #[command(flatten)]
    pub delivery: DeliveryOptions,
    #[command(flatten)]
    pub http: HttpOptions,
}

/// `webhooks worker`.
#[derive(Args, Debug)]
pub struct WorkerOptions {
    /// Webhooks sent at a time.
    #[arg(long, env = "WEBHOOKS_SLOTS", default_value_t = 256, value_name = "N")]
    pub slots: usize,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub delivery: DeliveryOptions,
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

/// What both processes must agree on.
#[derive(Args, Clone, Debug)]
pub struct DeliveryOptions {
    /// Key that encrypts endpoints' secrets at rest: 64 hexadecimal digits.
    #[arg(long, env = "WEBHOOKS_KEY", hide_env_values = true, value_name = "HEX")]
    pub webhooks_key: Key32,
    /// Networks that are not public and may be sent to all the same, also by plain http.
    /// For local runs only.
    #[arg(
        long,
        env = "ALLOW_PRIVATE_CIDRS",
        value_delimiter = ',',
        value_name = "CIDR,…"
    )]
    pub allow_private_cidrs: Vec<IpNet>,
}

impl Command {
    /// How every command speaks of itself.
    #[must_use]
    pub fn log(&self) -> &LogOptions {
        match self {
            Self::Api(options) => &options.http.process.log,
            Self::Worker(options) | Self::Check(options) => &options.process.log,
            Self::Migrate(options) => &options.log,
            Self::DeadLetters(letters) => letters.log(),
        }
    }
}
