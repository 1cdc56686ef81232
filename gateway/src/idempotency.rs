//! Idempotency keys, the fast path: a claim in Redis with a fencing token, then the kept answer.
//!
//! The owning service's record is the truth. So whatever Redis loses or cannot say, the request
//! goes on, and the service arbitrates; only a clear word from Redis stops it here.

use std::time::Duration;

use bytes::Bytes;
use contracts::{
    id::TenantId,
    problem::{Code, Problem},
};
use fred::types::Value;
use http::{HeaderMap, Method};
use ring::digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::redis::{Redis, Script};

/// The header that carries the key.
pub const HEADER: &str = "idempotency-key";
/// Says on an answer that it was given before.
pub const REPLAYED: &str = "idempotency-replayed";
/// Longest key.
pub const KEY_MAX_BYTES: usize = 255;
/// Largest answer that is kept here; larger ones the service's record replays.
pub const KEPT_MAX_BYTES: usize = 16 * 1_024;

/// How long an answer is kept.
const KEPT: Duration = Duration::from_hours(24);
/// How much longer than the upstream's deadline a claim lasts: a killed gateway's frees itself.
const CLAIM_SLACK: Duration = Duration::from_secs(2);
/// When to ask again after a conflict, in seconds.
const RETRY_AFTER_SECONDS: u64 = 1;

/// A client's key, of 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

/// What must be the same for a request to be a retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(String);

/// The right to act under a key; [`Idempotency::keep`] or [`Idempotency::free`] ends it.
#[derive(Debug)]
#[must_use = "a claim blocks its key until it is ended"]
pub struct Claim {
    place: String,
    /// `None` where nothing was claimed.
    token: Option<String>,
}

/// What a key says about a request.
#[derive(Debug)]
pub enum Standing {
    /// The key is this request's.
    Claimed(Claim),
    /// The answer that was given before.
    Replay(Kept),
}

/// An answer as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its status.
    pub status: u16,
    /// The headers worth repeating, as text.
    pub headers: Vec<(String, String)>,
    /// Its body.
    #[serde(skip)]
    pub body: Bytes,
}

/// The fast path.
#[derive(Debug)]
pub struct Idempotency {
    redis: Redis,
    claim: Script,
    keep: Script,
    free: Script,
    claim_life: Duration,
}

/// Claims a free key, or says what it stands for.
const CLAIM: &str = "\
local held = redis.call('HMGET', KEYS[1], 'hash', 'state', 'head', 'body')
if not held[1] then
  redis.call('HSET', KEYS[1], 'hash', ARGV[1], 'state', 'claimed', 'token', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return { 'claimed' }
end
if held[1] ~= ARGV[1] then return { 'mismatch' } end
return { held[2] == 'claimed' and 'pending' or held[2], held[3] or '', held[4] or '' }";

/// Ends a claim with an answer, if it is still the caller's.
const KEEP: &str = "\
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'token')
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'head', ARGV[3], 'body', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1";

/// Ends a claim without one, if it is still the caller's.
const FREE: &str = "\
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])";

impl Key {
    /// The key of a request: a structured-field string, or the same without quotes.
    ///
    /// # Errors
    /// The problem to answer with when there are several, or one that is none.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let mut values = headers.get_all(HEADER).iter();
        let (first, second) = (values.next(), values.next());
        let Some(value) = first else { return Ok(None) };
        let read = value
            .to_str()
            .ok()
            .filter(|_| second.is_none())
            .and_then(Self::read);
        let detail = "Idempotency-Key must be one string of 1 to 255 visible ASCII characters.";
        read.map(Some)
            .ok_or_else(|| Problem::new(Code::InvalidRequest, detail))
    }

    /// The key without quotes, as it goes upstream.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        let key = match text.strip_prefix('"') {
            None => text.to_owned(),
            Some(rest) => unquote(rest)?,
        };
        let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
        (!key.is_empty() && key.len() <= KEY_MAX_BYTES && visible).then_some(Self(key))
    }
}

impl Fingerprint {
    /// Of a request with this target (path and query) and these very bytes.
    #[must_use]
    pub fn new(method: &Method, target: &str, body: &[u8]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [method.as_str().as_bytes(), target.as_bytes()] {
            context.update(part);
            // Neither part can hold a line end, so no two requests run together.
            context.update(b"\n");
        }
        context.update(body);
        Self(const_hex::encode(context.finish()))
    }
}

impl Idempotency {
    /// Claims last a little longer than `upstream_deadline`.
    #[must_use]
    pub fn new(redis: Redis, upstream_deadline: Duration) -> Self {
        let (claim, keep, free) = (Script::new(CLAIM), Script::new(KEEP), Script::new(FREE));
        Self {
            redis,
            claim,
            keep,
            free,
            claim_life: upstream_deadline + CLAIM_SLACK,
        }
    }

