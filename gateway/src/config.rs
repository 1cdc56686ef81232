//! What the gateway is told: one documented struct per command, and the limits that are fixed.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use anyhow::ensure;
use clap::Args;
use contracts::assertion::Audience;
use ipnet::IpNet;
use ops::config::{DatabaseOptions, KafkaOptions, Key32, ProcessOptions};
use secrecy::SecretString;
use url::Url;

use crate::{auth::issuer::is_safe, run::LEAVING};

pub mod edge;

/// Largest request body.
pub const BODY_MAX_BYTES: usize = 1_024 * 1_024;
/// Largest answer that the transaction path captures.
pub const ANSWER_MAX_BYTES: usize = 4 * 1_024 * 1_024;
/// Longest request target.
pub const TARGET_MAX_BYTES: usize = 8 * 1_024;
/// Largest block of request headers, and most of them.
pub const HEADERS_MAX_BYTES: usize = 32 * 1_024;
/// Most header fields of a request.
pub const HEADERS_MAX: usize = 100;
/// An idle client connection is closed after this long.
pub const CLIENT_IDLE_SECONDS: u64 = 75;
/// A client that takes nothing of its answer for this long is dropped.
pub const CLIENT_WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a connection to an upstream may take to open.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A pooled upstream connection is given up after this long, before the upstream closes it.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(20);
/// A snapshot older than this makes the gateway not ready.
pub const SNAPSHOT_STALE: Duration = Duration::from_secs(3);

/// `gateway run` and `gateway check`.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub database: DatabaseOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub kafka: KafkaOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub process: ProcessOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub tokens: TokenOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub upstreams: UpstreamOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub edge: edge::EdgeOptions,
    /// Address of the public listener.
    #[arg(long, env = "LISTEN", value_name = "HOST:PORT")]
    pub listen: SocketAddr,
    /// Redis, as `redis://[user:password@]host:port[/db]`.
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    pub redis_url: SecretString,
    /// Put before every Redis key, so that several systems can share a server.
    #[arg(long, env = "REDIS_PREFIX", default_value = "jobseal")]
    pub redis_prefix: String,
    /// How long a Redis command may take before a request goes on without it.
    #[arg(long, env = "REDIS_DEADLINE_MS", default_value_t = 20, value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub redis_deadline_ms: u64,
    /// Folder of usage records on their way to Kafka; must survive a restart.
    #[arg(long, env = "SPOOL_DIR", value_name = "DIR")]
    pub spool_dir: PathBuf,
    /// Most bytes of usage records that wait; beyond it billable routes are refused.
    #[arg(long, env = "SPOOL_MAX_BYTES", default_value_t = 256 * 1_024 * 1_024, value_name = "N")]
    pub spool_max_bytes: u64,
    /// Largest number of gateways that ever run at once: each one's share of a limit without Redis.
    #[arg(long, env = "GATEWAYS_MAX", default_value_t = 4, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub gateways_max: u32,
    /// Networks whose X-Forwarded-For is believed, such as Kong's.
    #[arg(
        long,
        env = "TRUSTED_PROXIES",
        default_value = "",
        hide_default_value = true,
        value_name = "CIDR,…"
    )]
    pub trusted_proxies: Networks,
    /// Threads that carry requests.
    #[arg(long, env = "PROXY_THREADS", default_value_t = 2, value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=256))]
    pub proxy_threads: u16,
    /// How long the listener stays open after SIGTERM, for load balancers to see the readiness.
    #[arg(long, env = "LAME_DUCK_MS", default_value_t = 1_000, value_name = "MS")]
    pub lame_duck_ms: u64,
    /// Socket in the file system at which a new process takes the listening sockets over, so that
    /// an upgrade refuses nobody; without one there is no such upgrade.
    #[arg(long, env = "UPGRADE_SOCK", value_name = "FILE")]
    pub upgrade_sock: Option<PathBuf>,
    /// Take the listening sockets from the process that offers them at `UPGRADE_SOCK`, which then
    /// serves what it has begun and ends.
    #[arg(long, requires = "upgrade_sock")]
    pub upgrade: bool,
    /// Most streams of events that are open at once.
    #[arg(long, env = "STREAMS_MAX", default_value_t = 10_000, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub streams_max: u32,
    /// Most streams of events that are open at once for one tenant.
    #[arg(long, env = "TENANT_STREAMS_MAX", default_value_t = 100, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub tenant_streams_max: u32,
    /// A stream on which nothing passes for this long is ended.
    #[arg(long, env = "STREAM_IDLE_SECONDS", default_value_t = 120, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub stream_idle_seconds: u64,
    /// Longest life of a stream; its client then comes back.
    #[arg(long, env = "STREAM_MAX_SECONDS", default_value_t = 3_600, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub stream_max_seconds: u64,
    /// How long a client may take to send a whole body.
    #[arg(long, env = "BODY_DEADLINE_MS", default_value_t = 10_000, value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub body_deadline_ms: u64,
    /// How long an upstream may take to answer.
    #[arg(long, env = "UPSTREAM_DEADLINE_MS", default_value_t = 10_000, value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..=25_000))]
    pub upstream_deadline_ms: u64,
    /// A snapshot of keys and plans older than this refuses every credential.
    #[arg(
        long,
        env = "SNAPSHOT_MAX_AGE_SECONDS",
        default_value_t = 30,
        value_name = "SECONDS"
    )]
    pub snapshot_max_age_seconds: u64,
    /// What tenants' signing keys are encrypted with at rest; without it no signature fits.
    #[arg(
        long,
        env = "SIGNATURES_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    pub signatures_key: Option<Key32>,
    /// How old a request's signature may be; for as long none is believed twice.
    #[arg(long, env = "SIGNATURE_WINDOW_SECONDS", default_value_t = 300, value_name = "SECONDS",
        value_parser = clap::value_parser!(i64).range(1..=3_600))]
    pub signature_window_seconds: i64,
}

