//! The gateway's real binary between real clients, a real upstream that verifies assertions, and
//! the real Postgres, Redis and Kafka.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod abuse;
mod admin;
mod app;
mod bad_input;
mod frames;
mod http2;
mod idempotency;
mod issuer;
mod life;
mod limits;
mod load;
mod memory;
mod passage;
mod raw;
mod recorder;
mod spool;
mod strict;
mod tls;
mod upstream;
