//! JSON Web Tokens of the issuer: the signature under the key they name, then the claims' rules.

use std::{fmt, sync::Arc};

use alloy::primitives::Address;
use contracts::{
    assertion::{Role, Scope},
    id::{Subject, TenantId},
};
use jiff::Timestamp;
use jsonwebtoken::{Validation, decode, decode_header};
use quick_cache::sync::Cache;
use ring::digest;
use serde::Deserialize;
use thiserror::Error;

use crate::{
    auth::{
        jwks::{Jwks, Key},
        stated::Ready,
    },
    snapshot::Identity,
};

/// Verified tokens that are remembered.
const CACHE_ENTRIES: usize = 16_384;
/// Longest token that is looked at.
const TOKEN_MAX_BYTES: usize = 8 * 1_024;
/// Longest `jti`.
const JTI_MAX_BYTES: usize = 128;
/// How far ahead of ours the issuer's clock may be, in seconds.
const CLOCK_SKEW_SECONDS: i64 = 5;

/// A token that was believed.
#[derive(Debug)]
pub struct Token {
    /// Its identifier.
    pub jti: String,
    /// Whom it speaks for.
    pub identity: Identity,
    /// When it ends, in seconds of Unix time.
    pub expires_at: i64,
    /// What is stated about whom it speaks for.
    pub ready: Ready,
    /// The key that signed it, and the version of the set that the key was found in.
    key: Arc<Key>,
    keys: u64,
}

/// What every token must state.
#[derive(Clone, Debug)]
pub struct Rules {
    /// `iss`
    pub issuer: String,
    /// `aud`
    pub audience: String,
    /// Longest life, in seconds.
    pub lifetime_max: i64,
}

