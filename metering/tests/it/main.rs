//! Metering against real Postgres and Kafka, by its real processes.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper that fails fails its test"
)]

mod api;
mod app;
mod ingest;
mod process;
