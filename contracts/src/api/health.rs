//! `GET /v1/health`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a process or a dependency is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Works.
    Healthy,
    /// Works, with something missing that it can do without for a while.
    Degraded,
    /// Does not work.
    Unhealthy,
}

/// The service and what it depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// The whole.
    pub status: HealthStatus,
    /// The parts.
    pub dependencies: Vec<Dependency>,
}

/// Something the service depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dependency {
    /// What it is.
    #[schema(examples("jobs"))]
    pub name: String,
    /// How it is.
    pub status: HealthStatus,
    /// How long it took to answer; absent when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
}
