//! What endpoints answer, read into our own types, and the calls they are asked to make.

use std::{fmt, str::FromStr};

use alloy::{
    primitives::{Address, B256, Bytes, U64, U128},
    rpc::types::Log,
    sol_types::{SolCall, SolEvent as _, SolInterface as _},
};
use anyhow::Context as _;
use contracts::registry::JobsRegistry::{self, BatchConfirmed, JobsRegistryErrors, cursorCall};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    fees::Market,
    sight::{Block, Cursor, Inclusion, Terms},
};

/// The tip where an endpoint suggests none, in wei.
const FALLBACK_TIP: u128 = 1_000_000_000;

/// When a block is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finality {
    /// When the chain's own `finalized` tag says so.
    Tag,
    /// When this many blocks are on top of it.
    Depth(u64),
}

/// A number of blocks, nonces or gas, as JSON-RPC writes it. What a `bigint` cannot hold no chain
/// has: an endpoint that says so answers with nonsense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "U64")]
pub(super) struct Quantity(u64);

/// A receipt, as far as a deployment asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// 1 when it did not revert.
    pub status: U64,
    /// The contract it made.
    pub contract_address: Option<Address>,
    /// Its block.
    pub block_number: U64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    pub(super) number: Quantity,
    pub(super) hash: B256,
    base_fee_per_gas: Option<U128>,
}

impl Quantity {
    pub(super) const fn get(self) -> u64 {
        self.0
    }
}

impl TryFrom<U64> for Quantity {
    type Error = &'static str;

    fn try_from(number: U64) -> Result<Self, Self::Error> {
        let number: u64 = number.to();
        require_storable(number).map(|()| Self(number))
    }
}

fn require_storable(number: u64) -> Result<(), &'static str> {
    match i64::try_from(number) {
        Ok(_) => Ok(()),
        Err(_) => Err("a number beyond 2^63"),
    }
}

pub(super) fn call_of(to: Address, call: &impl SolCall) -> Value {
    json!({ "to": to, "input": Bytes::from(call.abi_encode()) })
}

pub(super) fn cursor(answer: &Bytes) -> anyhow::Result<Cursor> {
    let read = cursorCall::abi_decode_returns(answer)
        .context("the contract's cursor is not of the form of a JobsRegistry")?;
    for number in [read.nextBatch, read.nextSequence] {
        require_storable(number).map_err(anyhow::Error::msg)?;
    }
    Ok(Cursor {
        next_batch: read.nextBatch,
        next_sequence: read.nextSequence,
        terms: Terms {
            signer_epoch: read.signerEpoch,
            threshold: read.threshold,
            paused: read.paused,
        },
    })
}

pub(super) fn market(head: &Header, tip: Option<U128>) -> Market {
    Market {
        base_fee: head.base_fee_per_gas.map_or(0, |fee| fee.to()),
        tip: tip.map_or(FALLBACK_TIP, |tip| tip.to()),
    }
}

pub(super) fn batch_confirmed(log: &Log) -> anyhow::Result<(BatchConfirmed, Inclusion)> {
    let event = BatchConfirmed::decode_log(&log.inner).context("read a BatchConfirmed log")?;
    let place = (log.block_number, log.block_hash, log.transaction_hash);
    let (Some(number), Some(hash), Some(transaction)) = place else {
        anyhow::bail!("an endpoint gave a log that is in no block");
    };
    for number in [event.batchNumber, event.firstSequence, number] {
        require_storable(number).map_err(anyhow::Error::msg)?;
    }
    anyhow::ensure!(
        i32::try_from(event.jobCount).is_ok(),
        "an endpoint gave a log of more jobs than any batch holds"
    );
    Ok((
        event.data,
        Inclusion {
            block: Block { number, hash },
            transaction,
        },
    ))
}

/// The contract's error in words.
pub(super) fn refusal(data: &Bytes) -> String {
    match JobsRegistryErrors::abi_decode(data) {
        Ok(error) => format!("{error:?}"),
        Err(_) => format!("{data}"),
    }
}

/// The call that confirms a batch.
#[must_use]
pub fn confirm_batch(
    confirmation: contracts::registry::BatchConfirmation,
    signatures: Vec<Bytes>,
) -> Bytes {
    JobsRegistry::confirmBatchCall {
        confirmation,
        signatures,
    }
    .abi_encode()
    .into()
}

impl FromStr for Finality {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "finalized" => Ok(Self::Tag),
            number => number
                .parse()
                .map(Self::Depth)
                .map_err(|_| "must be `finalized` or a number of blocks"),
        }
    }
}

impl fmt::Display for Finality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag => f.write_str("finalized"),
            Self::Depth(depth) => depth.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_no_chain_has_is_nonsense() {
        let read = |text: &str| serde_json::from_str::<Quantity>(text).map(Quantity::get);
        assert_eq!(
            read("\"0x7fffffffffffffff\"").unwrap(),
            i64::MAX.unsigned_abs()
        );
        assert!(read("\"0x8000000000000000\"").is_err());
        assert!(read("\"0xffffffffffffffffff\"").is_err());
    }
}
