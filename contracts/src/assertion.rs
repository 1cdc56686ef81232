//! The statement the gateway makes to an upstream about who asks: claims bound to one request, with
//! an HMAC-SHA256 under a key per upstream.
//!
//! Form: `base64url(claims JSON) "." base64url(HMAC-SHA256(key, base64url(claims JSON)))`.

use std::net::IpAddr;

use alloy::primitives::Address;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use names::{Audience, Role, Scope, UnknownName};

use crate::id::{RequestId, Subject, TenantId};

mod names;

/// The header that carries the assertion.
pub const HEADER: &str = "jobseal-assertion";
/// The header by which the gateway asks a service for the answer that a request had before, and for
/// nothing else: where there is none the service does nothing and answers 404.
pub const REPLAY_ONLY: &str = "jobseal-replay-only";
/// Longest life of an assertion.
pub const LIFETIME_MAX_SECONDS: i64 = 30;
/// Longest header that is looked at.
pub const HEADER_MAX_BYTES: usize = 8 * 1_024;
/// SHA-256 of nothing, as the claims state it.
pub const SHA256_OF_NOTHING: &str =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// What the claims have room for before it grows.
const TYPICAL_BYTES: usize = 768;

/// What the gateway states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The upstream this is for.
    pub aud: Audience,
    /// Whose data this is about.
    pub tenant: TenantId,
    /// Who asks.
    pub subject: Subject,
    /// What they may do.
    pub scopes: Vec<Scope>,
    /// What the credential is for.
    pub role: Role,
    /// The subject's team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<Subject>,
    /// The principal's registered EVM address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitter: Option<Address>,
    /// Most unfinished jobs: the smaller of the role's and the plan's limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_jobs_limit: Option<u32>,
    /// The plan's priority, 1 to 9.
    pub priority: u8,
    /// The client's address.
    pub address: IpAddr,
    /// The request.
    pub request_id: RequestId,
    /// The trace it belongs to (W3C Trace Context).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The method as sent upstream.
    pub method: String,
    /// Path and query as sent upstream.
    pub path: String,
    /// SHA-256 of the body, in hexadecimal; of the empty string when there is none.
    pub body_sha256: String,
    /// When the statement ends, in seconds of Unix time.
    pub expires_at: i64,
}

/// The claims about who asks, which stay the same from request to request.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "they are those of `Claims`")]
pub struct About<'a> {
    pub aud: Audience,
    pub tenant: TenantId,
    pub subject: &'a Subject,
    pub scopes: &'a [Scope],
    pub role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team: Option<&'a Subject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submitter: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_jobs_limit: Option<u32>,
    pub priority: u8,
}

/// The claims about one request.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "they are those of `Claims`")]
pub struct Asked<'a> {
    pub address: IpAddr,
    pub request_id: RequestId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<&'a str>,
    pub method: &'a str,
    pub path: &'a str,
    pub body_sha256: &'a str,
    pub expires_at: i64,
}

/// [`About`] as it stands at the beginning of the claims' JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated(Vec<u8>);

/// What the upstream holds against the claims.
#[derive(Clone, Copy, Debug)]
pub struct Expectation<'a> {
    /// The present.
    pub now: Timestamp,
    /// Which upstream this is.
    pub audience: Audience,
    /// The request's method.
    pub method: &'a str,
    /// The request's path and query.
    pub path_and_query: &'a str,
    /// SHA-256 of the received body, in hexadecimal (see [`sha256_hex`]).
    pub body_sha256: &'a str,
}

/// Why an assertion is not believed. For logs; the caller learns only that it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The header is not of the form, or too long.
    #[error("malformed")]
    Malformed,
    /// The authentication code does not fit.
    #[error("wrong key or altered")]
    Signature,
    /// Made for another upstream.
    #[error("for another audience")]
    Audience,
    /// The time has passed.
    #[error("expired")]
    Expired,
    /// It would be valid for longer than any assertion may be.
    #[error("lives too long")]
    Lifetime,
    /// Made for another method, path or body.
    #[error("for another request")]
    Request,
}

