//! Who asks: a credential becomes a principal, or a refusal that says no more than it must.

use std::sync::Arc;

use contracts::{
    assertion::{Role, Scope},
    id::KeyId,
    problem::{Code, Problem},
};
use http::{HeaderMap, header};
use jiff::Timestamp;
use subtle::ConstantTimeEq as _;

use crate::{
    auth::{
        api_key::{Malformed, Presented},
        jwt::{Token, TokenError, Tokens},
        stated::Ready,
    },
    snapshot::{ApiKey, Identity, Snapshot, Tenant},
};

pub mod api_key;
pub mod issuer;
pub mod jwks;
pub mod jwt;
pub mod stated;

/// The header that carries an API key by itself.
pub const API_KEY_HEADER: &str = "x-api-key";
/// Most unfinished jobs by role; an admin has no limit of their own.
const DEVELOPER_ACTIVE_JOBS: u32 = 50;
const TEAM_LEAD_ACTIVE_JOBS: u32 = 200;

/// Who asks, and for whom.
#[derive(Clone, Debug)]
pub struct Principal {
    /// Who pays.
    pub tenant: Arc<Tenant>,
    credential: Credential,
}

#[derive(Clone, Debug)]
enum Credential {
    Key(Arc<ApiKey>),
    Token(Arc<Token>),
}

/// A credential as it stands in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given<'a> {
    ApiKey(&'a str),
    Token(&'a str),
}

/// Why nobody is let in. The client is told less than this says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("no credential")]
    Missing,
    /// There are several, or the header is not of its form.
    #[error("not one credential")]
    Ambiguous,
    /// Not an API key.
    #[error("API key: {0}")]
    Malformed(#[from] Malformed),
    /// Not a key that exists and is not revoked, or not its secret.
    #[error("unknown API key")]
    UnknownKey,
    /// It was one.
    #[error("expired")]
    Expired,
    /// The credential, its subject or its tenant is revoked.
    #[error("revoked")]
    Revoked,
    /// The tenant does not exist.
    #[error("unknown tenant")]
    UnknownTenant,
    /// Not a token we believe.
    #[error("token: {0}")]
    Token(TokenError),
}

/// Decides on credentials.
#[derive(Debug)]
pub struct Authenticator {
    tokens: Option<Tokens>,
}

impl Authenticator {
    /// Believes API keys, and tokens if there is someone who issues them.
    #[must_use]
    pub fn new(tokens: Option<Tokens>) -> Self {
        Self { tokens }
    }

    /// Who asks.
    ///
    /// # Errors
    /// Why they are not let in.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> Result<Principal, Refusal> {
        let credential = match given(headers)? {
            Given::ApiKey(text) => Credential::Key(api_key(text, snapshot, now)?),
            Given::Token(text) => {
                let tokens = self
                    .tokens
                    .as_ref()
                    .ok_or(Refusal::Token(TokenError::NotAccepted))?;
                Credential::Token(tokens.verify(text, now).await?)
            }
        };
        credential.belongs(snapshot)
    }

    /// The same principal by what is known now, for whoever was let in a while ago.
    ///
    /// # Errors
    /// Why they would not be let in any more.
    pub fn renew(
        &self,
        principal: &Principal,
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> Result<Principal, Refusal> {
        let credential = match &principal.credential {
            Credential::Key(known) => {
                let key = snapshot.keys.get(&known.id).ok_or(Refusal::Revoked)?;
                if key.expires_at <= now {
                    return Err(Refusal::Expired);
                }
                Credential::Key(Arc::clone(key))
            }
            Credential::Token(token) => {
                let tokens = self.tokens.as_ref();
                let tokens = tokens.ok_or(Refusal::Token(TokenError::NotAccepted))?;
                tokens.renew(token, now)?;
                Credential::Token(Arc::clone(token))
            }
        };
        credential.belongs(snapshot)
    }
}

impl Principal {
    /// Whom the credential speaks for.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.credential.identity()
    }

    /// The API key, if it is one.
    #[must_use]
    pub fn key_id(&self) -> Option<KeyId> {
        match &self.credential {
            Credential::Key(key) => Some(key.id),
            Credential::Token(_) => None,
        }
    }

    /// The token's identifier, if it is one.
    #[must_use]
    pub fn jti(&self) -> Option<&str> {
        self.credential.jti()
    }

    /// When the credential ends.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        match &self.credential {
            Credential::Key(key) => key.expires_at,
            Credential::Token(token) => {
                Timestamp::from_second(token.expires_at).unwrap_or(Timestamp::MAX)
            }
        }
    }

    /// Whether one of `scopes` is held.
    ///
    /// # Errors
    /// The problem that names the scope to ask for.
    pub fn require_any(&self, scopes: &[Scope]) -> Result<(), Problem> {
        let held = &self.identity().scopes;
        if scopes.iter().any(|scope| held.contains(scope)) {
            return Ok(());
        }
        let needed = scopes.first().map_or("another", |scope| scope.as_str());
        Err(Problem::new(
            Code::AccessDenied,
            format!("The scope {needed} is required."),
        ))
    }

    /// Most unfinished jobs: the smaller of the role's and the plan's limit.
    #[must_use]
    pub fn active_jobs_limit(&self) -> u32 {
        let plan = self.tenant.plan.active_jobs;
        match self.identity().role {
            Role::Developer => plan.min(DEVELOPER_ACTIVE_JOBS),
            Role::TeamLead => plan.min(TEAM_LEAD_ACTIVE_JOBS),
            Role::Admin => plan,
        }
    }
}

