//! The gateway's real binary between real clients, a real upstream that verifies assertions, and
//! the real Postgres, Redis and Kafka.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod admin;
mod app;
mod bad_input;
mod fleet;
mod idempotency;
mod issuer;
mod life;
mod limits;
mod matrix;
mod passage;
mod quota;
mod redis;
mod shared_limits;
mod spool;
mod upstream;
