//! The outermost layer of every API behind the gateway: believes no request without an assertion,
//! gives handlers a [`Principal`], and makes every refusal a complete problem.

use std::{fmt, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{self, FromRequest, FromRequestParts, Request, State},
    http::{HeaderMap, HeaderValue, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretBox};
use serde::{Serialize, de::DeserializeOwned};
use tracing::{Instrument, Span, field, info_span};

use crate::{
    assertion::{self, Audience, Claims, Expectation, Scope},
    id::{RequestId, Subject, TenantId},
    problem::{Code, Problem},
};

/// Most bytes of a body: the gateway's 1 MiB, and slack, because the gateway is who refuses.
pub const BODY_MAX_BYTES: usize = 1_024 * 1_024 + 64 * 1_024;

/// Longest description of what is wrong with a body or query, which may repeat parts of it.
const DETAIL_MAX_CHARS: usize = 200;

/// What an API needs to believe a request.
#[derive(Clone)]
pub struct Guard(Arc<Inner>);

struct Inner {
    audience: Audience,
    key: SecretBox<[u8; 32]>,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    continue_trace: fn(&Span, Option<&str>),
}

/// Who asks, as the gateway stated.
#[derive(Clone, Debug)]
pub struct Principal(Arc<Claims>);

/// A JSON body; one that is not what `T` wants is a problem.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

/// A query string; one that is not what `T` wants is a problem.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

/// Path parameters; ones that cannot be what `T` wants name nothing that exists.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

impl Guard {
    /// Believes assertions for `audience` under `key`. `now` is the clock, `continue_trace` makes a
    /// span part of the trace that a `traceparent` names (`ops::telemetry::continue_trace`).
    pub fn new(
        audience: Audience,
        key: &[u8; 32],
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        continue_trace: fn(&Span, Option<&str>),
    ) -> Self {
        let key = SecretBox::new(Box::new(*key));
        Self(Arc::new(Inner {
            audience,
            key,
            now: Box::new(now),
            continue_trace,
        }))
    }

    /// `routes` behind this guard. Give it all routes: what is not among them is answered with 404
    /// and 405 problems.
    pub fn protect(self, routes: Router) -> Router {
        routes
            .fallback(async || Problem::new(Code::NotFound, "There is no such route."))
            .method_not_allowed_fallback(async || {
                Problem::new(
                    Code::MethodNotAllowed,
                    "The path has other methods: see Allow.",
                )
            })
            .layer(middleware::from_fn_with_state(self, authenticate))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("audience", &self.0.audience)
            .finish_non_exhaustive()
    }
}

/// Reads the body whole, verifies the assertion, runs the handler in the request's span.
async fn authenticate(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let (request_id, response) = match admit(&guard.0, request).await {
        Ok((claims, request)) => {
            let request_id = claims.request_id;
            let span = request_span(&claims);
            (guard.0.continue_trace)(&span, claims.traceparent.as_deref());
            let response = next.run(request).instrument(span.clone()).await;
            span.record("http.status_code", response.status().as_u16());
            (Some(request_id), response)
        }
        Err(problem) => (None, problem.into_response()),
    };
    complete(response, &path, request_id, (guard.0.now)())
}

async fn admit(guard: &Inner, request: Request) -> Result<(Arc<Claims>, Request), Problem> {
    let refused = || Problem::new(Code::InvalidToken, "No valid internal assertion.");
    let (mut parts, body) = request.into_parts();
    let header = parts
        .headers
        .remove(assertion::HEADER)
        .ok_or_else(refused)?;
    let header = header.to_str().map_err(|_| refused())?;
    let body = to_bytes(body, BODY_MAX_BYTES).await.map_err(|_| {
        let max = u64::try_from(BODY_MAX_BYTES).unwrap_or(u64::MAX);
        Problem::new(
            Code::PayloadTooLarge,
            "The body could not be read within its limit.",
        )
        .with_max_size(max)
    })?;
    let path_and_query = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let expected = Expectation {
        now: (guard.now)(),
        audience: guard.audience,
        method: parts.method.as_str(),
        path_and_query,
        body_sha256: &assertion::sha256_hex(&body),
    };
    let claims = assertion::verify(header, guard.key.expose_secret(), &expected)
        .inspect_err(|refusal| tracing::warn!(reason = %refusal, "assertion refused"))
        .map_err(|_| refused())?;
    let claims = Arc::new(claims);
    parts.extensions.insert(Principal(Arc::clone(&claims)));
    Ok((claims, Request::from_parts(parts, Body::from(body))))
}

fn request_span(claims: &Claims) -> Span {
    info_span!(
        "http.request.serve",
        http.method = %claims.method,
        request.id = %claims.request_id,
        tenant.id = %claims.tenant,
        http.status_code = field::Empty,
    )
}

/// Fills in a problem's instance, request id and time.
fn complete(
    mut response: Response,
    path: &str,
    request_id: Option<RequestId>,
    now: Timestamp,
) -> Response {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let body = problem.at(path, request_id, now).to_json_bytes();
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        *response.body_mut() = Body::from(body);
    }
    response
}

