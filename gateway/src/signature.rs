//! HTTP Message Signatures (RFC 9421, HMAC-SHA256), for tenants whose requests must be signed.
//!
//! A signature must cover `@method`; `@target-uri`, or `@path` and `@query`; the idempotency key,
//! where there is one; and `content-digest` (RFC 9530, SHA-256), where there is a body. It must say
//! when it was made, by which key, and `alg="hmac-sha256"`. None is believed twice (`replay`).

use std::collections::HashMap;

use contracts::{
    id::SigningKeyId,
    problem::{Code, Problem},
};
use http::HeaderMap;
use jiff::Timestamp;
use pingora::http::RequestHeader;
use ring::{digest, hmac};
use sfv::{BareItem, Dictionary, InnerList, ListEntry, Parser};
use subtle::ConstantTimeEq as _;

use crate::idempotency;

mod base;
pub mod replay;
pub mod rows;

/// Longest `Signature-Input`, `Signature` and `Content-Digest`.
const FIELD_MAX_BYTES: usize = 2 * 1_024;
/// Most components that a signature covers.
const COMPONENTS_MAX: usize = 32;
/// Longest nonce.
const NONCE_MAX_BYTES: usize = 128;
/// How far ahead of ours a client's clock may be, in seconds.
const CLOCK_SKEW_SECONDS: i64 = 30;
const ALGORITHM: &str = "hmac-sha256";
const CONTENT_DIGEST: &str = "content-digest";

/// What a tenant signs its requests with.
#[derive(Debug, Default)]
pub struct Signing {
    /// The keys that are good, or were when they were loaded.
    pub keys: HashMap<SigningKeyId, SigningKey>,
}

/// One key.
#[derive(Clone, Debug)]
pub struct SigningKey {
    /// The key.
    pub key: hmac::Key,
    /// When it ends, once it was rotated.
    pub expires_at: Option<Timestamp>,
}

/// What a good signature says about its request.
#[derive(Debug, PartialEq, Eq)]
pub struct Signed {
    /// SHA-256 of the body, if it is covered.
    digest: Option<[u8; 32]>,
    /// What no other request may show again until `until`: the nonce, or the signature.
    once: [u8; 32],
    /// Seconds of Unix time after which the signature is too old anyway.
    until: i64,
}

/// The parameters of a signature.
struct Parameters<'a> {
    created: i64,
    key: SigningKeyId,
    nonce: Option<&'a str>,
}

impl Signing {
    /// Whether the request is signed by one of the keys, at most `window` seconds ago.
    ///
    /// # Errors
    /// The problem that says what is wrong with the signature.
    pub fn verify(
        &self,
        request: &RequestHeader,
        now: Timestamp,
        window: i64,
    ) -> Result<Signed, Problem> {
        let headers = &request.headers;
        let input = dictionary(headers, "signature-input")?;
        let signatures = dictionary(headers, "signature")?;
        let (Some((label, ListEntry::InnerList(covered))), 1) = (input.first(), input.len()) else {
            return Err(refuse("Signature-Input must hold one signature."));
        };
        let (Some(ListEntry::Item(signature)), 1) = (signatures.get(label), signatures.len())
        else {
            return Err(refuse("Signature must hold the one of Signature-Input."));
        };
        let signature = signature.bare_item.as_byte_seq();
        let signature = signature.ok_or_else(|| refuse("The signature is no byte sequence."))?;
        let names = names(covered)?;
        require_cover(&names, headers)?;
        let parameters = Parameters::read(covered, now.as_second(), window)?;
        let key = self.keys.get(&parameters.key);
        let key = key.filter(|key| key.expires_at.is_none_or(|end| end > now));
        let key = key.ok_or_else(|| refuse("The key of keyid is not a good one."))?;
        // Whoever ended TLS before us knows the scheme, and we do not: either one may be signed.
        let fits = base::SCHEMES.iter().any(|scheme| {
            base::of(request, &names, covered, scheme)
                .is_some_and(|base| hmac::verify(&key.key, base.as_bytes(), signature).is_ok())
        });
        if !fits {
            return Err(refuse("The signature does not fit the request."));
        }
        let digest = names.contains(&CONTENT_DIGEST);
        Ok(Signed {
            digest: digest.then(|| content_digest(headers)).transpose()?,
            once: once(&parameters, signature),
            until: parameters.created + window + CLOCK_SKEW_SECONDS,
        })
    }
}

/// Refuses a body that is not the one that was signed; nothing is to be refused where the request
/// need not be.
pub(crate) fn require_digest(signed: Option<&Signed>, body: &[u8]) -> Result<(), Problem> {
    let Some(Signed { digest, .. }) = signed else {
        return Ok(());
    };
    match digest {
        None if body.is_empty() => Ok(()),
        None => Err(refuse(
            "The signature must cover content-digest: there is a body.",
        )),
        Some(stated) => {
            let found = digest::digest(&digest::SHA256, body);
            if bool::from(stated[..].ct_eq(found.as_ref())) {
                return Ok(());
            }
            Err(refuse("Content-Digest is not that of the body."))
        }
    }
}

