//! The private listener of every process: `/healthz` (the process lives), `/readyz` (it can do
//! its work now), `/metrics` (Prometheus text).

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use axum::{Router, extract::State, http::StatusCode, routing::get, serve::Listener};
use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::postgres::explain;

/// How long one readiness check may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(2);

/// How long whoever was let in before the listener was given away may take to ask: hyper closes a
/// connection that it is told to leave and has read nothing of.
const LAST_REQUEST: Duration = Duration::from_millis(150);

type Check = Box<dyn Fn() -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// The named conditions under which this process can do its work.
#[derive(Default)]
pub struct Readiness {
    checks: Vec<(&'static str, Check)>,
}

/// A condition that a loop reports: not ready until it is first set.
#[derive(Clone, Debug, Default)]
pub struct Flag(Arc<AtomicBool>);

struct Admin {
    readiness: Readiness,
    metrics: PrometheusHandle,
    stopping: CancellationToken,
}

/// A listener that lets nobody in once it is given away.
struct Door {
    listener: TcpListener,
    given_away: CancellationToken,
}

impl Readiness {
    /// Adds a condition; `check` says what is wrong as its error.
    #[must_use]
    pub fn with<F, Fut>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.checks
            .push((name, Box::new(move || Box::pin(check()))));
        self
    }

    /// Adds the condition that the database answers.
    #[must_use]
    pub fn with_database(self, pool: crate::postgres::Pool) -> Self {
        self.with("postgres", move || {
            let pool = pool.clone();
            async move { crate::postgres::ping(&pool).await }
        })
    }

    /// Adds a condition that a loop reports through its [`Flag`].
    #[must_use]
    pub fn with_flag(self, name: &'static str, flag: Flag) -> Self {
        self.with(name, move || {
            let set = flag.is_set();
            async move {
                if set {
                    Ok(())
                } else {
                    anyhow::bail!("not yet")
                }
            }
        })
    }

    /// What keeps this process from its work now.
    pub async fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for (name, check) in &self.checks {
            match tokio::time::timeout(CHECK_DEADLINE, check()).await {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => failures.push(format!("{name}: {}", explain(&cause))),
                Err(_) => failures.push(format!("{name}: no answer in {CHECK_DEADLINE:?}")),
            }
        }
        failures
    }
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_list()
            .entries(self.checks.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Flag {
    /// Reports the condition.
    pub fn set(&self, holds: bool) {
        self.0.store(holds, Ordering::SeqCst);
    }

    /// Whether the condition holds.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Binds the admin listener and returns its address with a future that ends when the process is
/// told to stop. The listener answers on through the drain, not ready from its first moment.
///
/// # Errors
/// When the address cannot be bound.
pub async fn bind(
    listen: SocketAddr,
    readiness: Readiness,
    metrics: PrometheusHandle,
    stopping: CancellationToken,
) -> anyhow::Result<(
    SocketAddr,
    impl Future<Output = anyhow::Result<()>> + Send + 'static,
)> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    let address = listener.local_addr()?;
    let never = CancellationToken::new();
    Ok((
        address,
        serve(listener, readiness, metrics, stopping, never),
    ))
}

/// Answers on `listener` as [`bind`] says, or until `given_away`: then another process answers
/// there, and the connections that are left are closed.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: PrometheusHandle,
    stopping: CancellationToken,
    given_away: CancellationToken,
) -> anyhow::Result<()> {
    let ended = stopping.clone();
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route(
            "/metrics",
            get(|State(admin): State<Arc<Admin>>| async move {
                admin.metrics.run_upkeep();
                admin.metrics.render()
            }),
        )
        .with_state(Arc::new(Admin {
            readiness,
            metrics,
            stopping,
        }));
    let gone = given_away.clone();
    let leave = async move {
        gone.cancelled().await;
        tokio::time::sleep(LAST_REQUEST).await;
    };
    let listener = Door {
        listener,
        given_away: given_away.clone(),
    };
    let server = axum::serve(listener, router).with_graceful_shutdown(leave);
    // The listener must answer while everything else drains, so it is no task of the lifecycle's:
    // it ends with the process.
    #[expect(clippy::disallowed_methods, reason = "outlives the drain on purpose")]
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        left = &mut server => {
            left??;
            anyhow::ensure!(given_away.is_cancelled(), "the admin listener ended");
            ended.cancelled().await;
        }
        () = ended.cancelled() => {}
    }
    Ok(())
}

impl Listener for Door {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        tokio::select! {
            biased;
            () = self.given_away.cancelled() => pending().await,
            accepted = Listener::accept(&mut self.listener) => accepted,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

async fn readyz(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    if admin.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    let failures = admin.readiness.failures().await;
    if failures.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, failures.join("\n") + "\n")
    }
}