impl Principal {
    /// Everything that was stated.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.0
    }

    /// Whose data this is about.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.0.tenant
    }

    /// Who asks.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// Whether the credential has `scope`.
    #[must_use]
    pub fn has_scope(&self, scope: Scope) -> bool {
        self.0.has_scope(scope)
    }

    /// The problem to answer with when the credential lacks `scope`.
    pub fn require(&self, scope: Scope) -> Result<(), Problem> {
        if self.has_scope(scope) {
            return Ok(());
        }
        Err(Problem::new(
            Code::AccessDenied,
            format!("The scope {scope} is required."),
        ))
    }

    /// The problem to answer with when the credential has none of `scopes`, of which the first is
    /// the one to ask for.
    pub fn require_one_of(&self, scopes: &[Scope]) -> Result<(), Problem> {
        match scopes.first() {
            Some(first) if !scopes.iter().any(|scope| self.has_scope(*scope)) => {
                self.require(*first)
            }
            _ => Ok(()),
        }
    }

    /// Whether they see every job of the tenant.
    #[must_use]
    pub fn sees_whole_tenant(&self) -> bool {
        self.has_scope(Scope::JobsAdmin)
    }

    /// The team whose jobs they see beside their own.
    #[must_use]
    pub fn sees_team(&self) -> Option<&Subject> {
        self.0
            .team
            .as_ref()
            .filter(|_| self.has_scope(Scope::JobsReadTeam))
    }

    /// Whether they may read a job of their tenant that `subject` submitted as a member of `team`.
    #[must_use]
    pub fn may_read_job(&self, subject: &str, team: Option<&str>) -> bool {
        self.sees_whole_tenant()
            || self.subject().as_str() == subject
            || self
                .sees_team()
                .is_some_and(|seen| team == Some(seen.as_str()))
    }

    /// Whether they may cancel a job of their tenant that `subject` submitted. A team's members
    /// read each other's jobs, but end only their own.
    #[must_use]
    pub fn may_cancel_job(&self, subject: &str) -> bool {
        self.sees_whole_tenant()
            || (self.has_scope(Scope::JobsSubmit) && self.subject().as_str() == subject)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let principal = parts.extensions.get::<Self>().cloned();
        principal.ok_or_else(|| Problem::new(Code::InvalidToken, "No valid internal assertion."))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        require_json(request.headers())?;
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|_| Problem::new(Code::InvalidRequest, "The body could not be read."))?;
        parse_json(&body).map(Self)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match extract::Query::from_request_parts(parts, state).await {
            Ok(extract::Query(query)) => Ok(Self(query)),
            Err(error) => {
                let text: String = error.body_text().chars().take(DETAIL_MAX_CHARS).collect();
                let detail = format!("The query string is not valid: {text}.");
                Err(Problem::new(Code::InvalidRequest, detail))
            }
        }
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match extract::Path::from_request_parts(parts, state).await {
            Ok(extract::Path(path)) => Ok(Self(path)),
            Err(_) => Err(Problem::new(
                Code::NotFound,
                "The path names nothing that exists.",
            )),
        }
    }
}

/// The problem to answer with when a body is not said to be JSON.
pub fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = given
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(
        Code::InvalidContentType,
        "The content type must be application/json.",
    ))
}

/// The `T` that `body` is, or the problem to answer with.
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let detail = if error.is_data() {
            // Names the member or value at fault, and where it stands.
            let text: String = error.to_string().chars().take(DETAIL_MAX_CHARS).collect();
            format!("The body is not as expected: {text}.")
        } else {
            format!("The body is not valid JSON (line {line}, column {column}).")
        };
        Problem::new(Code::InvalidRequest, detail)
    })
}
