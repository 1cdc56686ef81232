//! The gateway's real binary between real clients, a real upstream that verifies assertions, and
//! the real Postgres, Redis and Kafka.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod abuse;
mod admin;
mod app;
mod bad_input;
mod cut;
mod fleet;
mod frames;
mod freshness;
mod full_disk;
mod held;
mod http2;
mod idempotency;
mod issuer;
mod keys;
mod life;
mod limits;
mod load;
mod lost;
mod matrix;
mod memory;
mod namespace;
mod odd_answers;
mod passage;
mod places;
mod quota;
mod raw;
mod reauthorised;
mod recorder;
mod redis;
mod rollout;
mod routes;
mod seen_outside;
mod shared_limits;
mod sight;
mod signatures;
mod spool;
mod stale_keys;
mod streams;
mod strict;
mod tenants;
mod tls;
mod tokens;
mod unnoticed;
mod unwell;
mod upstream;

/// How long a fault or a load lasts: `long` seconds, as an issue words it, where `JOBSEAL_LONG` is
/// 1; else `short` ones.
fn seconds(long: u64, short: u64) -> std::time::Duration {
    let is_long = std::env::var_os("JOBSEAL_LONG").is_some_and(|value| value == "1");
    std::time::Duration::from_secs(if is_long { long } else { short })
}
