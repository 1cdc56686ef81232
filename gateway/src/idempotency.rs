//! Idempotency keys, the fast path: a claim in Redis with a fencing token, then the kept answer.
//!
//! The owning service's record is the truth. So whatever Redis loses or cannot say, the request
//! goes on, and the service arbitrates; only a clear word from Redis stops it here.

use std::time::Duration;

use bytes::Bytes;
use contracts::{
    id::JobId,
    problem::{Code, Problem},
};
use fred::types::Value;
use http::{HeaderMap, Method};
use jiff::Timestamp;
use ring::digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    limit::{
        generation::Generation,
        quota::{self, Month, Seeder, Used},
    },
    redis::{Redis, Script},
    snapshot::Tenant,
};

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
/// How much longer than the upstream's deadline a claim lasts: a killed gateway's is free then.
const CLAIM_SLACK: Duration = Duration::from_secs(2);
/// When to ask again after a conflict, in seconds.
const RETRY_AFTER_SECONDS: u64 = 1;

/// A client's key, of 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

/// What must be the same for a request to be a retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(String);

/// A request that comes with a key.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Whose it is.
    pub tenant: &'a Tenant,
    /// The key.
    pub key: &'a Key,
    /// What makes a retry one.
    pub fingerprint: &'a Fingerprint,
    /// Compute units it costs; 0 where it makes no job.
    pub units: u64,
    /// When it came.
    pub now: Timestamp,
}

/// The right to act under a key; [`Idempotency::keep`] or [`Idempotency::free`] ends it.
#[derive(Debug)]
#[must_use = "a claim blocks its key until it is ended"]
pub struct Claim {
    /// How the tenant stands with the month's quota now, where it has one.
    pub used: Option<Used>,
    /// Whether a gateway that is gone had paid the request's compute units before.
    pub carried: bool,
    places: [String; 3],
    /// `None` where nothing was claimed.
    token: Option<String>,
    charged: u64,
}

/// What a key says about a request.
#[derive(Debug)]
pub enum Standing {
    /// The key is this request's.
    Claimed(Claim),
    /// The answer that was given before.
    Replay(Kept),
    /// The month's quota has no room for the request.
    Exhausted(Used),
}

/// What becomes of a key.
#[derive(Debug)]
pub enum Ending<'a> {
    /// It stands for this answer, and its content for the job.
    Kept(&'a Kept, Option<JobId>),
    /// It stands for an answer that must not be shown again.
    Secret,
    /// It is free again.
    Freed,
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
    generation: Generation,
    seeder: Seeder,
    claim: Script,
    end: Script,
    claim_life: Duration,
}

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
    /// Of a request with this target (path and query) and a body of these very bytes, given by
    /// their SHA-256.
    #[must_use]
    pub fn new(method: &Method, target: &str, body_sha256: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [method.as_str().as_bytes(), target.as_bytes()] {
            context.update(part);
            // Neither part can hold a line end, so no two requests run together.
            context.update(b"\n");
        }
        context.update(body_sha256.as_bytes());
        Self(const_hex::encode(context.finish()))
    }
}

impl Idempotency {
    /// Claims last a little longer than `upstream_deadline`.
    #[must_use]
    pub fn new(
        redis: Redis,
        generation: Generation,
        seeder: Seeder,
        upstream_deadline: Duration,
    ) -> Self {
        Self {
            redis,
            generation,
            seeder,
            claim: Script::new(include_str!("idempotency/claim.lua")),
            end: Script::new(include_str!("idempotency/end.lua")),
            claim_life: upstream_deadline + CLAIM_SLACK,
        }
    }

    /// Claims a key for a request and charges it, or finds its answer.
    ///
    /// # Errors
    /// The problem to answer with: another request's key, one in flight, one whose answer was not
    /// kept because it showed a secret, or the content of an earlier job.
    pub async fn claim(&self, asked: &Asked<'_>) -> Result<Standing, Problem> {
        let places = self.places(asked);
        let token = Uuid::new_v4().simple().to_string();
        let quota = asked.tenant.plan.quota.filter(|_| asked.units > 0);
        let arguments = vec![
            Value::from(asked.fingerprint.0.as_str()),
            Value::from(token.as_str()),
            milliseconds(self.claim_life),
            milliseconds(KEPT),
            Value::from(asked.units.to_string()),
            quota
                .and_then(|quota| quota.most())
                .map_or(Value::from(-1), |most| Value::from(most.to_string())),
            quota.map_or(Value::from(0), |_| milliseconds(quota::KEPT)),
            Value::from(i64::from(asked.units > 0 && asked.tenant.unique_content)),
            Value::from(self.generation.born_ms().to_string()),
        ];
        let answer: Result<Vec<Bytes>, _> = self
            .redis
            .run(&self.claim, places.to_vec(), arguments)
            .await;
        let carried = number(answer.as_ref().ok().and_then(|a| a.get(3))) == Some(1);
        let claimed = |token, charged, used| Claim {
            used,
            carried,
            places,
            token,
            charged,
        };
        let Ok(answer) = answer else {
            // The claim may have been made all the same, and then must be ended.
            let charged = quota.map_or(0, |_| asked.units);
            return Ok(Standing::Claimed(claimed(Some(token), charged, None)));
        };
        let used = quota
            .zip(number(answer.get(1)))
            .map(|(quota, units)| Used { quota, units });
        if used.is_some() && number(answer.get(2)) == Some(0) {
            self.seeder.ask(asked.tenant.id);
        }
        let state = answer.first().map_or(&b""[..], |state| &state[..]);
        match (state, used, &answer[..]) {
            (b"claimed", _, _) => {
                let charged = used.map_or(0, |_| asked.units);
                Ok(Standing::Claimed(claimed(Some(token), charged, used)))
            }
            (b"exhausted", Some(used), _) => Ok(Standing::Exhausted(used)),
            (b"kept", _, [_, head, body]) => match serde_json::from_slice::<Kept>(head) {
                Ok(kept) => Ok(Standing::Replay(Kept {
                    body: body.clone(),
                    ..kept
                })),
                Err(_) => Ok(Standing::Claimed(claimed(None, 0, None))),
            },
            _ => match refusal(&answer) {
                Some(problem) => Err(problem),
                None => Ok(Standing::Claimed(claimed(None, 0, None))),
            },
        }
    }