impl<'a> Parameters<'a> {
    fn read(covered: &'a InnerList, now: i64, window: i64) -> Result<Self, Problem> {
        let number = |name: &str| covered.params.get(name).and_then(BareItem::as_int);
        let text = |name: &str| covered.params.get(name).and_then(BareItem::as_str);
        let created = number("created").ok_or_else(|| refuse("created must be a number."))?;
        if created > now + CLOCK_SKEW_SECONDS || created < now - window {
            let detail = format!("created must be within {window} s; here it is {now}.");
            return Err(refuse(&detail));
        }
        let ends = covered.params.contains_key("expires");
        if ends && number("expires").is_none_or(|expires| expires <= now) {
            return Err(refuse("The signature has expired."));
        }
        if text("alg") != Some(ALGORITHM) {
            return Err(refuse("alg must be \"hmac-sha256\"."));
        }
        let nonce = text("nonce");
        let fits = nonce.is_some_and(|nonce| (1..=NONCE_MAX_BYTES).contains(&nonce.len()));
        if covered.params.contains_key("nonce") && !fits {
            return Err(refuse("nonce must be a string of 1 to 128 characters."));
        }
        let key = text("keyid").and_then(|id| id.parse().ok());
        let key = key.ok_or_else(|| refuse("keyid must name a signing key (sig_...)."))?;
        Ok(Self {
            created,
            key,
            nonce,
        })
    }
}

/// The names of what is covered. Parameters would change what a name means, and are not needed.
fn names(covered: &InnerList) -> Result<Vec<&str>, Problem> {
    if covered.items.len() > COMPONENTS_MAX {
        return Err(refuse("The signature covers too many components."));
    }
    let mut names: Vec<&str> = Vec::with_capacity(covered.items.len());
    for item in &covered.items {
        let name = item.bare_item.as_str().filter(|_| item.params.is_empty());
        let name = name.ok_or_else(|| refuse("Components are strings without parameters."))?;
        if names.contains(&name) {
            return Err(refuse("The signature covers a component twice."));
        }
        names.push(name);
    }
    Ok(names)
}

fn require_cover(names: &[&str], headers: &HeaderMap) -> Result<(), Problem> {
    let covers = |name: &str| names.contains(&name);
    let missing = if !covers("@method") {
        "@method"
    } else if !(covers("@target-uri") || covers("@path") && covers("@query")) {
        "@target-uri, or @path and @query"
    } else if headers.contains_key(idempotency::HEADER) && !covers(idempotency::HEADER) {
        idempotency::HEADER
    } else {
        return Ok(());
    };
    Err(refuse(&format!("The signature must cover {missing}.")))
}

fn dictionary(headers: &HeaderMap, name: &str) -> Result<Dictionary, Problem> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        let detail = format!("The tenant's requests must be signed: send {name} once.");
        return Err(refuse(&detail));
    };
    let parsed = (value.len() <= FIELD_MAX_BYTES)
        .then(|| Parser::parse_dictionary(value.as_bytes()).ok())
        .flatten();
    parsed.ok_or_else(|| refuse(&format!("{name} is malformed or too long.")))
}

fn content_digest(headers: &HeaderMap) -> Result<[u8; 32], Problem> {
    let digests = dictionary(headers, CONTENT_DIGEST)?;
    let digest = match digests.get("sha-256") {
        Some(ListEntry::Item(item)) => item.bare_item.as_byte_seq(),
        _ => None,
    };
    let digest = digest.and_then(|bytes| bytes.as_slice().try_into().ok());
    digest.ok_or_else(|| refuse("Content-Digest must state a sha-256 of 32 bytes."))
}