impl Credential {
    /// Whose it is, unless it, its subject or its tenant is revoked.
    fn belongs(self, snapshot: &Snapshot) -> Result<Principal, Refusal> {
        let identity = self.identity();
        if snapshot.revoked.cover(identity, self.jti()) {
            return Err(Refusal::Revoked);
        }
        let tenant = snapshot.tenants.get(&identity.tenant);
        Ok(Principal {
            tenant: Arc::clone(tenant.ok_or(Refusal::UnknownTenant)?),
            credential: self,
        })
    }

    fn identity(&self) -> &Identity {
        match self {
            Self::Key(key) => &key.identity,
            Self::Token(token) => &token.identity,
        }
    }

    fn ready(&self) -> &Ready {
        match self {
            Self::Key(key) => &key.ready,
            Self::Token(token) => &token.ready,
        }
    }

    fn jti(&self) -> Option<&str> {
        match self {
            Self::Key(_) => None,
            Self::Token(token) => Some(&token.jti),
        }
    }
}

impl Refusal {
    /// What the client is told.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let detail = match self {
            Self::Missing => "Send an API key or a bearer token.",
            Self::Ambiguous => "Send exactly one credential.",
            Self::Malformed(_) => "The API key is malformed: was it copied whole?",
            Self::Expired | Self::Token(TokenError::Expired) => "The credential has expired.",
            Self::Token(TokenError::KeysUnavailable) => {
                let detail = "The issuer's keys cannot be read at the moment.";
                return Problem::new(Code::ServiceUnavailable, detail).with_retry_after(1);
            }
            Self::Token(error) if error.may_be_told() => {
                return Problem::new(
                    Code::InvalidToken,
                    format!("The token is refused: {error}."),
                );
            }
            _ => "The credential is not valid.",
        };
        Problem::new(Code::InvalidToken, detail)
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        Self::Token(error)
    }
}

/// The one credential of a request.
fn given(headers: &HeaderMap) -> Result<Given<'_>, Refusal> {
    let text = |name: &str| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value.to_str().map(Some).map_err(|_| Refusal::Ambiguous),
            _ => Err(Refusal::Ambiguous),
        }
    };
    match (text(header::AUTHORIZATION.as_str())?, text(API_KEY_HEADER)?) {
        (None, None) => Err(Refusal::Missing),
        (Some(_), Some(_)) => Err(Refusal::Ambiguous),
        (None, Some(key)) => Ok(Given::ApiKey(key.trim())),
        (Some(value), None) => {
            let (scheme, rest) = value.trim().split_once(' ').ok_or(Refusal::Ambiguous)?;
            let rest = rest.trim();
            if !scheme.eq_ignore_ascii_case("bearer") || rest.is_empty() {
                return Err(Refusal::Ambiguous);
            }
            let is_key = rest.starts_with(api_key::PREFIX);
            Ok(if is_key {
                Given::ApiKey(rest)
            } else {
                Given::Token(rest)
            })
        }
    }
}

fn api_key(text: &str, snapshot: &Snapshot, now: Timestamp) -> Result<Arc<ApiKey>, Refusal> {
    let presented: Presented = text.parse()?;
    let key = snapshot
        .keys
        .get(&presented.id)
        .ok_or(Refusal::UnknownKey)?;
    if !bool::from(key.secret_hash.ct_eq(&presented.secret_hash())) {
        return Err(Refusal::UnknownKey);
    }
    if key.expires_at <= now {
        return Err(Refusal::Expired);
    }
    key.last_use.note(now);
    Ok(Arc::clone(key))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_request_has_exactly_one_credential() {
        let one = headers(&[("authorization", "bearer  a.b.c")]);
        assert_eq!(given(&one), Ok(Given::Token("a.b.c")));
        let key = headers(&[("authorization", "Bearer jsk_x")]);
        assert_eq!(given(&key), Ok(Given::ApiKey("jsk_x")));
        assert_eq!(
            given(&headers(&[("x-api-key", "jsk_x")])),
            Ok(Given::ApiKey("jsk_x"))
        );
        assert_eq!(given(&headers(&[])), Err(Refusal::Missing));
        for several in [
            headers(&[("authorization", "Bearer a"), ("x-api-key", "b")]),
            headers(&[("authorization", "Bearer a"), ("authorization", "Bearer a")]),
            headers(&[("x-api-key", "a"), ("x-api-key", "b")]),
            headers(&[("authorization", "Basic YTpi")]),
            headers(&[("authorization", "Bearer ")]),
        ] {
            assert_eq!(given(&several), Err(Refusal::Ambiguous));
        }
    }
}
