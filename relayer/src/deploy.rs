//! `relayer deploy`: makes a `JobsRegistry` and waits until it is there.

use std::{io::Write as _, process::ExitCode, time::Duration};

use alloy::{
    primitives::{Address, Bytes, TxKind, aliases::U48},
    sol_types::SolConstructor as _,
};
use anyhow::{Context as _, anyhow, bail};
use contracts::registry::{self, JobsRegistry::constructorCall};
use ops::config::BadConfig;
use serde_json::json;
use tracing::info;

use crate::{
    chain::{Chain, Receipt},
    config::DeployOptions,
    fees::Fees,
    signer::{self, Attesters},
    transaction::{Attempt, Order},
};

/// How long the deployment may take to get into a block.
const DEADLINE: Duration = Duration::from_mins(3);
/// Pause between looks for the receipt; the bytes are sent again each time.
const POLL: Duration = Duration::from_millis(500);
/// Most that is paid for a unit of gas, in wei.
const FEE_CAP: u128 = 1_000_000_000_000;

/// Deploys, and prints the address alone, or JSON.
///
/// # Errors
/// When the contract was not made; the message says why.
pub async fn deploy(options: &DeployOptions) -> anyhow::Result<ExitCode> {
    let attesters = attesters(options).map_err(BadConfig)?;
    if options.threshold == 0 || usize::from(options.threshold) > attesters.len() {
        let number = attesters.len();
        let cause = anyhow!("a threshold of {} needs 1 to {number}", options.threshold);
        bail!(BadConfig(cause));
    }
    let key = signer::gas_key(&options.gas_key_file).map_err(BadConfig)?;
    let admin = options.admin;
    if admin == key.address() {
        bail!(BadConfig(anyhow!(
            "--admin is the gas key, which every relayer holds: who finds it there could let \
             anyone sign; name an address whose key lies elsewhere"
        )));
    }
    let (chain, chain_id) = options.chain.connect(Address::ZERO).await?;
    let arguments = constructorCall {
        admin,
        adminDelay: U48::from(options.admin_delay),
        confirmers: attesters,
        required: options.threshold,
        pauser: admin,
    };
    let code: Bytes = [registry::bytecode().as_ref(), &arguments.abi_encode()]
        .concat()
        .into();
    let gas = chain
        .creation_gas(key.address(), &code)
        .await
        .context("estimate the gas")?;
    let nonce = chain.pending_nonce(key.address()).await?;
    let fees = Fees::first(chain.market().await?, FEE_CAP);
    let order = Order {
        chain_id,
        to: TxKind::Create,
        input: code,
        gas_limit: gas + gas / 5,
    };
    let attempt = Attempt::first(order, 0, nonce, fees, &key);
    info!(tx.hash = %attempt.hash, "deploying");
    let receipt = tokio::time::timeout(DEADLINE, mined(&chain, &attempt))
        .await
        .map_err(|_| anyhow!("transaction {} is in no block yet", attempt.hash))??;
    report(options.json, chain_id, &receipt)?;
    Ok(ExitCode::SUCCESS)
}

async fn mined(chain: &Chain, attempt: &Attempt) -> anyhow::Result<Receipt> {
    loop {
        chain.send(&attempt.raw).await;
        tokio::time::sleep(POLL).await;
        if let Some(receipt) = chain.receipt(attempt.hash).await? {
            return Ok(receipt);
        }
    }
}

fn report(as_json: bool, chain_id: u64, receipt: &Receipt) -> anyhow::Result<()> {
    let made = receipt
        .contract_address
        .filter(|_| receipt.status.to::<u64>() == 1);
    let address = made.context("the deployment reverted")?;
    let block: u64 = receipt.block_number.to();
    let line = if as_json {
        json!({ "address": address, "chain_id": chain_id, "block": block }).to_string()
    } else {
        address.to_string()
    };
    writeln!(std::io::stdout(), "{line}").context("print the address")
}

fn attesters(options: &DeployOptions) -> anyhow::Result<Vec<Address>> {
    if !options.attester.is_empty() {
        return Ok(options.attester.clone());
    }
    let file = options.attester_keys_file.as_ref();
    let file = file.context("name the attesters, by --attester or ATTESTER_KEYS_FILE")?;
    Ok(Attesters::from_file(file)?.addresses())
}
