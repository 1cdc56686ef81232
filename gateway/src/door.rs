//! The public listener: how many may be connected, who they are by TLS, and a request's head as
//! bytes, within its time and size, before Pingora reads it.
//!
//! Pingora by itself waits for a head for as long as a byte comes now and then, keeps up to 1 MiB
//! of it, and does not bound connections. So each connection is served here, in its own loop.

use std::{
    future::poll_fn,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::BytesMut;
use contracts::problem::{Code, Problem};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ops::clock::Clock;
use pingora::{
    apps::{HttpPersistentSettings, HttpServerOptions, ReusedHttpStream, ServerApp},
    modules::http::HttpModules,
    prelude::timeout,
    protocols::{ALPN, Stream},
    proxy::{HttpProxy, Session, http_proxy},
    server::{ShutdownWatch, configuration::ServerConf},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::io::poll_read_buf;
use tracing::{debug, warn};

use crate::{
    abuse::Abuse,
    budget::{Hold, Lack},
    config::{self, edge::EdgeOptions},
    ctx::Ctx,
    door::{
        h2::Proxied,
        head::Fault,
        place::{Full, Places},
        tls::Tls,
    },
    drain::Drain,
    proxy::Gateway,
    reject,
    sight::Sight,
};

mod h2;
pub mod head;
pub(crate) mod open;
mod place;
pub mod tls;

/// A client's connection is closed after so many requests, so that clients spread over gateways.
pub(crate) const REQUESTS_PER_CONNECTION: u32 = 10_000;
/// What is read of a head at once.
const READ_BYTES: usize = 4 * 1_024;
/// How long, and for how many bytes, a refused client that is still sending is heard: closing at
/// once would take the answer away from it.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_MAX_BYTES: usize = 64 * 1_024;
/// Open files that are not of clients: stores, brokers, the spool.
const OTHER_FILES: usize = 256;
/// When a client that found no place may come again, in seconds.
const CROWDED_SECONDS: u64 = 1;
/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves connections.
pub struct Door {
    gateway: Arc<Gateway>,
    /// The same, for HTTP/2.
    proxy: Arc<HttpProxy<Proxied>>,
    /// None.
    modules: HttpModules,
    tls: Option<Arc<Tls>>,
    h2c: bool,
    head_deadline: Duration,
    places: Arc<Places>,
    hall: Hall,
}

/// What a refusal before the proxy needs of it.
pub struct Hall {
    /// The time.
    pub clock: Clock,
    /// Metrics and the log line.
    pub sight: Arc<Sight>,
    /// Who is being served.
    pub drain: Drain,
    /// Who did wrong.
    pub abuse: Arc<Abuse>,
}

/// Why there is no head to serve.
enum Ended {
    /// The client left, was idle for too long, or we leave.
    Gone,
    /// It is told why.
    Refused(Fault),
}

impl Door {
    /// A door to `gateway` that is as wide as `options` say.
    #[must_use]
    pub fn new(
        conf: &Arc<ServerConf>,
        gateway: Gateway,
        tls: Option<Arc<Tls>>,
        options: &EdgeOptions,
        hall: Hall,
    ) -> Self {
        let gateway = Arc::new(gateway);
        let mut proxy = http_proxy(conf, Proxied(Arc::clone(&gateway)));
        let mut http = HttpServerOptions::default();
        // Not to tunnel: so that it is we who refuse it, as a problem.
        http.allow_connect_method_proxying = true;
        proxy.server_options = Some(http);
        Self {
            gateway,
            proxy: Arc::new(proxy),
            modules: HttpModules::new(),
            tls,
            h2c: options.h2c,
            head_deadline: options.head_deadline(),
            places: Arc::new(Places::new(
                affordable(options.connections_max),
                options.address_connections_max,
            )),
            hall,
        }
    }

    async fn serve(&self, stream: Stream, shutdown: &ShutdownWatch) -> Option<()> {
        let _open = self.hall.drain.connection();
        let address = address(&stream);
        let _place = match self.places.take(self.hall.abuse.source(address)) {
            Ok(place) => place,
            Err(full) => {
                Box::pin(self.turn_away(stream, full)).await;
                return None;
            }
        };
        let mut stream = match &self.tls {
            Some(tls) => timeout(self.head_deadline, Box::pin(tls.accept(stream)))
                .await
                .ok()??,
            None => stream,
        };
        let mut modern = stream.selected_alpn_proto() == Some(ALPN::H2);
        if self.h2c && self.tls.is_none() {
            let begin = timeout(self.head_deadline, begins_http2(&mut stream)).await;
            modern = begin.ok()??;
        }
        if modern {
            let connection = h2::Connection {
                proxy: &self.proxy,
                abuse: &self.hall.abuse,
                budget: &self.gateway.budget,
                address,
                deadline: self.head_deadline,
            };
            Box::pin(connection.serve(stream, shutdown)).await;
        } else {
            self.http1(stream, shutdown).await;
        }
        None
    }

    /// One request after another, as Pingora would serve them but for the reading of heads.
    async fn http1(&self, mut stream: Stream, shutdown: &ShutdownWatch) {
        let mut settings = None;
        let mut idle = self.head_deadline;
        loop {
            let (head, _hold) = match self.head(&mut stream, idle).await {
                Ok(head) => head,
                Err(Ended::Gone) => return,
                Err(Ended::Refused(fault)) => {
                    return Box::pin(self.refuse(stream, fault)).await;
                }
            };
            let mut session = Session::new_h1_with_modules(stream, &self.modules);
            let downstream = &mut session.downstream_session;
            if let Some(settings) = settings.take() {
                HttpPersistentSettings::apply_to_session(settings, downstream);
            } else {
                downstream.set_keepalive(Some(config::CLIENT_IDLE_SECONDS));
                downstream.set_keepalive_reuses_remaining(Some(REQUESTS_PER_CONNECTION));
            }
            downstream.set_pipelined_prefix(head);
            match downstream.read_request().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    downstream.respond_error(400).await.ok();
                    return;
                }
            }
            if *shutdown.borrow() {
                session.set_keepalive(None);
            }
            // Connections wait most of the time: what a request needs is taken with the request.
            if Box::pin(self.gateway.handle(&mut session)).await.is_err() {
                return;
            }
            let kept = HttpPersistentSettings::for_session(&session);
            let Ok(Some(again)) = session.downstream_session.finish().await else {
                return;
            };
            (stream, settings) = ReusedHttpStream::from_reusable_stream(again, kept).consume();
            idle = Duration::from_secs(config::CLIENT_IDLE_SECONDS);
        }
    }

    /// Reads the next head whole, and what came with it; a long one is counted while it is there.
    async fn head(&self, stream: &mut Stream, idle: Duration) -> Result<(BytesMut, Hold), Ended> {
        // Also while we leave: a request that is on its way is served, and its answer says
        // `Connection: close`. `Drain` decides how long that may take.
        let first = timeout(idle, first_bytes(stream)).await;
        let Ok(Some(mut bytes)) = first else {
            return Err(Ended::Gone);
        };
        let mut hold = Hold::default();
        let mut end = head::end(&bytes, 0)?;
        if end.is_none() {
            let rest = async {
                while end.is_none() {
                    let seen = bytes.len();
                    if seen == bytes.capacity() {
                        let source = self.hall.abuse.source(address(stream));
                        // Once as bytes, and once as fields.
                        self.gateway.budget.add_wire(&mut hold, source, 2 * seen)?;
                        bytes.reserve(seen);
                    }
                    if !matches!(stream.read_buf(&mut bytes).await, Ok(read) if read > 0) {
                        return Err(Ended::Gone);
                    }
                    end = head::end(&bytes, seen)?;
                }
                Ok(())
            };
            // One deadline for all of it, however often a byte comes.
            let rest = timeout(self.head_deadline, rest).await;
            rest.map_err(|_| Ended::Refused(Fault::Late))??;
        }
        head::check(&bytes[..end.unwrap_or(0)])?;
        Ok((bytes, hold))
    }

    /// Tells a client that there is no place for it, if it can hear that.
    async fn turn_away(&self, stream: Stream, full: Full) {
        metrics::counter!("gateway_connections_refused_total").increment(1);
        // Who speaks TLS could not read it, and telling takes a place too.
        if self.tls.is_none() && full.told.is_some() {
            self.refuse(stream, full.fault).await;
        }
    }

    /// Answers a problem and closes, since nobody knows where the next request would begin.
    async fn refuse(&self, mut stream: Stream, fault: Fault) {
        let Hall {
            clock,
            sight,
            drain,
            abuse,
        } = &self.hall;
        let mut ctx = Ctx::new(clock.now(), drain.enter());
        let problem = fault.problem();
        ctx.address = address(&stream);
        ctx.status = problem.status().as_u16();
        ctx.code = Some(problem.code());
        let problem = problem.at("", Some(ctx.request_id), clock.now());
        let bytes = reject::whole(&problem, ctx.request_id);
        let tell = async {
            stream.write_all(&bytes).await?;
            stream.flush().await?;
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await?;
            let mut heard = BytesMut::with_capacity(READ_BYTES);
            let mut left = LINGER_MAX_BYTES;
            while left > 0 {
                heard.clear();
                match stream.read_buf(&mut heard).await? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
            Ok::<_, std::io::Error>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(LINGER, tell).await {
            debug!(%error, "a refused client left");
        }
        if !matches!(fault, Fault::Crowded | Fault::Share | Fault::Full(_)) {
            abuse.malformed(ctx.address);
        }
        sight.note(&mut ctx, "", "");
    }
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault)
    }
}

