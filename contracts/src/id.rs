//! Identifiers: a kind's prefix and a UUIDv7 in 32 lower-case hexadecimal digits, and the opaque
//! names that tokens carry.

use std::{borrow::Cow, fmt, hash::Hash, marker::PhantomData, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};
use uuid::{NoContext, Uuid, fmt::Simple};

/// Longest [`Subject`], in bytes.
pub const SUBJECT_MAX_BYTES: usize = 128;

/// Longest of the kinds' prefixes.
const PREFIX_MAX_BYTES: usize = 8;

/// What an identifier names; a zero-sized type each.
pub trait Kind: Copy + Ord + Hash + fmt::Debug + Send + Sync + 'static {
    /// The text before the UUID's digits, with its underscore.
    const PREFIX: &'static str;
    /// The identifier's name in the OpenAPI document.
    const SCHEMA: &'static str;
}

/// The identifier of one `K`, ordered by creation time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id<K: Kind> {
    uuid: Uuid,
    kind: PhantomData<K>,
}

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Job {}
/// A tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tenant {}
/// An API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {}
/// A key that a tenant signs its requests with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SigningKey {}
/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {}
/// A user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum User {}
/// A webhook endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {}
/// A webhook delivery: one event for one endpoint, the same over all attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {}

/// `job_…`
pub type JobId = Id<Job>;
/// `tenant_…`
pub type TenantId = Id<Tenant>;
/// `key_…`
pub type KeyId = Id<Key>;
/// `sig_…`
pub type SigningKeyId = Id<SigningKey>;
/// `req_…`
pub type RequestId = Id<Request>;
/// `user_…`
pub type UserId = Id<User>;
/// `ep_…`
pub type EndpointId = Id<Endpoint>;
/// `msg_…`
pub type MessageId = Id<Message>;

/// Why a text is not the identifier asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdError {
    /// The kind's prefix is missing.
    #[error("must begin with {0}")]
    Prefix(&'static str),
    /// What follows the prefix is not 32 lower-case hexadecimal digits.
    #[error("must be {0} and 32 lower-case hexadecimal digits")]
    Digits(&'static str),
    /// The digits are a UUID of another version than 7.
    #[error("must hold a UUID of version 7")]
    Version,
}

/// Who acts, or for which team: a name the issuer of the credential chose, opaque to us.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(String);

/// The text is no [`Subject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be 1 to 128 characters of A-Z a-z 0-9 _ . : @ -")]
pub struct SubjectError;

impl Kind for Job {
    const PREFIX: &'static str = "job_";
    const SCHEMA: &'static str = "JobId";
}
impl Kind for Tenant {
    const PREFIX: &'static str = "tenant_";
    const SCHEMA: &'static str = "TenantId";
}
impl Kind for Key {
    const PREFIX: &'static str = "key_";
    const SCHEMA: &'static str = "KeyId";
}
impl Kind for SigningKey {
    const PREFIX: &'static str = "sig_";
    const SCHEMA: &'static str = "SigningKeyId";
}
impl Kind for Request {
    const PREFIX: &'static str = "req_";
    const SCHEMA: &'static str = "RequestId";
}
impl Kind for User {
    const PREFIX: &'static str = "user_";
    const SCHEMA: &'static str = "UserId";
}
impl Kind for Endpoint {
    const PREFIX: &'static str = "ep_";
    const SCHEMA: &'static str = "EndpointId";
}
impl Kind for Message {
    const PREFIX: &'static str = "msg_";
    const SCHEMA: &'static str = "MessageId";
}

impl<K: Kind> Id<K> {
    /// A new identifier, created at `now`.
    #[must_use]
    pub fn generate(now: Timestamp) -> Self {
        let milliseconds = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let subsecond = u32::try_from(milliseconds % 1_000).expect("a remainder fits") * 1_000_000;
        let time = uuid::Timestamp::from_unix(NoContext, milliseconds / 1_000, subsecond);
        Self::from_uuid(Uuid::new_v7(time))
    }

    /// The identifier that a stored UUID is; the caller knows its kind and version.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self {
            uuid,
            kind: PhantomData,
        }
    }

    /// The bare UUID, as stored in Postgres.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.uuid
    }

    /// Its text, without memory of its own.
    pub fn with_text<R>(self, work: impl FnOnce(&str) -> R) -> R {
        let mut buffer = [0; PREFIX_MAX_BYTES + Simple::LENGTH];
        let (prefix, digits) = buffer.split_at_mut(K::PREFIX.len());
        prefix.copy_from_slice(K::PREFIX.as_bytes());
        self.uuid.simple().encode_lower(digits);
        let text = &buffer[..K::PREFIX.len() + Simple::LENGTH];
        work(std::str::from_utf8(text).expect("prefixes and digits are ASCII"))
    }

    /// When the identifier was made, to the millisecond.
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        let (head, _) = self.uuid.as_u64_pair();
        let milliseconds = i64::try_from(head >> 16).expect("48 bits fit");
        Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX)
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let digits = text
            .strip_prefix(K::PREFIX)
            .ok_or(IdError::Prefix(K::PREFIX))?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() != 32 || !digits.bytes().all(lower_hex) {
            return Err(IdError::Digits(K::PREFIX));
        }
        let uuid = Uuid::try_parse(digits).map_err(|_| IdError::Digits(K::PREFIX))?;
        if uuid.get_version_num() != 7 {
            return Err(IdError::Version);
        }
        Ok(Self::from_uuid(uuid))
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
    }
}

impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl<K: Kind> PartialSchema for Id<K> {
    fn schema() -> RefOr<Schema> {
        let example = format!("{}0197e2a04b7c7d3e8f5a6b7c8d9e0f1a", K::PREFIX);
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(format!("^{}[0-9a-f]{{32}}$", K::PREFIX)))
            .examples([example])
            .into()
    }
}

impl<K: Kind> ToSchema for Id<K> {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed(K::SCHEMA)
    }
}

impl Subject {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.:@-".contains(&b);
        if text.is_empty() || text.len() > SUBJECT_MAX_BYTES || !text.bytes().all(allowed) {
            return Err(SubjectError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl PartialSchema for Subject {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[A-Za-z0-9_.:@-]{1,128}$"))
            .examples(["user_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a"])
            .into()
    }
}

impl ToSchema for Subject {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_of_another_kind_or_form_is_refused() {
        let id = JobId::generate("2026-01-02T03:04:05.678Z".parse().unwrap());
        let text = id.to_string();
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.parse::<TenantId>(), Err(IdError::Prefix("tenant_")));
        assert_eq!(
            text.to_uppercase().parse::<JobId>(),
            Err(IdError::Prefix("job_"))
        );
        let loud = format!("job_{}", id.uuid().simple().to_string().to_uppercase());
        assert_eq!(loud.parse::<JobId>(), Err(IdError::Digits("job_")));
        let dashed = format!("job_{}", id.uuid());
        assert_eq!(dashed.parse::<JobId>(), Err(IdError::Digits("job_")));
        let random = format!("job_{}", Uuid::new_v4().simple());
        assert_eq!(random.parse::<JobId>(), Err(IdError::Version));
    }

    #[test]
    fn a_subject_has_a_closed_alphabet_and_a_length() {
        assert!("user_1@example.org:a-b".parse::<Subject>().is_ok());
        assert!("a".repeat(128).parse::<Subject>().is_ok());
        for bad in ["", "a b", "a\n", "ä", &"a".repeat(129)] {
            assert_eq!(bad.parse::<Subject>(), Err(SubjectError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn an_id_keeps_its_time_and_survives_text(ms in 0i64..=253_402_207_200_000) {
            let now = Timestamp::from_millisecond(ms).unwrap();
            let id = JobId::generate(now);
            prop_assert_eq!(id.timestamp(), now);
            prop_assert_eq!(id.to_string().parse::<JobId>(), Ok(id));
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<JobId>(&json).unwrap(), id);
        }

        #[test]
        fn ids_order_by_time(a in 0i64..=1 << 47, b in 0i64..=1 << 47) {
            prop_assume!(a < b);
            let at = |ms| JobId::generate(Timestamp::from_millisecond(ms).unwrap());
            prop_assert!(at(a) < at(b));
        }
    }
}
