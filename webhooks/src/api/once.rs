//! Requests that act once for their idempotency key, however often they come: the key is claimed in
//! the transaction that acts.

use axum::{
    extract::FromRequestParts,
    http::{HeaderName, StatusCode, request::Parts},
    response::{IntoResponse as _, Response},
};
use contracts::{
    problem::{Code, Problem},
    server::{Json, Principal},
};
use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use ops::idempotency::{Claim, Request, claim};
use ring::digest;
use serde_json::Value;
use uuid::Uuid;

use super::ApiError;
use crate::SCHEMA;

/// How long a key stands for its request.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What makes a request the same as another.
#[derive(Debug)]
pub(super) struct Once {
    tenant: Uuid,
    /// Without one, each request is another.
    key: Option<String>,
    hash: [u8; 32],
}

impl<S: Send + Sync> FromRequestParts<S> for Once {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let principal = Principal::from_request_parts(parts, state).await?;
        let key = parts.headers.get(KEY);
        let key = key.and_then(|value| value.to_str().ok());
        let claims = principal.claims();
        let mut hash = digest::Context::new(&digest::SHA256);
        for part in [&claims.method, &claims.path, &claims.body_sha256] {
            hash.update(part.as_bytes());
            // None of them holds a line end, so no two requests run together.
            hash.update(b"\n");
        }
        let hash = hash.finish();
        Ok(Self {
            tenant: principal.tenant().uuid(),
            key: key.map(str::to_owned),
            hash: hash.as_ref().try_into().expect("SHA-256 has 32 bytes"),
        })
    }
}

impl Once {
    /// Claims the key for a request that will have this answer; the answer that it had before, if
    /// it was carried out before.
    pub(super) async fn claim(
        &self,
        transaction: &Transaction<'_>,
        answer: &Value,
        now: Timestamp,
    ) -> Result<Option<Value>, ApiError> {
        let Some(key) = &self.key else {
            return Ok(None);
        };
        let request = Request {
            tenant: self.tenant,
            key,
            hash: self.hash,
        };
        let until = now.saturating_add(KEPT).map_err(anyhow::Error::from)?;
        match claim(transaction, SCHEMA, request, answer, until).await? {
            Claim::Fresh => Ok(None),
            Claim::Replay(answer) => Ok(Some(answer)),
            Claim::Mismatch => {
                let detail = "The idempotency key was used with another request.";
                Err(Problem::new(Code::IdempotencyMismatch, detail).into())
            }
        }
    }
}

/// An answer that was given before.
pub(super) fn repeated(status: StatusCode, answer: Value) -> Response {
    (status, [(REPLAYED, "true")], Json(answer)).into_response()
}
