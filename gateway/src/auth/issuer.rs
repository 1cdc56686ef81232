//! Where the issuer's public keys are: a file, a URL, or wherever the issuer's own configuration
//! (`OpenID` Connect Discovery) says. Reading is bounded in size and time and follows no redirect.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail, ensure};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use url::{Host, Url};

/// Largest document that is read.
const DOCUMENT_MAX_BYTES: usize = 256 * 1_024;
/// How long the issuer may take for one document.
const FETCH_DEADLINE: Duration = Duration::from_secs(3);
/// Where an issuer's configuration is, after its name.
const CONFIGURATION: &str = "/.well-known/openid-configuration";

/// Where the keys come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// A URL.
    Url(Url),
    /// What the configuration of the issuer of this name says.
    Issuer(String),
}

/// Reads the keys' document, and asks for it again only if it has changed.
#[derive(Debug)]
pub(super) struct Library {
    source: Source,
    client: reqwest::Client,
    /// Where the issuer's configuration said the keys are.
    found: Option<Url>,
    /// The document's version, as its server names it.
    tag: Option<HeaderValue>,
}

/// What of an issuer's configuration is of use here.
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: Url,
}

impl Library {
    pub(super) fn new(source: Source) -> anyhow::Result<Self> {
        // The client needs a TLS provider even for plain http; a second installation is refused.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let client = reqwest::Client::builder()
            .timeout(FETCH_DEADLINE)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            source,
            client,
            found: None,
            tag: None,
        })
    }

    /// The document; `None` when it is the one that was read last. `anew` looks again where the
    /// keys are.
    pub(super) async fn read(&mut self, anew: bool) -> anyhow::Result<Option<Vec<u8>>> {
        let before = self.found.take();
        let url = match &self.source {
            Source::File(path) => {
                let text = tokio::fs::read(path).await;
                let text = text.with_context(|| format!("read {}", path.display()))?;
                check_size(text.len())?;
                return Ok(Some(text));
            }
            Source::Url(url) => url.clone(),
            Source::Issuer(issuer) => match before.clone().filter(|_| !anew) {
                Some(url) => url,
                None => self.discover(issuer).await?,
            },
        };
        if before.as_ref() != Some(&url) {
            self.tag = None;
        }
        let fetched = self.fetch(&url, self.tag.clone()).await;
        let fetched = fetched.with_context(|| format!("fetch {url}"))?;
        self.found = Some(url);
        Ok(fetched.map(|(document, tag)| {
            self.tag = tag;
            document
        }))
    }

    /// The document was of no use: the next one is wanted whether it has changed or not.
    pub(super) fn forget(&mut self) {
        self.tag = None;
    }

    async fn discover(&self, issuer: &str) -> anyhow::Result<Url> {
        let url = format!("{}{CONFIGURATION}", issuer.trim_end_matches('/'));
        let url = Url::parse(&url).context("the issuer's name is not a URL")?;
        let read = async {
            let (document, _) = self.fetch(&url, None).await?.context("not modified")?;
            let found: Configuration =
                serde_json::from_slice(&document).context("not an issuer's configuration")?;
            // Else anyone whose document we are led to could speak for the issuer.
            ensure!(
                found.issuer == issuer,
                "it is the configuration of {:?}",
                found.issuer
            );
            ensure!(is_safe(&found.jwks_uri), "its jwks_uri is not https");
            Ok(found.jwks_uri)
        };
        read.await.with_context(|| format!("fetch {url}"))
    }

    async fn fetch(
        &self,
        url: &Url,
        tag: Option<HeaderValue>,
    ) -> anyhow::Result<Option<(Vec<u8>, Option<HeaderValue>)>> {
        let mut request = self.client.get(url.clone());
        let conditional = tag.is_some();
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let mut response = request.send().await?.error_for_status()?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if conditional => return Ok(None),
            other => bail!("answered {other}"),
        }
        let tag = response.headers().get(header::ETAG).cloned();
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            document.extend_from_slice(&chunk);
            check_size(document.len())?;
        }
        Ok(Some((document, tag)))
    }
}

/// Whether what a URL gives can be believed: by TLS, or because it does not leave the machine.
#[must_use]
pub fn is_safe(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

fn check_size(bytes: usize) -> anyhow::Result<()> {
    ensure!(
        bytes <= DOCUMENT_MAX_BYTES,
        "larger than {DOCUMENT_MAX_BYTES} bytes"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_this_machine_are_believed() {
        for (url, safe) in [
            ("https://issuer.example", true),
            ("http://127.0.0.1:8080/a", true),
            ("http://[::1]/", true),
            ("http://localhost:1", true),
            ("http://issuer.example", false),
            ("http://localhost.example", false),
            ("file:///etc/passwd", false),
        ] {
            assert_eq!(is_safe(&url.parse().unwrap()), safe, "{url}");
        }
    }
}