/// What must not be seen again: the nonce, else the signature itself.
fn once(parameters: &Parameters<'_>, signature: &[u8]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(parameters.key.uuid().as_bytes());
    // The first byte keeps a nonce from being another's signature.
    let (kind, bytes) = match parameters.nonce {
        Some(nonce) => (b"n", nonce.as_bytes()),
        None => (b"s", signature),
    };
    context.update(kind);
    context.update(bytes);
    let hash = context.finish();
    hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn refuse(detail: &str) -> Problem {
    Problem::new(Code::InvalidToken, detail)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const CREATED: i64 = 1_800_000_000;
    const WINDOW: i64 = 300;

    /// How the fixtures were made stands in the programs beside them.
    fn fixtures() -> Vec<Value> {
        let files = [
            include_str!("../tests/fixtures/signatures-python.json"),
            include_str!("../tests/fixtures/signatures-node.json"),
        ];
        let parse = |text: &str| serde_json::from_str::<Vec<Value>>(text).unwrap();
        files.into_iter().flat_map(parse).collect()
    }

    fn signing() -> Signing {
        let secret: Vec<u8> = (0..32).collect();
        let key = SigningKey {
            key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            expires_at: None,
        };
        let id = "sig_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a".parse().unwrap();
        Signing {
            keys: [(id, key)].into(),
        }
    }

    /// The request of a fixture, with each header passed through `change`.
    fn request(fixture: &Value, change: impl Fn(&str, &str) -> String) -> RequestHeader {
        let url: url::Url = fixture["url"].as_str().unwrap().parse().unwrap();
        let method = fixture["method"].as_str().unwrap();
        let target = &url[url::Position::BeforePath..];
        let mut request = RequestHeader::build(method, target.as_bytes(), None).unwrap();
        let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
        request.insert_header("host", authority).unwrap();
        for (name, value) in fixture["headers"].as_object().unwrap() {
            let value = change(name, value.as_str().unwrap());
            request.insert_header(name.clone(), value).unwrap();
        }
        request
    }

    fn outcome(request: &RequestHeader, now: i64) -> Result<Signed, String> {
        let now = Timestamp::from_second(now).unwrap();
        let verified = signing().verify(request, now, WINDOW);
        verified.map_err(|problem| problem.details().detail.clone().unwrap())
    }

    #[test]
    fn what_others_signed_is_believed_and_nothing_else() {
        for fixture in fixtures() {
            let good = request(&fixture, |_, value| value.to_owned());
            let signed = outcome(&good, CREATED + 59).unwrap();
            let body = fixture["body"].as_str().unwrap().as_bytes();
            assert!(require_digest(Some(&signed), body).is_ok());
            assert!(require_digest(Some(&signed), b"other").is_err());
            for now in [CREATED - CLOCK_SKEW_SECONDS - 1, CREATED + WINDOW + 1] {
                assert!(outcome(&good, now).unwrap_err().contains("created"));
            }
            let other_method = {
                let mut request = good.clone();
                request.set_method(http::Method::PUT);
                request
            };
            let fit = "does not fit";
            assert!(outcome(&other_method, CREATED).unwrap_err().contains(fit));
            for name in fixture["headers"].as_object().unwrap().keys() {
                // The last character that says something.
                let altered = request(&fixture, |changed, value| {
                    let last = |c: char| c.is_ascii_alphanumeric();
                    let at = value.rfind(last).filter(|_| changed == name);
                    at.map_or(value.to_owned(), |at| {
                        let other = if &value[at..=at] == "0" { "1" } else { "0" };
                        format!("{}{other}{}", &value[..at], &value[at + 1..])
                    })
                });
                assert!(outcome(&altered, CREATED).is_err(), "{name}");
            }
        }
    }

    #[test]
    fn a_used_nonce_or_signature_is_known_by_its_key() {
        let fixtures = fixtures();
        let signed = |fixture: &Value| {
            let request = request(fixture, |_, value| value.to_owned());
            outcome(&request, CREATED).unwrap()
        };
        // All of one nonce, but for the last, which has none.
        let (first, second) = (signed(&fixtures[0]), signed(&fixtures[1]));
        assert_eq!(first.once, second.once);
        assert_ne!(first.once, signed(fixtures.last().unwrap()).once);
        assert_eq!(first.until, CREATED + WINDOW + CLOCK_SKEW_SECONDS);
    }

    #[test]
    fn fields_are_of_one_form_and_bounded() {
        let fixture = &fixtures()[0];
        let with = |name: &'static str, text: String| {
            request(fixture, move |changed, value| {
                let is_it = changed == name;
                if is_it {
                    text.clone()
                } else {
                    value.to_owned()
                }
            })
        };
        let many = (0..=COMPONENTS_MAX).map(|n| format!("\"x{n}\""));
        let many = format!("sig1=({})", many.collect::<Vec<_>>().join(" "));
        for (name, text, words) in [
            ("signature-input", String::new(), "one signature"),
            ("signature-input", "sig1=5".to_owned(), "one signature"),
            (
                "signature-input",
                "sig1=(),sig2=()".to_owned(),
                "one signature",
            ),
            (
                "signature-input",
                "sig2=(\"@method\")".to_owned(),
                "the one of",
            ),
            (
                "signature-input",
                "sig1=(\"a\";sf)".to_owned(),
                "without parameters",
            ),
            ("signature-input", "sig1=(5)".to_owned(), "strings"),
            ("signature-input", many, "too many"),
            (
                "signature-input",
                "a".repeat(FIELD_MAX_BYTES + 1),
                "too long",
            ),
            ("signature", "sig1=5".to_owned(), "byte sequence"),
            ("signature", "sig1=:$:".to_owned(), "malformed"),
        ] {
            let said = outcome(&with(name, text.clone()), CREATED).unwrap_err();
            assert!(said.contains(words), "{text}: {said}");
        }
        let mut twice = request(fixture, |_, value| value.to_owned());
        twice.append_header("signature", "sig1=:AAAA:").unwrap();
        assert!(outcome(&twice, CREATED).unwrap_err().contains("once"));
    }
}
