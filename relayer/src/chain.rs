//! The chain as seen through its RPC endpoints: the only file that talks to them. Decisions are
//! made elsewhere, from a [`View`] that says what each endpoint said.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use alloy::{
    primitives::{Address, B256, Bytes, U64, U128, U256, keccak256},
    rpc::types::{Filter, Log},
    sol_types::{SolCall as _, SolEvent as _},
};
use anyhow::Context as _;
use contracts::registry::JobsRegistry::{BatchConfirmed, cursorCall, hasRoleCall};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::{
    classify::{self, RpcFailure, Verdict},
    fees::Market,
    nonce::Nonce,
    sight::{Block, Confirmed, Cursor, Inclusion, Report, View},
};

mod answer;
mod endpoint;

pub use answer::{Finality, Receipt, confirm_batch};
use answer::{Header, batch_confirmed, call_of, cursor, market, refusal};
pub use endpoint::EndpointUrl;
use endpoint::{Answer, Endpoint};

/// One registry on one chain.
#[derive(Debug)]
pub struct Chain {
    endpoints: Vec<Endpoint>,
    registry: Address,
    finality: Finality,
    /// The highest block any endpoint ever showed: who is below it is behind.
    watermark: AtomicU64,
}

/// Why a call to the contract did not return.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallFailure {
    /// The contract refused.
    #[error("the contract refuses: {0}")]
    Reverted(String),
    /// Nobody could be asked.
    #[error("RPC: {0}")]
    Rpc(#[from] RpcFailure),
}

