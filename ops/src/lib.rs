//! What every process of Jobseal needs and no customer sees: configuration, lifecycle, telemetry,
//! the admin listener, and the four mechanisms everything stands on, each written once:
//!
//! - [`outbox`]: events leave in the transaction that made them true;
//! - [`inbox`]: events arrive exactly once, offsets and effects in one transaction;
//! - [`lease`]: one owner at a time, fenced by an epoch;
//! - [`idempotency`]: one answer per `(tenant, key)`.
//!
//! This crate knows no domain noun.

pub mod admin;
pub mod clock;
pub mod config;
pub mod idempotency;
pub mod inbox;
pub mod kafka;
pub mod lease;
pub mod lifecycle;
pub mod outbox;
pub mod postgres;
pub mod process;
pub mod retention;
pub mod seal;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
