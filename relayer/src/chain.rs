//! The chain as seen through its RPC endpoints: the only file that talks to them. Decisions are
//! made elsewhere, from a [`sight::View`] that says what each endpoint said.

use std::{sync::Mutex, time::Duration};

use alloy::{
    primitives::{Address, B256, Bytes, U64, U128, U256, keccak256},
    rpc::types::{Filter, Log},
    sol_types::{SolCall as _, SolEvent as _},
};
use anyhow::Context as _;
use contracts::registry::JobsRegistry::{BatchConfirmed, cursorCall, hasRoleCall};
use futures::future::{join_all, try_join_all};
use serde_json::{Value, json};

use crate::{
    classify::{self, RpcFailure, Verdict},
    fees::Market,
    horizon::Horizon,
    nonce::Nonce,
    sight::{self, Cursor, Inclusion},
};

mod answer;
mod endpoint;
mod look;

pub use answer::{Finality, Receipt, confirm_batch};
use answer::{Header, Quantity, batch_confirmed, call_of, cursor, market, refusal};
pub use endpoint::EndpointUrl;
use endpoint::{Answer, Endpoint};
pub use look::{LOG_RANGE_MAX, Look};

/// One registry on one chain.
#[derive(Debug)]
pub struct Chain {
    endpoints: Vec<Endpoint>,
    registry: Address,
    finality: Finality,
    /// How many endpoints must say what cannot be taken back easily.
    quorum: usize,
    horizon: Mutex<Horizon>,
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
        let quorum = sight::quorum(urls.len());
        Ok(Self {
            endpoints: endpoints.collect::<anyhow::Result<_>>()?,
            registry,
            finality,
            quorum,
            horizon: Mutex::new(Horizon::new(quorum)),
        })
    }

    /// The registry's address.
    #[must_use]
    pub fn registry(&self) -> Address {
        self.registry
    }

    /// The chain's id, on which every endpoint that answers must agree.
    ///
    /// # Errors
    /// When none answers, or they are of different chains.
    pub async fn chain_id(&self) -> anyhow::Result<u64> {
        let asked = self
            .endpoints
            .iter()
            .map(|it| it.call::<Quantity>("eth_chainId", json!([])));
        let mut found = None;
        let mut failure = None;
        for (endpoint, answer) in self.endpoints.iter().zip(join_all(asked).await) {
            match (answer, found) {
                (Ok(id), None) => found = Some(id.get()),
                (Ok(id), Some(other)) => anyhow::ensure!(
                    id.get() == other,
                    "endpoint {} is of chain {}, another of chain {other}",
                    endpoint.label,
                    id.get()
                ),
                (Err(cause), _) => failure = Some((endpoint, cause)),
            }
        }
        match (found, failure) {
            (Some(id), _) => Ok(id),
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
            .most_say("eth_getCode", json!([self.registry, "latest"]))
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
                .most_say::<Bytes>("eth_call", json!([call, "latest"]))
                .await?,
        )
    }

    /// Those of `attesters` that may sign.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn confirmers(&self, attesters: &[Address]) -> anyhow::Result<Vec<Address>> {
        let role = keccak256("CONFIRMER_ROLE");
        let asked = attesters.iter().map(|account| async move {
            let account = *account;
            let call = call_of(self.registry, &hasRoleCall { role, account });
            let answer: Bytes = self.most_say("eth_call", json!([call, "latest"])).await?;
            let may = hasRoleCall::abi_decode_returns(&answer).context("read hasRole's answer")?;
            anyhow::Ok(may.then_some(account))
        });
        Ok(try_join_all(asked).await?.into_iter().flatten().collect())
    }

    /// What the gas key owns, in wei.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn balance(&self, gas_key: Address) -> anyhow::Result<U256> {
        self.most_say("eth_getBalance", json!([gas_key, "latest"]))
            .await
    }

    /// The gas key's next nonce, the pool counted in.
    ///
    /// # Errors
    /// When too few endpoints answer, or they do not agree.
    pub async fn pending_nonce(&self, gas_key: Address) -> anyhow::Result<Nonce> {
        let read = |count: Quantity| Ok(Nonce::new(count.get()));
        let parameters = json!([gas_key, "pending"]);
        self.agreed("eth_getTransactionCount", parameters, read)
            .await
    }

    /// The `BatchConfirmed` logs of the blocks from `from` to `to`, as all endpoints have them.
    ///
    /// # Errors
    /// When too few endpoints answer, or they do not agree.
    pub async fn confirmed(
        &self,
        from: u64,
        to: u64,
    ) -> anyhow::Result<Vec<(BatchConfirmed, Inclusion)>> {
        let read = |logs: Vec<Log>| logs.iter().map(batch_confirmed).collect();
        self.agreed("eth_getLogs", json!([self.filter(from, to)]), read)
            .await
    }

    /// The newest block and the highest final one.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn heights(&self) -> anyhow::Result<(u64, u64)> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match self.head_and_final(endpoint).await {
                Ok((head, final_number)) => return Ok((head.number.get(), final_number)),
                Err(cause) => last = Some(cause),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no RPC endpoint is configured")))
    }

    /// Runs a call as `from` would at the head with this much gas, without sending anything. The
    /// word of one endpoint is no refusal where others take the call.
    ///
    /// # Errors
    /// When the contract refuses or nobody can be asked.
    pub async fn simulate(
        &self,
        from: Address,
        input: &Bytes,
        gas_limit: u64,
    ) -> Result<(), CallFailure> {
        let gas = U64::from(gas_limit);
        let call = json!({ "from": from, "to": self.registry, "input": input, "gas": gas });
        let asked = self
            .endpoints
            .iter()
            .map(|it| it.call::<Bytes>("eth_call", json!([call, "latest"])));
        let mut taken = 0;
        let mut refusals = Vec::new();
        let mut last = RpcFailure::Unreachable;
        for answer in join_all(asked).await {
            match answer {
                Ok(_) => taken += 1,
                Err(RpcFailure::Answer {
                    data: Some(data), ..
                }) => refusals.push(data),
                Err(failure) => last = failure,
            }
        }
        let quorum = sight::quorum(taken + refusals.len());
        match sight::most(&refusals) {
            Some(data) if refusals.len() >= quorum => Err(CallFailure::Reverted(refusal(data))),
            None if taken == 0 => Err(CallFailure::Rpc(last)),
            _ => Ok(()),
        }
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
        Ok(self
            .most_say::<Quantity>("eth_estimateGas", call)
            .await?
            .get())
    }

    /// What gas costs now.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn market(&self) -> anyhow::Result<Market> {
        let head: Header = self
            .most_say("eth_getBlockByNumber", json!(["latest", false]))
            .await?;
        let tip = self
            .most_say::<U128>("eth_maxPriorityFeePerGas", json!([]))
            .await;
        Ok(market(&head, tip.ok()))
    }

    /// A transaction's receipt, once it is in a block.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn receipt(&self, hash: B256) -> anyhow::Result<Option<Receipt>> {
        self.most_say("eth_getTransactionReceipt", json!([hash]))
            .await
    }

    /// What most of the endpoints that answer say, the first one's word among equals: of three,
    /// one that lies is outvoted.
    async fn most_say<R: Answer + Clone + PartialEq>(
        &self,
        method: &'static str,
        parameters: Value,
    ) -> anyhow::Result<R> {
        let (answers, failure) = self.ask::<R, R>(method, parameters, Ok).await;
        match (sight::most(&answers), failure) {
            (Some(answer), _) => Ok(answer.clone()),
            (None, Some(cause)) => Err(cause),
            (None, None) => anyhow::bail!("no RPC endpoint is configured"),
        }
    }

    /// What every endpoint that answers says alike, where a quorum does.
    async fn agreed<R: Answer, T: PartialEq>(
        &self,
        method: &'static str,
        parameters: Value,
        read: impl Fn(R) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let (mut answers, failure) = self.ask(method, parameters, read).await;
        if answers.len() < self.quorum {
            let few = anyhow::anyhow!("{} endpoints must answer {method}", self.quorum);
            return Err(failure.unwrap_or(few));
        }
        let first = answers.swap_remove(0);
        anyhow::ensure!(
            answers.iter().all(|other| *other == first),
            "the endpoints do not agree on {method}"
        );
        Ok(first)
    }

    /// The answers of all endpoints, in their order, and why one of the others has none.
    async fn ask<R: Answer, T>(
        &self,
        method: &'static str,
        parameters: Value,
        read: impl Fn(R) -> anyhow::Result<T>,
    ) -> (Vec<T>, Option<anyhow::Error>) {
        let asked = self
            .endpoints
            .iter()
            .map(|it| it.call::<R>(method, parameters.clone()));
        let mut answers = Vec::new();
        let mut failure = None;
        for (endpoint, answer) in self.endpoints.iter().zip(join_all(asked).await) {
            match answer.map_err(anyhow::Error::from).and_then(&read) {
                Ok(answer) => answers.push(answer),
                Err(cause) => {
                    failure = Some(cause.context(format!("{method} at {}", endpoint.label)));
                }
            }
        }
        (answers, failure)
    }

    fn filter(&self, from: u64, to: u64) -> Filter {
        Filter::new()
            .address(self.registry)
            .event_signature(BatchConfirmed::SIGNATURE_HASH)
            .from_block(from)
            .to_block(to)
    }
}
