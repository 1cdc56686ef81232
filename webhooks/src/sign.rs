//! Standard Webhooks 1.0 signatures (`v1`, HMAC-SHA256 over `id.timestamp.body`), and the secrets
//! they are made with, which are encrypted at rest ([`ops::seal`]).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::{hmac, rand::SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use ops::{
    config::Key32,
    seal::{self, Secret32},
};

/// What an endpoint's webhooks are signed with.
pub struct Secret(Secret32);

/// A stored secret cannot be read: another `WEBHOOKS_KEY` encrypted it, or it was altered.
#[derive(Debug, thiserror::Error)]
#[error("a stored webhook secret cannot be decrypted: is WEBHOOKS_KEY the one it was made with?")]
pub struct Unreadable(#[from] seal::Unreadable);

impl Secret {
    /// A new random secret.
    ///
    /// # Panics
    /// When the operating system has no randomness.
    #[must_use]
    pub fn generate(random: &SystemRandom) -> Self {
        Self(seal::generate(random))
    }

    /// The secret as its owner is shown it once: `whsec_` and base64.
    #[must_use]
    pub fn reveal(&self) -> SecretString {
        format!("whsec_{}", BASE64_STANDARD.encode(self.0.expose_secret())).into()
    }

    /// One `webhook-signature` entry for these exact bytes.
    #[must_use]
    pub fn sign(&self, webhook_id: &str, timestamp: i64, body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.expose_secret());
        let tag = hmac::sign(&key, format!("{webhook_id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", BASE64_STANDARD.encode(tag))
    }

    /// The secret encrypted for the database, bound to its endpoint.
    ///
    /// # Panics
    /// When the operating system has no randomness.
    #[must_use]
    pub fn seal(&self, key: &Key32, endpoint: Uuid, random: &SystemRandom) -> Vec<u8> {
        seal::seal(key, endpoint, &self.0, random)
    }

    /// Reads what [`Secret::seal`] wrote.
    ///
    /// # Errors
    /// [`Unreadable`] under another key or for another endpoint.
    pub fn open(key: &Key32, endpoint: Uuid, stored: &[u8]) -> Result<Self, Unreadable> {
        Ok(Self(seal::open(key, endpoint, stored)?))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_verifier_accepts_the_signature_and_refuses_a_changed_body() {
        let secret = Secret::generate(&SystemRandom::new());
        let verifier = standardwebhooks::Webhook::new(secret.reveal().expose_secret()).unwrap();
        let timestamp = jiff::Timestamp::UNIX_EPOCH.as_second() + 1_700_000_000;
        let body = "{\"type\":\"job.completed\",\"data\":{\"text\":\"é\"}}";
        let signature = secret.sign("msg_1", timestamp, body);
        let ours = verifier.sign("msg_1", timestamp, body.as_bytes()).unwrap();
        assert_eq!(signature, ours);
        let changed = verifier.sign("msg_1", timestamp, b"{}").unwrap();
        assert_ne!(signature, changed);
    }
}
