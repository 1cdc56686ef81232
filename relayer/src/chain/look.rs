//! A look at the chain through every endpoint: first where each stands, then, of those that may be
//! believed, the logs. What cannot be read of the logs only means that less is seen.

use std::{collections::BTreeMap, sync::PoisonError};

use alloy::{
    primitives::{Address, Bytes, U64, U128},
    rpc::types::Log,
};
use anyhow::Context as _;
use contracts::registry::JobsRegistry::cursorCall;
use futures::future::join_all;
use jiff::Timestamp;
use serde_json::json;

use super::{
    Chain, Finality,
    answer::{Header, Quantity, batch_confirmed, call_of, cursor, market},
    endpoint::Endpoint,
};
use crate::{
    nonce::Nonce,
    sight::{Block, Confirmed, Report, Sought, View},
};

/// Most blocks that logs are asked of at a time; providers refuse more.
pub const LOG_RANGE_MAX: u64 = 2_000;
/// Most times a look asks an endpoint for logs.
const LOG_PAGES_MAX: usize = 1_000;

/// What a look at the chain showed.
#[derive(Debug)]
pub struct Look {
    /// What may be believed.
    pub view: View,
    /// Why so few endpoints' logs could be read that nothing can become final, where that is so.
    pub blind: Option<anyhow::Error>,
}

impl Chain {
    /// Makes endpoints count as behind that have not reached `block`.
    pub fn remember(&self, block: u64) {
        self.with_horizon(|horizon| horizon.remember(block));
    }

    /// Looks at the chain through every endpoint, and for logs of the batches that are sought.
    ///
    /// # Errors
    /// When no endpoint answers that may be believed.
    pub async fn observe(
        &self,
        gas_key: Address,
        sought: Option<Sought>,
        now: Timestamp,
    ) -> anyhow::Result<Look> {
        let asked = self.endpoints.iter().map(|it| self.report(it, gas_key));
        let mut told = Vec::new();
        let mut failure = None;
        for (endpoint, answer) in self.endpoints.iter().zip(join_all(asked).await) {
            match answer {
                Ok(report) => told.push((endpoint, report)),
                Err(cause) => failure = Some(cause.context(endpoint.label.clone())),
            }
        }
        let mut believed = self.believed(told, now);
        let mut blind = None;
        let mut seeing = believed.len();
        if let Some(sought) = sought {
            let reading = believed
                .iter_mut()
                .map(|(endpoint, report)| self.read_logs(endpoint, sought, report));
            let outcomes = join_all(reading).await;
            seeing = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            blind = outcomes.into_iter().find_map(Result::err);
        }
        let reports = believed.into_iter().map(|(_, report)| report).collect();
        match View::new(reports, self.quorum) {
            Some(view) => Ok(Look {
                view,
                blind: blind.filter(|_| seeing < self.quorum),
            }),
            None => Err(failure.unwrap_or_else(|| {
                anyhow::anyhow!("every RPC endpoint is behind, or far ahead of, what was seen")
            })),
        }
    }

    /// Those reports whose heads are neither behind nor absurd.
    fn believed<'a>(
        &self,
        told: Vec<(&'a Endpoint, Report)>,
        now: Timestamp,
    ) -> Vec<(&'a Endpoint, Report)> {
        let heads: Vec<u64> = told.iter().map(|(_, report)| report.head.number).collect();
        let plausible = self.with_horizon(|horizon| horizon.believes(&heads, now));
        let mut kept = Vec::new();
        for ((endpoint, report), plausible) in told.into_iter().zip(plausible) {
            let label = endpoint.label.clone();
            metrics::gauge!("relayer_endpoint_believed", "endpoint" => label)
                .set(u8::from(plausible));
            if plausible {
                kept.push((endpoint, report));
            }
        }
        let heads: Vec<u64> = kept.iter().map(|(_, report)| report.head.number).collect();
        self.with_horizon(|horizon| horizon.advance(&heads, now));
        kept
    }

