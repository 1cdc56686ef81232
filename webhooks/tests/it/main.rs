//! Webhooks against real Postgres and Kafka, real sockets, and the real processes.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test owns its tasks, runs in real time, and fails when it cannot go on"
)]

mod api;
mod app;
mod delivery;
mod fairness;
mod intake;
mod oracle;
mod standing;
