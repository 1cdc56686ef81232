//! API keys: `jsk_<id>_<secret><checksum>`, all in lower-case hexadecimal. The checksum lets
//! scanners and us refuse typing errors without a look-up; only a hash of the secret is kept.

use std::{fmt, str::FromStr};

use contracts::id::KeyId;
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use secrecy::{ExposeSecret as _, SecretString};
use thiserror::Error;
use uuid::Uuid;

/// How every API key begins.
pub const PREFIX: &str = "jsk_";

/// 24 random bytes.
const SECRET_DIGITS: usize = 48;
const ID_DIGITS: usize = 32;
const CHECKSUM_DIGITS: usize = 8;
/// Ids are UUIDs of this version.
const ID_VERSION: usize = 7;

/// A well-formed key as a client presents it; nothing says yet that it exists.
pub struct Presented {
    /// Which key it claims to be.
    pub id: KeyId,
    secret: SecretString,
}

/// The text is not an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Not of the form.
    #[error("not of the form jsk_<id>_<secret><checksum>")]
    Form,
    /// Of the form, but mistyped.
    #[error("the checksum does not fit")]
    Checksum,
}

impl Presented {
    /// A new key with this id: whoever calls shows its text once and keeps the hash.
    #[must_use]
    pub fn generate(id: KeyId) -> Self {
        let mut bytes = [0; SECRET_DIGITS / 2];
        SystemRandom::new()
            .fill(&mut bytes)
            .expect("the system gives random bytes");
        Self {
            id,
            secret: const_hex::encode(bytes).into(),
        }
    }

    /// What is kept of the secret.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        let hash = digest::digest(&digest::SHA256, self.secret.expose_secret().as_bytes());
        hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// The key as the client holds it.
    #[must_use]
    pub fn text(&self) -> SecretString {
        let body = format!(
            "{PREFIX}{}_{}",
            self.id.uuid().simple(),
            self.secret.expose_secret()
        );
        format!("{body}{}", checksum(&body)).into()
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for Presented {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let rest = text.strip_prefix(PREFIX).ok_or(Malformed::Form)?;
        let (id, rest) = rest.split_once('_').ok_or(Malformed::Form)?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let all_lower_hex = |text: &str| text.bytes().all(lower_hex);
        let lengths = (id.len(), rest.len());
        if lengths != (ID_DIGITS, SECRET_DIGITS + CHECKSUM_DIGITS)
            || !all_lower_hex(id)
            || !all_lower_hex(rest)
        {
            return Err(Malformed::Form);
        }
        let (secret, sum) = rest.split_at(SECRET_DIGITS);
        let sum = u32::from_str_radix(sum, 16).map_err(|_| Malformed::Form)?;
        if crc32fast::hash(&text.as_bytes()[..text.len() - CHECKSUM_DIGITS]) != sum {
            return Err(Malformed::Checksum);
        }
        let id = Uuid::try_parse(id).map_err(|_| Malformed::Form)?;
        if id.get_version_num() != ID_VERSION {
            return Err(Malformed::Form);
        }
        let id = KeyId::from_uuid(id);
        Ok(Self {
            id,
            secret: secret.into(),
        })
    }
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32fast::hash(body.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Presented {
        Presented::generate(KeyId::generate("2026-01-02T03:04:05Z".parse().unwrap()))
    }

    #[test]
    fn a_key_survives_its_text_and_two_keys_differ() {
        let key = key();
        let text = key.text();
        let again: Presented = text.expose_secret().parse().unwrap();
        assert_eq!((again.id, again.secret_hash()), (key.id, key.secret_hash()));
        assert_ne!(self::key().secret_hash(), key.secret_hash());
        assert!(!format!("{key:?}").contains(key.secret.expose_secret()));
    }

    #[test]
    fn a_mistyped_key_is_refused_without_a_look_up() {
        let text = key().text();
        let text = text.expose_secret();
        for at in PREFIX.len()..text.len() {
            let mut typo = text.as_bytes().to_vec();
            typo[at] = if typo[at] == b'0' { b'1' } else { b'0' };
            let typo = String::from_utf8(typo).unwrap();
            assert!(typo.parse::<Presented>().is_err(), "{at}");
        }
        for bad in [
            "",
            "jsk_",
            "sk_x",
            &text[..text.len() - 1],
            &text.to_uppercase(),
        ] {
            assert_eq!(
                bad.parse::<Presented>().unwrap_err(),
                Malformed::Form,
                "{bad}"
            );
        }
    }
}
