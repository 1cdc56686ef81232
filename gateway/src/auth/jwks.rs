//! The issuer's public keys: kept for a time, read again when a token names a key we do not know,
//! and kept in use for a time when reading fails.
//!
//! Anyone can make names of keys up. So one reading serves everyone who waits for it, readings
//! begin at least [`COOLDOWN`] apart, and the issuer is asked whether anything changed at all. A
//! token of a key that is really new waits for the next reading, and is believed on first sight.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    auth::issuer::{Library, Source},
    snapshot::Snapshots,
};

/// Most keys that are kept.
const KEYS_MAX: usize = 64;
/// Smallest RSA modulus, in base64url digits: 2,048 bits.
const RSA_MODULUS_MIN_DIGITS: usize = 2_048 / 6;
/// Readings begin at least this far apart: two a second, however many names are made up.
const COOLDOWN: Duration = Duration::from_millis(500);
/// How long a token of an unknown key waits for others' readings.
const PATIENCE: Duration = Duration::from_secs(1);
/// Requests that wait so at a time; what comes then is refused at once.
const WAITING_MAX: usize = 1_000;
/// Pause after a scheduled reading failed.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The keys in use.
pub struct Jwks {
    ttl: Duration,
    stale_max: Duration,
    current: ArcSwap<KeySet>,
    reading: Mutex<Reading>,
    waiting: Semaphore,
    news: watch::Sender<()>,
}

/// Held while reading, so that there is one reading at a time.
struct Reading {
    library: Library,
    /// When the last one began.
    began: Option<Instant>,
    /// When one last said what the keys are.
    good: Option<Instant>,
}

/// The keys of one reading.
#[derive(Default)]
pub struct KeySet {
    /// Grows whenever the document differs: what was verified under another version is not
    /// believed any more. Zero before the first reading.
    pub version: u64,
    /// They were not read for too long, so there are none.
    pub expired: bool,
    document: Vec<u8>,
    keys: HashMap<String, Arc<Key>>,
}

/// One public key, with the only algorithm that it is used for.
pub struct Key {
    /// The algorithm, from the key and never from a token.
    pub algorithm: Algorithm,
    /// The key.
    pub decoding: DecodingKey,
    jwk: Jwk,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

impl Jwks {
    /// Keys from `source`, read again every `ttl`, and given up when that fails for `stale_max`.
    /// None are there before [`Jwks::read`]. When they change, `news` is told.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(
        source: Source,
        ttl: Duration,
        stale_max: Duration,
        news: watch::Sender<()>,
    ) -> anyhow::Result<Self> {
        let reading = Reading {
            library: Library::new(source)?,
            began: None,
            good: None,
        };
        Ok(Self {
            ttl,
            stale_max,
            current: ArcSwap::default(),
            reading: Mutex::new(reading),
            waiting: Semaphore::new(WAITING_MAX),
            news,
        })
    }

