//! An issuer of tokens: an Ed25519 key, its JWKS as a file, and tokens of any claims.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ops::clock::Clock;
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://issuer.test";
pub(crate) const AUDIENCE: &str = "jobseal";

pub(crate) struct Issuer {
    key: Ed25519KeyPair,
    kid: String,
}

impl Issuer {
    pub(crate) fn new(kid: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        Self {
            key,
            kid: kid.to_owned(),
        }
    }

    pub(crate) fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key());
        json!({
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.kid, "x": x,
        })
    }

    pub(crate) fn write(issuers: &[&Self], file: &PathBuf) {
        std::fs::write(file, Self::jwks(issuers).to_string()).unwrap();
    }

    pub(crate) fn jwks(issuers: &[&Self]) -> Value {
        let keys: Vec<Value> = issuers.iter().map(|issuer| issuer.jwk()).collect();
        json!({ "keys": keys })
    }

    /// Claims that are good for ten minutes.
    pub(crate) fn claims(tenant: &str, scope: &str) -> Value {
        let now = Clock::system().now().as_second();
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "user_token", "tenant_id": tenant,
            "scope": scope, "iat": now, "exp": now + 600,
            "jti": uuid::Uuid::new_v4().to_string(),
        })
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(
            &json!({ "typ": "JWT", "alg": "EdDSA", "kid": self.kid }),
            claims,
        )
    }

    pub(crate) fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
