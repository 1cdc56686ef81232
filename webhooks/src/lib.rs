//! Tells tenants what happened to their jobs: at least once, signed by Standard Webhooks 1.0, and
//! without becoming a way into our own network.
//!
//! - [`delivery`]: one event for one endpoint, its states and retry schedule; pure.
//! - [`health`]: whether an endpoint takes what it is sent; pure.
//! - [`share`]: who gets the free slots; pure.
//! - [`sign`]: secrets, their encryption at rest, and signatures; pure.
//! - [`guard`]: which addresses may be dialled; pure.
//! - [`intake`]: `jobs.events.v1` becomes deliveries, one row an endpoint, before the offset moves.
//! - [`worker`]: claim, send, record.
//! - [`upkeep`]: what an endpoint is owed follows how the endpoint stands.
//! - [`client`]: the HTTP client whose resolver asks [`guard`].
//! - [`api`]: endpoints, secrets, deliveries, attempts, replay.
//! - [`store`]: the SQL of all of these.

pub mod api;
pub mod client;
pub mod config;
pub mod delivery;
pub mod guard;
pub mod health;
pub mod intake;
pub mod share;
pub mod sign;
pub mod store;
pub mod upkeep;
pub mod worker;

/// The schema this service owns, and what makes it.
pub const SCHEMA: &str = "webhooks";

/// The service's migrations.
#[must_use]
pub fn migrations() -> Vec<ops::postgres::Migration> {
    let own = [(
        "V10__webhooks",
        include_str!("../migrations/V10__webhooks.sql"),
    )];
    ops::postgres::migrations(SCHEMA, &own)
}
