//! Every route of the public interface, on one page.

use super::operation::{Operation, delete, get, patch, post};
use crate::{
    api::{
        Page,
        health::Health,
        jobs::{
            FollowJobQuery, JobEventView, JobView, ListJobsQuery, SubmitRequest, SubmitResponse,
        },
        keys::{CreateKey, KeyCreated, KeyRotated, KeyView, KeysQuery, RotateKey},
        proof::ProofResponse,
        usage::{
            InvoicePreview, InvoiceQuery, Prices, UsageEvent, UsageEventsQuery, UsageQuery,
            UsageResponse,
        },
        webhooks::{
            AttemptView, CreateEndpoint, DeliveriesQuery, DeliveryQueued, DeliveryView,
            EndpointCreated, EndpointView, EndpointsQuery, RotateSecret, SecretRotated,
            UpdateEndpoint,
        },
    },
    assertion::Scope,
    id::{EndpointId, JobId, KeyId, MessageId},
    problem::Code,
};

/// Every operation.
pub(super) fn all() -> Vec<Operation> {
    let parts = [jobs(), endpoints(), deliveries(), usage(), keys(), public()];
    parts.into_iter().flatten().collect()
}

fn jobs() -> Vec<Operation> {
    const JOB: &str = "/v1/jobs/{job_id}";
    vec![
        post("/v1/jobs", "submitJob", "jobs", "Submit a job")
            .needs(Scope::JobsSubmit)
            .idempotent(true)
            .body::<SubmitRequest>()
            .answers::<SubmitResponse>(202, "The job is accepted.")
            .located()
            .refuses(&[
                Code::JobValidationFailed,
                Code::PayloadTooLarge,
                Code::ActiveJobsExceeded,
            ]),
        get("/v1/jobs", "listJobs", "jobs", "List jobs, newest first")
            .needs(Scope::JobsRead)
            .query::<ListJobsQuery>()
            .answers::<Page<JobView>>(200, "The jobs one may see."),
        get(JOB, "getJob", "jobs", "Read a job")
            .needs(Scope::JobsRead)
            .path_id::<JobId>("job_id")
            .answers::<JobView>(200, "The job.")
            .refuses(&[Code::JobNotFound]),
        delete(JOB, "cancelJob", "jobs", "Cancel a job that has not ended")
            .needs(Scope::JobsSubmit)
            .path_id::<JobId>("job_id")
            .answers::<JobView>(200, "The job, cancelled.")
            .refuses(&[Code::JobNotFound, Code::JobNotCancellable]),
        get(
            "/v1/jobs/{job_id}/events",
            "streamJobEvents",
            "jobs",
            "Follow a job's events",
        )
        .needs(Scope::JobsRead)
        .path_id::<JobId>("job_id")
        .query::<FollowJobQuery>()
        .header("Last-Event-ID", false, "Only events after this number.")
        .header(
            "Upgrade",
            false,
            "`websocket`, in a handshake of RFC 6455: the same events as text messages.",
        )
        .streams::<JobEventView>("text/event-stream", "Server-sent events.")
        .answers_without_body(101, "A WebSocket, where one was asked for.")
        .answers_without_body(204, "There will be no more events than were told.")
        .refuses(&[Code::JobNotFound]),
        get(
            "/v1/jobs/{job_id}/proof",
            "getJobProof",
            "jobs",
            "Prove a job's outcome",
        )
        .needs(Scope::JobsRead)
        .path_id::<JobId>("job_id")
        .answers::<ProofResponse>(200, "What `JobsRegistry.verify` accepts.")
        .refuses(&[Code::ProofNotFound]),
    ]
}

fn endpoints() -> Vec<Operation> {
    const ALL: &str = "/v1/webhooks/endpoints";
    const ONE: &str = "/v1/webhooks/endpoints/{endpoint_id}";
    const ROTATE: &str = "/v1/webhooks/endpoints/{endpoint_id}/rotate-secret";
    const TEST: &str = "/v1/webhooks/endpoints/{endpoint_id}/test";
    let read = Scope::WebhooksRead;
    let write = Scope::WebhooksWrite;
    vec![
        post(ALL, "createEndpoint", "webhooks", "Create an endpoint")
            .needs(write)
            .idempotent(false)
            .body::<CreateEndpoint>()
            .answers::<EndpointCreated>(201, "The endpoint and its secret, shown this once.")
            .located()
            .refuses(&[Code::Conflict]),
        get(
            ALL,
            "listEndpoints",
            "webhooks",
            "List endpoints, newest first",
        )
        .needs(read)
        .query::<EndpointsQuery>()
        .answers::<Page<EndpointView>>(200, "The tenant's endpoints."),
        get(ONE, "getEndpoint", "webhooks", "Read an endpoint")
            .needs(read)
            .path_id::<EndpointId>("endpoint_id")
            .answers::<EndpointView>(200, "The endpoint."),
        patch(ONE, "updateEndpoint", "webhooks", "Change an endpoint")
            .needs(write)
            .idempotent(false)
            .path_id::<EndpointId>("endpoint_id")
            .body::<UpdateEndpoint>()
            .answers::<EndpointView>(200, "The endpoint, changed."),
        delete(ONE, "deleteEndpoint", "webhooks", "Delete an endpoint")
            .needs(write)
            .path_id::<EndpointId>("endpoint_id")
            .answers_nothing(),
        post(
            ROTATE,
            "rotateSecret",
            "webhooks",
            "Replace an endpoint's secret",
        )
        .needs(write)
        .idempotent(false)
        .path_id::<EndpointId>("endpoint_id")
        .optional_body::<RotateSecret>()
        .answers::<SecretRotated>(200, "The new secret, shown this once.")
        .refuses(&[Code::Conflict]),
        post(TEST, "testEndpoint", "webhooks", "Send a test")
            .needs(write)
            .idempotent(false)
            .path_id::<EndpointId>("endpoint_id")
            .answers::<DeliveryQueued>(202, "The test is queued.")
            .refuses(&[Code::Conflict]),
    ]
}

