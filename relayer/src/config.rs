//! Configuration of the four commands that need any; `--help` is the reference.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use alloy::primitives::{Address, U256};
use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;
use ops::config::{
    DatabaseOptions, EXIT_CONFIG, EXIT_UNAVAILABLE, KafkaOptions, Key32, LogOptions, ProcessOptions,
};

use crate::{
    batch::ClosePolicy,
    chain::{Chain, EndpointUrl, Finality},
};

/// Wei of a gwei.
const GWEI: u128 = 1_000_000_000;

/// Makes outcomes of jobs final on chain, and proves it.
#[derive(Debug, Parser)]
#[command(name = "relayer", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take in completions, confirm them on chain, announce what is final.
    Run(Box<RunOptions>),
    /// Serve proofs.
    Api(Box<ApiOptions>),
    /// Deploy a `JobsRegistry`, wait until it is there, print its address.
    Deploy(Box<DeployOptions>),
    /// Create or update the schema `relayer`.
    Migrate(MigrateOptions),
    /// Check the configuration of `run` and reach for everything it needs.
    Check(Box<RunOptions>),
}

/// Configuration of `relayer run`.
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "flattened: their own types are documented")]
pub struct RunOptions {
    #[command(flatten)]
    pub process: ProcessOptions,
    #[command(flatten)]
    pub database: DatabaseOptions,
    #[command(flatten)]
    pub kafka: KafkaOptions,
    #[command(flatten)]
    pub chain: ChainOptions,
    #[command(flatten)]
    pub registry: RegistryOptions,
    #[command(flatten)]
    pub keys: KeyOptions,
    #[command(flatten)]
    pub lane: LaneOptions,
}

/// Which chain.
#[derive(Args, Clone, Debug)]
pub struct ChainOptions {
    /// JSON-RPC endpoints over HTTP, all of one chain, separated by commas.
    #[arg(
        long,
        env = "RPC_URL",
        hide_env_values = true,
        value_delimiter = ',',
        required = true,
        value_name = "URL,…"
    )]
    pub rpc_url: Vec<EndpointUrl>,
    /// The chain's id; endpoints of another chain are refused.
    #[arg(long, env = "CHAIN_ID", value_name = "N")]
    pub chain_id: Option<u64>,
    /// When a block is final: `finalized` (the chain's own tag), or a number of blocks on top.
    #[arg(long, env = "FINALITY", default_value_t = Finality::Tag, value_name = "POLICY")]
    pub finality: Finality,
    /// How long one call to an endpoint may take.
    #[arg(
        long,
        env = "RPC_TIMEOUT_MS",
        default_value_t = 5_000,
        value_name = "MS"
    )]
    pub rpc_timeout_ms: u64,
}

/// Which contract.
#[derive(Args, Clone, Copy, Debug)]
pub struct RegistryOptions {
    /// Address of the `JobsRegistry`, as `relayer deploy` printed it.
    #[arg(long, env = "REGISTRY_ADDRESS", value_name = "ADDRESS")]
    pub registry_address: Address,
    /// The block it was deployed in; read from there when it was used before this database.
    #[arg(long, env = "REGISTRY_BLOCK", default_value_t = 0, value_name = "N")]
    pub registry_block: u64,
}

/// Files with private keys.
#[derive(Args, Clone, Debug)]
pub struct KeyOptions {
    /// File with the attesters' private keys, one a line as 0x-hex.
    #[arg(long, env = "ATTESTER_KEYS_FILE", value_name = "FILE")]
    pub attester_keys_file: PathBuf,
    /// File with the private key that pays for transactions, none of the attesters'.
    #[arg(long, env = "GAS_KEY_FILE", value_name = "FILE")]
    pub gas_key_file: PathBuf,
}

/// How a lane works.
#[derive(Args, Clone, Debug)]
pub struct LaneOptions {
    /// Most jobs of a batch.
    #[arg(
        long,
        env = "BATCH_MAX_JOBS",
        default_value_t = 1_024,
        value_parser = clap::value_parser!(u32).range(1..=8_192),
        value_name = "N"
    )]
    pub batch_max_jobs: u32,
    /// How long a job waits for others to share its batch.
    #[arg(
        long,
        env = "BATCH_MAX_AGE_MS",
        default_value_t = 5_000,
        value_name = "MS"
    )]
    pub batch_max_age_ms: u32,
    /// Pause between looks at the database and the chain.
    #[arg(
        long,
        env = "POLL_MS",
        default_value_t = 500,
        value_parser = clap::value_parser!(u32).range(10..=60_000),
        value_name = "MS"
    )]
    pub poll_ms: u32,
    /// A transaction that is not mined after this long is sent again for a higher fee.
    #[arg(long, env = "STALL_MS", default_value_t = 30_000, value_name = "MS")]
    pub stall_ms: u32,
    /// Most that is paid for a unit of gas; above it, transactions wait.
    #[arg(
        long,
        env = "MAX_FEE_GWEI",
        default_value_t = 500,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        value_name = "GWEI"
    )]
    pub max_fee_gwei: u32,
    /// Warn when the gas key owns less than this.
    #[arg(
        long,
        env = "GAS_BALANCE_LOW_GWEI",
        default_value_t = 50_000_000,
        value_name = "GWEI"
    )]
    pub gas_balance_low_gwei: u64,
}