impl Claims {
    /// Whether the credential has `scope`.
    #[must_use]
    pub fn has_scope(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

impl About<'_> {
    /// The same, ready to be signed with what is asked.
    #[must_use]
    pub fn stated(&self) -> Stated {
        let mut json = serde_json::to_vec(self).expect("claims have a JSON form");
        // What is asked goes on where this ends.
        json.pop();
        Stated(json)
    }
}

/// SHA-256 of a body, as the claims state it.
#[must_use]
pub fn sha256_hex(body: &[u8]) -> String {
    const_hex::encode(digest::digest(&digest::SHA256, body))
}

/// Makes assertions with one key, which is made ready once.
#[derive(Debug)]
pub struct Signer(hmac::Key);

impl Signer {
    /// Signs with `key`.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The header's value for `claims`.
    #[must_use]
    pub fn sign(&self, claims: &Claims) -> String {
        let mut json = Vec::with_capacity(TYPICAL_BYTES);
        serde_json::to_writer(&mut json, claims).expect("claims have a JSON form");
        self.sign_json(&json)
    }

    /// The same of claims that are in two parts.
    #[must_use]
    pub fn sign_for(&self, about: &Stated, asked: &Asked<'_>) -> String {
        let mut json = Vec::with_capacity(TYPICAL_BYTES);
        json.extend_from_slice(&about.0);
        let brace = json.len();
        serde_json::to_writer(&mut json, asked).expect("claims have a JSON form");
        json[brace] = b',';
        self.sign_json(&json)
    }

    fn sign_json(&self, json: &[u8]) -> String {
        let mut text = String::with_capacity(2 * TYPICAL_BYTES);
        URL_SAFE_NO_PAD.encode_string(json, &mut text);
        let tag = hmac::sign(&self.0, text.as_bytes());
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(tag, &mut text);
        text
    }
}

/// The header's value for `claims`, by whoever signs only now and then.
#[must_use]
pub fn sign(claims: &Claims, key: &[u8; 32]) -> String {
    Signer::new(key).sign(claims)
}

/// The claims of a header that was made with `key` for this very request, and has not expired.
pub fn verify(header: &str, key: &[u8; 32], expected: &Expectation<'_>) -> Result<Claims, Refusal> {
    if header.len() > HEADER_MAX_BYTES {
        return Err(Refusal::Malformed);
    }
    let (text, tag) = header.split_once('.').ok_or(Refusal::Malformed)?;
    let tag = URL_SAFE_NO_PAD
        .decode(tag)
        .map_err(|_| Refusal::Malformed)?;
    // Compares in constant time.
    hmac::verify(
        &hmac::Key::new(hmac::HMAC_SHA256, key),
        text.as_bytes(),
        &tag,
    )
    .map_err(|_| Refusal::Signature)?;
    let json = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| Refusal::Malformed)?;
    let claims: Claims = serde_json::from_slice(&json).map_err(|_| Refusal::Malformed)?;
    check(&claims, expected)?;
    Ok(claims)
}