/// Which JSON Web Tokens are believed; without an issuer none is.
#[derive(Args, Clone, Debug)]
pub struct TokenOptions {
    /// File with the issuer's public keys (RFC 7517).
    #[arg(
        long,
        env = "JWKS_FILE",
        conflicts_with = "jwks_url",
        value_name = "FILE"
    )]
    pub jwks_file: Option<PathBuf>,
    /// URL of the issuer's public keys (RFC 7517).
    #[arg(long, env = "JWKS_URL", value_name = "URL")]
    pub jwks_url: Option<Url>,
    /// The `iss` that tokens must have. By itself, it is the URL of an `OpenID` provider, whose
    /// configuration says where its keys are.
    #[arg(
        long,
        env = "JWT_ISSUER",
        default_value = "",
        hide_default_value = true
    )]
    pub jwt_issuer: String,
    /// The `aud` that tokens must have.
    #[arg(
        long,
        env = "JWT_AUDIENCE",
        default_value = "",
        hide_default_value = true
    )]
    pub jwt_audience: String,
    /// How long the issuer's keys are used before they are read again, in seconds.
    #[arg(long, env = "JWKS_TTL_SECONDS", default_value_t = 300, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub jwks_ttl_seconds: u64,
    /// How long they stay in use while reading them fails, in seconds; then no token is believed.
    #[arg(long, env = "JWKS_STALE_MAX_SECONDS", default_value_t = 86_400, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub jwks_stale_max_seconds: u64,
    /// Longest life of a token, in seconds.
    #[arg(
        long,
        env = "JWT_LIFETIME_MAX_SECONDS",
        default_value_t = 900,
        value_name = "SECONDS"
    )]
    pub jwt_lifetime_max_seconds: i64,
}

