//! Handing the listening sockets over to the next binary, so that an upgrade refuses nobody.
//!
//! A running gateway offers its sockets on a socket in the file system. A new one (`gateway run
//! --upgrade`) takes them once it can work, and says so once it accepts; only then does the old one
//! stop. A new one that fails before that leaves everything as it was.
//!
//! Pingora's own way is not taken: there the old process stops even when the transfer failed, and
//! after a fixed time instead of after a word from the new one.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, PermissionsExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use ops::admin::Readiness;
use rustix::{
    cmsg_space,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, bind, listen, recvmsg, sendmsg,
        socket_with, sockopt::set_socket_reuseaddr,
    },
};
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener as Offers, UnixStream as Successor},
};
use tracing::{error, warn};
use uuid::Uuid;

use crate::config::RunOptions;

/// Most sockets that are handed over.
const SOCKETS_MAX: usize = 8;
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 4_096;
/// How long a new process may take from having the sockets to accepting on them.
const RELIEF_DEADLINE: Duration = Duration::from_secs(10);
/// How long the old process may take to hand its sockets over.
const OFFER_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after a hand-over that came to nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long an upgrade waits until the new process can do its work.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(30);
/// How often it looks.
const UPGRADE_LOOK: Duration = Duration::from_millis(50);

/// What the old process sends with the sockets.
const FORMAT: u8 = 1;
/// What the new process says once it accepts.
const ACCEPTING: u8 = 2;

/// The sockets of this process, for the next one to take.
#[derive(Debug)]
pub struct Offer {
    offers: Offers,
    sockets: Vec<TcpListener>,
}

/// What the process listens on, and who does after it.
#[derive(Debug)]
pub struct Sockets {
    /// For everyone.
    pub public: TcpListener,
    /// For operators.
    pub admin: TcpListener,
    /// How they go on.
    pub next: Next,
}

/// How the sockets come to the next process.
#[derive(Debug)]
pub enum Next {
    /// Not at all.
    None,
    /// They are offered.
    Offered(Offer),
    /// They will be, once the predecessor is relieved.
    After(Predecessor, PathBuf, Vec<TcpListener>),
}

/// The process that runs until we say that we accept.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
    sockets: Vec<TcpListener>,
}

impl Next {
    /// Now that we accept: relieves the predecessor and takes its place.
    #[must_use]
    pub fn settle(self) -> Option<Offer> {
        let (predecessor, path, sockets) = match self {
            Self::None => return None,
            Self::Offered(offer) => return Some(offer),
            Self::After(predecessor, path, sockets) => (predecessor, path, sockets),
        };
        if let Err(cause) = predecessor.relieve() {
            warn!(error = %cause, "the old process was gone before it was relieved");
        }
        // Too late to fail: whoever is served now shall not suffer for the next upgrade.
        let offer = Offer::open(&path, sockets);
        offer
            .inspect_err(|cause| error!(error = format!("{cause:#}"), "no next upgrade"))
            .ok()
    }
}

impl Offer {
    /// Offers `sockets` at `path`, where nobody but this user may take them.
    ///
    /// # Errors
    /// When another one does, or the path cannot be used.
    pub fn open(path: &Path, sockets: Vec<TcpListener>) -> anyhow::Result<Self> {
        ensure!(
            UnixStream::connect(path).is_err(),
            "a gateway offers its sockets at {}: take them with --upgrade",
            path.display()
        );
        // Made where nobody else can look, in a folder of its own, and moved from there once its
        // permissions are set; what a dead process left is replaced.
        let private = path.with_extension(format!("{:08x}", Uuid::new_v4().as_fields().0));
        let offers = offered(path, &private)
            .with_context(|| format!("offer sockets at {}", path.display()))?;
        Ok(Self { offers, sockets })
    }

