//! What of a request for a key is granted: nothing that the asking credential is not itself.

use std::time::Duration;

use alloy::primitives::Address;
use contracts::{
    api::keys::{
        CreateKey, KeyView, LIFE_MAX_SECONDS, NAME_MAX_BYTES, OVERLAP_DEFAULT_SECONDS,
        OVERLAP_MAX_SECONDS, RotateKey,
    },
    assertion::{Role, Scope},
    id::Subject,
    problem::{Code, FieldError, Problem},
};

use super::NewKey;
use crate::snapshot::Identity;

/// The key that `identity` asks for.
pub(super) fn new_key(asks: &Identity, request: CreateKey) -> Result<NewKey, Problem> {
    let role = request.role.unwrap_or(asks.role);
    let mut errors: Vec<FieldError> = Vec::new();
    errors.extend(request.name.as_deref().and_then(name_error));
    errors.extend(scopes_error(&request.scopes));
    let life = request.expires_in_seconds.unwrap_or(LIFE_MAX_SECONDS);
    if !(1..=LIFE_MAX_SECONDS).contains(&life) {
        let detail = format!("must be from 1 to {LIFE_MAX_SECONDS} (a year)");
        errors.push(FieldError::new("/expires_in_seconds", "range", detail));
    }
    if !errors.is_empty() {
        let problem = Problem::new(Code::InvalidRequest, "The key is not valid.");
        return Err(problem.with_errors(errors));
    }
    let new = NewKey {
        tenant: asks.tenant,
        name: request.name,
        subject: request.subject.unwrap_or_else(|| asks.subject.clone()),
        team: request.team.or_else(|| asks.team.clone()),
        submitter: request.submitter.or(asks.submitter),
        role,
        scopes: request.scopes,
        life: Duration::from_secs(life),
    };
    let (subject, team) = (&new.subject, new.team.as_ref());
    require_within(asks, role, &new.scopes, subject, team, new.submitter)?;
    Ok(new)
}

/// Whether `asks` may be shown the successor of `key`, which is as good as the key itself.
pub(super) fn may_rotate(asks: &Identity, key: &KeyView) -> Result<(), Problem> {
    let (subject, team) = (&key.subject, key.team.as_ref());
    require_within(asks, key.role, &key.scopes, subject, team, key.submitter)
}

/// How long the old key is still good.
pub(super) fn overlap(request: RotateKey) -> Result<Duration, Problem> {
    let seconds = request.overlap_seconds.unwrap_or(OVERLAP_DEFAULT_SECONDS);
    if seconds > OVERLAP_MAX_SECONDS {
        let detail = format!("must be at most {OVERLAP_MAX_SECONDS} (7 days)");
        let error = FieldError::new("/overlap_seconds", "maximum", detail);
        let problem = Problem::new(Code::InvalidRequest, "The rotation is not valid.");
        return Err(problem.with_errors(vec![error]));
    }
    Ok(Duration::from_secs(seconds))
}

/// No scope, role, name or address beyond those of who asks; names and addresses of others only for
/// who sees the whole tenant anyway.
fn require_within(
    asks: &Identity,
    role: Role,
    scopes: &[Scope],
    subject: &Subject,
    team: Option<&Subject>,
    submitter: Option<Address>,
) -> Result<(), Problem> {
    let refuse = |detail: String| Err(Problem::new(Code::AccessDenied, detail));
    if let Some(scope) = scopes.iter().find(|scope| !asks.scopes.contains(scope)) {
        return refuse(format!("Your credential does not have the scope {scope}."));
    }
    if role > asks.role {
        return refuse(format!("Your credential is not {role}."));
    }
    let others = *subject != asks.subject
        || (team.is_some() && team != asks.team.as_ref())
        || (submitter.is_some() && submitter != asks.submitter);
    if others && !asks.scopes.contains(&Scope::JobsAdmin) {
        let scope = Scope::JobsAdmin;
        return refuse(format!(
            "Another's subject, team or submitter needs the scope {scope}."
        ));
    }
    Ok(())
}