impl From<Lack> for Ended {
    fn from(lack: Lack) -> Self {
        Self::Refused(Fault::Full(lack))
    }
}

impl Fault {
    /// What the client is told.
    pub(crate) fn problem(self) -> Problem {
        match self {
            Self::Malformed(detail) => Problem::new(Code::InvalidRequest, detail),
            Self::Target => Problem::new(
                Code::TargetTooLong,
                format!(
                    "The target may have at most {} bytes.",
                    config::TARGET_MAX_BYTES
                ),
            ),
            Self::Fields => Problem::new(
                Code::HeadersTooLarge,
                format!(
                    "There may be {} headers in {} bytes.",
                    config::HEADERS_MAX,
                    config::HEADERS_MAX_BYTES
                ),
            ),
            Self::Late => Problem::new(
                Code::RequestTimeout,
                "The headers were not received in time.",
            ),
            Self::Crowded => Problem::new(
                Code::ServiceUnavailable,
                "There are too many connections at the moment.",
            )
            .with_retry_after(CROWDED_SECONDS),
            Self::Share => Problem::new(
                Code::RateLimitExceeded,
                "There are too many connections from your address at the moment.",
            )
            .with_retry_after(CROWDED_SECONDS),
            Self::Full(lack) => lack.problem(),
        }
    }
}

