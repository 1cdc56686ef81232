//! Redis as the request path may use it: a script a call, each with a deadline, behind a breaker.
//! Whatever Redis holds may be lost, so a caller always has a way to go on without.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use fred::{
    clients::Client,
    interfaces::{ClientLike as _, HashesInterface as _, KeysInterface as _},
    types::{
        Builder, FromValue, MultipleKeys, Value,
        config::{Config, Options, ReconnectPolicy, ServerConfig},
    },
};
use secrecy::{ExposeSecret as _, SecretString};
use tracing::warn;

mod line;
mod resp;

use line::{Line, Target};

/// So many failures one after another are an outage; one slow answer is none.
const BREAKER_FAILURES: u32 = 3;
/// How long nobody tries again in an outage; after that, one caller does.
const BREAKER_OPEN: Duration = Duration::from_millis(500);
/// The same after a failure before that: whoever waited for it, or asks twice in a request, shall
/// not wait a second time.
const BREAKER_PAUSE: Duration = Duration::from_millis(20);
/// Pause between attempts to connect.
const RECONNECT_PAUSE_MS: u32 = 100;
/// Commands that may wait inside the client.
const COMMANDS_WAITING_MAX: usize = 10_000;
/// How long a look by hand may take.
const PING_DEADLINE: Duration = Duration::from_secs(1);

/// Redis, or its absence.
#[derive(Clone)]
pub struct Redis {
    /// For what is seldom asked.
    client: Client,
    /// For scripts, which requests wait for.
    line: Arc<Line>,
    breaker: Arc<Breaker>,
    prefix: Arc<str>,
    deadline: Duration,
}

/// A script, known to Redis by its hash.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    sha1: Value,
}

/// Redis is not to be had now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// It was not asked, so nothing happened.
    #[error("Redis is not available, and was not asked")]
    Unasked,
    /// It was asked, and may have done what it was told, or do it yet.
    #[error("Redis is not available, and did not answer")]
    Unanswered,
}

/// Why a call failed.
#[derive(Debug)]
struct Fault {
    /// Whether Redis may have heard of it.
    asked: bool,
    text: String,
}

/// Lets calls through while they succeed; after failures only one at a time, and not soon.
#[derive(Debug)]
struct Breaker {
    started: Instant,
    /// Failures since the last success.
    failures: AtomicU32,
    /// Milliseconds from `started` until which nobody tries; 0 while closed.
    open_until: AtomicU64,
}

impl Redis {
    /// A client of the server at `url`, whose commands take at most `deadline` before the caller
    /// goes on without; [`Redis::connect`] starts it.
    ///
    /// # Errors
    /// When the URL is not one; it is not repeated, since it may hold a password.
    pub fn new(url: &SecretString, prefix: &str, deadline: Duration) -> anyhow::Result<Self> {
        let config = Config::from_url(url.expose_secret()).ok();
        let (config, target) = config
            .and_then(|config| target(&config).map(|target| (config, target)))
            .context("REDIS_URL is not of the form redis://[user:password@]host:port[/db]")?;
        let client = Builder::from_config(config)
            .with_connection_config(|connection| {
                connection.connection_timeout = PING_DEADLINE;
                connection.internal_command_timeout = PING_DEADLINE;
                connection.max_command_attempts = 1;
                connection.max_command_buffer_len = COMMANDS_WAITING_MAX;
                connection.tcp.nodelay = Some(true);
            })
            .set_policy(ReconnectPolicy::new_constant(0, RECONNECT_PAUSE_MS))
            .build()
            .context("set up the Redis client")?;
        let breaker = Arc::new(Breaker::new(Instant::now()));
        Ok(Self {
            client,
            line: Arc::new(Line::new(target)),
            breaker,
            prefix: prefix.into(),
            deadline,
        })
    }

    /// The same for who is no request, on a line of its own: a line is of the runtime that uses it
    /// first, and a call that has to wake another thread costs more than the call.
    #[must_use]
    pub fn aside(&self) -> Self {
        Self {
            line: Arc::new(self.line.another()),
            ..self.clone()
        }
    }

    /// Connects in the background of the present runtime, and again whenever the connection is
    /// lost; waits a moment for the first connection.
    pub async fn start(&self) {
        if let Err(error) = self.connect_and_ping().await {
            warn!(error = format!("{error:#}"), "starting without Redis");
        }
    }

    fn connect(&self) {
        self.client.connect();
    }

    /// A key of ours; what is in braces decides its place in a cluster.
    #[must_use]
    pub fn key(&self, kind: &str, tenant: impl std::fmt::Display, rest: &str) -> String {
        format!("{}:{kind}:{{{tenant}}}{rest}", self.prefix)
    }

