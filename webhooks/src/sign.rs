//! Standard Webhooks 1.0 signatures (`v1`, HMAC-SHA256 over `id.timestamp.body`), the secrets they
//! are made with, and those secrets' encryption at rest (AES-256-GCM).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use uuid::Uuid;

use ops::config::Key32;

/// Bytes of a secret: the specification asks for 24 to 64.
const SECRET_BYTES: usize = 32;

/// What an endpoint's webhooks are signed with.
pub struct Secret(SecretBox<[u8; SECRET_BYTES]>);

/// A stored secret cannot be read: another `WEBHOOKS_KEY` encrypted it, or it was altered.
#[derive(Debug, thiserror::Error)]
#[error("a stored webhook secret cannot be decrypted: is WEBHOOKS_KEY the one it was made with?")]
pub struct Unreadable;

impl Secret {
    /// A new random secret.
    ///
    /// # Panics
    /// When the operating system has no randomness.
    #[must_use]
    pub fn generate(random: &SystemRandom) -> Self {
        let mut bytes = Box::new([0; SECRET_BYTES]);
        random
            .fill(&mut bytes[..])
            .expect("the operating system gives randomness");
        Self(SecretBox::new(bytes))
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

    /// The secret encrypted for the database, bound to its endpoint: nonce, then ciphertext.
    ///
    /// # Panics
    /// When the operating system has no randomness.
    #[must_use]
    pub fn seal(&self, key: &Key32, endpoint: Uuid, random: &SystemRandom) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        random
            .fill(&mut nonce)
            .expect("the operating system gives randomness");
        let mut sealed = self.0.expose_secret().to_vec();
        aead(key)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(endpoint.as_bytes()),
                &mut sealed,
            )
            .expect("a secret is shorter than the cipher's limit");
        [nonce.as_slice(), &sealed].concat()
    }

    /// Reads what [`Secret::seal`] wrote.
    ///
    /// # Errors
    /// [`Unreadable`] under another key or for another endpoint.
    pub fn open(key: &Key32, endpoint: Uuid, stored: &[u8]) -> Result<Self, Unreadable> {
        let (nonce, sealed) = stored.split_at_checked(NONCE_LEN).ok_or(Unreadable)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unreadable)?;
        let mut sealed = sealed.to_vec();
        let plain = aead(key)
            .open_in_place(nonce, Aad::from(endpoint.as_bytes()), &mut sealed)
            .map_err(|_| Unreadable)?;
        let bytes: [u8; SECRET_BYTES] = plain.try_into().map_err(|_| Unreadable)?;
        Ok(Self(SecretBox::new(Box::new(bytes))))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret([redacted])")
    }
}

fn aead(key: &Key32) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, key.expose()).expect("the key has 32 bytes");
    LessSafeKey::new(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_only_with_its_key_and_endpoint() {
        let random = SystemRandom::new();
        let secret = Secret::generate(&random);
        let (key, endpoint) = (Key32::from([7; 32]), Uuid::now_v7());
        let mut stored = secret.seal(&key, endpoint, &random);
        let opened = Secret::open(&key, endpoint, &stored).unwrap();
        assert_eq!(opened.sign("msg_1", 1, "{}"), secret.sign("msg_1", 1, "{}"));
        assert!(Secret::open(&Key32::from([8; 32]), endpoint, &stored).is_err());
        assert!(Secret::open(&key, Uuid::now_v7(), &stored).is_err());
        for length in [0, NONCE_LEN, stored.len() - 1] {
            assert!(Secret::open(&key, endpoint, &stored[..length]).is_err());
        }
        *stored.last_mut().unwrap() ^= 1;
        assert!(Secret::open(&key, endpoint, &stored).is_err());
    }

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
