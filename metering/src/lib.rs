//! Metering: every billable fact counted exactly once, and what the counts cost.
//!
//! - nouns, without I/O: [`event`] (a record of Kafka becomes facts), [`meter`] (what is counted),
//!   [`window`] (time as billing cuts it), [`price`] (a quantity becomes an amount);
//! - the rim: [`ingest`] (two inboxes become rows), [`progress`] (how far they have come),
//!   [`store`] (all SQL), [`api`] (usage, events, invoices, prices over HTTP), [`check`].
//!
//! What must always hold: the sum over raw events equals the sum over aggregates equals the
//! quantities of the invoice. `metering check --reconcile` says whether it does.

use ops::postgres::{Migration, migrations};

pub mod api;
pub mod check;
pub mod config;
pub mod event;
pub mod ingest;
pub mod meter;
pub mod price;
pub mod progress;
pub mod store;
pub mod window;

/// The Postgres schema of this service.
pub const SCHEMA: &str = "metering";

/// All migrations of the schema.
#[must_use]
pub fn schema() -> Vec<Migration> {
    migrations(
        SCHEMA,
        &[(
            "V10__metering",
            include_str!("../migrations/V10__metering.sql"),
        )],
    )
}
