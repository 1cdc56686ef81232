//! Every interface between Jobseal's processes, and nothing else: HTTP types, problems, the
//! internal assertion, events, and the contract on chain. Both sides of each interface use these
//! types, so a change of an interface is visible in this crate alone.

pub mod api;
pub mod assertion;
pub mod event;
#[rustfmt::skip] // `tests/it/generated.rs` compares it with what the generator writes.
#[path = "gen/jobseal.v1.rs"]
mod generated;
pub mod id;
pub mod job_type;
pub mod merkle;
mod openapi;
pub mod problem;
pub mod registry;
pub mod server;
mod submit;

pub use openapi::{OPENAPI_JSON, openapi};
