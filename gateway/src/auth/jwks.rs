//! The issuer's public keys: read by file or URL, kept for a time, read again when a token names a
//! key we do not know (once for everyone, and not too often), and kept in use when reading fails.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use arc_swap::ArcSwap;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

/// Largest document that is read.
const DOCUMENT_MAX_BYTES: usize = 256 * 1_024;
/// Most keys that are kept.
const KEYS_MAX: usize = 64;
/// Smallest RSA modulus, in base64url digits: 2,048 bits.
const RSA_MODULUS_MIN_DIGITS: usize = 2_048 / 6;
/// How long the issuer may take.
const FETCH_DEADLINE: Duration = Duration::from_secs(5);
/// An unknown key's name makes us read again at most this often: anyone can make names up.
const COOLDOWN: Duration = Duration::from_secs(10);
/// Pause after a scheduled reading failed.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Where the keys come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// A URL.
    Url(Url),
}

/// The keys in use.
pub struct Jwks {
    source: Source,
    client: reqwest::Client,
    ttl: Duration,
    current: ArcSwap<KeySet>,
    /// When an unknown name last made us read; held while reading.
    asked: Mutex<Option<Instant>>,
}

/// The keys of one reading.
#[derive(Default)]
pub struct KeySet {
    /// Grows whenever the document differs: what was verified under another version is not
    /// believed any more. Zero before the first reading.
    pub version: u64,
    document: Vec<u8>,
    keys: HashMap<String, Arc<Key>>,
}

/// One public key, with the only algorithm that it is used for.
pub struct Key {
    /// The algorithm, from the key and never from a token.
    pub algorithm: Algorithm,
    /// The key.
    pub decoding: DecodingKey,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

impl Jwks {
    /// Keys from `source`, read again every `ttl`. None are there before [`Jwks::read`].
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(source: Source, ttl: Duration) -> anyhow::Result<Self> {
        // The client needs a TLS provider even for plain http; a second installation is refused.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let client = reqwest::Client::builder()
            .timeout(FETCH_DEADLINE)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let (current, asked) = (ArcSwap::default(), Mutex::new(None));
        Ok(Self {
            source,
            client,
            ttl,
            current,
            asked,
        })
    }

    /// The version of the keys in use; zero means none.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.current.load().version
    }

    /// The key that a token names, and the version of the set it is from. An unknown name makes
    /// us read the keys again, unless that was just done.
    pub async fn find(&self, kid: &str) -> (u64, Option<Arc<Key>>) {
        let known = self.current.load();
        if let Some(key) = known.keys.get(kid) {
            return (known.version, Some(Arc::clone(key)));
        }
        drop(known);
        let mut asked = self.asked.lock().await;
        let stale = asked.is_none_or(|last| last.elapsed() >= COOLDOWN);
        if stale && !self.current.load().keys.contains_key(kid) {
            *asked = Some(Instant::now());
            if let Err(error) = self.read().await {
                warn!(
                    error = format!("{error:#}"),
                    "the issuer's keys cannot be read"
                );
            }
        }
        drop(asked);
        let now_known = self.current.load();
        (now_known.version, now_known.keys.get(kid).cloned())
    }

    /// Reads the keys now. On failure those in use stay.
    ///
    /// # Errors
    /// When the document cannot be read or is none.
    pub async fn read(&self) -> anyhow::Result<()> {
        let document = match &self.source {
            Source::File(path) => {
                let text = tokio::fs::read(path).await;
                text.with_context(|| format!("read {}", path.display()))?
            }
            Source::Url(url) => self
                .fetch(url)
                .await
                .with_context(|| format!("fetch {url}"))?,
        };
        ensure!(
            document.len() <= DOCUMENT_MAX_BYTES,
            "larger than {DOCUMENT_MAX_BYTES} bytes"
        );
        let before = self.current.load();
        if before.version > 0 && before.document == document {
            return Ok(());
        }
        let keys = parse(&document)?;
        info!(keys = keys.len(), "the issuer's keys are read");
        self.current.store(Arc::new(KeySet {
            version: before.version + 1,
            document,
            keys,
        }));
        Ok(())
    }

    /// Reads the keys again every `ttl`, until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let pause = match self.read().await {
                Ok(()) => self.ttl,
                Err(error) => {
                    warn!(
                        error = format!("{error:#}"),
                        "the issuer's keys cannot be read"
                    );
                    RETRY_PAUSE.min(self.ttl)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn fetch(&self, url: &Url) -> anyhow::Result<Vec<u8>> {
        let mut response = self
            .client
            .get(url.clone())
            .send()
            .await?
            .error_for_status()?;
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            document.extend_from_slice(&chunk);
            ensure!(
                document.len() <= DOCUMENT_MAX_BYTES,
                "larger than {DOCUMENT_MAX_BYTES} bytes"
            );
        }
        Ok(document)
    }
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwks")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// The keys of a document that can be used here; others are left out, whatever they are.
fn parse(document: &[u8]) -> anyhow::Result<HashMap<String, Arc<Key>>> {
    let document: Document = serde_json::from_slice(document).context("not a JWK set")?;
    let keys: HashMap<String, Arc<Key>> = document
        .keys
        .into_iter()
        .filter_map(|value| serde_json::from_value::<Jwk>(value).ok())
        .filter_map(usable)
        .take(KEYS_MAX)
        .collect();
    ensure!(
        !keys.is_empty(),
        "the JWK set has no key for RS256, ES256 or EdDSA with a kid"
    );
    Ok(keys)
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
    let kid = jwk.common.key_id?;
    (for_signatures && stated == algorithm).then(|| {
        (
            kid,
            Arc::new(Key {
                algorithm,
                decoding,
            }),
        )
    })
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
        assert!(parse(format!(r#"{{"keys":[{symmetric}]}}"#).as_bytes()).is_err());
    }

    #[tokio::test]
    async fn a_failed_reading_leaves_the_keys_in_use() {
        let file = std::env::temp_dir().join(format!("jwks-{}", std::process::id()));
        std::fs::write(&file, format!(r#"{{"keys":[{ED25519}]}}"#)).unwrap();
        let jwks = Jwks::new(Source::File(file.clone()), Duration::from_mins(5)).unwrap();
        assert_eq!(jwks.version(), 0);
        let (version, key) = jwks.find("a").await;
        assert!(version == 1 && key.is_some());
        std::fs::write(&file, "not json").unwrap();
        assert!(jwks.read().await.is_err());
        assert!(jwks.find("a").await.1.is_some());
        // The cooldown holds: the new key is not looked for again yet.
        std::fs::write(
            &file,
            format!(r#"{{"keys":[{}]}}"#, ED25519.replace("\"a\"", "\"b\"")),
        )
        .unwrap();
        assert!(jwks.find("b").await.1.is_none());
        std::fs::remove_file(file).unwrap();
    }
}
