//! The closed list of problem codes, with the status, title and type of each.

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const TYPE_BASE: &str = "https://jobseal.dev/problems/";
/// IETF draft-ietf-httpapi-ratelimit-headers: a client ran out of its quota.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// What went wrong; a client branches on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The submitted job is not valid; `errors` names each member at fault.
    JobValidationFailed,
    /// The request is not valid in another way.
    InvalidRequest,
    /// The route needs an `Idempotency-Key` header.
    IdempotencyKeyRequired,
    /// No credential, or one that is malformed, unknown, expired or revoked.
    InvalidToken,
    /// The credential lacks the scope, or the address is not allowed.
    AccessDenied,
    /// No such job is visible to the caller.
    JobNotFound,
    /// No such route or thing.
    NotFound,
    /// The job has no proof (yet).
    ProofNotFound,
    /// The path exists, but not with this method; see `Allow`.
    MethodNotAllowed,
    /// The route was taken away, after its `Sunset`.
    Gone,
    /// The request was not received in time.
    RequestTimeout,
    /// A request with this idempotency key is still being worked on.
    IdempotencyConflict,
    /// A job with the same content was submitted before; `job_id` names it.
    DuplicateJob,
    /// The job has ended and cannot be cancelled.
    JobNotCancellable,
    /// The request conflicts with the state of the thing.
    Conflict,
    /// The body is larger than `max_size` bytes.
    PayloadTooLarge,
    /// The request's target is too long.
    TargetTooLong,
    /// The request's headers are too many or too large.
    HeadersTooLarge,
    /// The body's media type is not the one expected.
    InvalidContentType,
    /// The idempotency key was used with another request.
    IdempotencyMismatch,
    /// The tenant's rate or quota is used up.
    RateLimitExceeded,
    /// The tenant or role has as many unfinished jobs as it may have.
    ActiveJobsExceeded,
    /// An error of ours.
    Internal,
    /// The service behind the gateway answered with nonsense, or not at all.
    BadGateway,
    /// A part that is needed is not available; try again.
    ServiceUnavailable,
    /// The service behind the gateway took too long.
    GatewayTimeout,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 26] = [
        Self::JobValidationFailed,
        Self::InvalidRequest,
        Self::IdempotencyKeyRequired,
        Self::InvalidToken,
        Self::AccessDenied,
        Self::JobNotFound,
        Self::NotFound,
        Self::ProofNotFound,
        Self::MethodNotAllowed,
        Self::Gone,
        Self::RequestTimeout,
        Self::IdempotencyConflict,
        Self::DuplicateJob,
        Self::JobNotCancellable,
        Self::Conflict,
        Self::PayloadTooLarge,
        Self::TargetTooLong,
        Self::HeadersTooLarge,
        Self::InvalidContentType,
        Self::IdempotencyMismatch,
        Self::RateLimitExceeded,
        Self::ActiveJobsExceeded,
        Self::Internal,
        Self::BadGateway,
        Self::ServiceUnavailable,
        Self::GatewayTimeout,
    ];

    /// The HTTP status that goes with the code.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::JobValidationFailed | Self::InvalidRequest | Self::IdempotencyKeyRequired => {
                StatusCode::BAD_REQUEST
            }
            Self::InvalidToken => StatusCode::UNAUTHORIZED,
            Self::AccessDenied => StatusCode::FORBIDDEN,
            Self::JobNotFound | Self::NotFound | Self::ProofNotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Gone => StatusCode::GONE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::IdempotencyConflict
            | Self::DuplicateJob
            | Self::JobNotCancellable
            | Self::Conflict => StatusCode::CONFLICT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::InvalidContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Self::RateLimitExceeded | Self::ActiveJobsExceeded => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The code as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JobValidationFailed => "JOB_VALIDATION_FAILED",
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::IdempotencyKeyRequired => "IDEMPOTENCY_KEY_REQUIRED",
            Self::InvalidToken => "INVALID_TOKEN",
            Self::AccessDenied => "ACCESS_DENIED",
            Self::JobNotFound => "JOB_NOT_FOUND",
            Self::NotFound => "NOT_FOUND",
            Self::ProofNotFound => "PROOF_NOT_FOUND",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::Gone => "GONE",
            Self::RequestTimeout => "REQUEST_TIMEOUT",
            Self::IdempotencyConflict => "IDEMPOTENCY_CONFLICT",
            Self::DuplicateJob => "DUPLICATE_JOB",
            Self::JobNotCancellable => "JOB_NOT_CANCELLABLE",
            Self::Conflict => "CONFLICT",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::TargetTooLong => "TARGET_TOO_LONG",
            Self::HeadersTooLarge => "HEADERS_TOO_LARGE",
            Self::InvalidContentType => "INVALID_CONTENT_TYPE",
            Self::IdempotencyMismatch => "IDEMPOTENCY_MISMATCH",
            Self::RateLimitExceeded => "RATE_LIMIT_EXCEEDED",
            Self::ActiveJobsExceeded => "ACTIVE_JOBS_EXCEEDED",
            Self::Internal => "INTERNAL",
            Self::BadGateway => "BAD_GATEWAY",
            Self::ServiceUnavailable => "SERVICE_UNAVAILABLE",
            Self::GatewayTimeout => "GATEWAY_TIMEOUT",
        }
    }

    /// The code in words.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::JobValidationFailed => "The job is not valid",
            Self::InvalidRequest => "The request is not valid",
            Self::IdempotencyKeyRequired => "An idempotency key is required",
            Self::InvalidToken => "A valid credential is required",
            Self::AccessDenied => "Access is denied",
            Self::JobNotFound => "There is no such job",
            Self::NotFound => "There is nothing here",
            Self::ProofNotFound => "There is no proof of this job",
            Self::MethodNotAllowed => "The method is not allowed here",
            Self::Gone => "The route is gone",
            Self::RequestTimeout => "The request was not received in time",
            Self::IdempotencyConflict => "A request with this idempotency key is in progress",
            Self::DuplicateJob => "The same job was submitted before",
            Self::JobNotCancellable => "The job cannot be cancelled any more",
            Self::Conflict => "The request conflicts with the present state",
            Self::PayloadTooLarge => "The body is too large",
            Self::TargetTooLong => "The request target is too long",
            Self::HeadersTooLarge => "The headers are too large",
            Self::InvalidContentType => "The content type is not supported",
            Self::IdempotencyMismatch => "The idempotency key was used with another request",
            Self::RateLimitExceeded => "The quota is exceeded",
            Self::ActiveJobsExceeded => "Too many jobs are active",
            Self::Internal => "Something went wrong on our side",
            Self::BadGateway => "A service behind the gateway failed",
            Self::ServiceUnavailable => "The service is not available",
            Self::GatewayTimeout => "A service behind the gateway took too long",
        }
    }

    /// The URI of the problem's `type`.
    #[must_use]
    pub fn type_uri(self) -> String {
        match self {
            Self::RateLimitExceeded => QUOTA_EXCEEDED.to_owned(),
            other => {
                format!(
                    "{TYPE_BASE}{}",
                    other.as_str().to_ascii_lowercase().replace('_', "-")
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_wire_name_and_a_type() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert!(code.type_uri().starts_with("https://"));
            assert!(code.status().as_u16() >= 400);
        }
        assert_eq!(
            Code::JobNotFound.type_uri(),
            "https://jobseal.dev/problems/job-not-found",
        );
    }
}