/// Configuration of `relayer api`.
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "flattened: their own types are documented")]
pub struct ApiOptions {
    #[command(flatten)]
    pub process: ProcessOptions,
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Address of the HTTP API.
    #[arg(
        long,
        env = "LISTEN",
        default_value = "127.0.0.1:0",
        value_name = "HOST:PORT"
    )]
    pub listen: SocketAddr,
    /// Key of the gateway's assertions, 64 hexadecimal digits.
    #[arg(
        long,
        env = "ASSERTION_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    pub assertion_key: Key32,
}

/// Configuration of `relayer deploy`.
#[derive(Args, Clone, Debug)]
pub struct DeployOptions {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub log: LogOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub chain: ChainOptions,
    /// File with the private key that pays for the deployment.
    #[arg(long, env = "GAS_KEY_FILE", value_name = "FILE")]
    pub gas_key_file: PathBuf,
    /// An attester's address; may be repeated. Without any, those of `ATTESTER_KEYS_FILE`.
    #[arg(long, value_name = "ADDRESS")]
    pub attester: Vec<Address>,
    /// File with the attesters' private keys, of which only the addresses are used.
    #[arg(long, env = "ATTESTER_KEYS_FILE", value_name = "FILE")]
    pub attester_keys_file: Option<PathBuf>,
    /// How many attesters must sign a batch.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub threshold: u16,
    /// Who manages roles and may pause; by default the gas key.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<Address>,
    /// Seconds between the two steps of a change of admin.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub admin_delay: u32,
    /// Print address, `chain_id` and block as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Configuration of `relayer migrate`.
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "flattened: their own types are documented")]
pub struct MigrateOptions {
    #[command(flatten)]
    pub log: LogOptions,
    #[command(flatten)]
    pub database: DatabaseOptions,
}

/// Why a command ended early; decides the exit code.
#[derive(Debug)]
pub enum Failure {
    /// The configuration is wrong: 64.
    Config(anyhow::Error),
    /// Something that is needed cannot be reached: 69.
    Unavailable(anyhow::Error),
    /// Anything else: 1.
    Other(anyhow::Error),
}

impl ChainOptions {
    /// The registry behind these endpoints.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn connect(&self, registry: Address) -> anyhow::Result<Chain> {
        let deadline = Duration::from_millis(self.rpc_timeout_ms);
        Chain::new(&self.rpc_url, registry, self.finality, deadline)
    }
}

impl LaneOptions {
    /// When a batch closes.
    #[must_use]
    pub fn close_policy(&self) -> ClosePolicy {
        ClosePolicy {
            max_jobs: self.batch_max_jobs,
            max_age: SignedDuration::from_millis(self.batch_max_age_ms.into()),
        }
    }

    /// Pause between looks.
    #[must_use]
    pub fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms.into())
    }

    /// How long a transaction may take before its price is raised.
    #[must_use]
    pub fn stall(&self) -> SignedDuration {
        SignedDuration::from_millis(self.stall_ms.into())
    }

    /// The fee cap in wei.
    #[must_use]
    pub fn fee_cap(&self) -> u128 {
        u128::from(self.max_fee_gwei) * GWEI
    }

    /// The balance below which to warn, in wei.
    #[must_use]
    pub fn balance_low(&self) -> U256 {
        U256::from(u128::from(self.gas_balance_low_gwei) * GWEI)
    }
}

impl Failure {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let code = match self {
            Self::Config(_) => EXIT_CONFIG,
            Self::Unavailable(_) => EXIT_UNAVAILABLE,
            Self::Other(_) => 1,
        };
        u8::try_from(code).unwrap_or(1)
    }

    /// What happened.
    #[must_use]
    pub fn cause(&self) -> &anyhow::Error {
        match self {
            Self::Config(cause) | Self::Unavailable(cause) | Self::Other(cause) => cause,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(cause: anyhow::Error) -> Self {
        Self::Other(cause)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn secrets_in_the_configuration_never_print() {
        let key = "7e".repeat(32);
        let options = [
            "relayer",
            "api",
            "--database-url",
            "postgres://u:s3cret@h/d",
            "--assertion-key",
            &key,
        ];
        let shown = format!("{:?}", Cli::try_parse_from(options).unwrap());
        assert!(
            !shown.contains("s3cret") && !shown.contains("7e7e"),
            "{shown}"
        );
    }
}
