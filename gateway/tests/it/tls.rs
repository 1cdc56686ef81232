//! TLS on the public listener: both versions of HTTP, clients without a certificate of the CA cut
//! off, renewed certificates used without a restart, and bad files said by `check`.

use std::{path::Path, sync::Arc, time::Duration};

use ops::testing::eventually;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::app::{self, App};

/// A certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate and its key, as PEM.
struct Leaf {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self {
            issuer,
            certificate,
        }
    }

    fn leaf(&self) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let key = key.serialize_pem();
        Leaf { certificate, key }
    }
}

impl Leaf {
    fn write(&self, folder: &Path) -> [(&'static str, String); 2] {
        let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
        std::fs::write(&key, &self.key).unwrap();
        std::fs::write(&certificate, &self.certificate).unwrap();
        [
            ("TLS_CERT_FILE", certificate.display().to_string()),
            ("TLS_KEY_FILE", key.display().to_string()),
        ]
    }
}

/// A connection with the server's certificate checked against `trusted`.
async fn connect(
    app: &App,
    trusted: &Authority,
    own: Option<&Leaf>,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(trusted.certificate.as_bytes()).unwrap();
    roots.add(root).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(vec![certificate], key)
                .unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(app.listen).await?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// What a request without a credential is answered; in TLS 1.3 a client learns only here that its
/// certificate is refused.
async fn ask(mut stream: TlsStream<TcpStream>) -> std::io::Result<String> {
    let request = "GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("it ends")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn start(files: &[(&'static str, String)]) -> App {
    let changes: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, file)| (*name, &file[..]))
        .collect();
    app::start(&changes).await
}

#[tokio::test]
async fn both_versions_of_http_are_served_and_renewed_certificates_are_used() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let files = authority.leaf().write(folder.path());
    let app = start(&files).await;
    let answer = ask(connect(&app, &authority, None, "http/1.1").await.unwrap())
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let stream = connect(&app, &authority, None, "h2").await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async { connection.await.ok() });
    let request = http::Request::get("https://localhost/v1/jobs")
        .header("authorization", format!("Bearer {}", app.key))
        .body(())
        .unwrap();
    let (answer, _) = sender
        .ready()
        .await
        .unwrap()
        .send_request(request, true)
        .unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    assert_eq!(app.upstreams.seen.count(), 1);
    // Half of a renewal, or nonsense, changes nothing; a whole one is used from then on.
    std::fs::write(folder.path().join("tls.crt"), "nonsense").unwrap();
    let renewed = Authority::new();
    renewed.leaf().write(folder.path());
    eventually(
        "the renewed one is used",
        Duration::from_secs(10),
        async || {
            let stream = connect(&app, &renewed, None, "http/1.1").await.ok()?;
            ask(stream)
                .await
                .ok()
                .filter(|answer| answer.starts_with("HTTP/1.1 200 "))
        },
    )
    .await;
    assert!(connect(&app, &authority, None, "http/1.1").await.is_err());
    // Without TLS nobody is answered.
    let mut plain = TcpStream::connect(app.listen).await.unwrap();
    plain
        .write_all(b"GET /docs HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    assert!(!crate::raw::to_the_end(&mut plain).await.contains("HTTP"));
}

#[tokio::test]
async fn only_clients_with_a_certificate_of_the_ca_are_heard() {
    let folder = tempfile::tempdir().unwrap();
    let (server, clients, foreign) = (Authority::new(), Authority::new(), Authority::new());
    let ca = folder.path().join("clients.crt");
    std::fs::write(&ca, &clients.certificate).unwrap();
    let files = server.leaf().write(folder.path());
    let ca = ("TLS_CLIENT_CA_FILE", ca.display().to_string());
    let app = start(&[&files[..], &[ca]].concat()).await;
    let answer = async |own: Option<Leaf>, protocol: &str| -> std::io::Result<String> {
        ask(connect(&app, &server, own.as_ref(), protocol).await?).await
    };
    let good = answer(Some(clients.leaf()), "http/1.1").await.unwrap();
    assert!(good.starts_with("HTTP/1.1 200 "), "{good}");
    for protocol in ["http/1.1", "h2"] {
        for own in [None, Some(foreign.leaf())] {
            let refused = answer(own, protocol).await;
            assert!(refused.is_err(), "{protocol}: {refused:?}");
        }
    }
}

#[tokio::test]
async fn check_names_the_file_that_is_of_no_use() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let files = authority.leaf().write(folder.path());
    let app = start(&files).await;
    assert!(app.run("check").status.success());
    std::fs::write(&files[1].1, authority.leaf().key).unwrap();
    let output = app.run("check");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!output.status.success());
    assert!(said.contains("do not go together"), "{said}");
}
