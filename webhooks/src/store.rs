//! Named SQL over the schema `webhooks`.

pub mod attempts;
pub mod deliveries;
pub mod endpoints;