    /// Where an endpoint stands. The final block is read before the head, and the logs last: what
    /// is final was so before the logs were read.
    async fn report(&self, endpoint: &Endpoint, gas_key: Address) -> anyhow::Result<Report> {
        let (head, final_number) = self.head_and_final(endpoint).await?;
        let at = U64::from(head.number.get());
        let cursor_of = call_of(self.registry, &cursorCall {});
        let (nonce, pending, at_cursor, tip) = tokio::join!(
            endpoint.call::<Quantity>("eth_getTransactionCount", json!([gas_key, at])),
            endpoint.call::<Quantity>("eth_getTransactionCount", json!([gas_key, "pending"])),
            endpoint.call::<Bytes>("eth_call", json!([cursor_of, at])),
            endpoint.call::<U128>("eth_maxPriorityFeePerGas", json!([])),
        );
        Ok(Report {
            head: Block {
                number: head.number.get(),
                hash: head.hash,
            },
            final_number,
            nonce: Nonce::new(nonce?.get()),
            pending_nonce: Nonce::new(pending?.get()),
            cursor: cursor(&at_cursor?).map_err(|cause| endpoint.nonsense(format!("{cause:#}")))?,
            market: market(&head, tip.ok()),
            confirmed: BTreeMap::new(),
        })
    }

    /// The newest block and the highest final one, which is never above it.
    pub(super) async fn head_and_final(
        &self,
        endpoint: &Endpoint,
    ) -> anyhow::Result<(Header, u64)> {
        let block = |tag: &str| json!([tag, false]);
        let tagged = match self.finality {
            Finality::Depth(_) => None,
            Finality::Tag => {
                let last: Option<Header> = endpoint
                    .call("eth_getBlockByNumber", block("finalized"))
                    .await?;
                Some(last.map_or(0, |header| header.number.get()))
            }
        };
        let head: Header = endpoint
            .call("eth_getBlockByNumber", block("latest"))
            .await?;
        let number = head.number.get();
        let final_number = match (self.finality, tagged) {
            (Finality::Depth(depth), _) => number.saturating_sub(depth),
            (Finality::Tag, tagged) => tagged.unwrap_or_default(),
        };
        if final_number > number {
            let what = format!("block {final_number} is final where {number} is the head");
            return Err(endpoint.nonsense(what));
        }
        Ok((head, final_number))
    }

    /// Reads the logs of the batches that the endpoint's own cursor says are confirmed, from the
    /// head down until all are found. What was found before a failure stays.
    async fn read_logs(
        &self,
        endpoint: &Endpoint,
        sought: Sought,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let end = report.cursor.next_batch.min(sought.last + 1);
        let mut to = report.head.number;
        for page in 0.. {
            let found = (sought.first..end).all(|number| report.confirmed.contains_key(&number));
            if found || to < sought.from_block {
                break;
            }
            anyhow::ensure!(
                page < LOG_PAGES_MAX,
                "{} has no logs of batches that it says are confirmed, down to block {to}: set \
                 REGISTRY_BLOCK to the block the registry was deployed in",
                endpoint.label
            );
            let lowest = to.saturating_sub(LOG_RANGE_MAX - 1);
            let from = lowest.max(sought.from_block);
            let filter = self.filter(from, to);
            let logs: Vec<Log> = endpoint
                .call("eth_getLogs", json!([filter]))
                .await
                .with_context(|| format!("read logs at {}", endpoint.label))?;
            for log in &logs {
                let (event, at) = batch_confirmed(log)
                    .map_err(|cause| endpoint.nonsense(format!("{cause:#}")))?;
                if !(from..=to).contains(&at.block.number) {
                    return Err(endpoint.nonsense("a log of another block".to_owned()));
                }
                let commitment = event.commitment;
                report
                    .confirmed
                    .entry(event.batchNumber)
                    .or_insert(Confirmed { commitment, at });
            }
            let Some(below) = from.checked_sub(1) else {
                break;
            };
            to = below;
        }
        Ok(())
    }

    fn with_horizon<T>(&self, act: impl FnOnce(&mut crate::horizon::Horizon) -> T) -> T {
        // Whoever panicked meanwhile left whole numbers behind.
        act(&mut self.horizon.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