    /// Claims `key` for a request, or finds its answer.
    ///
    /// # Errors
    /// The problem to answer with: another request's key, one in flight, or one whose answer was
    /// not kept because it showed a secret.
    pub async fn claim(
        &self,
        tenant: TenantId,
        key: &Key,
        fingerprint: &Fingerprint,
    ) -> Result<Standing, Problem> {
        let place = self.redis.key("idem", tenant, &format!(":{}", key.0));
        let token = Uuid::new_v4().simple().to_string();
        let arguments = vec![
            Value::from(fingerprint.0.as_str()),
            Value::from(token.as_str()),
            milliseconds(self.claim_life),
        ];
        let answer = self.redis.run(&self.claim, place.clone(), arguments).await;
        let Ok::<Vec<Bytes>, _>(answer) = answer else {
            // The claim may have been made all the same, and then must be ended.
            let token = Some(token);
            return Ok(Standing::Claimed(Claim { place, token }));
        };
        let state = answer.first().map_or(&b""[..], |state| &state[..]);
        match (state, &answer[..]) {
            (b"claimed", _) => Ok(Standing::Claimed(Claim {
                place,
                token: Some(token),
            })),
            (b"mismatch", _) => Err(Problem::new(
                Code::IdempotencyMismatch,
                "This Idempotency-Key was used with another method, path or body.",
            )),
            (b"pending", _) => Err(Problem::new(
                Code::IdempotencyConflict,
                "A request with this Idempotency-Key is still in progress.",
            )
            .with_retry_after(RETRY_AFTER_SECONDS)),
            (b"secret", _) => Err(Problem::new(
                Code::IdempotencyConflict,
                "This request succeeded before. Its answer showed a secret and was not kept.",
            )),
            (b"kept", [_, head, body]) => match serde_json::from_slice::<Kept>(head) {
                Ok(kept) => Ok(Standing::Replay(Kept {
                    body: body.clone(),
                    ..kept
                })),
                Err(_) => Ok(Standing::Claimed(Claim { place, token: None })),
            },
            _ => Ok(Standing::Claimed(Claim { place, token: None })),
        }
    }

    /// Ends a claim: from now on the key stands for this answer.
    pub async fn keep(&self, claim: Claim, answer: &Kept) {
        if answer.body.len() > KEPT_MAX_BYTES {
            return self.free(claim).await;
        }
        let head = serde_json::to_string(answer).expect("numbers and strings have a JSON form");
        self.end(claim, "kept", head, answer.body.clone()).await;
    }

    /// Ends a claim: from now on the key stands for an answer that must not be shown again.
    pub async fn keep_secret(&self, claim: Claim) {
        self.end(claim, "secret", String::new(), Bytes::new()).await;
    }

    /// Ends a claim: the key is free again.
    pub async fn free(&self, claim: Claim) {
        let Some(token) = claim.token else { return };
        let arguments = vec![Value::from(token)];
        // A claim that cannot be freed ends by itself.
        self.redis
            .run::<i64>(&self.free, claim.place, arguments)
            .await
            .ok();
    }

    async fn end(&self, claim: Claim, state: &'static str, head: String, body: Bytes) {
        let Some(token) = claim.token else { return };
        let arguments = vec![
            Value::from(token),
            Value::from_static_str(state),
            Value::from(head),
            Value::Bytes(body),
            milliseconds(KEPT),
        ];
        // Lost answers are replayed by the service's record.
        self.redis
            .run::<i64>(&self.keep, claim.place, arguments)
            .await
            .ok();
    }
}

fn milliseconds(duration: Duration) -> Value {
    Value::from(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

/// The content of a structured-field string (RFC 8941) after its opening quote.
fn unquote(rest: &str) -> Option<String> {
    let mut content = String::new();
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(content),
            '\\' => match characters.next()? {
                escaped @ ('"' | '\\') => content.push(escaped),
                _ => return None,
            },
            other => content.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn key(text: &str) -> Option<String> {
        Key::read(text).map(|key| key.0)
    }

    #[test]
    fn a_key_may_be_quoted_or_bare() {
        assert_eq!(key("abc-1"), Some("abc-1".into()));
        assert_eq!(key("\"abc-1\""), key("abc-1"));
        assert_eq!(key(r#""a\"b\\""#), Some(r#"a"b\"#.into()));
        assert_eq!(key(&"k".repeat(255)).unwrap().len(), 255);
        for bad in [
            "",
            "\"\"",
            "a b",
            "\"a",
            "\"a\" x",
            "\"a\";p=1",
            r#""\a""#,
            "ü",
            "a\tb",
        ] {
            assert_eq!(key(bad), None, "{bad}");
        }
        assert_eq!(key(&"k".repeat(256)), None);
        let mut twice = HeaderMap::new();
        twice.append(HEADER, HeaderValue::from_static("a"));
        assert!(Key::of(&twice).unwrap().is_some());
        twice.append(HEADER, HeaderValue::from_static("a"));
        assert!(Key::of(&twice).is_err());
    }

    #[test]
    fn a_fingerprint_tells_method_target_and_every_byte_apart() {
        let base = Fingerprint::new(&Method::POST, "/a", b"x");
        assert_eq!(base, Fingerprint::new(&Method::POST, "/a", b"x"));
        for other in [
            Fingerprint::new(&Method::PATCH, "/a", b"x"),
            Fingerprint::new(&Method::POST, "/a?b", b"x"),
            Fingerprint::new(&Method::POST, "/a", b"x "),
            Fingerprint::new(&Method::POST, "/", b"ax"),
        ] {
            assert_ne!(base, other);
        }
    }
}
