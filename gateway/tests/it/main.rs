//! The gateway's real binary between real clients, a real upstream that verifies assertions, and
//! the real Postgres, Redis and Kafka.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod admin;
mod app;
mod bad_input;
mod cut;
mod freshness;
mod idempotency;
mod issuer;
mod keys;
mod life;
mod limits;
mod passage;
mod signatures;
mod spool;
mod streams;
mod tenants;
mod tokens;
mod upstream;
