//! Configuration: one documented clap struct per process, flattened from the small ones here.
//!
//! `--help` is the reference; every flag has an environment variable; what is wrong is said on
//! standard error and the process exits 64 (`EX_USAGE` of sysexits.h).

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use clap::{Args, Parser, ValueEnum, error::ErrorKind};
use secrecy::{ExposeSecret, SecretBox, SecretString};

/// Exit code for a bad command line or configuration (`EX_USAGE`).
pub const EXIT_CONFIG: u8 = 64;
/// Exit code when something the process needs cannot be reached (`EX_UNAVAILABLE`).
pub const EXIT_UNAVAILABLE: u8 = 69;

/// Where the truth is kept.
#[derive(Args, Clone, Debug)]
pub struct DatabaseOptions {
    /// PostgreSQL, as `postgres://user:password@host:port/database`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: SecretString,
    /// Largest number of connections this process opens.
    #[arg(
        long,
        env = "DATABASE_CONNECTIONS",
        default_value_t = 8,
        value_name = "N"
    )]
    pub database_connections: usize,
}

/// Where the facts are that crossed a process.
#[derive(Args, Clone, Debug)]
pub struct KafkaOptions {
    /// Kafka bootstrap brokers, as `host:port,host:port`.
    #[arg(long, env = "KAFKA_BROKERS", value_name = "HOST:PORT,…")]
    pub kafka_brokers: String,
    /// Put before every topic's name, so that several systems can share a cluster.
    #[arg(
        long,
        env = "TOPIC_PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    pub topic_prefix: String,
}

/// What every long-running process has.
#[derive(Args, Clone, Debug)]
pub struct ProcessOptions {
    /// Address of the private listener with /healthz, /readyz and /metrics.
    #[arg(
        long,
        env = "ADMIN_LISTEN",
        default_value = "127.0.0.1:0",
        value_name = "HOST:PORT"
    )]
    pub admin_listen: SocketAddr,
    /// How long a stop may take before what is left is dropped, in seconds.
    #[arg(
        long,
        env = "DRAIN_SECONDS",
        default_value_t = 20,
        value_name = "SECONDS"
    )]
    pub drain_seconds: u64,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub log: LogOptions,
}

/// What every command has that ends by itself, such as `migrate`.
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "flattened: their own types are documented")]
pub struct CommandOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    #[command(flatten)]
    pub log: LogOptions,
}

/// What every HTTP API behind the gateway has.
#[derive(Args, Clone, Debug)]
pub struct HttpOptions {
    /// Address of the HTTP API.
    #[arg(long, env = "LISTEN", value_name = "HOST:PORT")]
    pub listen: SocketAddr,
    /// The key of the gateway's assertions, as 64 hexadecimal digits.
    #[arg(
        long,
        env = "ASSERTION_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    pub assertion_key: Key32,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub database: DatabaseOptions,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub process: ProcessOptions,
}

/// How the process speaks of itself. `RUST_LOG` sets the filter.
#[derive(Args, Clone, Debug)]
pub struct LogOptions {
    /// Shape of log lines on standard error.
    #[arg(
        long,
        env = "LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
    /// OTLP/HTTP collector for traces, such as `http://127.0.0.1:4318`; without one, spans
    /// stay local.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

/// Shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A configuration that cannot work, however often it is tried: the process exits with
/// [`EXIT_CONFIG`] wherever this is among the causes of its end.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BadConfig(#[from] pub anyhow::Error);

/// A 32-byte key, given as 64 hexadecimal digits, that cannot print.
#[derive(Clone)]
pub struct Key32(std::sync::Arc<SecretBox<[u8; 32]>>);

/// Why a [`Key32`] was refused; never repeats what was given.
#[derive(Debug, thiserror::Error)]
#[error("a key is 64 hexadecimal digits (32 bytes), as `openssl rand -hex 32` prints")]
pub struct BadKey;

impl ProcessOptions {
    /// The drain deadline.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

impl KafkaOptions {
    /// A topic's full name under the prefix.
    #[must_use]
    pub fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.topic_prefix)
    }
}

impl Key32 {
    /// The key's bytes, for the moment of use.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }
}

impl From<[u8; 32]> for Key32 {
    fn from(bytes: [u8; 32]) -> Self {
        Self(std::sync::Arc::new(SecretBox::new(Box::new(bytes))))
    }
}

impl FromStr for Key32 {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(BadKey);
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| BadKey)?;
        }
        Ok(bytes.into())
    }
}

impl fmt::Debug for Key32 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key32([redacted])")
    }
}

/// Reads the command line and environment. Help and version print and exit 0; anything wrong is
/// explained on standard error and exits with [`EXIT_CONFIG`].
#[must_use]
pub fn parse_or_exit<T: Parser>() -> T {
    T::try_parse().unwrap_or_else(|error| {
        let code = match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
            _ => EXIT_CONFIG,
        };
        // Nowhere is left to report that the terminal is gone.
        error.print().ok();
        std::process::exit(code.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_needs_exactly_64_hex_digits_and_never_prints() {
        let text = "0f".repeat(32);
        let key: Key32 = text.parse().unwrap();
        assert_eq!(key.expose(), &[0x0f; 32]);
        assert!(!format!("{key:?}").contains("0f"));
        for bad in [
            "",
            "0f",
            &"0g".repeat(32),
            &"0f".repeat(33),
            &"é".repeat(32),
        ] {
            let error = bad.parse::<Key32>().unwrap_err();
            assert!(bad.is_empty() || !error.to_string().contains(bad));
        }
    }
}
