//! The chain, asked directly: which batches the registry confirmed, and whether it accepts a proof.

use std::time::Duration;

use alloy::{
    eips::{BlockId, BlockNumberOrTag},
    network::TransactionBuilder as _,
    primitives::{Address, B256},
    providers::{DynProvider, Provider as _, ProviderBuilder},
    rpc::types::{Filter, TransactionRequest},
    sol_types::{SolCall as _, SolEvent as _},
};
use anyhow::Context as _;
use contracts::{
    api::proof::ProofResponse,
    registry::{BatchRef, JobsRegistry, Leaf},
};
use url::Url;

use crate::exit::Unreachable;

/// Most blocks one query for logs spans.
const LOG_BLOCKS: u64 = 5_000;
/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A registry on a chain.
#[derive(Clone)]
pub(crate) struct Chain {
    provider: DynProvider,
    registry: Address,
}

/// A batch as the chain's log tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfirmedBatch {
    /// The batch.
    pub(crate) batch: BatchRef,
    /// In which transaction it was confirmed.
    pub(crate) transaction_hash: Option<B256>,
    /// In which block that is.
    pub(crate) block_number: Option<u64>,
}

impl Chain {
    /// The registry at `registry` on the chain behind `rpc_url`.
    pub(crate) async fn connect(rpc_url: &Url, registry: Address) -> anyhow::Result<Self> {
        let provider = ProviderBuilder::new()
            .connect_http(rpc_url.clone())
            .erased();
        let chain = Self { provider, registry };
        let code = within(chain.provider.get_code_at(registry).into_future()).await;
        let code = code.map_err(|error| Unreachable(format!("the chain at {rpc_url}: {error}")))?;
        if code.is_empty() {
            return Err(Unreachable(format!("there is no contract at {registry}")).into());
        }
        Ok(chain)
    }

    /// The registry's address.
    pub(crate) fn registry(&self) -> Address {
        self.registry
    }

    /// The chain's number.
    pub(crate) async fn id(&self) -> anyhow::Result<u64> {
        within(self.provider.get_chain_id().into_future())
            .await
            .context("reading the chain's id")
    }

    /// The newest block's number.
    pub(crate) async fn head(&self) -> anyhow::Result<u64> {
        within(self.provider.get_block_number().into_future())
            .await
            .context("reading the head")
    }

    /// Batches confirmed in the blocks `from..=to`, in the chain's order.
    pub(crate) async fn batches(&self, from: u64, to: u64) -> anyhow::Result<Vec<ConfirmedBatch>> {
        let mut batches = Vec::new();
        let mut start = from;
        while start <= to {
            let end = to.min(start.saturating_add(LOG_BLOCKS - 1));
            let filter = Filter::new()
                .address(self.registry)
                .event_signature(JobsRegistry::BatchConfirmed::SIGNATURE_HASH)
                .from_block(start)
                .to_block(BlockNumberOrTag::Number(end));
            let logs = within(self.provider.get_logs(&filter))
                .await
                .context("reading logs")?;
            for log in logs {
                let event = JobsRegistry::BatchConfirmed::decode_log(&log.inner)
                    .context("a log of the registry is not of its form")?;
                let batch = BatchRef {
                    batchNumber: event.batchNumber,
                    firstSequence: event.firstSequence,
                    jobCount: event.jobCount,
                    jobsRoot: event.jobsRoot,
                };
                batches.push(ConfirmedBatch {
                    batch,
                    transaction_hash: log.transaction_hash,
                    block_number: log.block_number,
                });
            }
            start = end + 1;
        }
        Ok(batches)
    }

    /// Whether the registry accepts a proof, by its own `verify`: now, or at the block the proof
    /// was made for, because every further batch may make its path longer.
    pub(crate) async fn verify(&self, proof: &ProofResponse) -> anyhow::Result<bool> {
        if self.verify_at(proof, BlockId::latest()).await? {
            return Ok(true);
        }
        // A node that has forgotten that block cannot say yes.
        let then = self
            .verify_at(proof, BlockId::number(proof.at_block.number))
            .await;
        Ok(then.unwrap_or(false))
    }

    async fn verify_at(&self, proof: &ProofResponse, block: BlockId) -> anyhow::Result<bool> {
        let call = JobsRegistry::verifyCall {
            leaf: Leaf::from(&proof.leaf),
            jobProof: proof.job_proof.clone(),
            batch: BatchRef::from(&proof.batch),
            batchProof: proof.batch_proof.clone(),
        };
        let request = TransactionRequest::default()
            .with_to(self.registry)
            .with_input(call.abi_encode());
        let answer = within(self.provider.call(request).block(block).into_future()).await;
        let answer = answer.context("calling JobsRegistry.verify")?;
        JobsRegistry::verifyCall::abi_decode_returns(&answer)
            .context("JobsRegistry.verify answered something else than true or false")
    }
}

async fn within<T, E>(request: impl Future<Output = Result<T, E>>) -> anyhow::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let answer = tokio::time::timeout(TIMEOUT, request).await;
    Ok(answer.context("the chain did not answer in time")??)
}
