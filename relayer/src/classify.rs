//! The table from what an endpoint answers to a sent transaction to what is done about it.
//!
//! No answer ever leads to a new nonce or another batch: the transaction is written down, so the
//! worst that any answer can ask for is to look at the chain, or to send again.

use std::fmt;

use alloy::primitives::Bytes;

/// How a call to an endpoint failed. Holds nothing of the endpoint's address, which may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcFailure {
    /// No answer within the deadline.
    #[error("no answer in time")]
    Timeout,
    /// No connection, or it broke.
    #[error("cannot be reached")]
    Unreachable,
    /// An HTTP status other than success.
    #[error("answers with HTTP status {0}")]
    Http(u16),
    /// A JSON-RPC error.
    #[error("answers with error {code}: {message}")]
    Answer {
        /// JSON-RPC's code; nodes use -32000 and -32603 for nearly everything.
        code: i64,
        /// The node's words.
        message: String,
        /// What a reverted call returned.
        data: Option<Bytes>,
    },
    /// An answer that is not of the form asked for.
    #[error("answers with nonsense")]
    Malformed,
}

/// What an answer to a sent transaction means for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pool has it.
    Accepted,
    /// The nonce is taken or not yet due: the next look at the chain says which.
    Reconcile,
    /// It offers too little for gas.
    RaiseFees,
    /// The gas key cannot pay for it.
    Fund,
    /// Nothing is known; send again.
    Retry,
    /// The node will never take these bytes: a person must look.
    Refused,
}

/// Words of nodes (geth, erigon, nethermind, besu, reth, anvil, arbitrum), lower case, and what
/// they mean. The first that fits counts.
const WORDS: [(&str, Verdict); 29] = [
    ("already known", Verdict::Accepted),
    ("alreadyknown", Verdict::Accepted),
    ("known transaction", Verdict::Accepted),
    ("already imported", Verdict::Accepted),
    ("already exists", Verdict::Accepted),
    ("nonce too low", Verdict::Reconcile),
    ("oldnonce", Verdict::Reconcile),
    ("nonce too high", Verdict::Reconcile),
    ("noncegap", Verdict::Reconcile),
    ("nonce gap", Verdict::Reconcile),
    ("invalid transaction nonce", Verdict::Reconcile),
    ("nonce is too distant", Verdict::Reconcile),
    ("replacement transaction underpriced", Verdict::RaiseFees),
    ("replacementnotallowed", Verdict::RaiseFees),
    ("gas price too low to replace", Verdict::RaiseFees),
    ("less than block base fee", Verdict::RaiseFees),
    ("transaction underpriced", Verdict::RaiseFees),
    ("feetoolow", Verdict::RaiseFees),
    ("fee too low", Verdict::RaiseFees),
    ("gas price below", Verdict::RaiseFees),
    ("insufficient funds", Verdict::Fund),
    ("insufficientfunds", Verdict::Fund),
    ("upfront cost exceeds account balance", Verdict::Fund),
    ("intrinsic gas too low", Verdict::Refused),
    ("exceeds block gas limit", Verdict::Refused),
    ("invalid chain id", Verdict::Refused),
    ("invalid sender", Verdict::Refused),
    ("oversized data", Verdict::Refused),
    ("transaction type not supported", Verdict::Refused),
];

/// What the answer to a sent transaction means for it.
#[must_use]
pub fn classify(answer: &Result<(), RpcFailure>) -> Verdict {
    match answer {
        Ok(()) => Verdict::Accepted,
        Err(RpcFailure::Answer { message, .. }) => {
            // The code says nothing: nodes answer one and the same for "nonce too low" and for
            // an internal error.
            let message = message.to_lowercase();
            let known = WORDS.iter().find(|(words, _)| message.contains(words));
            known.map_or(Verdict::Retry, |(_, verdict)| *verdict)
        }
        Err(
            RpcFailure::Timeout
            | RpcFailure::Unreachable
            | RpcFailure::Http(_)
            | RpcFailure::Malformed,
        ) => Verdict::Retry,
    }
}

/// What the answers of all endpoints mean together: one pool that has it is enough, and a refusal
/// counts only when nobody says anything better.
#[must_use]
pub fn together(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Accepted => 0,
        Verdict::Reconcile => 1,
        Verdict::RaiseFees => 2,
        Verdict::Fund => 3,
        Verdict::Retry => 4,
        Verdict::Refused => 5,
    };
    verdicts
        .into_iter()
        .min_by_key(rank)
        .unwrap_or(Verdict::Retry)
}

impl Verdict {
    /// The verdict as stored and as metrics show it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Reconcile => "reconcile",
            Self::RaiseFees => "raise_fees",
            Self::Fund => "fund",
            Self::Retry => "retry",
            Self::Refused => "refused",
        }
    }

    /// The verdict that was stored as `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let all = [
            Self::Accepted,
            Self::Reconcile,
            Self::RaiseFees,
            Self::Fund,
            Self::Retry,
            Self::Refused,
        ];
        all.into_iter().find(|verdict| verdict.as_str() == text)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// One recorded answer, with the node that gave it.
    #[derive(Deserialize)]
    struct Recorded {
        node: String,
        code: i64,
        message: String,
        verdict: String,
    }

    #[test]
    fn recorded_answers_are_understood() {
        let recorded: Vec<Recorded> =
            serde_json::from_str(include_str!("classify/answers.json")).unwrap();
        for Recorded {
            node,
            code,
            message,
            verdict,
        } in recorded
        {
            let failure = RpcFailure::Answer {
                code,
                message: message.clone(),
                data: None,
            };
            assert_eq!(
                classify(&Err(failure)).as_str(),
                verdict,
                "{node}: {message}"
            );
        }
    }

    #[test]
    fn every_word_of_the_table_is_reached() {
        for (words, verdict) in WORDS {
            assert_eq!(words, words.to_lowercase());
            let failure = RpcFailure::Answer {
                code: -32_000,
                message: words.to_owned(),
                data: None,
            };
            assert_eq!(
                classify(&Err(failure)),
                verdict,
                "an earlier entry hides {words:?}"
            );
        }
    }

    #[test]
    fn what_says_nothing_is_sent_again() {
        for failure in [
            RpcFailure::Timeout,
            RpcFailure::Unreachable,
            RpcFailure::Http(429),
            RpcFailure::Malformed,
        ] {
            assert_eq!(classify(&Err(failure)), Verdict::Retry);
        }
    }

    #[test]
    fn one_pool_that_has_it_is_enough() {
        assert_eq!(
            together([Verdict::Refused, Verdict::Accepted]),
            Verdict::Accepted
        );
        assert_eq!(together([Verdict::Refused, Verdict::Retry]), Verdict::Retry);
        assert_eq!(together([]), Verdict::Retry);
    }
}