/// The first bytes of a request; `None` when the client left. Memory for them is taken when they
/// are there: most connections wait most of the time.
async fn first_bytes(stream: &mut Stream) -> Option<BytesMut> {
    let read = poll_fn(|context| {
        let mut bytes = BytesMut::with_capacity(READ_BYTES);
        let read = ready!(poll_read_buf(Pin::new(&mut *stream), context, &mut bytes));
        Poll::Ready(read.map(|_| bytes))
    });
    read.await.ok().filter(|bytes| !bytes.is_empty())
}

/// Whether a client begins with what HTTP/2 does; `None` when it left before that is plain. It is
/// looked at no further than it is needed, since a short request may be all that comes.
async fn begins_http2(stream: &mut Stream) -> Option<bool> {
    let mut first = [0; PREFACE.len()];
    for length in 1..=first.len() {
        let peek = stream.try_peek(&mut first[..length]).await;
        if !peek.ok()? {
            return None;
        }
        if !PREFACE.starts_with(&first[..length]) {
            return Some(false);
        }
    }
    Some(true)
}

/// Where a connection comes from.
fn address(stream: &Stream) -> IpAddr {
    let digest = stream.get_socket_digest();
    let peer = digest.as_ref().and_then(|digest| digest.peer_addr());
    peer.and_then(|address| address.as_inet())
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| {
            address.ip().to_canonical()
        })
}

/// As many of `wanted` connections as there may be open files for, each having one upstream too.
fn affordable(wanted: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return wanted;
    };
    // A shell's customary limit is low and may be raised by anyone.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let files = usize::try_from(if raised { hard } else { soft }).unwrap_or(usize::MAX);
    let most = wanted.min(files.saturating_sub(OTHER_FILES) / 2);
    if most < wanted {
        warn!(
            wanted,
            most, "the limit of open files bounds the connections"
        );
    }
    most
}

#[async_trait]
impl ServerApp for Door {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        self.serve(stream, shutdown).await;
        None
    }

    // `cleanup` does nothing, on purpose: the proxy's would drop idle connections.
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door")
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}
