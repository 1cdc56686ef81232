//! What the gateway is told about its public listener: TLS, HTTP/2, and what clients may do wrong.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{abuse::standing::Limits, door::tls::Files};

/// A quarter of it has room for the largest body with the largest answer.
const HELD_MIN_BYTES: u64 = 24 * 1_024 * 1_024;

/// The public listener.
#[derive(Args, Clone, Debug)]
pub struct EdgeOptions {
    /// Serve HTTP/2 by prior knowledge too, where the listener has no TLS.
    #[arg(long, env = "H2C", action = clap::ArgAction::Set, default_value_t = false,
        value_name = "BOOL")]
    pub h2c: bool,
    /// File with the listener's certificate and those it is signed with (PEM): all is TLS 1.3 then.
    #[arg(
        long,
        env = "TLS_CERT_FILE",
        requires = "tls_key_file",
        value_name = "FILE"
    )]
    pub tls_cert_file: Option<PathBuf>,
    /// File with the certificate's key (PEM).
    #[arg(
        long,
        env = "TLS_KEY_FILE",
        requires = "tls_cert_file",
        value_name = "FILE"
    )]
    pub tls_key_file: Option<PathBuf>,
    /// File with the CA of client certificates (PEM), such as Kong's: others cannot connect.
    #[arg(
        long,
        env = "TLS_CLIENT_CA_FILE",
        requires = "tls_cert_file",
        value_name = "FILE"
    )]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Most connections of clients at once; lowered to what the limit of open files allows.
    #[arg(
        long,
        env = "CONNECTIONS_MAX",
        default_value_t = 1_024,
        value_name = "N"
    )]
    pub connections_max: usize,
    /// Most connections of one address at once (IPv6: of a /64), trusted proxies excepted.
    #[arg(long, env = "ADDRESS_CONNECTIONS_MAX", default_value_t = 256, value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub address_connections_max: usize,
    /// Most bytes of bodies, answers, long headers and HTTP/2 that are held at once: half for what
    /// comes before anybody is known, of which one address may hold half, and half for tenants, of
    /// which one may hold half.
    #[arg(long, env = "HELD_MAX_BYTES", default_value_t = 24 * 1_024 * 1_024, value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(HELD_MIN_BYTES..))]
    pub held_max_bytes: usize,
    /// How long a client may take to send the headers of a request, or to shake hands.
    #[arg(long, env = "HEADERS_DEADLINE_MS", default_value_t = 10_000, value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub headers_deadline_ms: u64,
    /// Refused credentials that an address may present a minute; 0 does not count them.
    #[arg(
        long,
        env = "FAILED_AUTH_PER_MINUTE",
        default_value_t = 60,
        value_name = "N"
    )]
    pub failed_auth_per_minute: u32,
    /// Answers 404 and 403 that a credential, or an address without one, may get a minute, where
    /// they are more than a fifth of all; 0 does not count them.
    #[arg(
        long,
        env = "MISSES_PER_MINUTE",
        default_value_t = 1_000,
        value_name = "N"
    )]
    pub misses_per_minute: u32,
    /// Demerits (3 a refused credential, 2 a malformed request, 1 a miss without a credential; half
    /// are forgotten in 10 minutes) that shut an address out until half of them are; 0 does not
    /// count them.
    #[arg(long, env = "DEMERITS_MAX", default_value_t = 2_000, value_name = "N")]
    pub demerits_max: u32,
}

impl EdgeOptions {
    /// Where certificates are, if there is TLS.
    #[must_use]
    pub fn tls(&self) -> Option<Files> {
        Some(Files {
            certificate: self.tls_cert_file.clone()?,
            key: self.tls_key_file.clone()?,
            client_ca: self.tls_client_ca_file.clone(),
        })
    }

    /// What may be done wrong.
    #[must_use]
    pub fn abuse(&self) -> Limits {
        Limits {
            failures: self.failed_auth_per_minute,
            misses: self.misses_per_minute,
            demerits: self.demerits_max,
        }
    }

    /// How long a client may take to send headers.
    #[must_use]
    pub fn head_deadline(&self) -> Duration {
        Duration::from_millis(self.headers_deadline_ms)
    }
}
