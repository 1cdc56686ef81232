//! The gateway: who are you, may you, where to, what did it cost.
//!
//! A request's path is read in [`proxy`], phases in order; requests with a body go on in `submit`.
//! [`run`] builds everything. What a request needs to know comes from one immutable [`snapshot`];
//! whether it is too much is decided by [`limit`]; what it cost is kept by [`spool`] until Kafka
//! has it. Before all that, [`door`] decides what is a request, and [`abuse`] who is heard.

pub mod abuse;
pub mod admin;
mod answer;
pub mod auth;
pub mod budget;
pub mod config;
pub mod ctx;
pub mod door;
pub mod drain;
pub mod handover;
pub mod headers;
pub mod health;
pub mod idempotency;
pub mod keys;
pub mod limit;
pub mod pages;
mod pass;
pub mod proxy;
pub mod redis;
pub mod reject;
pub mod route;
pub mod rule;
pub mod run;
pub mod sight;
pub mod signature;
pub mod snapshot;
pub mod spool;
pub mod store;
pub mod streams;
mod submit;
pub mod upstream;
pub mod usage;
