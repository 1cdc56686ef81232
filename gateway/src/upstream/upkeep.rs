//! What keeps the upstreams ready: names are followed to their addresses, rollouts by the clock,
//! and addresses are looked after.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use ops::clock::Clock;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Canary, Upstream, Upstreams, rollout::Rollout, version::Version};
use crate::snapshot::Snapshots;

/// How often the addresses of a name are looked up.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);
/// How long a look-up may take.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(2);
/// How often it is looked whether a rollout has come to its next step, or was called back.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// How often every address is checked.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long a check may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(1);
/// Most addresses of one name that are used.
const ADDRESSES_MAX: usize = 64;

impl Upstreams {
    /// Follows names to addresses until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn resolve(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let versions = self.versions();
            let look = versions.iter().map(|version| async {
                if let Err(error) = resolve(version).await {
                    let (upstream, error) = (&version.host, format!("{error:#}"));
                    warn!(upstream, error, "the upstream's name has no address");
                }
            });
            join_all(look).await;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.news.notified() => {}
                () = tokio::time::sleep(RESOLVE_EVERY) => {}
            }
        }
    }

    /// Follows rollouts by the clock until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn follow(
        self: Arc<Self>,
        snapshots: Arc<Snapshots>,
        clock: Clock,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            let snapshot = snapshots.load_full();
            for upstream in &self.all {
                let of_it = |rollout: &&Rollout| rollout.upstream == upstream.audience;
                let rollout = snapshot.rollouts.iter().find(of_it);
                if upstream.follow(rollout, clock.now()) {
                    self.news.notify_one();
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(FOLLOW_EVERY) => {}
            }
        }
    }

    /// Checks every address, again and again, until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn check(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let versions = self.versions();
            let targets = versions.iter().flat_map(|version| {
                let targets = version.targets();
                (0..targets.len()).map(move |at| Arc::clone(&targets[at]))
            });
            let path = self.check_path.as_deref();
            let checks = targets.map(|target| async move {
                target.checked(check(target.address, path).await.is_ok());
            });
            join_all(checks).await;
            for version in &versions {
                version.tick();
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
        }
    }

    fn versions(&self) -> Vec<Arc<Version>> {
        let of = |upstream: &Upstream| {
            let canary = upstream.canary.load();
            let canary = canary.as_ref().map(|canary| Arc::clone(&canary.version));
            [Some(Arc::clone(&upstream.stable)), canary]
        };
        self.all.iter().flat_map(of).flatten().collect()
    }
}

impl Upstream {
    /// Whether one of the addresses can be reached.
    ///
    /// # Errors
    /// When none can.
    pub async fn ping(&self) -> anyhow::Result<()> {
        if self.stable.targets().is_empty() {
            resolve(&self.stable).await?;
        }
        for target in self.stable.targets().iter() {
            if check(target.address, None).await.is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("no address accepts connections")
    }

    /// Gives the version on its way in the share that it has now; whether it is a new one.
    fn follow(&self, rollout: Option<&Rollout>, now: jiff::Timestamp) -> bool {
        let known = self.canary.load();
        let Some(rollout) = rollout else {
            if known.is_some() {
                self.canary.store(None);
            }
            return false;
        };
        let percent = rollout.percent(now);
        let known = known.as_ref().filter(|canary| {
            canary.version.name == rollout.version && canary.version.host == rollout.host
        });
        if known.is_some_and(|canary| canary.percent == percent) {
            return false;
        }
        let upstream = self.audience.as_str();
        info!(
            upstream,
            version = rollout.version,
            percent,
            "the rollout's share"
        );
        let version = known.map_or_else(
            || Arc::new(Version::new(upstream, &rollout.version, &rollout.host)),
            |canary| Arc::clone(&canary.version),
        );
        let salt = rollout.salt();
        self.canary.store(Some(Arc::new(Canary {
            version,
            salt,
            percent,
        })));
        known.is_none()
    }
}

/// Looks a version's name up; an address written as such stays.
async fn resolve(version: &Version) -> anyhow::Result<()> {
    if version.host.parse::<SocketAddr>().is_ok() {
        return Ok(());
    }
    let look_up = tokio::net::lookup_host(version.host.as_str());
    let found = tokio::time::timeout(RESOLVE_DEADLINE, look_up).await??;
    let mut found: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    ensure!(!found.is_empty(), "the name has no address");
    // Resolvers shuffle: the order must not look like a change.
    found.sort_unstable();
    found.dedup();
    version.found(&found);
    Ok(())
}

/// Whether an address accepts a connection and, where a path is given, answers on it with anything
/// but a failure: to be refused for want of an assertion shows life too.
async fn check(address: SocketAddr, path: Option<&str>) -> anyhow::Result<()> {
    let look = async {
        let mut stream = TcpStream::connect(address).await?;
        let Some(path) = path else {
            return Ok(());
        };
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut begin = [0; b"HTTP/1.1 200".len()];
        stream.read_exact(&mut begin).await?;
        ensure!(begin.starts_with(b"HTTP/1.") && begin[9] < b'5', "it fails");
        anyhow::Ok(())
    };
    let looked = tokio::time::timeout(CHECK_DEADLINE, look).await;
    looked.context("it does not answer")?
}