impl Chain {
    /// The registry at this address behind these endpoints. Nothing is asked yet.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(
        urls: &[EndpointUrl],
        registry: Address,
        finality: Finality,
        deadline: Duration,
    ) -> anyhow::Result<Self> {
        let endpoints = urls.iter().map(|url| Endpoint::new(url, deadline));
        Ok(Self {
            endpoints: endpoints.collect::<anyhow::Result<_>>()?,
            registry,
            finality,
            watermark: AtomicU64::new(0),
        })
    }

    /// The registry's address.
    #[must_use]
    pub fn registry(&self) -> Address {
        self.registry
    }

    /// Makes endpoints count as behind that have not reached `block`.
    pub fn remember(&self, block: u64) {
        self.watermark.fetch_max(block, Ordering::SeqCst);
    }

    /// The chain's id, on which every endpoint that answers must agree.
    ///
    /// # Errors
    /// When none answers, or they are of different chains.
    pub async fn chain_id(&self) -> anyhow::Result<u64> {
        let asked = self
            .endpoints
            .iter()
            .map(|it| it.call::<U64>("eth_chainId", json!([])));
        let mut found = None;
        let mut failure = None;
        for (endpoint, answer) in self.endpoints.iter().zip(join_all(asked).await) {
            match (answer, found) {
                (Ok(id), None) => found = Some(id),
                (Ok(id), Some(other)) => anyhow::ensure!(
                    id == other,
                    "endpoint {} is of chain {id}, another of chain {other}",
                    endpoint.label
                ),
                (Err(cause), _) => failure = Some((endpoint, cause)),
            }
        }
        match (found, failure) {
            (Some(id), _) => Ok(id.to()),
            (None, Some((endpoint, cause))) => {
                Err(cause).with_context(|| format!("RPC endpoint {}", endpoint.label))
            }
            (None, None) => anyhow::bail!("no RPC endpoint is configured"),
        }
    }

    /// Whether there is code at the registry's address.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn has_code(&self) -> anyhow::Result<bool> {
        let code: Bytes = self
            .first("eth_getCode", json!([self.registry, "latest"]))
            .await?;
        Ok(!code.is_empty())
    }

    /// The contract's cursor now.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn cursor(&self) -> anyhow::Result<Cursor> {
        let call = call_of(self.registry, &cursorCall {});
        cursor(
            &self
                .first::<Bytes>("eth_call", json!([call, "latest"]))
                .await?,
        )
    }

    /// Those of `attesters` that may sign.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn confirmers(&self, attesters: &[Address]) -> anyhow::Result<Vec<Address>> {
        let role = keccak256("CONFIRMER_ROLE");
        let mut allowed = Vec::new();
        for account in attesters {
            let call = call_of(
                self.registry,
                &hasRoleCall {
                    role,
                    account: *account,
                },
            );
            let answer: Bytes = self.first("eth_call", json!([call, "latest"])).await?;
            if hasRoleCall::abi_decode_returns(&answer).context("read hasRole's answer")? {
                allowed.push(*account);
            }
        }
        Ok(allowed)
    }

    /// What the gas key owns, in wei.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn balance(&self, gas_key: Address) -> anyhow::Result<U256> {
        self.first("eth_getBalance", json!([gas_key, "latest"]))
            .await
    }

    /// The gas key's next nonce, the pool counted in.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn pending_nonce(&self, gas_key: Address) -> anyhow::Result<Nonce> {
        let count: U64 = self
            .first("eth_getTransactionCount", json!([gas_key, "pending"]))
            .await?;
        Ok(Nonce::new(count.to()))
    }

    /// Looks at the chain through every endpoint; `from_block` is where logs may begin, `None` when
    /// none are of interest.
    ///
    /// # Errors
    /// When no endpoint answers that is not behind what was seen before.
    pub async fn observe(&self, gas_key: Address, from_block: Option<u64>) -> anyhow::Result<View> {
        let asked = self
            .endpoints
            .iter()
            .map(|it| self.report(it, gas_key, from_block));
        let mut reports = Vec::new();
        let mut failure = None;
        for (endpoint, answer) in self.endpoints.iter().zip(join_all(asked).await) {
            match answer {
                Ok(report) => reports.push(report),
                Err(cause) => failure = Some(cause.context(endpoint.label.clone())),
            }
        }
        match View::new(reports, self.watermark.load(Ordering::SeqCst)) {
            Some(view) => {
                self.remember(view.best().head.number);
                Ok(view)
            }
            None => Err(failure.unwrap_or_else(|| {
                anyhow::anyhow!("every RPC endpoint is behind a block that was seen before")
            })),
        }
    }

    /// The `BatchConfirmed` logs of the blocks from `from` to `to`, as one endpoint has them.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn confirmed(
        &self,
        from: u64,
        to: u64,
    ) -> anyhow::Result<Vec<(BatchConfirmed, Inclusion)>> {
        let logs: Vec<Log> = self
            .first("eth_getLogs", json!([self.filter(from, to)]))
            .await?;
        logs.iter().map(batch_confirmed).collect()
    }

    /// The newest block and the highest final one.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn heights(&self) -> anyhow::Result<(u64, u64)> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match self.head_and_final(endpoint).await {
                Ok((head, final_number)) => return Ok((head.number.to(), final_number)),
                Err(cause) => last = Some(cause),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no RPC endpoint is configured")))
    }

    /// Runs a call as `from` would at the head, without sending anything.
    ///
    /// # Errors
    /// When the contract refuses or nobody can be asked.
    pub async fn simulate(&self, from: Address, input: &Bytes) -> Result<(), CallFailure> {
        let call = json!({ "from": from, "to": self.registry, "input": input });
        let mut last = RpcFailure::Unreachable;
        for endpoint in &self.endpoints {
            match endpoint
                .call::<Bytes>("eth_call", json!([call, "latest"]))
                .await
            {
                Ok(_) => return Ok(()),
                Err(RpcFailure::Answer {
                    data: Some(data), ..
                }) => {
                    return Err(CallFailure::Reverted(refusal(&data)));
                }
                Err(failure) => last = failure,
            }
        }
        Err(CallFailure::Rpc(last))
    }

    /// Sends signed bytes to every endpoint; what came of it, all answers together.
    pub async fn send(&self, raw: &Bytes) -> Verdict {
        let asked = self.endpoints.iter().map(|endpoint| async move {
            let answer = endpoint
                .call::<B256>("eth_sendRawTransaction", json!([raw]))
                .await;
            let verdict = classify::classify(&answer.clone().map(drop));
            if let Err(failure) = answer
                && verdict != Verdict::Accepted
            {
                tracing::warn!(rpc.endpoint = endpoint.label, %failure, %verdict, "send refused");
            }
            verdict
        });
        classify::together(join_all(asked).await)
    }

    /// What creating a contract with this code would cost in gas.
    ///
    /// # Errors
    /// When no endpoint answers, or the constructor refuses.
    pub async fn creation_gas(&self, from: Address, code: &Bytes) -> anyhow::Result<u64> {
        let call = json!([{ "from": from, "input": code }]);
        Ok(self.first::<U64>("eth_estimateGas", call).await?.to())
    }

    /// What gas costs now.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn market(&self) -> anyhow::Result<Market> {
        let head: Header = self
            .first("eth_getBlockByNumber", json!(["latest", false]))
            .await?;
        let tip = self
            .first::<U128>("eth_maxPriorityFeePerGas", json!([]))
            .await;
        Ok(market(&head, tip.ok()))
    }

    /// A transaction's receipt, once it is in a block.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn receipt(&self, hash: B256) -> anyhow::Result<Option<Receipt>> {
        self.first("eth_getTransactionReceipt", json!([hash])).await
    }

    /// The answer of the first endpoint that gives one.
    async fn first<R: Answer>(&self, method: &'static str, parameters: Value) -> anyhow::Result<R> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match endpoint.call(method, parameters.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(cause) => {
                    let told = format!("{method} at {}", endpoint.label);
                    last = Some(anyhow::Error::from(cause).context(told));
                }
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no RPC endpoint is configured")))
    }

    /// The head is read first and the logs last: what is final was so before the logs were read,
    /// and what the nonce and the cursor count is in them.
    async fn report(
        &self,
        endpoint: &Endpoint,
        gas_key: Address,
        from_block: Option<u64>,
    ) -> anyhow::Result<Report> {
        let (head, final_number) = self.head_and_final(endpoint).await?;
        let at = head.number;
        let cursor_of = call_of(self.registry, &cursorCall {});
        let (nonce, pending, at_cursor, tip) = tokio::join!(
            endpoint.call::<U64>("eth_getTransactionCount", json!([gas_key, at])),
            endpoint.call::<U64>("eth_getTransactionCount", json!([gas_key, "pending"])),
            endpoint.call::<Bytes>("eth_call", json!([cursor_of, at])),
            endpoint.call::<U128>("eth_maxPriorityFeePerGas", json!([])),
        );
        let logs: Vec<Log> = match from_block {
            Some(from) => {
                let filter = self.filter(from, at.to());
                endpoint.call("eth_getLogs", json!([filter])).await?
            }
            None => Vec::new(),
        };
        let mut confirmed = BTreeMap::new();
        for log in &logs {
            let (event, at) = batch_confirmed(log)?;
            confirmed.insert(
                event.batchNumber,
                Confirmed {
                    commitment: event.commitment,
                    at,
                },
            );
        }
        Ok(Report {
            head: Block {
                number: at.to(),
                hash: head.hash,
            },
            final_number,
            nonce: Nonce::new(nonce?.to()),
            pending_nonce: Nonce::new(pending?.to()),
            cursor: cursor(&at_cursor?)?,
            market: market(&head, tip.ok()),
            confirmed,
        })
    }

    async fn head_and_final(&self, endpoint: &Endpoint) -> anyhow::Result<(Header, u64)> {
        let block = |tag: &str| json!([tag, false]);
        let head: Header = endpoint
            .call("eth_getBlockByNumber", block("latest"))
            .await?;
        let final_number = match self.finality {
            Finality::Depth(depth) => head.number.to::<u64>().saturating_sub(depth),
            Finality::Tag => {
                let last: Option<Header> = endpoint
                    .call("eth_getBlockByNumber", block("finalized"))
                    .await?;
                last.map_or(0, |header| header.number.to())
            }
        };
        Ok((head, final_number))
    }

    fn filter(&self, from: u64, to: u64) -> Filter {
        Filter::new()
            .address(self.registry)
            .event_signature(BatchConfirmed::SIGNATURE_HASH)
            .from_block(from)
            .to_block(to)
    }
}