    /// A key that no tenant owns.
    #[must_use]
    pub fn shared_key(&self, kind: &str) -> String {
        format!("{}:{kind}", self.prefix)
    }

    /// What is put before every key.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`Unavailable`] as for [`Redis::run`].
    pub async fn get<R>(&self, key: &str) -> Result<R, Unavailable>
    where
        R: FromValue + Send,
    {
        let client = self.client.with_options(&fail_fast());
        self.guarded(client.get(key)).await
    }

    /// Reads a field of a hash.
    ///
    /// # Errors
    /// [`Unavailable`] as for [`Redis::run`].
    pub async fn field<R>(&self, key: &str, field: &str) -> Result<R, Unavailable>
    where
        R: FromValue + Send,
    {
        let client = self.client.with_options(&fail_fast());
        self.guarded(client.hget(key, field)).await
    }

    /// Runs `script` on one key, or on several of one tenant.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis fails, is slow, or was found so a moment ago.
    pub async fn run<R>(
        &self,
        script: &Script,
        keys: impl Into<MultipleKeys>,
        arguments: Vec<Value>,
    ) -> Result<R, Unavailable>
    where
        R: FromValue + Send,
    {
        self.guarded(self.call(script, keys.into(), arguments))
            .await
    }

    /// Runs `script` after everything that was asked before, however that went: what may have been
    /// begun without an answer must be ended all the same. Where the breaker lets nobody through,
    /// its answer is not waited for.
    pub async fn conclude(
        &self,
        script: &Script,
        keys: impl Into<MultipleKeys>,
        arguments: Vec<Value>,
    ) {
        let keys = keys.into();
        let call = self.call::<Value>(script, keys.clone(), arguments.clone());
        if self.guarded(call).await == Err(Unavailable::Unasked) {
            // Nobody is there to send it again if Redis does not know the script.
            let command = script.command(keys, arguments);
            self.line.tell(&script.by_text(command));
        }
    }

    /// Within the deadline, and only while the breaker lets calls through.
    async fn guarded<R, E: Into<Fault>>(
        &self,
        call: impl Future<Output = Result<R, E>>,
    ) -> Result<R, Unavailable> {
        self.breaker.admit()?;
        let outcome = match tokio::time::timeout(self.deadline, call).await {
            Ok(outcome) => outcome.map_err(Into::into),
            Err(_) => Err(format!("no answer in {:?}", self.deadline).into()),
        };
        self.breaker.report(outcome)
    }

    /// Whether a first connection succeeds.
    ///
    /// # Errors
    /// When it does not.
    pub async fn connect_and_ping(&self) -> anyhow::Result<()> {
        self.connect();
        let connected = self.client.wait_for_connect();
        tokio::time::timeout(PING_DEADLINE, connected)
            .await
            .context("cannot connect")??;
        self.ping().await
    }

    /// Whether Redis answers, whatever the breaker says.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> anyhow::Result<()> {
        let options = fail_fast();
        let client = self.client.with_options(&options);
        let ping = client.ping::<()>(None);
        tokio::time::timeout(PING_DEADLINE, ping)
            .await
            .context("Redis does not answer")??;
        Ok(())
    }

    async fn call<R>(
        &self,
        script: &Script,
        keys: MultipleKeys,
        arguments: Vec<Value>,
    ) -> Result<R, Fault>
    where
        R: FromValue + Send,
    {
        let mut command = script.command(keys, arguments);
        let mut answer = self.line.ask(&command).await;
        // A restarted Redis does not know the script; running it by text teaches it.
        if matches!(&answer, Err(fault) if fault.text.starts_with("NOSCRIPT")) {
            command = script.by_text(command);
            answer = self.line.ask(&command).await;
        }
        Ok(R::from_value(answer?)?)
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self { asked: true, text }
    }
}

impl From<fred::error::Error> for Fault {
    fn from(error: fred::error::Error) -> Self {
        error.to_string().into()
    }
}

impl Script {
    /// The script of this text.
    #[must_use]
    pub fn new(text: &'static str) -> Self {
        // Redis names scripts by SHA-1; nothing is secured by it.
        let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let sha1 = Value::from(const_hex::encode(hash));
        Self { text, sha1 }
    }

    /// What runs it.
    fn command(&self, keys: MultipleKeys, arguments: Vec<Value>) -> Vec<Value> {
        let keys = keys.inner();
        let mut command = Vec::with_capacity(3 + keys.len() + arguments.len());
        let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        let by_hash = [Value::from_static_str("EVALSHA"), self.sha1.clone()];
        command.extend(by_hash.into_iter().chain([Value::from(count)]));
        command.extend(keys.into_iter().map(Value::from));
        command.extend(arguments);
        command
    }