/// The APIs behind the gateway, and the key of the assertions each one believes.
#[derive(Args, Clone, Debug)]
pub struct UpstreamOptions {
    /// The Jobs API, as `http://host:port`.
    #[arg(long, env = "JOBS_URL", value_name = "URL")]
    pub jobs_url: Url,
    /// Key of assertions for the Jobs API.
    #[arg(
        long,
        env = "JOBS_ASSERTION_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    pub jobs_assertion_key: Key32,
    /// The Relayer's API, as `http://host:port`.
    #[arg(long, env = "RELAYER_URL", value_name = "URL")]
    pub relayer_url: Url,
    /// Key of assertions for the Relayer's API.
    #[arg(
        long,
        env = "RELAYER_ASSERTION_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    pub relayer_assertion_key: Key32,
    /// The Metering API, as `http://host:port`.
    #[arg(long, env = "METERING_URL", value_name = "URL")]
    pub metering_url: Url,
    /// Key of assertions for the Metering API.
    #[arg(
        long,
        env = "METERING_ASSERTION_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    pub metering_assertion_key: Key32,
    /// The Webhooks API, as `http://host:port`.
    #[arg(long, env = "WEBHOOKS_URL", value_name = "URL")]
    pub webhooks_url: Url,
    /// Key of assertions for the Webhooks API.
    #[arg(
        long,
        env = "WEBHOOKS_ASSERTION_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    pub webhooks_assertion_key: Key32,
    /// Path that upstreams are asked for to see whether they are well, on their public port; any
    /// answer but a failure will do. Without one a connection is opened.
    #[arg(long, env = "UPSTREAM_CHECK_PATH", value_name = "PATH")]
    pub upstream_check_path: Option<String>,
}

/// Networks, written with commas between them; none is written as nothing.
#[derive(Clone, Debug, Default)]
pub struct Networks(pub Vec<IpNet>);

impl FromStr for Networks {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        parts.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl RunOptions {
    /// What single flags cannot say about each other.
    ///
    /// # Errors
    /// Names the flags that do not go together.
    pub fn validate(&self) -> anyhow::Result<()> {
        let tokens = &self.tokens;
        let has_keys = tokens.jwks_file.is_some() || tokens.jwks_url.is_some();
        if has_keys || !tokens.jwt_issuer.is_empty() {
            ensure!(
                !tokens.jwt_issuer.is_empty() && !tokens.jwt_audience.is_empty(),
                "tokens need JWT_ISSUER and JWT_AUDIENCE: else any token of their keys would pass"
            );
        }
        if !has_keys && !tokens.jwt_issuer.is_empty() {
            ensure!(
                Url::parse(&tokens.jwt_issuer).is_ok_and(|url| is_safe(&url)),
                "without a JWKS, JWT_ISSUER must be an https URL (or http on this machine)"
            );
        }
        for (audience, url, _) in self.upstreams.all() {
            ensure!(
                url.scheme() == "http" && url.host().is_some() && url.path() == "/",
                "{} upstream: {url} is not of the form http://host:port",
                audience.as_str()
            );
        }
        let longest = Duration::from_millis(self.lame_duck_ms) + self.upstream_deadline();
        ensure!(
            self.process.drain() >= longest + LEAVING,
            "DRAIN_SECONDS must be at least LAME_DUCK_MS, UPSTREAM_DEADLINE_MS and \
             {LEAVING:?} together: else requests are cut"
        );
        Ok(())
    }

    /// The deadline of a whole exchange with an upstream.
    #[must_use]
    pub fn upstream_deadline(&self) -> Duration {
        Duration::from_millis(self.upstream_deadline_ms)
    }
}

impl UpstreamOptions {
    /// Every upstream with its URL and key.
    #[must_use]
    pub fn all(&self) -> [(Audience, &Url, &Key32); 4] {
        [
            (Audience::Jobs, &self.jobs_url, &self.jobs_assertion_key),
            (
                Audience::Relayer,
                &self.relayer_url,
                &self.relayer_assertion_key,
            ),
            (
                Audience::Metering,
                &self.metering_url,
                &self.metering_assertion_key,
            ),
            (
                Audience::Webhooks,
                &self.webhooks_url,
                &self.webhooks_assertion_key,
            ),
        ]
    }
}
