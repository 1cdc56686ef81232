//! TLS 1.3 on the public listener, and client certificates where a CA is named. Files that are
//! renewed on disk are used from the next connection on.
//!
//! By `tokio-rustls`, which is in the build anyway, and not by Pingora's own `rustls` feature: that
//! brings its TLS to the connections upstream too, and reads a certificate only once.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType, l4, raw_connect::ProxyDigest,
};
use ring::digest::{Digest, SHA256, digest};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const H2: &[u8] = b"h2";

/// Where certificates are.
#[derive(Clone, Debug)]
pub struct Files {
    /// Our certificate and those it is signed with.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs those of clients; without, none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// Certificates as they are now.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    config: ArcSwap<ServerConfig>,
}

/// A connection of a client's with TLS on it, as Pingora wants one.
#[derive(Debug)]
struct Secure(TlsStream<Box<l4::stream::Stream>>);

impl Files {
    /// Reads and validates them.
    ///
    /// # Errors
    /// Names the file, and what is wrong with it.
    pub fn load(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let certificates = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("read the key {}", self.key.display()))?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in self::certificates(path)? {
                    roots.add(certificate).context("add a client CA")?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let mut config = builder
            .with_single_cert(certificates, key)
            .context("the certificate and the key do not go together")?;
        config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// What the files hold, to tell a change.
    fn fingerprint(&self) -> io::Result<Vec<Digest>> {
        let all = [
            Some(&self.certificate),
            Some(&self.key),
            self.client_ca.as_ref(),
        ];
        let read = |path: &PathBuf| std::fs::read(path).map(|bytes| digest(&SHA256, &bytes));
        all.into_iter().flatten().map(read).collect()
    }
}

impl Tls {
    /// TLS with what `files` hold.
    ///
    /// # Errors
    /// When they are of no use.
    pub fn open(files: Files) -> anyhow::Result<Self> {
        let config = ArcSwap::new(files.load()?);
        Ok(Self { files, config })
    }

    /// Follows the files until the process stops. What is of no use is not used.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut known = None;
        loop {
            let found = self.files.fingerprint();
            let hex = |found: Vec<Digest>| found.iter().map(|d| d.as_ref().to_vec()).collect();
            let found: Option<Vec<Vec<u8>>> = found.ok().map(hex);
            if found.is_some() && found != known {
                match self.files.load() {
                    Ok(config) => {
                        self.config.store(config);
                        info!("the certificates are read");
                        known = found;
                    }
                    Err(error) => {
                        let error = format!("{error:#}");
                        warn!(
                            error,
                            "the new certificates are of no use: the old ones stay"
                        );
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Shakes hands; `None` when the client does not.
    pub(super) async fn accept(&self, stream: Stream) -> Option<Stream> {
        let stream = stream.into_any().downcast::<l4::stream::Stream>().ok()?;
        let acceptor = TlsAcceptor::from(self.config.load_full());
        match acceptor.accept(stream).await {
            Ok(stream) => Some(Box::new(Secure(stream))),
            Err(error) => {
                debug!(%error, "a client's handshake failed");
                metrics::counter!("gateway_tls_handshakes_failed_total").increment(1);
                None
            }
        }
    }
}

impl Secure {
    fn below(&self) -> &l4::stream::Stream {
        self.0.get_ref().0
    }
}

impl AsyncRead for Secure {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Secure {
    async fn shutdown(&mut self) {
        if let Err(error) = self.0.shutdown().await {
            debug!(%error, "a client left before the end");
        }
    }
}

impl UniqueID for Secure {
    fn id(&self) -> UniqueIDType {
        self.below().id()
    }
}

impl Ssl for Secure {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        let chosen = self.0.get_ref().1.alpn_protocol()?;
        Some(if chosen == H2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for Secure {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.below().get_timing_digest()
    }
}

impl GetProxyDigest for Secure {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.below().get_proxy_digest()
    }
}

impl GetSocketDigest for Secure {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.below().get_socket_digest()
    }
}

impl Peek for Secure {}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let what = || format!("read the certificates {}", path.display());
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .with_context(what)?
        .collect();
    let found = found.with_context(what)?;
    anyhow::ensure!(!found.is_empty(), "no certificate in {}", path.display());
    Ok(found)
}
