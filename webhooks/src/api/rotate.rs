//! `POST /v1/webhooks/endpoints/{endpoint_id}/rotate-secret`: a new secret, shown this once; the
//! old one signs beside it for a while.

use axum::{body::Bytes, extract::State, http::HeaderMap};
use contracts::{
    api::webhooks::{OVERLAP_DEFAULT_SECONDS, OVERLAP_MAX_SECONDS, RotateSecret, SecretRotated},
    assertion::Scope,
    id::EndpointId,
    problem::{Code, FieldError, Problem},
    server::{Json, Path, Principal, parse_json, require_json},
};
use jiff::{SignedDuration, Timestamp};
use ring::rand::SystemRandom;
use secrecy::ExposeSecret;
use serde_json::json;

use super::{Api, ApiError, not_found, once::Once};
use crate::{sign::Secret, store::endpoints};

/// Secrets of an endpoint that may sign at a time: each is an entry of `webhook-signature`, which a
/// receiver tries in turn.
const SECRETS_LIVE_MAX: i64 = 5;

pub(super) async fn rotate(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<EndpointId>,
    once: Once,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<SecretRotated>, ApiError> {
    principal.require(Scope::WebhooksWrite)?;
    let overlap = overlap(&headers, &body)?;
    let (tenant, now) = (principal.tenant().uuid(), api.clock.now());
    let mut client = api.pool.get().await?;
    let transaction = client.transaction().await?;
    let answer = json!({ "endpoint_id": id });
    if once.claim(&transaction, &answer, now).await?.is_some() {
        return Err(already().into());
    }
    let endpoint = endpoints::lock(&transaction, tenant, id.uuid()).await?;
    let endpoint = endpoint.ok_or_else(|| not_found("endpoint"))?;
    let (live, first_ends) = endpoints::live_secrets(&transaction, endpoint.id, now).await?;
    if live >= SECRETS_LIVE_MAX && !overlap.is_zero() {
        return Err(too_many(first_ends).into());
    }
    let until = endpoints::retire_secrets(&transaction, endpoint.id, now, overlap).await?;
    let random = SystemRandom::new();
    let secret = Secret::generate(&random);
    let sealed = secret.seal(&api.key, endpoint.id, &random);
    endpoints::add_secret(&transaction, endpoint.id, &sealed, now).await?;
    transaction.commit().await?;
    Ok(Json(SecretRotated {
        endpoint_id: id,
        secret: secret.reveal().expose_secret().to_owned(),
        previous_expires_at: until,
    }))
}

/// A retry cannot be given the secret again: it is nowhere in the clear.
fn already() -> Problem {
    let detail = "This key rotated the secret already. The new one was shown then and is not kept: \
                  rotate it with another key if it was lost.";
    Problem::new(Code::IdempotencyConflict, detail)
}

/// How long the present secret signs beside the new one; no body asks for the usual time.
fn overlap(headers: &HeaderMap, body: &[u8]) -> Result<SignedDuration, Problem> {
    let request = if body.is_empty() {
        RotateSecret::default()
    } else {
        require_json(headers)?;
        parse_json(body)?
    };
    let seconds = request.overlap_seconds.unwrap_or(OVERLAP_DEFAULT_SECONDS);
    if seconds > OVERLAP_MAX_SECONDS {
        let detail = format!("must be at most {OVERLAP_MAX_SECONDS} (7 days)");
        let error = FieldError {
            pointer: "/overlap_seconds".into(),
            code: "maximum".into(),
            detail,
        };
        let problem = Problem::new(Code::InvalidRequest, "The rotation is not valid.");
        return Err(problem.with_errors(vec![error]));
    }
    Ok(SignedDuration::from_secs(seconds.into()))
}

/// No secret is ended before the time that its rotation promised: receivers count on it.
fn too_many(first_ends: Option<Timestamp>) -> Problem {
    let first_ends = first_ends.map_or_else(String::new, |at| format!(" at {at}"));
    let detail = format!(
        "{SECRETS_LIVE_MAX} secrets sign already: wait until the first of them ends{first_ends}, \
         or ask for an overlap of 0 seconds, which ends them all."
    );
    Problem::new(Code::Conflict, detail)
}
