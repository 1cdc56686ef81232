//! Webhook endpoints, their deliveries, and the body a webhook carries.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::jobs::{Confirmation, JobEventType, JobFailure, JobStatus};
use crate::{
    id::{EndpointId, JobId, MessageId, TenantId},
    job_type::JobType,
};

/// Longest URL of an endpoint.
pub const URL_MAX_BYTES: usize = 2_048;
/// Longest description of an endpoint.
pub const DESCRIPTION_MAX_BYTES: usize = 256;
/// Longest time an old secret still signs, beside its successor.
pub const OVERLAP_MAX_SECONDS: u32 = 7 * 24 * 3_600;
/// How long an old secret still signs when the request does not say.
pub const OVERLAP_DEFAULT_SECONDS: u32 = 24 * 3_600;
/// What an endpoint is told of when it does not say.
pub const DEFAULT_EVENTS: [JobEventType; 4] = [
    JobEventType::Completed,
    JobEventType::Failed,
    JobEventType::Cancelled,
    JobEventType::Confirmed,
];
/// What an endpoint can ask to be told of.
pub const EVENTS: [JobEventType; 6] = [
    JobEventType::Submitted,
    JobEventType::Started,
    JobEventType::Completed,
    JobEventType::Failed,
    JobEventType::Cancelled,
    JobEventType::Confirmed,
];

/// An endpoint to be told of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEndpoint {
    /// Where to send them: `https`, a public address.
    #[schema(format = Uri, max_length = 2048)]
    pub url: String,
    /// Which events; all but submitted and started if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<JobEventType>>,
    /// The tenant's own note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256)]
    pub description: Option<String>,
}

/// What to change of an endpoint; absent members stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateEndpoint {
    /// Where to send events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Uri, max_length = 2048)]
    pub url: Option<String>,
    /// Which events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<JobEventType>>,
    /// The tenant's own note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256)]
    pub description: Option<String>,
    /// Whether to send; what a disabled endpoint is owed is kept, and sent once it is enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointView {
    /// The endpoint.
    pub endpoint_id: EndpointId,
    /// Where events are sent.
    pub url: String,
    /// Which events.
    pub events: Vec<JobEventType>,
    /// The tenant's own note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether events are sent.
    pub enabled: bool,
    /// Why it was disabled, if not by the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// A new endpoint, with its secret: shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct EndpointCreated {
    /// The endpoint.
    #[serde(flatten)]
    pub endpoint: EndpointView,
    /// What its webhooks are signed with (`whsec_…`).
    pub secret: String,
}

/// How to replace an endpoint's secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateSecret {
    /// How long the old secret still signs as well: 24 h if absent, at most 7 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 604_800)]
    pub overlap_seconds: Option<u32>,
}

/// An endpoint's new secret: shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct SecretRotated {
    /// The endpoint.
    pub endpoint_id: EndpointId,
    /// What its webhooks are signed with from now on (`whsec_…`).
    pub secret: String,
    /// Until when the old secret signs as well.
    pub previous_expires_at: Timestamp,
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DeliveryStatus {
    /// Will be tried (again).
    Pending,
    /// The endpoint took it.
    Delivered,
    /// Given up; can be replayed.
    Failed,
    /// Kept, because the endpoint is disabled; due once it is enabled.
    Held,
}

/// One event for one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryView {
    /// The delivery, sent as `webhook-id`.
    pub message_id: MessageId,
    /// Whom it is for.
    pub endpoint_id: EndpointId,
    /// What happened; `null` for a test.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<JobEventType>,
    /// Which job it happened to; absent for a test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// How far it is.
    pub status: DeliveryStatus,
    /// How many times it was tried.
    pub attempts: u32,
    /// When the event arrived.
    pub created_at: Timestamp,
    /// When it will be tried next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// When the endpoint took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<Timestamp>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// One attempt at a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// Counted from 1.
    pub attempt: u32,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration_ms: u64,
    /// What the endpoint answered, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The beginning of the answer's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_body: Option<String>,
}

/// A delivery that was queued by a test or a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryQueued {
    /// The delivery.
    pub message_id: MessageId,
}

/// Which endpoints to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EndpointsQuery {
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Most items of the page: 50 if absent, at most 200.
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u32>,
}

/// Which deliveries to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveriesQuery {
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Most items of the page: 50 if absent, at most 200.
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u32>,
    /// Only those for this endpoint.
    #[param(inline)]
    pub endpoint_id: Option<EndpointId>,
    /// Only those in this status.
    #[param(inline)]
    pub status: Option<DeliveryStatus>,
    /// Only those about this job.
    #[param(inline)]
    pub job_id: Option<JobId>,
}

/// The body of a webhook about a job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WebhookBody {
    /// What happened.
    #[serde(rename = "type")]
    pub event_type: JobEventType,
    /// When it happened.
    pub timestamp: Timestamp,
    /// To which job, and how it is.
    pub data: WebhookData,
}

/// The job a webhook is about.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WebhookData {
    /// The job.
    pub job_id: JobId,
    /// What it does.
    pub job_type: JobType,
    /// Where it is after the event.
    pub status: JobStatus,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The result; absent when it is larger than 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<Box<RawValue>>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobFailure>,
    /// Where its confirmation on chain is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blockchain_confirmation: Option<Confirmation>,
}

impl DeliveryStatus {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Delivered, Self::Failed, Self::Held];

    /// The status as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Delivered => "DELIVERED",
            Self::Failed => "FAILED",
            Self::Held => "HELD",
        }
    }
}