fn check(claims: &Claims, expected: &Expectation<'_>) -> Result<(), Refusal> {
    let remaining = claims.expires_at.saturating_sub(expected.now.as_second());
    if claims.aud != expected.audience {
        return Err(Refusal::Audience);
    }
    if remaining <= 0 {
        return Err(Refusal::Expired);
    }
    if remaining > LIFETIME_MAX_SECONDS {
        return Err(Refusal::Lifetime);
    }
    let request = (
        expected.method,
        expected.path_and_query,
        expected.body_sha256,
    );
    if (
        claims.method.as_str(),
        claims.path.as_str(),
        claims.body_sha256.as_str(),
    ) != request
    {
        return Err(Refusal::Request);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const NOW: &str = "2026-01-02T03:04:05Z";

    fn claims(method: &str, path: &str, body: &[u8], lifetime: i64) -> Claims {
        let now: Timestamp = NOW.parse().unwrap();
        Claims {
            aud: Audience::Jobs,
            tenant: TenantId::generate(now),
            subject: "user_1".parse().unwrap(),
            scopes: vec![Scope::JobsSubmit, Scope::JobsReadTeam],
            role: Role::TeamLead,
            team: Some("blue".parse().unwrap()),
            submitter: Some(Address::repeat_byte(1)),
            active_jobs_limit: Some(50),
            priority: 5,
            address: "2001:db8::1".parse().unwrap(),
            request_id: RequestId::generate(now),
            traceparent: None,
            method: method.to_owned(),
            path: path.to_owned(),
            body_sha256: sha256_hex(body),
            expires_at: now.as_second() + lifetime,
        }
    }

    fn check_at(
        header: &str,
        audience: Audience,
        method: &str,
        path_and_query: &str,
        body: &[u8],
    ) -> Result<Claims, Refusal> {
        let now = NOW.parse().unwrap();
        let body_sha256 = &sha256_hex(body);
        verify(
            header,
            &KEY,
            &Expectation {
                now,
                audience,
                method,
                path_and_query,
                body_sha256,
            },
        )
    }

    /// `text` with one bit of one byte turned; bytes beyond ASCII become one replacement character.
    fn flip(text: &str, at: prop::sample::Index, bit: u8) -> String {
        let mut bytes = text.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// As [`sign`] does it.
    fn in_parts(claims: &Claims) -> String {
        let about = About {
            aud: claims.aud,
            tenant: claims.tenant,
            subject: &claims.subject,
            scopes: &claims.scopes,
            role: claims.role,
            team: claims.team.as_ref(),
            submitter: claims.submitter,
            active_jobs_limit: claims.active_jobs_limit,
            priority: claims.priority,
        };
        let asked = Asked {
            address: claims.address,
            request_id: claims.request_id,
            traceparent: claims.traceparent.as_deref(),
            method: &claims.method,
            path: &claims.path,
            body_sha256: &claims.body_sha256,
            expires_at: claims.expires_at,
        };
        Signer::new(&KEY).sign_for(&about.stated(), &asked)
    }

    #[test]
    fn nothing_has_a_known_sum() {
        assert_eq!(sha256_hex(b""), SHA256_OF_NOTHING);
    }

    #[test]
    fn it_holds_from_now_for_thirty_seconds_at_most() {
        let attempt = |lifetime| {
            let header = sign(&claims("GET", "/", b"", lifetime), &KEY);
            check_at(&header, Audience::Jobs, "GET", "/", b"").map(drop)
        };
        assert_eq!(attempt(-1), Err(Refusal::Expired));
        assert_eq!(attempt(0), Err(Refusal::Expired));
        assert_eq!(attempt(1), Ok(()));
        assert_eq!(attempt(30), Ok(()));
        assert_eq!(attempt(31), Err(Refusal::Lifetime));
        assert_eq!(attempt(i64::MAX - 2_000_000_000), Err(Refusal::Lifetime));
    }

    #[test]
    fn another_key_or_form_is_refused() {
        let claims = claims("GET", "/", b"", 30);
        let other = sign(&claims, &[8; 32]);
        assert_eq!(
            check_at(&other, Audience::Jobs, "GET", "/", b""),
            Err(Refusal::Signature),
        );
        for bad in ["", ".", "a.b.c", "e30.", &"a".repeat(HEADER_MAX_BYTES + 1)] {
            assert!(
                check_at(bad, Audience::Jobs, "GET", "/", b"").is_err(),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn it_is_believed_for_its_request_and_for_no_other(
            path in "/[a-z0-9/_-]{0,40}(\\?[a-z]=[a-z0-9]{0,9})?",
            body in prop::collection::vec(any::<u8>(), 1..64),
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let claims = claims("POST", &path, &body, 30);
            let header = sign(&claims, &KEY);
            let attempt = |header: &str, method: &str, path: &str, body: &[u8]| {
                check_at(header, Audience::Jobs, method, path, body)
            };
            prop_assert_eq!(attempt(&header, "POST", &path, &body), Ok(claims.clone()));
            prop_assert_eq!(in_parts(&claims), header.clone());

            prop_assert!(attempt(&flip(&header, at, bit), "POST", &path, &body).is_err());
            let method = flip("POST", at, bit);
            prop_assert_eq!(attempt(&header, &method, &path, &body), Err(Refusal::Request));
            let other_path = flip(&path, at, bit);
            prop_assert_eq!(attempt(&header, "POST", &other_path, &body), Err(Refusal::Request));
            let mut other_body = body.clone();
            let len = other_body.len();
            other_body[at.index(len)] ^= 1 << bit;
            prop_assert_eq!(attempt(&header, "POST", &path, &other_body), Err(Refusal::Request));
            for audience in [Audience::Relayer, Audience::Metering, Audience::Webhooks] {
                let refused = check_at(&header, audience, "POST", &path, &body);
                prop_assert_eq!(refused, Err(Refusal::Audience));
            }
        }
    }
}
