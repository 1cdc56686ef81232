//! Secrets that must be read again, encrypted at rest: AES-256-GCM, bound to the row they are of.

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use secrecy::{ExposeSecret, SecretBox};
use uuid::Uuid;

use crate::config::Key32;

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;

/// A secret of ours, which cannot print.
pub type Secret32 = SecretBox<[u8; SECRET_BYTES]>;

/// A stored secret cannot be read: it is another key's or another row's, or it was altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stored secret cannot be decrypted: is the key the one it was encrypted with?")]
pub struct Unreadable;

/// A new random secret.
///
/// # Panics
/// When the operating system has no randomness.
#[must_use]
pub fn generate(random: &SystemRandom) -> Secret32 {
    let mut bytes = Box::new([0; SECRET_BYTES]);
    random
        .fill(&mut bytes[..])
        .expect("the operating system gives randomness");
    SecretBox::new(bytes)
}

/// `secret` as it is stored in the row `of`: nonce, then ciphertext.
///
/// # Panics
/// When the operating system has no randomness.
#[must_use]
pub fn seal(key: &Key32, of: Uuid, secret: &Secret32, random: &SystemRandom) -> Vec<u8> {
    let mut nonce = [0; NONCE_LEN];
    random
        .fill(&mut nonce)
        .expect("the operating system gives randomness");
    let mut sealed = secret.expose_secret().to_vec();
    aead(key)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(of.as_bytes()),
            &mut sealed,
        )
        .expect("a secret is shorter than the cipher's limit");
    [nonce.as_slice(), &sealed].concat()
}

/// Reads what [`seal`] wrote.
///
/// # Errors
/// [`Unreadable`] under another key or for another row.
pub fn open(key: &Key32, of: Uuid, stored: &[u8]) -> Result<Secret32, Unreadable> {
    let (nonce, sealed) = stored.split_at_checked(NONCE_LEN).ok_or(Unreadable)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unreadable)?;
    let mut sealed = sealed.to_vec();
    let plain = aead(key)
        .open_in_place(nonce, Aad::from(of.as_bytes()), &mut sealed)
        .map_err(|_| Unreadable)?;
    let bytes: [u8; SECRET_BYTES] = (&*plain).try_into().map_err(|_| Unreadable)?;
    Ok(SecretBox::new(Box::new(bytes)))
}

fn aead(key: &Key32) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, key.expose()).expect("the key has 32 bytes");
    LessSafeKey::new(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_only_with_its_key_and_row() {
        let random = SystemRandom::new();
        let (secret, key, row) = (generate(&random), Key32::from([7; 32]), Uuid::now_v7());
        let mut stored = seal(&key, row, &secret, &random);
        let opened = open(&key, row, &stored).unwrap();
        assert_eq!(opened.expose_secret(), secret.expose_secret());
        assert!(open(&Key32::from([8; 32]), row, &stored).is_err());
        assert!(open(&key, Uuid::now_v7(), &stored).is_err());
        for length in [0, NONCE_LEN, stored.len() - 1] {
            assert!(open(&key, row, &stored[..length]).is_err());
        }
        *stored.last_mut().unwrap() ^= 1;
        assert!(open(&key, row, &stored).is_err());
    }
}
