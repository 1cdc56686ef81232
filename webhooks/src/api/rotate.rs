//! `POST /v1/webhooks/endpoints/{endpoint_id}/rotate-secret`: a new secret, shown this once; the
//! old one signs beside it for a while.

use axum::extract::State;
use contracts::{
    api::webhooks::{OVERLAP_DEFAULT_SECONDS, OVERLAP_MAX_SECONDS, RotateSecret, SecretRotated},
    assertion::Scope,
    id::EndpointId,
    problem::{Code, FieldError, Problem},
    server::{Json, Path, Principal},
};
use jiff::SignedDuration;
use ring::rand::SystemRandom;
use secrecy::ExposeSecret;

use super::{Api, ApiError, not_found};
use crate::{sign::Secret, store::endpoints};

pub(super) async fn rotate(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<EndpointId>,
    Json(request): Json<RotateSecret>,
) -> Result<Json<SecretRotated>, ApiError> {
    principal.require(Scope::WebhooksWrite)?;
    let seconds = request.overlap_seconds.unwrap_or(OVERLAP_DEFAULT_SECONDS);
    if seconds > OVERLAP_MAX_SECONDS {
        let detail = format!("must be at most {OVERLAP_MAX_SECONDS} (7 days)");
        let error = FieldError {
            pointer: "/overlap_seconds".into(),
            code: "maximum".into(),
            detail,
        };
        let problem = Problem::new(Code::InvalidRequest, "The rotation is not valid.");
        return Err(problem.with_errors(vec![error]).into());
    }
    let (tenant, now) = (principal.tenant().uuid(), api.clock.now());
    let mut client = api.pool.get().await?;
    let transaction = client.transaction().await?;
    let endpoint = endpoints::get(&transaction, tenant, id.uuid()).await?;
    let endpoint = endpoint.ok_or_else(|| not_found("endpoint"))?;
    let overlap = SignedDuration::from_secs(seconds.into());
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