    /// Ends a claim. What was charged is given back unless the request did something new.
    pub async fn end(&self, claim: Claim, ending: Ending<'_>, acted: bool) {
        let Some(token) = claim.token else { return };
        let ending = match ending {
            // The service's record replays what is too large to be kept here.
            Ending::Kept(kept, _) if kept.body.len() > KEPT_MAX_BYTES => Ending::Freed,
            other => other,
        };
        let (state, head, body, job) = match ending {
            Ending::Kept(kept, job) => {
                let head = serde_json::to_string(kept);
                let head = head.expect("numbers and strings have a JSON form");
                ("kept", head, kept.body.clone(), job)
            }
            Ending::Secret => ("secret", String::new(), Bytes::new(), None),
            Ending::Freed => ("", String::new(), Bytes::new(), None),
        };
        let back = if acted { 0 } else { claim.charged };
        let arguments = vec![
            Value::from(token),
            Value::from_static_str(state),
            Value::from(head),
            Value::Bytes(body),
            milliseconds(KEPT),
            Value::from(back.to_string()),
            Value::from(job.map(|job| job.to_string()).unwrap_or_default()),
        ];
        // A claim that cannot be ended ends by itself; the service's record replays its answer.
        let ended = self
            .redis
            .conclude(&self.end, claim.places.to_vec(), arguments);
        ended.await;
    }

    /// The keys of a claim: its own, the month's quota's, the content's.
    fn places(&self, asked: &Asked<'_>) -> [String; 3] {
        let tenant = asked.tenant.id;
        [
            self.redis.key("idem", tenant, &format!(":{}", asked.key.0)),
            Month::of(asked.now).place(&self.redis, tenant),
            self.redis
                .key("content", tenant, &format!(":{}", asked.fingerprint.0)),
        ]
    }
}

/// The problem of a request that a key, or its content, does not let through.
fn refusal(answer: &[Bytes]) -> Option<Problem> {
    let text = |index: usize| {
        answer
            .get(index)
            .and_then(|text| std::str::from_utf8(text).ok())
    };
    let conflict = |detail: &str| Problem::new(Code::IdempotencyConflict, detail);
    Some(match text(0)? {
        "mismatch" => Problem::new(
            Code::IdempotencyMismatch,
            "This Idempotency-Key was used with another method, path or body.",
        ),
        "pending" => conflict("A request with this Idempotency-Key is still in progress.")
            .with_retry_after(RETRY_AFTER_SECONDS),
        "secret" => {
            conflict("This request succeeded before. Its answer showed a secret and was not kept.")
        }
        "duplicate" => match text(1)?.parse::<JobId>() {
            Ok(first) => Problem::new(
                Code::DuplicateJob,
                format!("{first} has the same content, and was submitted within the last day."),
            )
            .with_job_id(first),
            Err(_) => conflict("A request with the same content is still in progress.")
                .with_retry_after(RETRY_AFTER_SECONDS),
        },
        _ => return None,
    })
}

fn number(text: Option<&Bytes>) -> Option<u64> {
    std::str::from_utf8(text?).ok()?.parse().ok()
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
        let of = |method, target, body: &[u8]| {
            Fingerprint::new(&method, target, &contracts::assertion::sha256_hex(body))
        };
        let base = of(Method::POST, "/a", b"x");
        assert_eq!(base, of(Method::POST, "/a", b"x"));
        for other in [
            of(Method::PATCH, "/a", b"x"),
            of(Method::POST, "/a?b", b"x"),
            of(Method::POST, "/a", b"x "),
            of(Method::POST, "/", b"ax"),
        ] {
            assert_ne!(base, other);
        }
    }
}