    /// The version of the keys in use; zero before they were ever read.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.current.load().version
    }

    /// Whether it is known what the issuer's keys are.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.current.load().is_known()
    }

    /// Whether the issuer still has this key.
    #[must_use]
    pub fn has(&self, key: &Arc<Key>) -> bool {
        let known = self.current.load();
        known.keys.values().any(|known| Arc::ptr_eq(known, key))
    }

    /// The set of keys in which to look for the one that a token names. For an unknown name this
    /// waits until the keys were read after now, by us or by someone else.
    pub async fn find(&self, kid: &str) -> Arc<KeySet> {
        let known = self.current.load_full();
        if known.keys.contains_key(kid) {
            return known;
        }
        self.look_for(kid).await;
        self.current.load_full()
    }

    /// Reads the keys now, and looks anew where they are. On failure those in use stay.
    ///
    /// # Errors
    /// When the document cannot be read or is none.
    pub async fn read(&self) -> anyhow::Result<()> {
        self.read_as(&mut *self.reading.lock().await, true).await
    }

    /// Reads the keys again every `ttl`, and when an operator asks for it, until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn follow(
        self: Arc<Self>,
        snapshots: Arc<Snapshots>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut changes = snapshots.news().subscribe();
        let mut refreshes = snapshots.load().jwks_refreshes;
        loop {
            let pause = match self.read().await {
                Ok(()) => self.ttl,
                Err(error) => {
                    complain(&error);
                    self.expire().await;
                    RETRY_PAUSE.min(self.ttl)
                }
            };
            let due = tokio::time::Instant::now() + pause;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep_until(due) => break,
                    _ = changes.changed() => {
                        let asked = snapshots.load().jwks_refreshes;
                        if std::mem::replace(&mut refreshes, asked) != asked {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Gives the keys up once it is too long ago that anybody said what they are: one that was
    /// withdrawn since would be believed for ever.
    async fn expire(&self) {
        let reading = self.reading.lock().await;
        let before = self.current.load();
        let is_stale = reading
            .good
            .is_some_and(|good| good.elapsed() > self.stale_max);
        if is_stale && before.is_known() {
            error!("the issuer's keys were not read for too long: no token is believed");
            self.current.store(Arc::new(KeySet {
                version: before.version + 1,
                expired: true,
                ..KeySet::default()
            }));
            self.news.send_replace(());
        }
    }

    async fn look_for(&self, kid: &str) {
        let arrived = Instant::now();
        let Ok(_place) = self.waiting.try_acquire() else {
            return;
        };
        let Ok(mut reading) = tokio::time::timeout(PATIENCE, self.reading.lock()).await else {
            return;
        };
        let is_known = self.current.load().keys.contains_key(kid);
        if is_known || reading.began.is_some_and(|began| began >= arrived) {
            return;
        }
        // Whoever comes meanwhile waits for the lock, and finds that we have read.
        let rest = reading
            .began
            .map(|began| COOLDOWN.saturating_sub(began.elapsed()));
        tokio::time::sleep(rest.unwrap_or_default()).await;
        if let Err(error) = self.read_as(&mut reading, false).await {
            complain(&error);
        }
    }

    async fn read_as(&self, reading: &mut Reading, anew: bool) -> anyhow::Result<()> {
        reading.began = Some(Instant::now());
        let before = self.current.load();
        if before.expired {
            // What the issuer has not changed is wanted all the same.
            reading.library.forget();
        }
        let Some(document) = reading.library.read(anew).await? else {
            reading.good = Some(Instant::now());
            return Ok(());
        };
        if before.is_known() && before.document == document {
            reading.good = Some(Instant::now());
            return Ok(());
        }
        let mut keys = parse(&document).inspect_err(|_| reading.library.forget())?;
        for (kid, key) in &mut keys {
            // The same key stays the same value, by which open streams know that it is there.
            if let Some(same) = before.keys.get(kid).filter(|old| old.jwk == key.jwk) {
                *key = Arc::clone(same);
            }
        }
        info!(keys = keys.len(), "the issuer's keys are read");
        reading.good = Some(Instant::now());
        self.current.store(Arc::new(KeySet {
            version: before.version + 1,
            expired: false,
            document,
            keys,
        }));
        self.news.send_replace(());
        Ok(())
    }
}

impl KeySet {
    /// Whether it is known what the keys are.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.version > 0 && !self.expired
    }

    /// The key of this name.
    #[must_use]
    pub fn get(&self, kid: &str) -> Option<&Arc<Key>> {
        self.keys.get(kid)
    }
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwks")
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

fn complain(error: &anyhow::Error) {
    let error = format!("{error:#}");
    warn!(error, "the issuer's keys cannot be read");
}

/// The keys of a document that can be used here; others are left out, whatever they are.
fn parse(document: &[u8]) -> anyhow::Result<HashMap<String, Arc<Key>>> {
    let document: Document = serde_json::from_slice(document).context("not a JWK set")?;
    // None is an answer too: whoever withdraws the last key means it.
    Ok(document
        .keys
        .into_iter()
        .filter_map(|value| serde_json::from_value::<Jwk>(value).ok())
        .filter_map(usable)
        .take(KEYS_MAX)
        .collect())
}

fn usable(jwk: Jwk) -> Option<(String, Arc<Key>)> {
    let for_signatures = matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    );
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) if rsa.n.len() >= RSA_MODULUS_MIN_DIGITS => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let stated = match jwk.common.key_algorithm {
        None => algorithm,
        Some(KeyAlgorithm::RS256) => Algorithm::RS256,
        Some(KeyAlgorithm::ES256) => Algorithm::ES256,
        Some(KeyAlgorithm::EdDSA) => Algorithm::EdDSA,
        Some(_) => return None,
    };
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    let kid = jwk.common.key_id.clone()?;
    let key = Key {
        algorithm,
        decoding,
        jwk,
    };
    (for_signatures && stated == algorithm).then(|| (kid, Arc::new(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"a",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    #[test]
    fn only_keys_for_our_algorithms_are_kept() {
        let symmetric = r#"{"kty":"oct","kid":"s","k":"c2VjcmV0"}"#;
        let short = r#"{"kty":"RSA","kid":"r","n":"sXch","e":"AQAB"}"#;
        let nameless = ED25519.replace(r#""kid":"a","#, "");
        let encrypts = ED25519.replace(r#""kid":"a""#, r#""kid":"e","use":"enc""#);
        let other = ED25519.replace(r#""kid":"a""#, r#""kid":"o","alg":"ES256""#);
        let all = [ED25519, symmetric, short, &nameless, &encrypts, &other].join(",");
        let keys = parse(format!(r#"{{"keys":[{all}]}}"#).as_bytes()).unwrap();
        assert_eq!(keys.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(keys["a"].algorithm, Algorithm::EdDSA);
        // Whoever withdraws the last key means it.
        let none = parse(format!(r#"{{"keys":[{symmetric}]}}"#).as_bytes());
        assert!(none.unwrap().is_empty());
        assert!(parse(b"{}").is_err());
    }

    #[tokio::test]
    async fn keys_that_were_not_read_for_too_long_are_given_up_until_they_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jwks.json");
        let write = || std::fs::write(&file, format!(r#"{{"keys":[{ED25519}]}}"#)).unwrap();
        write();
        let (source, news) = (Source::File(file.clone()), watch::Sender::new(()));
        let jwks = Jwks::new(source, Duration::from_mins(5), Duration::ZERO, news).unwrap();
        let found = jwks.find("a").await;
        let key = Arc::clone(found.get("a").unwrap());
        std::fs::remove_file(&file).unwrap();
        assert!(jwks.read().await.is_err() && jwks.is_known());
        jwks.expire().await;
        assert!(!jwks.is_known() && !jwks.has(&key) && jwks.version() > found.version);
        assert!(!jwks.find("a").await.is_known());
        write();
        let again = jwks.find("a").await;
        assert!(again.is_known() && again.get("a").is_some());
        assert!(
            again.version > found.version,
            "what was verified before is verified again"
        );
    }

    #[tokio::test]
    async fn a_failed_reading_leaves_the_keys_in_use() {
        let file = std::env::temp_dir().join(format!("jwks-{}", std::process::id()));
        let write = |keys: &str| std::fs::write(&file, format!(r#"{{"keys":[{keys}]}}"#)).unwrap();
        write(ED25519);
        let source = Source::File(file.clone());
        let news = watch::Sender::new(());
        let (ttl, stale_max) = (Duration::from_mins(5), Duration::from_hours(24));
        let jwks = Jwks::new(source, ttl, stale_max, news).unwrap();
        assert_eq!(jwks.version(), 0);
        let found = jwks.find("a").await;
        let key = Arc::clone(found.get("a").unwrap());
        assert_eq!(found.version, 1);
        std::fs::write(&file, "not json").unwrap();
        assert!(jwks.read().await.is_err());
        jwks.expire().await;
        assert!(jwks.find("a").await.get("a").is_some());
        // A new key is waited for; one that stays is still the same.
        write(&format!("{ED25519},{}", ED25519.replace("\"a\"", "\"b\"")));
        let found = jwks.find("b").await;
        let new = Arc::clone(found.get("b").unwrap());
        assert!(found.version == 2 && jwks.has(&key));
        write(&ED25519.replace("11qY", "12qY").replace("\"a\"", "\"b\""));
        jwks.read().await.unwrap();
        assert!(!jwks.has(&key) && !jwks.has(&new));
        write("");
        jwks.read().await.unwrap();
        assert!(jwks.find("b").await.get("b").is_none());
        std::fs::remove_file(file).unwrap();
    }
}
