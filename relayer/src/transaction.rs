//! Transactions of the gas key: made whole and signed before anyone sees them, so that what is
//! written down is what is sent, now and after any crash.

use alloy::{
    consensus::{SignableTransaction as _, TxEip1559, TxEnvelope},
    eips::{Decodable2718 as _, Encodable2718 as _},
    primitives::{B256, Bytes, TxKind, U256},
    signers::{SignerSync as _, local::PrivateKeySigner},
};
use jiff::{SignedDuration, Timestamp};

use crate::{classify::Verdict, fees::Fees, nonce::Nonce};

/// Gas for a batch without its signatures, with room for a new slot at the price it is to have
/// (EIP-8037). What is not used is not paid. Not estimated: a node cannot run a batch before the
/// one in front of it is mined.
const GAS_OF_BATCH: u64 = 350_000;
/// Gas for one signature: measured 8,090, twice that.
const GAS_OF_SIGNATURE: u64 = 16_000;
/// Bytes are sent again after this long when the pool does not count them.
const RESEND_MISSING: SignedDuration = SignedDuration::from_secs(2);
/// Bytes are sent again after this long, whatever the pool says.
const RESEND_ANYWAY: SignedDuration = SignedDuration::from_secs(30);

/// One signed transaction; several may share a nonce, all with the same batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its nonce.
    pub nonce: Nonce,
    /// Which of the nonce's transactions it is, from 0.
    pub number: u32,
    /// The batch it confirms.
    pub batch_number: u64,
    /// What it offers.
    pub fees: Fees,
    /// The signed bytes.
    pub raw: Bytes,
    /// Their hash.
    pub hash: B256,
}

/// What a transaction asks the chain to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// The chain.
    pub chain_id: u64,
    /// The contract, or the making of one.
    pub to: TxKind,
    /// The call.
    pub input: Bytes,
    /// Most gas it may use.
    pub gas_limit: u64,
}

/// The newest attempt of a nonce that the chain has not gone past.
#[derive(Clone, Debug)]
pub struct Outstanding {
    /// The attempt.
    pub attempt: Attempt,
    /// When it was written down.
    pub created_at: Timestamp,
    /// When it was last sent.
    pub broadcast_at: Option<Timestamp>,
    /// What came of that.
    pub verdict: Option<Verdict>,
}

/// What to do about an outstanding transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Let it be.
    Wait,
    /// Send its bytes.
    Send,
    /// Replace it by one that offers more; where the cap forbids that, send its bytes.
    Raise,
}

/// Why stored bytes are no transaction of ours: the table was tampered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored bytes are not a transaction that this program made")]
pub struct NotOurs;

/// The gas limit of a batch with this many signatures.
#[must_use]
pub fn gas_limit(signatures: usize) -> u64 {
    let signatures = u64::try_from(signatures).unwrap_or(u64::MAX);
    GAS_OF_BATCH.saturating_add(GAS_OF_SIGNATURE.saturating_mul(signatures))
}

impl Attempt {
    /// The first transaction of a nonce.
    #[must_use]
    pub fn first(
        order: Order,
        batch_number: u64,
        nonce: Nonce,
        fees: Fees,
        key: &PrivateKeySigner,
    ) -> Self {
        let transaction = TxEip1559 {
            chain_id: order.chain_id,
            nonce: nonce.get(),
            gas_limit: order.gas_limit,
            max_fee_per_gas: fees.max_fee,
            max_priority_fee_per_gas: fees.tip,
            to: order.to,
            value: U256::ZERO,
            access_list: alloy::eips::eip2930::AccessList::default(),
            input: order.input,
        };
        let (raw, hash) = sign(transaction, key);
        Self {
            nonce,
            number: 0,
            batch_number,
            fees,
            raw,
            hash,
        }
    }

    /// The same work under the same nonce for another price.
    pub fn at_price(&self, fees: Fees, key: &PrivateKeySigner) -> Result<Self, NotOurs> {
        let envelope = TxEnvelope::decode_2718_exact(&self.raw).map_err(|_| NotOurs)?;
        let TxEnvelope::Eip1559(signed) = envelope else {
            return Err(NotOurs);
        };
        let mut transaction = signed.strip_signature();
        transaction.max_fee_per_gas = fees.max_fee;
        transaction.max_priority_fee_per_gas = fees.tip;
        let (raw, hash) = sign(transaction, key);
        Ok(Self {
            number: self.number + 1,
            fees,
            raw,
            hash,
            ..*self
        })
    }
}

impl Outstanding {
    /// What to do now, where the chain waits for this very nonce or not, and every pool has the
    /// nonces below `pooled_below`. Only the head's price is raised: the ones behind it wait for
    /// it, not for a better offer.
    #[must_use]
    pub fn step(
        &self,
        now: Timestamp,
        is_head: bool,
        pooled_below: Nonce,
        stall: SignedDuration,
    ) -> Step {
        let Some(broadcast_at) = self.broadcast_at else {
            return Step::Send;
        };
        let nonce = self.attempt.nonce;
        let stalled = now.duration_since(self.created_at) >= stall;
        if is_head && (stalled || self.verdict == Some(Verdict::RaiseFees)) {
            return Step::Raise;
        }
        let since = now.duration_since(broadcast_at);
        let missing = nonce >= pooled_below && since >= RESEND_MISSING;
        if missing || since >= RESEND_ANYWAY {
            Step::Send
        } else {
            Step::Wait
        }
    }

