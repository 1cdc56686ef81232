//! Completions become finality, once.
//!
//! The core is pure: [`confirmation`] (what is sealed of a job), [`batch`] (a batch and its life),
//! [`close`] (when one closes), [`horizon`] and [`sight`] (what may be believed of what endpoints
//! say), [`nonce`], [`fees`], [`transaction`], [`classify`]. At the rim stand [`intake`] (Kafka),
//! [`batcher`], [`signer`], [`sender`], [`finalizer`] (the steps of a lane), [`chain`] (the only
//! file that talks to RPC endpoints) and [`store`] (the only one that talks SQL). [`lane`] runs the
//! steps in order under a lease; [`run`] starts all of it, [`api`] serves proofs, [`resume`] is
//! what a person does about a batch that stalled.

pub mod api;
pub mod batch;
pub mod batcher;
pub mod chain;
pub mod check;
pub mod classify;
pub mod close;
pub mod config;
pub mod confirmation;
pub mod deploy;
pub mod fees;
pub mod finalizer;
pub mod horizon;
pub mod intake;
pub mod lane;
pub mod nonce;
pub mod resume;
pub mod run;
pub mod sender;
pub mod sight;
pub mod signer;
pub mod store;
pub mod transaction;
