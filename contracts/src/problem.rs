//! Errors as every HTTP answer shows them: RFC 9457 problem details with a code of a closed list.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use code::Code;

use crate::id::{JobId, RequestId};

mod code;

/// The media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";
/// Most field errors one problem carries; the rest are left off.
pub const FIELD_ERRORS_MAX: usize = 32;

/// One member of a request that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// JSON Pointer (RFC 6901) from the root of the request's body.
    #[schema(examples("/payload/text"))]
    pub pointer: String,
    /// Which rule is broken, such as `required` or `type`.
    #[schema(examples("required"))]
    pub code: String,
    /// The rule in words.
    pub detail: String,
}

/// A problem, ready to be answered. Boxed, because it is the error type of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(Box<ProblemDetails>);

/// The members of a problem (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// A URI that identifies the kind of problem.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The kind of problem in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The path that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What went wrong, of a closed list.
    pub code: Code,
    /// When, by the server's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// The request, to be named when asking for help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Each member at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Largest accepted body, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<u64>,
    /// Seconds until a retry may succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// Names of the rate limit policies that refused.
    #[serde(
        rename = "violated-policies",
        default,
        skip_serializing_if = "Vec::is_empty"
    )]
    pub violated_policies: Vec<String>,
    /// The job that was submitted before with the same content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// Methods the path has, for the `Allow` header.
    #[serde(skip)]
    pub allow: Option<String>,
}

impl FieldError {
    /// The member at `pointer` breaks the rule `code`.
    pub fn new(
        pointer: impl Into<String>,
        code: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            pointer: pointer.into(),
            code: code.into(),
            detail: detail.into(),
        }
    }
}

impl Problem {
    /// A problem with this code; `detail` is shown to the caller.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut problem = Self::bare(code);
        problem.0.detail = Some(detail.into());
        problem
    }

    /// An error of ours: it says nothing but its request id, so log the cause where it happens.
    #[must_use]
    pub fn internal() -> Self {
        Self::bare(Code::Internal)
    }

    /// The members, to read.
    #[must_use]
    pub fn details(&self) -> &ProblemDetails {
        &self.0
    }

    /// What went wrong.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.code.status()
    }

    /// Names the members at fault.
    #[must_use]
    pub fn with_errors(mut self, mut errors: Vec<FieldError>) -> Self {
        errors.truncate(FIELD_ERRORS_MAX);
        self.0.errors = errors;
        self
    }

    /// States the largest accepted body, in bytes.
    #[must_use]
    pub fn with_max_size(mut self, bytes: u64) -> Self {
        self.0.max_size = Some(bytes);
        self
    }

    /// Says when to try again, in seconds; also sent as `Retry-After`.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after = Some(seconds);
        self
    }

    /// Names the rate limit policies that refused.
    #[must_use]
    pub fn with_violated_policies(mut self, policies: Vec<String>) -> Self {
        self.0.violated_policies = policies;
        self
    }

    /// Names the job that was submitted before with the same content.
    #[must_use]
    pub fn with_job_id(mut self, job_id: JobId) -> Self {
        self.0.job_id = Some(job_id);
        self
    }

    /// Lists the methods the path has; sent as `Allow`.
    #[must_use]
    pub fn with_allow(mut self, methods: impl Into<String>) -> Self {
        self.0.allow = Some(methods.into());
        self
    }

    /// Fills in what only the server knows. `path` is the request's path without its query.
    #[must_use]
    pub fn at(mut self, path: &str, request_id: Option<RequestId>, now: Timestamp) -> Self {
        self.0.instance = Some(path.to_owned());
        self.0.request_id = request_id;
        self.0.timestamp = Some(now);
        self
    }

    /// The body. A 500 shows no detail, whatever was given.
    #[must_use]
    pub fn to_json_bytes(&self) -> Vec<u8> {
        let hidden;
        let details = if self.0.code == Code::Internal {
            hidden = ProblemDetails {
                detail: None,
                errors: Vec::new(),
                ..(*self.0).clone()
            };
            &hidden
        } else {
            &*self.0
        };
        serde_json::to_vec(details).expect("strings and numbers have a JSON form")
    }

    /// The headers that go with the body, content type included, length not.
    #[must_use]
    pub fn headers(&self) -> Vec<(header::HeaderName, HeaderValue)> {
        let mut headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE))];
        if self.0.code == Code::InvalidToken {
            headers.push((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        }
        if let Some(seconds) = self.0.retry_after {
            headers.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
        }
        if let Some(allow) = self
            .0
            .allow
            .as_deref()
            .and_then(|a| HeaderValue::from_str(a).ok())
        {
            headers.push((header::ALLOW, allow));
        }
        headers
    }

    fn bare(code: Code) -> Self {
        Self(Box::new(ProblemDetails {
            type_uri: code.type_uri(),
            title: code.title().to_owned(),
            status: code.status().as_u16(),
            detail: None,
            instance: None,
            code,
            timestamp: None,
            request_id: None,
            errors: Vec::new(),
            max_size: None,
            retry_after: None,
            violated_policies: Vec::new(),
            job_id: None,
            allow: None,
        }))
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {}",
            self.0.code.as_str(),
            self.0.detail.as_deref().unwrap_or(&self.0.title)
        )
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json_bytes()));
        *response.status_mut() = self.status();
        response.headers_mut().extend(self.headers());
        // The server's outermost layer fills in what only it knows, and writes the body again.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_its_members() {
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let request_id = RequestId::generate(now);
        let problem = Problem::new(Code::RateLimitExceeded, "Try again later.")
            .with_retry_after(7)
            .with_violated_policies(vec!["minute".to_owned()])
            .at("/v1/jobs", Some(request_id), now);
        let json: serde_json::Value = serde_json::from_slice(&problem.to_json_bytes()).unwrap();
        let expected = serde_json::json!({
            "type": Code::RateLimitExceeded.type_uri(), "title": "The quota is exceeded",
            "status": 429,
            "title": "The quota is exceeded", "status": 429,
            "detail": "Try again later.", "instance": "/v1/jobs", "code": "RATE_LIMIT_EXCEEDED",
            "timestamp": "2026-01-02T03:04:05Z", "request_id": request_id, "retry_after": 7,
            "violated-policies": ["minute"],
        });
        assert_eq!(json, expected);
        let response = problem.into_response();
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(response.headers()["content-type"], CONTENT_TYPE);
    }

    #[test]
    fn an_internal_error_says_nothing() {
        let problem = Problem::new(Code::Internal, "password=hunter2")
            .with_errors(vec![FieldError::new("/a", "b", "c")]);
        let text = String::from_utf8(problem.to_json_bytes()).unwrap();
        assert!(
            !text.contains("hunter2") && !text.contains("errors"),
            "{text}"
        );
    }
}
