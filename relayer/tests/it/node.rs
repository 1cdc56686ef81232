//! An anvil of the test's own, or the shared one, with the calls tests make of it.

use std::{
    fmt::Debug,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use alloy::{
    primitives::{Address, B256, Bytes, U64, U256},
    rpc::{
        client::RpcClient,
        types::{Filter, Log},
    },
    sol_types::{SolCall, SolEvent as _},
};
use contracts::registry::JobsRegistry::{self, BatchConfirmed};
use ops::testing::service;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) struct Node {
    pub(crate) url: String,
    client: RpcClient,
    process: Option<Child>,
}

impl Node {
    /// An anvil of our own with a block every quarter of a second.
    pub(crate) fn start() -> Self {
        Self::start_at(0)
    }

    /// The same, whose first block has this number.
    pub(crate) fn start_at(first_block: u64) -> Self {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let installed = here.join("../contracts/solidity/node_modules/.bin/anvil");
        let program = std::env::var_os("ANVIL").map_or(installed, PathBuf::from);
        let mut process = Command::new(&program)
            .args([
                "--port",
                "0",
                "--block-time",
                "0.25",
                "--slots-in-an-epoch",
                "1",
                "--number",
                &first_block.to_string(),
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("anvil says where it listens").unwrap();
            if let Some(address) = line.strip_prefix("Listening on ") {
                break address.to_owned();
            }
        };
        // Nobody reads the rest, but a full pipe would stop anvil.
        std::thread::spawn(move || lines.for_each(drop));
        let mut node = Self::at(format!("http://{address}"));
        node.process = Some(process);
        node
    }

    /// The anvil of `RPC_URL`, which others use at the same time.
    pub(crate) fn shared() -> Self {
        Self::at(service("RPC_URL"))
    }

    fn at(url: String) -> Self {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        Self {
            client: RpcClient::new_http(url.parse().unwrap()),
            url,
            process: None,
        }
    }

    pub(crate) async fn call<R: DeserializeOwned + Debug + Send + Sync + Unpin + 'static>(
        &self,
        method: &'static str,
        parameters: Value,
    ) -> R {
        let answer = self.client.request::<Value, R>(method, parameters).await;
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    pub(crate) async fn fund(&self, account: Address) {
        let ether = U256::from(10).pow(U256::from(20));
        self.call::<Value>("anvil_setBalance", json!([account, ether]))
            .await;
    }

    pub(crate) async fn head(&self) -> u64 {
        self.call::<U64>("eth_blockNumber", json!([])).await.to()
    }

    pub(crate) async fn stop_mining(&self) {
        self.call::<Value>("evm_setAutomine", json!([false])).await;
        self.call::<Value>("evm_setIntervalMining", json!([0]))
            .await;
    }

    /// Mines a block a second from now on.
    pub(crate) async fn resume_mining(&self) {
        self.call::<Value>("evm_setIntervalMining", json!([1]))
            .await;
    }

    pub(crate) async fn mine(&self, blocks: u64) {
        self.call::<Value>("anvil_mine", json!([U64::from(blocks)]))
            .await;
    }

    /// Replaces the newest `depth` blocks by empty ones.
    pub(crate) async fn reorg(&self, depth: u64) {
        self.call::<Value>("anvil_reorg", json!([depth, []])).await;
    }

    pub(crate) async fn next_nonce(&self, account: Address) -> u64 {
        self.call::<U64>("eth_getTransactionCount", json!([account, "latest"]))
            .await
            .to()
    }

    /// What a view of the contract returns at a block.
    pub(crate) async fn view<C: SolCall>(&self, to: Address, call: &C, at: &str) -> C::Return {
        let input = Bytes::from(call.abi_encode());
        let answer: Bytes = self
            .call("eth_call", json!([{ "to": to, "input": input }, at]))
            .await;
        C::abi_decode_returns(&answer).unwrap()
    }

    pub(crate) async fn cursor(&self, registry: Address) -> JobsRegistry::cursorReturn {
        self.view(registry, &JobsRegistry::cursorCall {}, "latest")
            .await
    }

    /// Every `BatchConfirmed` log, in order, with its transaction.
    pub(crate) async fn confirmed(&self, registry: Address) -> Vec<(BatchConfirmed, B256)> {
        let filter = Filter::new()
            .address(registry)
            .event_signature(BatchConfirmed::SIGNATURE_HASH)
            .from_block(0);
        let logs: Vec<Log> = self.call("eth_getLogs", json!([filter])).await;
        let read = |log: &Log| {
            let event = BatchConfirmed::decode_log(&log.inner).unwrap().data;
            (event, log.transaction_hash.unwrap())
        };
        logs.iter().map(read).collect()
    }

    /// Sends a call from an account whose key anvil need not know.
    pub(crate) async fn send_as(&self, from: Address, to: Address, input: Bytes, tip_gwei: u64) {
        self.call::<Value>("anvil_impersonateAccount", json!([from]))
            .await;
        let fee = U256::from(tip_gwei) * U256::from(1_000_000_000_u64);
        let transaction = json!({
            "from": from, "to": to, "input": input, "gas": "0x100000",
            "maxFeePerGas": fee * U256::from(2), "maxPriorityFeePerGas": fee,
        });
        self.call::<B256>("eth_sendTransaction", json!([transaction]))
            .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill().ok();
            process.wait().ok();
        }
    }
}
