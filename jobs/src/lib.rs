//! Jobs: the record of truth about every job, the API that accepts and shows them, and the worker
//! that computes them.
//!
//! - [`job`]: a job's states and their legal moves; pure.
//! - [`executor`]: what the job types compute.
//! - [`announce`]: a job's events as `jobs.events.v1` tells them; pure.
//! - [`api`]: create, get, list, cancel, follow; one file an endpoint.
//! - [`worker`]: claim, compute under the lease, finish.
//! - [`upkeep`]: leases that ran out, keys that expired, depths of the queue.
//! - [`inbox`]: `relayer.confirmed.v1` becomes final jobs.
//! - [`store`]: the SQL of all of these.

pub mod announce;
pub mod api;
pub mod check;
pub mod config;
pub mod executor;
pub mod inbox;
pub mod job;
pub mod store;
pub mod upkeep;
pub mod worker;

pub use store::{SCHEMA, migrations};
