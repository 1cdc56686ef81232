//! Jobs against the real Postgres and Kafka: the API through its router, the worker a step at a
//! time or as a process that is killed.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot go on fails its test"
)]

mod app;
mod cancel;
mod confirm;
mod create;
mod follow;
mod process;
mod read;
mod work;