fn name_error(name: &str) -> Option<FieldError> {
    let fits = (1..=NAME_MAX_BYTES).contains(&name.len()) && !name.chars().any(char::is_control);
    let detail = format!("must have 1 to {NAME_MAX_BYTES} bytes and no control character");
    (!fits).then(|| FieldError::new("/name", "name", detail))
}

fn scopes_error(scopes: &[Scope]) -> Option<FieldError> {
    let twice = |(place, scope): (usize, &Scope)| scopes[..place].contains(scope);
    let detail = if scopes.is_empty() {
        "must name at least one scope"
    } else if scopes.iter().enumerate().any(twice) {
        "names a scope twice"
    } else {
        return None;
    };
    Some(FieldError::new("/scopes", "scopes", detail))
}

#[cfg(test)]
mod tests {
    use contracts::id::TenantId;
    use serde_json::{Value, json};

    use super::*;

    fn asks(scopes: &[Scope], role: Role) -> Identity {
        Identity {
            tenant: TenantId::generate("2026-01-02T03:04:05Z".parse().unwrap()),
            subject: "user_a".parse().unwrap(),
            team: Some("blue".parse().unwrap()),
            submitter: None,
            role,
            scopes: scopes.to_vec(),
        }
    }

    fn outcome(asks: &Identity, request: Value) -> Result<NewKey, Code> {
        let request = serde_json::from_value(request).unwrap();
        new_key(asks, request).map_err(|problem| problem.code())
    }

    #[test]
    fn a_key_is_never_more_than_who_asks_for_it() {
        let asks = asks(&[Scope::KeysAdmin, Scope::JobsRead], Role::TeamLead);
        let new = outcome(&asks, json!({ "scopes": ["jobs:read"] })).unwrap();
        assert_eq!((new.subject.as_str(), new.role), ("user_a", Role::TeamLead));
        assert_eq!(new.team, asks.team);
        for (change, code) in [
            (json!({ "scopes": ["jobs:submit"] }), Code::AccessDenied),
            (
                json!({ "scopes": ["jobs:read"], "role": "admin" }),
                Code::AccessDenied,
            ),
            (
                json!({ "scopes": ["jobs:read"], "subject": "user_b" }),
                Code::AccessDenied,
            ),
            (
                json!({ "scopes": ["jobs:read"], "team": "red" }),
                Code::AccessDenied,
            ),
            (
                json!({ "scopes": ["jobs:read"], "submitter": Address::repeat_byte(2) }),
                Code::AccessDenied,
            ),
            (json!({ "scopes": [] }), Code::InvalidRequest),
            (
                json!({ "scopes": ["jobs:read", "jobs:read"] }),
                Code::InvalidRequest,
            ),
            (
                json!({ "scopes": ["jobs:read"], "name": "" }),
                Code::InvalidRequest,
            ),
            (
                json!({ "scopes": ["jobs:read"], "expires_in_seconds": 0 }),
                Code::InvalidRequest,
            ),
            (
                json!({ "scopes": ["jobs:read"], "expires_in_seconds": LIFE_MAX_SECONDS + 1 }),
                Code::InvalidRequest,
            ),
        ] {
            assert_eq!(
                outcome(&asks, change.clone()).unwrap_err(),
                code,
                "{change}"
            );
        }
        let whole = self::asks(&[Scope::JobsAdmin, Scope::JobsRead], Role::Admin);
        let mut other = json!({ "scopes": ["jobs:read"], "subject": "user_b" });
        other["submitter"] = json!(Address::repeat_byte(2));
        assert_eq!(outcome(&whole, other).unwrap().subject.as_str(), "user_b");
        // One's own address is no other's.
        let mut own = asks;
        own.submitter = Some(Address::repeat_byte(2));
        let same = json!({ "scopes": ["jobs:read"], "submitter": own.submitter });
        assert_eq!(outcome(&own, same).unwrap().submitter, own.submitter);
    }
}
