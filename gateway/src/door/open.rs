//! The listener on sockets that were opened, or taken over, before Pingora was there.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::IntoRawFd as _,
};

use async_trait::async_trait;
use pingora::{
    server::{ListenFds, ShutdownWatch},
    services::{Service as Runs, listening::Service},
};
use tokio_util::sync::CancellationToken;

use crate::door::Door;

/// A service on sockets that exist already.
pub(crate) struct Open {
    service: Service<Door>,
    sockets: Vec<(SocketAddr, TcpListener)>,
    accepting: CancellationToken,
}

impl Open {
    /// `service` on `sockets`, which are those of its listeners; `accepting` is cancelled once it
    /// takes them.
    #[must_use]
    pub(crate) fn new(
        service: Service<Door>,
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
