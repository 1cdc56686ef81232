//! The command line and environment of each subcommand; `--help` is the reference.

use std::{path::PathBuf, time::Duration};

use alloy::primitives::{Address, U256};
use anyhow::{anyhow, bail};
use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;
use ops::{
    config::{
        BadConfig, CommandOptions, DatabaseOptions, HttpOptions, KafkaOptions, LogOptions,
        ProcessOptions,
    },
    inbox::letters::DeadLetters,
};

use crate::{
    chain::{Chain, EndpointUrl, Finality},
    close::ClosePolicy,
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
    Api(Box<HttpOptions>),
    /// Deploy a `JobsRegistry`, wait until it is there, print its address.
    Deploy(Box<DeployOptions>),
    /// Create or update the schema `relayer`.
    Migrate(CommandOptions),
    /// Show the Kafka records that could not be taken in, or hand them in again.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Try batches again that stalled because they reverted too often; run it once the cause is
    /// gone.
    Resume(CommandOptions),
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
    /// JSON-RPC endpoints over HTTP, all of one chain, separated by commas. With two or more, at
    /// least two must agree on what is final: name three, and any one may fail.
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
    /// Who manages roles and may pause: an address whose key lies elsewhere, best a multisig. The
    /// gas key, which every relayer holds, is refused.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Address,
    /// Seconds between the two steps of a change of admin.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub admin_delay: u32,
    /// Print address, `chain_id` and block as JSON.
    #[arg(long)]
    pub json: bool,
}

impl Command {
    /// How every command speaks of itself.
    #[must_use]
    pub fn log(&self) -> &LogOptions {
        match self {
            Self::Run(options) | Self::Check(options) => &options.process.log,
            Self::Api(options) => &options.process.log,
            Self::Deploy(options) => &options.log,
            Self::Migrate(options) | Self::Resume(options) => &options.log,
            Self::DeadLetters(letters) => letters.log(),
        }
    }
}

impl ChainOptions {
    /// The registry behind these endpoints, and the id of the chain that all of them are of.
    ///
    /// # Errors
    /// When none answers; [`BadConfig`] when they are not of the chain that is wanted.
    pub async fn connect(&self, registry: Address) -> anyhow::Result<(Chain, u64)> {
        for (place, url) in self.rpc_url.iter().enumerate() {
            if self.rpc_url[..place].contains(url) {
                bail!(BadConfig(anyhow!(
                    "RPC_URL names {url} twice: one endpoint cannot bear itself out"
                )));
            }
        }
        let deadline = Duration::from_millis(self.rpc_timeout_ms);
        let chain = Chain::new(&self.rpc_url, registry, self.finality, deadline);
        let chain = chain.map_err(BadConfig)?;
        let id = chain.chain_id().await?;
        if let Some(wanted) = self.chain_id.filter(|wanted| *wanted != id) {
            bail!(BadConfig(anyhow!(
                "the endpoints are of chain {id}, CHAIN_ID says {wanted}"
            )));
        }
        Ok((chain, id))
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
            "--listen",
            "127.0.0.1:0",
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
