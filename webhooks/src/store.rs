//! Named SQL over the schema `webhooks`.

pub mod attempts;
pub mod claims;
pub mod deliveries;
pub mod endpoints;
pub mod follow;
pub mod health;
pub mod queue;