/// Verifies tokens and remembers those it believed.
pub struct Tokens {
    jwks: Arc<Jwks>,
    rules: Rules,
    verified: Cache<[u8; 32], Arc<Token>>,
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// There is no issuer here.
    #[error("tokens are not accepted here")]
    NotAccepted,
    /// The issuer's keys were never read.
    #[error("the issuer's keys are not available")]
    KeysUnavailable,
    /// Not a token, or with parts we must not ignore.
    #[error("it is malformed")]
    Malformed,
    /// It names no key.
    #[error("it names no key (kid)")]
    NoKeyId,
    /// It names a key that the issuer does not have.
    #[error("unknown key")]
    UnknownKey,
    /// The signature does not fit the key, or the algorithm does not.
    #[error("wrong signature")]
    Signature,
    /// A claim is missing or not of its form.
    #[error("a required claim is missing or malformed")]
    Claims,
    /// Another issuer's.
    #[error("wrong issuer")]
    Issuer,
    /// For someone else.
    #[error("wrong audience")]
    Audience,
    /// It was one.
    #[error("expired")]
    Expired,
    /// It will be one.
    #[error("not valid yet")]
    NotYet,
    /// It lives longer than tokens may.
    #[error("its lifetime is too long")]
    Lifetime,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: i64,
    iat: i64,
    nbf: Option<i64>,
    jti: String,
    sub: String,
    tenant_id: String,
    scope: String,
    role: Option<String>,
    team: Option<String>,
    submitter: Option<Address>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Tokens {
    /// Believes tokens of the issuer of `jwks` that keep `rules`.
    #[must_use]
    pub fn new(jwks: Arc<Jwks>, rules: Rules) -> Self {
        Self {
            jwks,
            rules,
            verified: Cache::new(CACHE_ENTRIES),
        }
    }

    /// The token that `text` is.
    ///
    /// # Errors
    /// Why it is not believed.
    pub async fn verify(&self, text: &str, now: Timestamp) -> Result<Arc<Token>, TokenError> {
        if text.len() > TOKEN_MAX_BYTES {
            return Err(TokenError::Malformed);
        }
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let hash: [u8; 32] = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some(token) = self.verified.get(&hash) {
            if token.expires_at <= now.as_second() {
                self.verified.remove(&hash);
                return Err(TokenError::Expired);
            }
            if token.keys == self.jwks.version() {
                return Ok(token);
            }
        }
        let token = Arc::new(self.verify_afresh(text, now).await?);
        self.verified.insert(hash, Arc::clone(&token));
        Ok(token)
    }

    /// Whether a token that was believed still is: it has not ended, and its key is the issuer's.
    ///
    /// # Errors
    /// Why it is not.
    pub fn renew(&self, token: &Token, now: Timestamp) -> Result<(), TokenError> {
        if token.expires_at <= now.as_second() {
            return Err(TokenError::Expired);
        }
        if !self.jwks.has(&token.key) {
            return Err(TokenError::UnknownKey);
        }
        Ok(())
    }

    async fn verify_afresh(&self, text: &str, now: Timestamp) -> Result<Token, TokenError> {
        let header = decode_header(text).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let kid = header.kid.ok_or(TokenError::NoKeyId)?;
        let keys = self.jwks.find(&kid).await;
        if !keys.is_known() {
            return Err(TokenError::KeysUnavailable);
        }
        let key = keys.get(&kid).ok_or(TokenError::UnknownKey)?;
        // The claims' rules are ours, below; here only the signature, by the key's own algorithm.
        let mut validation = Validation::new(key.algorithm);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let token = decode::<serde_json::Value>(text, &key.decoding, &validation)
            .map_err(|_| TokenError::Signature)?;
        let claims = Claims::deserialize(token.claims).map_err(|_| TokenError::Claims)?;
        claims.check(&self.rules, now.as_second())?;
        let expires_at = claims.exp;
        let jti = claims.jti.clone();
        let identity = claims.identity().ok_or(TokenError::Claims)?;
        Ok(Token {
            jti,
            identity,
            expires_at,
            ready: Ready::default(),
            key: Arc::clone(key),
            keys: keys.version,
        })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl TokenError {
    /// Whether the client may know: what is true of any token it made up tells it nothing.
    #[must_use]
    pub fn may_be_told(self) -> bool {
        !matches!(self, Self::UnknownKey | Self::Signature)
    }
}

impl Claims {
    fn check(&self, rules: &Rules, now: i64) -> Result<(), TokenError> {
        let for_us = match &self.aud {
            Audience::One(audience) => *audience == rules.audience,
            Audience::Many(audiences) => audiences.contains(&rules.audience),
        };
        if self.iss != rules.issuer {
            return Err(TokenError::Issuer);
        }
        if !for_us {
            return Err(TokenError::Audience);
        }
        if self.exp <= now {
            return Err(TokenError::Expired);
        }
        let soon = now + CLOCK_SKEW_SECONDS;
        if self.iat > soon || self.nbf.is_some_and(|not_before| not_before > soon) {
            return Err(TokenError::NotYet);
        }
        if self.exp.saturating_sub(self.iat) > rules.lifetime_max {
            return Err(TokenError::Lifetime);
        }
        if self.jti.is_empty() || self.jti.len() > JTI_MAX_BYTES {
            return Err(TokenError::Claims);
        }
        Ok(())
    }

    /// Whom the claims speak for. Scopes we do not know are someone else's business.
    fn identity(self) -> Option<Identity> {
        let scopes: Vec<Scope> = self
            .scope
            .split(' ')
            .filter_map(|scope| scope.parse().ok())
            .collect();
        let role = match self.role {
            Some(role) => role.parse().ok()?,
            None if scopes.contains(&Scope::JobsAdmin) => Role::Admin,
            None if scopes.contains(&Scope::JobsReadTeam) => Role::TeamLead,
            None => Role::Developer,
        };
        let tenant: TenantId = self.tenant_id.parse().ok()?;
        let team: Option<Subject> = match self.team {
            Some(team) => Some(team.parse().ok()?),
            None => None,
        };
        let subject: Subject = self.sub.parse().ok()?;
        Some(Identity {
            tenant,
            subject,
            team,
            submitter: self.submitter,
            role,
            scopes,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn rules() -> Rules {
        Rules {
            issuer: "https://issuer".into(),
            audience: "jobseal".into(),
            lifetime_max: 900,
        }
    }

    fn claims() -> Value {
        json!({
            "iss": "https://issuer", "aud": ["other", "jobseal"], "sub": "user_1", "jti": "t1",
            "iat": NOW - 10, "exp": NOW + 600, "scope": "openid jobs:submit jobs:read",
            "tenant_id": "tenant_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a",
        })
    }

    fn outcome(change: &Value) -> Result<Option<Identity>, TokenError> {
        let mut all = claims();
        for (name, value) in change.as_object().unwrap() {
            if value.is_null() {
                all.as_object_mut().unwrap().remove(name);
            } else {
                all[name] = value.clone();
            }
        }
        let claims = Claims::deserialize(all).map_err(|_| TokenError::Claims)?;
        claims.check(&rules(), NOW)?;
        Ok(claims.identity())
    }

    #[test]
    fn good_claims_make_an_identity_with_the_role_from_claim_or_scopes() {
        let identity = outcome(&json!({})).unwrap().unwrap();
        assert_eq!(identity.scopes, [Scope::JobsSubmit, Scope::JobsRead]);
        assert_eq!(
            (identity.role, identity.subject.as_str()),
            (Role::Developer, "user_1")
        );
        let admin = outcome(&json!({"scope": "jobs:admin"})).unwrap().unwrap();
        assert_eq!(admin.role, Role::Admin);
        let lead = outcome(&json!({"scope": "", "role": "team_lead"}))
            .unwrap()
            .unwrap();
        assert_eq!(lead.role, Role::TeamLead);
    }

    #[test]
    fn each_rule_refuses() {
        for (change, error) in [
            (json!({"iss": "https://other"}), TokenError::Issuer),
            (json!({"aud": "other"}), TokenError::Audience),
            (json!({"exp": NOW}), TokenError::Expired),
            (json!({"iat": NOW + 6}), TokenError::NotYet),
            (json!({"nbf": NOW + 6}), TokenError::NotYet),
            (json!({"exp": NOW + 891}), TokenError::Lifetime),
            (json!({"jti": ""}), TokenError::Claims),
            (json!({"exp": "soon"}), TokenError::Claims),
        ] {
            assert_eq!(outcome(&change), Err(error), "{change}");
        }
        for name in [
            "iss",
            "aud",
            "exp",
            "iat",
            "jti",
            "tenant_id",
            "scope",
            "sub",
        ] {
            assert_eq!(
                outcome(&json!({ name: null })),
                Err(TokenError::Claims),
                "{name}"
            );
        }
        assert_eq!(outcome(&json!({"role": "root"})), Ok(None));
        assert_eq!(outcome(&json!({"tenant_id": "1"})), Ok(None));
    }
}