    /// The same, whether or not Redis knows the script.
    fn by_text(&self, mut command: Vec<Value>) -> Vec<Value> {
        command[0] = Value::from_static_str("EVAL");
        command[1] = Value::from_static_str(self.text);
        command
    }
}

impl Breaker {
    fn new(started: Instant) -> Self {
        Self {
            started,
            failures: AtomicU32::new(0),
            open_until: AtomicU64::new(0),
        }
    }

    /// Whether everybody is let through.
    fn is_shut(&self) -> bool {
        self.open_until.load(Ordering::Acquire) == 0
    }

    fn admit(&self) -> Result<(), Unavailable> {
        let until = self.open_until.load(Ordering::Acquire);
        if until == 0 {
            return Ok(());
        }
        let now = self.now();
        if now < until {
            return Err(Unavailable::Unasked);
        }
        // Whoever moves the time tries; the others see it moved.
        let next = now + millis(BREAKER_OPEN);
        self.open_until
            .compare_exchange(until, next, Ordering::AcqRel, Ordering::Relaxed)
            .map(|_| ())
            .map_err(|_| Unavailable::Unasked)
    }

    fn report<R>(&self, outcome: Result<R, Fault>) -> Result<R, Unavailable> {
        match outcome {
            Ok(answer) => {
                // A failure that was counted before a success may have opened it after that.
                if self.failures.load(Ordering::Relaxed) != 0 || !self.is_shut() {
                    self.failures.store(0, Ordering::Relaxed);
                    self.open_until.store(0, Ordering::Release);
                }
                Ok(answer)
            }
            Err(Fault { asked, text: error }) => {
                metrics::counter!("gateway_redis_failures_total").increment(1);
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                let outage = failures >= BREAKER_FAILURES;
                let pause = if outage { BREAKER_OPEN } else { BREAKER_PAUSE };
                let until = self.now() + millis(pause);
                self.open_until.store(until, Ordering::Release);
                if failures == BREAKER_FAILURES {
                    warn!(error, "Redis failed: going on without");
                }
                Err(if asked {
                    Unavailable::Unanswered
                } else {
                    Unavailable::Unasked
                })
            }
        }
    }

    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

/// Where a line goes; `None` for anything but one server.
fn target(config: &Config) -> Option<Target> {
    let ServerConfig::Centralized { server } = &config.server else {
        return None;
    };
    let mut greetings = Vec::new();
    if let Some(password) = &config.password {
        let mut auth = vec![Value::from_static_str("AUTH")];
        auth.extend(config.username.clone().map(Value::from));
        auth.push(Value::from(password.clone()));
        greetings.push(auth);
    }
    if let Some(database) = config.database {
        let select = Value::from_static_str("SELECT");
        greetings.push(vec![select, Value::from(i64::from(database))]);
    }
    let server = server.clone();
    Some(Target { server, greetings })
}

fn fail_fast() -> Options {
    Options {
        fail_fast: true,
        ..Options::default()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failures_nobody_tries_and_then_one() {
        let started = Instant::now().checked_sub(BREAKER_OPEN * 9).unwrap();
        let breaker = Breaker::new(started);
        for _ in 0..BREAKER_FAILURES {
            assert_eq!(breaker.admit(), Ok(()));
            let lost = Fault::from("lost".to_owned());
            let reported = breaker.report::<()>(Err(lost));
            assert_eq!(reported, Err(Unavailable::Unanswered));
            // Whoever waited for that goes on without, at once.
            assert_eq!(breaker.admit(), Err(Unavailable::Unasked));
            let until = breaker.open_until.swap(breaker.now(), Ordering::AcqRel);
            assert!(until > breaker.now());
        }
        let until = breaker.now() + millis(BREAKER_OPEN);
        breaker.open_until.store(until, Ordering::Release);
        assert_eq!(breaker.admit(), Err(Unavailable::Unasked));
        breaker.open_until.store(breaker.now(), Ordering::Release);
        assert_eq!(breaker.admit(), Ok(()));
        assert_eq!(breaker.admit(), Err(Unavailable::Unasked));
        assert_eq!(breaker.report(Ok(())), Ok(()));
        assert_eq!(breaker.admit(), Ok(()));
        // Opened by a failure that a success had already made good.
        breaker.open_until.store(breaker.now(), Ordering::Release);
        assert_eq!(breaker.admit(), Ok(()));
        assert_eq!(breaker.report(Ok(())), Ok(()));
        assert!(breaker.is_shut());
    }
}
