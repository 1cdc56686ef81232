//! An issuer of tokens: a key of any algorithm, its JWKS as a file or over HTTP, with a
//! configuration that leads to it, and tokens of any claims.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ops::clock::Clock;
use ring::{
    digest,
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(crate) const ISSUER: &str = "https://issuer.test";
pub(crate) const AUDIENCE: &str = "jobseal";

/// Made for tests by `openssl genpkey`, since `ring` makes no RSA keys.
const RSA: &[u8] = include_bytes!("../fixtures/issuer-rsa.pk8");

pub(crate) struct Issuer {
    key: Key,
    kid: String,
}

enum Key {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// The issuer's side of HTTP.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) url: String,
    state: Arc<Served>,
}

struct Served {
    configuration: Mutex<Value>,
    document: Mutex<Value>,
    asked: AtomicUsize,
    /// Answers with the document, and answers that it has not changed.
    fetched: [AtomicUsize; 2],
}

impl Issuer {
    pub(crate) fn new(kid: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        Self::with(kid, Key::Ed25519(key))
    }

    pub(crate) fn p256(kid: &str) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        Self::with(kid, Key::P256(key))
    }

    pub(crate) fn rsa(kid: &str) -> Self {
        Self::with(kid, Key::Rsa(RsaKeyPair::from_pkcs8(RSA).unwrap()))
    }

    fn with(kid: &str, key: Key) -> Self {
        let kid = kid.to_owned();
        Self { key, kid }
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self.key {
            Key::Ed25519(_) => "EdDSA",
            Key::P256(_) => "ES256",
            Key::Rsa(_) => "RS256",
        }
    }

    pub(crate) fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.key {
            Key::Ed25519(key) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": text(key.public_key().as_ref()) })
            }
            Key::P256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "x": text(x), "y": text(y) })
            }
            Key::Rsa(key) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({ "kty": "RSA", "n": text(&public.n), "e": text(&public.e) })
            }
        };
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(self.algorithm());
        jwk["kid"] = json!(self.kid);
        jwk
    }

    pub(crate) fn write(issuers: &[&Self], file: &PathBuf) {
        std::fs::write(file, Self::jwks(issuers).to_string()).unwrap();
    }

    pub(crate) fn jwks(issuers: &[&Self]) -> Value {
        let keys: Vec<Value> = issuers.iter().map(|issuer| issuer.jwk()).collect();
        json!({ "keys": keys })
    }

    /// Claims that are good for ten minutes.
    pub(crate) fn claims(tenant: &str, scope: &str) -> Value {
        let now = Clock::system().now().as_second();
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "user_token", "tenant_id": tenant,
            "scope": scope, "iat": now, "exp": now + 600,
            "jti": uuid::Uuid::new_v4().to_string(),
        })
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(
            &json!({ "typ": "JWT", "alg": self.algorithm(), "kid": self.kid }),
            claims,
        )
    }

    pub(crate) fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.signature(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn signature(&self, bytes: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Ed25519(key) => key.sign(bytes).as_ref().to_vec(),
            Key::P256(key) => key.sign(&random, bytes).unwrap().as_ref().to_vec(),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature)
                    .unwrap();
                signature
            }
        }
    }
}

impl Server {
    /// Serves `issuers`' keys, until the test's runtime ends.
    pub(crate) async fn start(issuers: &[&Issuer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let jwks_uri = format!("{url}/jwks");
        let state = Arc::new(Served {
            configuration: Mutex::new(json!({ "issuer": url, "jwks_uri": jwks_uri })),
            document: Mutex::new(Issuer::jwks(issuers)),
            asked: AtomicUsize::new(0),
            fetched: Default::default(),
        });
        let router = Router::new()
            .route("/jwks", get(document))
            .route("/.well-known/openid-configuration", get(configuration))
            .with_state(Arc::clone(&state));
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { url, state }
    }

    pub(crate) fn jwks_url(&self) -> String {
        format!("{}/jwks", self.url)
    }

    /// From now on these keys are served.
    pub(crate) fn publish(&self, issuers: &[&Issuer]) {
        *self.state.document.lock().unwrap() = Issuer::jwks(issuers);
    }

    /// From now on there are no keys to be had.
    pub(crate) fn refuse(&self) {
        *self.state.document.lock().unwrap() = json!("away");
    }

    /// From now on the configuration names this issuer.
    pub(crate) fn claim_to_be(&self, issuer: &str) {
        self.state.configuration.lock().unwrap()["issuer"] = json!(issuer);
    }

    /// How often the configuration was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }

    /// How often the keys were given, and how often they had not changed.
    pub(crate) fn fetched(&self) -> [usize; 2] {
        [0, 1].map(|index| self.state.fetched[index].load(Ordering::SeqCst))
    }
}

async fn configuration(State(served): State<Arc<Served>>) -> Response {
    served.asked.fetch_add(1, Ordering::SeqCst);
    axum::Json(served.configuration.lock().unwrap().clone()).into_response()
}

async fn document(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response {
    let document = served.document.lock().unwrap().to_string();
    let hash = digest::digest(&digest::SHA256, document.as_bytes());
    let tag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(hash));
    let is_known = headers
        .get("if-none-match")
        .is_some_and(|known| known.as_bytes() == tag.as_bytes());
    served.fetched[usize::from(is_known)].fetch_add(1, Ordering::SeqCst);
    if is_known {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    ([("etag", tag)], document).into_response()
}
