//! Between Pingora's server and its proxy: sockets that are ours to hand over, and connections that
//! are never cut between two requests.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::IntoRawFd as _,
    sync::Arc,
};

use async_trait::async_trait;
use pingora::{
    apps::ServerApp,
    protocols::Stream,
    proxy::HttpProxy,
    server::{ListenFds, ShutdownWatch},
    services::{Service as Runs, listening::Service},
};
use tokio_util::sync::CancellationToken;

use crate::{drain::Drain, proxy::Gateway};

/// Pingora's proxy, with its connections counted.
///
/// Pingora itself drops idle connections at once when it stops listening, and with them a request
/// that was just on its way. Ours stay until their next request, whose answer says
/// `Connection: close`; [`Drain`] decides how long that may take.
pub struct Doors {
    proxy: Arc<HttpProxy<Gateway>>,
    drain: Drain,
}

/// A service on sockets that exist already.
pub struct Open {
    service: Service<Doors>,
    sockets: Vec<(SocketAddr, TcpListener)>,
    accepting: CancellationToken,
}

impl Doors {
    /// Doors before `proxy`.
    #[must_use]
    pub fn new(proxy: HttpProxy<Gateway>, drain: Drain) -> Self {
        let proxy = Arc::new(proxy);
        Self { proxy, drain }
    }
}

impl Open {
    /// `service` on `sockets`, which are those of its listeners; `accepting` is cancelled once it
    /// takes them.
    #[must_use]
    pub fn new(
        service: Service<Doors>,
        sockets: Vec<(SocketAddr, TcpListener)>,
        accepting: CancellationToken,
    ) -> Self {
        Self {
            service,
            sockets,
            accepting,
        }
    }
}

#[async_trait]
impl ServerApp for Doors {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _open = self.drain.connection();
        self.proxy.process_new(stream, shutdown).await
    }

    // `cleanup` does nothing, on purpose: the proxy's would drop the idle connections.
}

#[async_trait]
impl Runs for Open {
    async fn start_service(
        &mut self,
        table: Option<ListenFds>,
        shutdown: ShutdownWatch,
        listeners_per_socket: usize,
    ) {
        if let Some(table) = &table {
            let mut table = table.lock();
            for (address, socket) in self.sockets.drain(..) {
                table.add(address.to_string(), socket.into_raw_fd());
            }
        }
        self.accepting.cancel();
        let service = &mut self.service;
        Runs::start_service(service, table, shutdown, listeners_per_socket).await;
    }

    fn name(&self) -> &str {
        Runs::name(&self.service)
    }

    fn threads(&self) -> Option<usize> {
        Runs::threads(&self.service)
    }
}
