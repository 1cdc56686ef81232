//! `POST /v1/webhooks/endpoints`: a new endpoint, whose secret is shown this once.

use axum::{extract::State, http::StatusCode};
use contracts::{
    api::{
        jobs::JobEventType,
        webhooks::{
            CreateEndpoint, DEFAULT_EVENTS, DESCRIPTION_MAX_BYTES, EVENTS, EndpointCreated,
            URL_MAX_BYTES,
        },
    },
    assertion::Scope,
    id::EndpointId,
    problem::{Code, FieldError, Problem},
    server::{Json, Principal},
};
use ring::rand::SystemRandom;
use secrecy::ExposeSecret;
use serde_json::json;
use url::Url;

use super::{Api, ApiError, endpoints::view, once::Once};
use crate::{
    guard::Guard,
    sign::Secret,
    store::endpoints::{self, Endpoint},
};

/// Endpoints a tenant may have.
const ENDPOINTS_MAX: i64 = 100;

pub(super) async fn create(
    State(api): State<Api>,
    principal: Principal,
    once: Once,
    Json(request): Json<CreateEndpoint>,
) -> Result<(StatusCode, Json<EndpointCreated>), ApiError> {
    principal.require(Scope::WebhooksWrite)?;
    validate(&api.guard, &request)?;
    let now = api.clock.now();
    let id = EndpointId::generate(now);
    let tenant = principal.tenant().uuid();
    let mut client = api.pool.get().await?;
    let transaction = client.transaction().await?;
    let answer = json!({ "endpoint_id": id });
    if let Some(before) = once.claim(&transaction, &answer, now).await? {
        return Err(already(&before));
    }
    let events = request.events.unwrap_or_else(|| DEFAULT_EVENTS.to_vec());
    let endpoint = Endpoint {
        id: id.uuid(),
        url: request.url,
        events: events
            .iter()
            .map(|event| event.as_str().to_owned())
            .collect(),
        description: request.description,
        enabled: true,
        disabled_reason: None,
        created_at: now,
        updated_at: now,
    };
    if !endpoints::insert(&transaction, tenant, &endpoint, ENDPOINTS_MAX).await? {
        let detail = format!("A tenant may have {ENDPOINTS_MAX} endpoints: delete one first.");
        return Err(Problem::new(Code::Conflict, detail).into());
    }
    let random = SystemRandom::new();
    let secret = Secret::generate(&random);
    let sealed = secret.seal(&api.key, id.uuid(), &random);
    endpoints::add_secret(&transaction, id.uuid(), &sealed, now).await?;
    transaction.commit().await?;
    let secret = secret.reveal().expose_secret().to_owned();
    let created = EndpointCreated {
        endpoint: view(endpoint),
        secret,
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// A retry cannot be given the secret again: it is nowhere in the clear.
fn already(answer: &serde_json::Value) -> ApiError {
    let id = answer["endpoint_id"].as_str().unwrap_or_default();
    let detail = format!(
        "This key created {id} already. Its secret was shown then and is not kept: \
         rotate it if it was lost."
    );
    Problem::new(Code::IdempotencyConflict, detail).into()
}

/// Every member that is not acceptable, at once.
fn validate(guard: &Guard, request: &CreateEndpoint) -> Result<(), Problem> {
    let mut errors = Vec::new();
    errors.extend(url_error(guard, &request.url));
    errors.extend(request.events.as_deref().and_then(events_error));
    errors.extend(request.description.as_deref().and_then(description_error));
    refuse(errors)
}

pub(super) fn refuse(errors: Vec<FieldError>) -> Result<(), Problem> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Problem::new(Code::InvalidRequest, "The endpoint is not valid.").with_errors(errors))
}

pub(super) fn url_error(guard: &Guard, text: &str) -> Option<FieldError> {
    let detail = match Url::parse(text) {
        _ if text.len() > URL_MAX_BYTES => format!("must have at most {URL_MAX_BYTES} bytes"),
        // A parser drops or encodes them; Postgres text holds no NUL at all.
        _ if text.chars().any(char::is_control) => "must hold no control character".to_owned(),
        Err(error) => format!("is not a URL: {error}"),
        Ok(url) => guard.check_url(&url).err()?.to_string(),
    };
    Some(FieldError {
        pointer: "/url".into(),
        code: "url".into(),
        detail,
    })
}

/// What is wrong with a list of events, which is a set of those there are, and so no longer.
pub(super) fn events_error(events: &[JobEventType]) -> Option<FieldError> {
    let odd = events.iter().enumerate().find_map(|(place, event)| {
        let name = event.as_str();
        if !EVENTS.contains(event) {
            Some(format!("{name} cannot be subscribed to"))
        } else if events[..place].contains(event) {
            Some(format!("names {name} twice"))
        } else {
            None
        }
    });
    let none = || {
        events
            .is_empty()
            .then(|| "must name at least one event".to_owned())
    };
    Some(FieldError {
        pointer: "/events".into(),
        code: "events".into(),
        detail: odd.or_else(none)?,
    })
}

pub(super) fn description_error(text: &str) -> Option<FieldError> {
    if text.len() <= DESCRIPTION_MAX_BYTES && !text.contains('\0') {
        return None;
    }
    let detail = format!("must have at most {DESCRIPTION_MAX_BYTES} bytes and no NUL");
    Some(FieldError {
        pointer: "/description".into(),
        code: "description".into(),
        detail,
    })
}
