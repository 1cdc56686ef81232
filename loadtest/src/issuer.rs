//! A JWT issuer for local runs: an Ed25519 key in a folder, its JWKS for the gateway, and tokens.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use crate::{clock, exit::BadUsage, report};

/// The private key's file in the issuer's folder.
const KEY_FILE: &str = "issuer.pk8";
/// The public keys' file in the issuer's folder.
const JWKS_FILE: &str = "jwks.json";
/// How long before its expiry a token says it was issued: the gateway's longest lifetime is 15 min.
const LIFETIME: SignedDuration = SignedDuration::from_mins(10);

/// Makes an Ed25519 JWT issuer: DIR/jwks.json for the gateway, DIR/issuer.pk8 for `loadtest token`.
/// An issuer that is already there stays.
#[derive(Args, Debug)]
pub(crate) struct IssuerOptions {
    /// Where to put it.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Prints a JWT of an issuer made with `loadtest issuer`.
#[derive(Args, Debug)]
pub(crate) struct TokenOptions {
    /// The issuer's folder.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The claim `iss`.
    #[arg(long, env = "JWT_ISSUER")]
    issuer: String,
    /// The claim `aud`.
    #[arg(long, env = "JWT_AUDIENCE")]
    audience: String,
    /// The claim `tenant_id`.
    #[arg(long, value_name = "TENANT_ID")]
    tenant: String,
    /// The claim `sub`.
    #[arg(long, default_value = "user_token")]
    subject: String,
    /// The claim `scope`: scopes, separated by blanks.
    #[arg(long)]
    scope: String,
    /// From now to the claim `exp`, such as `10m`; `-5m` makes an expired token.
    #[arg(long, default_value = "10m", allow_hyphen_values = true, value_parser = signed_duration)]
    expires_in: SignedDuration,
}

/// An issuer, ready to sign.
pub(crate) struct Issuer {
    key: Ed25519KeyPair,
}

/// What a token states.
pub(crate) struct TokenClaims<'a> {
    /// Who issues it.
    pub(crate) issuer: &'a str,
    /// For whom.
    pub(crate) audience: &'a str,
    /// Whose data.
    pub(crate) tenant: &'a str,
    /// Who acts.
    pub(crate) subject: &'a str,
    /// What they may do, separated by blanks.
    pub(crate) scope: &'a str,
    /// From now on; negative for an expired one.
    pub(crate) expires_in: SignedDuration,
}

/// `loadtest issuer`.
pub(crate) fn make(options: &IssuerOptions) -> anyhow::Result<()> {
    fs::create_dir_all(&options.dir).context("making the issuer's folder")?;
    let key_file = options.dir.join(KEY_FILE);
    if !key_file.exists() {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("the system's random source failed"))?;
        let mut file = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&key_file)
            .context("making the issuer's key file")?;
        file.write_all(document.as_ref())
            .context("writing the issuer's key")?;
    }
    let issuer = Issuer::open(&options.dir)?;
    let jwks = serde_json::to_string_pretty(&issuer.jwks())?;
    fs::write(options.dir.join(JWKS_FILE), jwks).context("writing the issuer's JWKS")?;
    report::line(format_args!(
        "issuer in {}: {KEY_FILE}, {JWKS_FILE}",
        options.dir.display()
    ));
    Ok(())
}

/// `loadtest token`: the one secret this program prints, because it was asked to.
pub(crate) fn print_token(options: &TokenOptions) -> anyhow::Result<()> {
    let issuer = Issuer::open(&options.dir)?;
    let token = issuer.token(
        &TokenClaims {
            issuer: &options.issuer,
            audience: &options.audience,
            tenant: &options.tenant,
            subject: &options.subject,
            scope: &options.scope,
            expires_in: options.expires_in,
        },
        clock::now(),
    )?;
    report::line(format_args!("{}", token.expose_secret()));
    Ok(())
}

