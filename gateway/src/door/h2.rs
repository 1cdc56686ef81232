//! HTTP/2: its limits, and the loop that takes the requests of one connection.
//!
//! Beyond what the `h2` crate bounds by itself (CONTINUATION, SETTINGS and PING floods, resets of
//! streams that nobody took yet), a client that opens and resets streams is bounded here: what it
//! left running may be no more than a few times what it may have open.

use std::{future::poll_fn, net::IpAddr, pin::pin, sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;
use pingora::{
    Error, ErrorType,
    apps::HttpServerApp as _,
    modules::http::HttpModules,
    prelude::{sleep, timeout},
    protocols::{
        Digest, Stream,
        http::{
            ServerSession,
            v2::server::{H2Accept, H2Options, HttpSession, default_h2_options, handshake},
        },
    },
    proxy::{FailToProxy, HttpProxy, ProxyHttp, Session},
    server::ShutdownWatch,
    upstreams::peer::HttpPeer,
};
use tokio::task::coop::consume_budget;
use tokio_util::task::TaskTracker;

use crate::{
    abuse::Abuse,
    budget::{Budget, Hold},
    config,
    door::REQUESTS_PER_CONNECTION,
    proxy::Gateway,
};

/// Most streams that a client may have open on a connection.
const STREAMS_MAX: u32 = 100;
/// Most requests of one connection that are worked on, those of reset streams included.
const WORK_MAX: usize = 3 * STREAMS_MAX as usize;
/// Malformed requests that a connection may bring before it is closed.
const MALFORMED_MAX: u32 = 32;
/// Of the 128 reads and writes that tokio lets a task do in one turn, those that a connection goes
/// without.
const SPARED_OF_A_TURN: u32 = 120;
/// Answer bytes that wait for a client to take them, by stream, beyond those that are counted with
/// the request.
const SEND_BUFFER_BYTES: usize = 16 * 1_024;
/// What a connection is counted for: its buffers, tables, and what a client may send unasked.
const CONNECTION_BYTES: usize = 64 * 1_024;

/// The gateway as Pingora's loop calls it, which brings the requests of HTTP/2. This is the only
/// `ProxyHttp` implementation.
pub(super) struct Proxied(pub(super) Arc<Gateway>);

#[async_trait]
impl ProxyHttp for Proxied {
    type CTX = ();

    fn new_ctx(&self) {}

    /// None.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> pingora::Result<bool> {
        self.0.handle(session).await.map(|()| true)
    }

    /// Never asked: every request is answered before.
    async fn upstream_peer(
        &self,
        _session: &mut Session,
        (): &mut (),
    ) -> pingora::Result<Box<HttpPeer>> {
        Err(Error::new_in(ErrorType::InternalError))
    }

    /// All is said.
    async fn fail_to_proxy(
        &self,
        _session: &mut Session,
        _error: &Error,
        (): &mut (),
    ) -> FailToProxy {
        FailToProxy {
            error_code: 0,
            can_reuse_downstream: false,
        }
    }

    /// Our own line says it.
    fn suppress_error_log(&self, _session: &Session, (): &(), _error: &Error) -> bool {
        true
    }
}

/// One connection.
pub(super) struct Connection<'a> {
    pub(super) proxy: &'a Arc<HttpProxy<Proxied>>,
    pub(super) abuse: &'a Abuse,
    pub(super) budget: &'a Arc<Budget>,
    pub(super) address: IpAddr,
    /// How long the client may take to shake hands.
    pub(super) deadline: Duration,
}

impl Connection<'_> {
    /// Serves it to its end.
    pub(super) async fn serve(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let mut hold = Hold::default();
        let source = self.abuse.source(self.address);
        let room = self.budget.add_wire(&mut hold, source, CONNECTION_BYTES);
        if room.is_err() {
            return;
        }
        let digest = Arc::new(Digest {
            ssl_digest: stream.get_ssl_digest(),
            timing_digest: stream.get_timing_digest(),
            proxy_digest: stream.get_proxy_digest(),
            socket_digest: stream.get_socket_digest(),
        });
        let shaken = timeout(self.deadline, handshake(stream, Some(options()))).await;
        let Ok(Ok(mut connection)) = shaken else {
            return;
        };
        let mut stopping = shutdown.clone();
        let (mut leaving, mut served, mut malformed) = (false, 0, 0);
        // Requests outlive the connection: what they began is finished and kept.
        let requests = TaskTracker::new();
        requests.close();
        loop {
            let idle = async {
                requests.wait().await;
                sleep(Duration::from_secs(config::CLIENT_IDLE_SECONDS)).await;
            };
            let accept = HttpSession::from_h2_conn(&mut connection, Arc::clone(&digest));
            let accepted = tokio::select! {
                biased;
                _ = stopping.wait_for(|begun| *begun), if !leaving => {
                    connection.graceful_shutdown();
                    leaving = true;
                    continue;
                }
                accepted = briefly(accept) => accepted,
                () = idle => return,
            };
            match accepted {
                Ok(None) => return,
                Err(error) => return self.note(&error),
                Ok(Some(H2Accept::Rejected)) => {
                    self.abuse.malformed(self.address);
                    malformed += 1;
                    if malformed == MALFORMED_MAX {
                        return;
                    }
                }
                Ok(Some(H2Accept::Session(session))) => {
                    served += 1;
                    if served == REQUESTS_PER_CONNECTION {
                        connection.graceful_shutdown();
                    }
                    if requests.len() >= WORK_MAX {
                        metrics::counter!("gateway_http2_floods_total").increment(1);
                        return;
                    }
                    let (proxy, shutdown) = (Arc::clone(self.proxy), shutdown.clone());
                    requests.spawn(async move {
                        let session = ServerSession::new_http2(session);
                        proxy.process_new_http(session, &shutdown).await;
                    });
                }
            }
        }
    }

    /// Notes why the connection ended. Of malformed requests that the `h2` crate resets by itself
    /// nothing is heard, until it has had enough of them.
    fn note(&self, error: &Error) {
        let cause = error.cause.as_deref();
        let Some(cause) = cause.and_then(|cause| cause.downcast_ref::<h2::Error>()) else {
            return;
        };
        if cause.is_remote() || cause.is_io() {
            return;
        }
        let enough = cause.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
        for _ in 0..if enough { MALFORMED_MAX } else { 1 } {
            self.abuse.malformed(self.address);
        }
    }
}

/// Polls with a small share of what a task may read in one turn. Frames of a few bytes cost so much
/// more than their bytes that a whole turn of them would keep others waiting.
async fn briefly<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        for _ in 0..SPARED_OF_A_TURN {
            if pin!(consume_budget()).poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        work.as_mut().poll(context)
    })
    .await
}

fn options() -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(STREAMS_MAX);
    options.max_header_list_size(u32::try_from(config::HEADERS_MAX_BYTES).unwrap_or(u32::MAX));
    options.max_send_buffer_size(SEND_BUFFER_BYTES);
    options.max_local_error_reset_streams(Some(MALFORMED_MAX as usize));
    options
}