    /// Waits until a new process has the sockets and accepts on them; from then on it is that one
    /// that may offer them.
    pub async fn until_relieved(mut self) {
        loop {
            match self.hand_over().await {
                Ok(successor) => {
                    drop(self.offers);
                    // Tells it that it may.
                    drop(successor);
                    return;
                }
                Err(cause) => {
                    let error = format!("{cause:#}");
                    warn!(error, "a hand-over came to nothing: carrying on");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn hand_over(&mut self) -> anyhow::Result<Successor> {
        let (mut successor, _) = self.offers.accept().await?;
        send(&successor, &self.sockets).context("send the sockets")?;
        let word = tokio::time::timeout(RELIEF_DEADLINE, successor.read_u8())
            .await
            .context("the new process does not accept")?
            .context("the new process is gone")?;
        ensure!(word == ACCEPTING, "the new process says {word}");
        Ok(successor)
    }
}

impl Predecessor {
    /// Asks the process that offers its sockets at `path` for them.
    ///
    /// # Errors
    /// When there is none, or it does not give them.
    pub fn ask(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("no gateway offers its sockets at {}", path.display()))?;
        stream.set_read_timeout(Some(OFFER_DEADLINE))?;
        let sockets = receive(&stream).context("receive the sockets")?;
        Ok(Self { stream, sockets })
    }

    /// The socket that listens on `address`, if the old process had one.
    pub fn socket(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let listens =
            |socket: &TcpListener| socket.local_addr().is_ok_and(|found| found == address);
        let found = self.sockets.iter().position(listens)?;
        Some(self.sockets.swap_remove(found))
    }

    /// Tells the old process that we accept, and waits until it offers its sockets no more.
    ///
    /// # Errors
    /// When it is gone, which is as good.
    pub fn relieve(mut self) -> io::Result<()> {
        self.stream.write_all(&[ACCEPTING])?;
        self.stream.read(&mut [0]).map(drop)
    }
}

/// The sockets to listen on: new ones, or for an upgrade those of the running process, which are
/// asked for once this one could do its work.
///
/// # Errors
/// When there are none to be had.
pub async fn sockets(options: &RunOptions, readiness: &Readiness) -> anyhow::Result<Sockets> {
    let path = options.upgrade_sock.as_deref();
    let mut predecessor = match path.filter(|_| options.upgrade) {
        Some(path) => Some(predecessor(path, readiness).await?),
        None => None,
    };
    let mut socket = |address: SocketAddr| {
        let inherited = predecessor.as_mut().and_then(|old| old.socket(address));
        inherited.map_or_else(|| listen_on(address), Ok)
    };
    let (public, admin) = (
        socket(options.listen)?,
        socket(options.process.admin_listen)?,
    );
    let ours = vec![public.try_clone()?, admin.try_clone()?];
    let next = match (path, predecessor) {
        (None, _) => Next::None,
        (Some(path), None) => Next::Offered(Offer::open(path, ours)?),
        (Some(path), Some(predecessor)) => Next::After(predecessor, path.to_owned(), ours),
    };
    Ok(Sockets {
        public,
        admin,
        next,
    })
}

async fn predecessor(path: &Path, readiness: &Readiness) -> anyhow::Result<Predecessor> {
    let started = Instant::now();
    loop {
        let failures = readiness.failures().await;
        if failures.is_empty() {
            return Predecessor::ask(path);
        }
        let lacks = failures.join("; ");
        ensure!(started.elapsed() < UPGRADE_DEADLINE, "not ready: {lacks}");
        tokio::time::sleep(UPGRADE_LOOK).await;
    }
}

/// Makes the socket at `path`, in a folder that is there for no longer than it takes.
fn offered(path: &Path, private: &Path) -> io::Result<Offers> {
    DirBuilder::new().mode(0o700).create(private)?;
    let beside = private.join("s");
    let bind = || {
        let offers = Offers::bind(&beside)?;
        fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
        fs::rename(&beside, path)?;
        Ok(offers)
    };
    let offers = bind();
    fs::remove_dir_all(private)?;
    offers
}

/// A new socket that listens on `address`.
///
/// # Errors
/// When it cannot.
pub fn listen_on(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let make = || {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        rustix::io::Result::Ok(socket)
    };
    let socket = make().with_context(|| format!("listen on {address}"))?;
    Ok(TcpListener::from(socket))
}

fn send(to: &Successor, sockets: &[TcpListener]) -> anyhow::Result<()> {
    let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(&sockets));
    ensure!(fits, "at most {SOCKETS_MAX} sockets are handed over");
    sendmsg(
        to,
        &[IoSlice::new(&[FORMAT])],
        &mut control,
        SendFlags::empty(),
    )?;
    Ok(())
}

fn receive(from: &UnixStream) -> anyhow::Result<Vec<TcpListener>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut format = [0];
    let received = recvmsg(
        from,
        &mut [IoSliceMut::new(&mut format)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        bail!("the old process is just being relieved by another one");
    }
    ensure!(format == [FORMAT], "the old process offers another format");
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received.map(|socket: OwnedFd| TcpListener::from(socket)));
        }
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpStream,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    fn free() -> TcpListener {
        listen_on(([127, 0, 0, 1], 0).into()).unwrap()
    }