impl Issuer {
    /// The issuer that `loadtest issuer` made in `dir`.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(KEY_FILE);
        let document = fs::read(&path)
            .map_err(|error| BadUsage(format!("no issuer's key at {}: {error}", path.display())))?;
        let key = Ed25519KeyPair::from_pkcs8(&document)
            .map_err(|_| BadUsage(format!("{} holds no Ed25519 key", path.display())))?;
        Ok(Self { key })
    }

    /// The public half, as a JSON Web Key Set.
    fn jwks(&self) -> serde_json::Value {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key());
        json!({"keys": [{
            "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig",
            "kid": self.kid(), "x": x,
        }]})
    }

    /// A signed token.
    pub(crate) fn token(
        &self,
        claims: &TokenClaims<'_>,
        now: Timestamp,
    ) -> anyhow::Result<SecretString> {
        let expires = now
            .checked_add(claims.expires_in)
            .context("the expiry is out of range")?;
        let issued = now.min(expires - LIFETIME);
        let mut jti = [0; 16];
        SystemRandom::new()
            .fill(&mut jti)
            .map_err(|_| anyhow::anyhow!("the system's random source failed"))?;
        let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": self.kid()});
        let body = json!({
            "iss": claims.issuer, "aud": claims.audience, "sub": claims.subject,
            "tenant_id": claims.tenant, "scope": claims.scope,
            "jti": URL_SAFE_NO_PAD.encode(jti),
            "iat": issued.as_second(), "exp": expires.as_second(),
        });
        let encode = |part: serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(header), encode(body));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()));
        Ok(format!("{signed}.{signature}").into())
    }

    fn kid(&self) -> String {
        let hash = digest::digest(&digest::SHA256, self.key.public_key().as_ref());
        URL_SAFE_NO_PAD.encode(&hash.as_ref()[..12])
    }
}

fn signed_duration(text: &str) -> Result<SignedDuration, String> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let duration = humantime::parse_duration(rest).map_err(|error| error.to_string())?;
    let duration = SignedDuration::try_from(duration).map_err(|error| error.to_string())?;
    Ok(if negative { -duration } else { duration })
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    fn claims(expires_in: &str) -> TokenClaims<'static> {
        TokenClaims {
            issuer: "jobseal-local",
            audience: "jobseal",
            tenant: "tenant_1",
            subject: "user_1",
            scope: "jobs:read",
            expires_in: signed_duration(expires_in).unwrap(),
        }
    }

    fn decode(part: &str) -> serde_json::Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    #[test]
    fn a_token_verifies_under_the_published_key() {
        let dir = tempfile::tempdir().unwrap();
        let options = IssuerOptions {
            dir: dir.path().to_owned(),
        };
        make(&options).unwrap();
        make(&options).unwrap();
        let jwks: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join(JWKS_FILE)).unwrap()).unwrap();
        let key = &jwks["keys"][0];
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let issuer = Issuer::open(dir.path()).unwrap();
        let token = issuer.token(&claims("10m"), now).unwrap();
        let parts: Vec<_> = token.expose_secret().split('.').collect();
        assert_eq!(decode(parts[0])["kid"], key["kid"]);
        let public = URL_SAFE_NO_PAD.decode(key["x"].as_str().unwrap()).unwrap();
        let signed = format!("{}.{}", parts[0], parts[1]);
        UnparsedPublicKey::new(&ED25519, public)
            .verify(
                signed.as_bytes(),
                &URL_SAFE_NO_PAD.decode(parts[2]).unwrap(),
            )
            .unwrap();
    }

    #[test]
    fn a_token_can_be_expired() {
        let dir = tempfile::tempdir().unwrap();
        make(&IssuerOptions {
            dir: dir.path().to_owned(),
        })
        .unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let token = Issuer::open(dir.path())
            .unwrap()
            .token(&claims("-5m"), now)
            .unwrap();
        let body = decode(token.expose_secret().split('.').nth(1).unwrap());
        assert_eq!(body["exp"], now.as_second() - 300);
        assert_eq!(body["iat"], now.as_second() - 900);
    }
}