fn deliveries() -> Vec<Operation> {
    const ONE: &str = "/v1/webhooks/deliveries/{message_id}";
    const ATTEMPTS: &str = "/v1/webhooks/deliveries/{message_id}/attempts";
    const REPLAY: &str = "/v1/webhooks/deliveries/{message_id}/replay";
    vec![
        get(
            "/v1/webhooks/deliveries",
            "listDeliveries",
            "webhooks",
            "List deliveries",
        )
        .needs(Scope::WebhooksRead)
        .query::<DeliveriesQuery>()
        .answers::<Page<DeliveryView>>(200, "The tenant's deliveries, newest first."),
        get(ONE, "getDelivery", "webhooks", "Read a delivery")
            .needs(Scope::WebhooksRead)
            .path_id::<MessageId>("message_id")
            .answers::<DeliveryView>(200, "The delivery."),
        get(
            ATTEMPTS,
            "listAttempts",
            "webhooks",
            "List the attempts at a delivery",
        )
        .needs(Scope::WebhooksRead)
        .path_id::<MessageId>("message_id")
        .answers::<Page<AttemptView>>(200, "Every attempt, oldest first."),
        post(REPLAY, "replayDelivery", "webhooks", "Deliver again")
            .needs(Scope::WebhooksWrite)
            .idempotent(false)
            .path_id::<MessageId>("message_id")
            .answers::<DeliveryQueued>(202, "The delivery is queued again.")
            .refuses(&[Code::Conflict]),
    ]
}

fn usage() -> Vec<Operation> {
    vec![
        get("/v1/usage", "getUsage", "billing", "Read usage by period")
            .needs(Scope::BillingRead)
            .query::<UsageQuery>()
            .answers::<UsageResponse>(200, "The tenant's usage."),
        get(
            "/v1/usage/events",
            "streamUsageEvents",
            "billing",
            "Read every billable fact",
        )
        .needs(Scope::BillingRead)
        .query::<UsageEventsQuery>()
        .streams::<UsageEvent>("application/x-ndjson", "One event a line, oldest first."),
        get(
            "/v1/invoices/preview",
            "previewInvoice",
            "billing",
            "Preview an invoice",
        )
        .needs(Scope::BillingRead)
        .query::<InvoiceQuery>()
        .answers::<InvoicePreview>(200, "What the invoice would be now."),
        get("/v1/prices", "getPrices", "billing", "Read the prices")
            .needs(Scope::BillingRead)
            .answers::<Prices>(200, "The tenant's prices."),
    ]
}

fn keys() -> Vec<Operation> {
    const ALL: &str = "/v1/api-keys";
    const ONE: &str = "/v1/api-keys/{key_id}";
    let scope = Scope::KeysAdmin;
    vec![
        post(ALL, "createKey", "keys", "Create an API key")
            .needs(scope)
            .idempotent(false)
            .body::<CreateKey>()
            .answers::<KeyCreated>(201, "The key, shown this once.")
            .located()
            .refuses(&[Code::Conflict]),
        get(ALL, "listKeys", "keys", "List API keys, newest first")
            .needs(scope)
            .query::<KeysQuery>()
            .answers::<Page<KeyView>>(200, "The tenant's keys, ended ones too for a while."),
        get(ONE, "getKey", "keys", "Read an API key")
            .needs(scope)
            .path_id::<KeyId>("key_id")
            .answers::<KeyView>(200, "The key, without its secret."),
        delete(
            ONE,
            "revokeKey",
            "keys",
            "Revoke an API key, at once and for ever",
        )
        .needs(scope)
        .path_id::<KeyId>("key_id")
        .answers_nothing(),
        post(
            "/v1/api-keys/{key_id}/rotate",
            "rotateKey",
            "keys",
            "Replace an API key",
        )
        .needs(scope)
        .idempotent(false)
        .path_id::<KeyId>("key_id")
        .optional_body::<RotateKey>()
        .answers::<KeyRotated>(200, "The new key, shown this once.")
        .refuses(&[Code::Conflict]),
    ]
}

fn public() -> Vec<Operation> {
    vec![
        get(
            "/v1/health",
            "getHealth",
            "service",
            "Read how the service is",
        )
        .answers::<Health>(200, "Healthy or degraded.")
        .answers::<Health>(503, "Unhealthy."),
    ]
}