    /// Whether its bytes went out so recently that sending them again is no use.
    #[must_use]
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.broadcast_at
            .is_some_and(|sent| now.duration_since(sent) < RESEND_MISSING)
    }
}

fn sign(transaction: TxEip1559, key: &PrivateKeySigner) -> (Bytes, B256) {
    let signature = key
        .sign_hash_sync(&transaction.signature_hash())
        .expect("a local key signs every hash");
    let envelope = TxEnvelope::from(transaction.into_signed(signature));
    (envelope.encoded_2718().into(), *envelope.tx_hash())
}

#[cfg(test)]
mod tests {
    use alloy::{consensus::Transaction as _, primitives::Address};

    use super::*;

    fn key() -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(0x11)).unwrap()
    }

    fn attempt() -> Attempt {
        let order = Order {
            chain_id: 31_337,
            to: TxKind::Call(Address::repeat_byte(2)),
            input: Bytes::from_static(b"call"),
            gas_limit: gas_limit(2),
        };
        Attempt::first(
            order,
            4,
            Nonce::new(7),
            Fees {
                max_fee: 100,
                tip: 10,
            },
            &key(),
        )
    }

    fn outstanding(broadcast_at: Option<&str>, verdict: Option<Verdict>) -> Outstanding {
        Outstanding {
            attempt: attempt(),
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            broadcast_at: broadcast_at.map(|text| text.parse().unwrap()),
            verdict,
        }
    }

    fn step(it: &Outstanding, now: &str, head: u64, pool: u64) -> Step {
        let stall = SignedDuration::from_secs(20);
        it.step(
            now.parse().unwrap(),
            it.attempt.nonce == Nonce::new(head),
            Nonce::new(pool),
            stall,
        )
    }

    #[test]
    fn another_price_is_the_same_work_under_the_same_nonce() {
        let first = attempt();
        let raised = first
            .at_price(
                Fees {
                    max_fee: 200,
                    tip: 20,
                },
                &key(),
            )
            .unwrap();
        let read = |bytes: &Bytes| TxEnvelope::decode_2718_exact(bytes).unwrap();
        let (before, after) = (read(&first.raw), read(&raised.raw));
        assert_eq!(
            (before.nonce(), before.input()),
            (after.nonce(), after.input())
        );
        assert_eq!(
            (before.to(), before.gas_limit()),
            (after.to(), after.gas_limit())
        );
        assert_eq!(after.max_fee_per_gas(), 200);
        let digest = after.signature_hash();
        let signer = after
            .signature()
            .recover_address_from_prehash(&digest)
            .unwrap();
        assert_eq!(signer, key().address());
        assert_eq!((raised.number, raised.batch_number), (1, 4));
        assert_ne!(first.hash, raised.hash);
    }

    #[test]
    fn the_same_work_is_the_same_bytes() {
        assert_eq!(attempt(), attempt());
    }

    #[test]
    fn what_was_never_sent_is_sent() {
        assert_eq!(
            step(&outstanding(None, None), "2026-01-01T00:00:00Z", 0, 0),
            Step::Send
        );
    }

    #[test]
    fn only_the_head_is_raised_and_only_after_a_stall() {
        let sent = outstanding(Some("2026-01-01T00:00:00Z"), Some(Verdict::Accepted));
        assert_eq!(step(&sent, "2026-01-01T00:00:19Z", 7, 8), Step::Wait);
        assert_eq!(step(&sent, "2026-01-01T00:00:20Z", 7, 8), Step::Raise);
        assert_eq!(step(&sent, "2026-01-01T00:00:20Z", 6, 8), Step::Wait);
        let cheap = outstanding(Some("2026-01-01T00:00:00Z"), Some(Verdict::RaiseFees));
        assert_eq!(step(&cheap, "2026-01-01T00:00:01Z", 7, 7), Step::Raise);
    }

    #[test]
    fn what_the_pool_lost_is_sent_again() {
        let sent = outstanding(Some("2026-01-01T00:00:00Z"), Some(Verdict::Accepted));
        assert_eq!(step(&sent, "2026-01-01T00:00:03Z", 6, 7), Step::Send);
        assert_eq!(step(&sent, "2026-01-01T00:00:03Z", 6, 8), Step::Wait);
        assert_eq!(step(&sent, "2026-01-01T00:00:31Z", 6, 8), Step::Send);
    }

    #[test]
    fn other_bytes_are_not_repriced() {
        let mut other = attempt();
        other.raw = Bytes::from_static(b"\x02nonsense");
        assert_eq!(other.at_price(other.fees, &key()), Err(NotOurs));
    }
}