    #[tokio::test]
    async fn an_offer_is_never_seen_with_other_permissions_and_two_do_not_hinder_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let offered = AtomicBool::new(false);
        let runtime = tokio::runtime::Handle::current();
        let look = || {
            let mut seen = 0;
            while !offered.load(Ordering::Relaxed) {
                for entry in fs::read_dir(folder.path()).unwrap() {
                    let Ok(found) = entry.unwrap().metadata() else {
                        continue;
                    };
                    let mode = if found.is_dir() { 0o700 } else { 0o600 };
                    assert_eq!(found.permissions().mode() & 0o777, mode);
                    seen += 1;
                }
            }
            seen
        };
        let offer = |number: usize| {
            let _runtime = runtime.enter();
            for round in 0..200 {
                // Of one folder, and now and then of one name.
                let name = if round % 2 == 0 { 0 } else { number };
                let path = folder.path().join(format!("{name}.sock"));
                match Offer::open(&path, Vec::new()) {
                    Ok(offer) => drop(offer),
                    Err(cause) => assert!(format!("{cause:#}").contains("take them with")),
                }
            }
        };
        std::thread::scope(|scope| {
            let looks = scope.spawn(look);
            let offers = [1, 2].map(|number| scope.spawn(move || offer(number)));
            let offers = offers.map(std::thread::ScopedJoinHandle::join);
            offered.store(true, Ordering::Relaxed);
            assert!(offers.iter().all(Result::is_ok));
            assert!(looks.join().unwrap() > 0);
        });
        let left = fs::read_dir(folder.path()).unwrap();
        assert_eq!(left.count(), 3, "nothing but what is offered");
    }

    #[tokio::test]
    async fn sockets_change_hands_and_only_the_word_of_the_new_one_relieves_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("upgrade.sock");
        let (socket, other) = (free(), free());
        let address = socket.local_addr().unwrap();
        let offer = Offer::open(&path, vec![socket, other]).unwrap();
        assert!(Offer::open(&path, Vec::new()).is_err(), "taken");
        let new = tokio::task::spawn_blocking(move || {
            // One that fails after it has the sockets changes nothing.
            drop(Predecessor::ask(&path).unwrap());
            let mut old = Predecessor::ask(&path).unwrap();
            let inherited = old.socket(address).unwrap();
            assert!(old.socket(address).is_none());
            old.relieve().unwrap();
            inherited
        });
        offer.until_relieved().await;
        let inherited = new.await.unwrap();
        let _client = TcpStream::connect(address).unwrap();
        inherited.set_nonblocking(false).unwrap();
        inherited.accept().unwrap();
    }
}
