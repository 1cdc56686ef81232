//! The relayer's real processes against real Postgres, Kafka and anvil: what is promised when all
//! goes well, when processes die, and when the chain takes things back.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails"
)]

mod chain_faults;
mod crashes;
mod endpoints;
mod flow;
mod node;
mod proofs;
mod proxy;
mod refusals;
mod world;

use std::time::Duration;

/// Long enough for two busy cores, short enough to fail a hung test.
const DEADLINE: Duration = Duration::from_mins(1);
