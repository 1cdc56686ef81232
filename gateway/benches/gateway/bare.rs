//! The baseline: Pingora without any policy. Requests without a body are proxied as its quick start
//! does it; those with one are read whole, exchanged over a pooled connection, and answered whole.

use std::net::SocketAddr;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use pingora::{
    OkOrErr as _,
    connectors::http::Connector,
    http::ResponseHeader,
    protocols::http::client::HttpSession,
    proxy::{ProxyHttp, Session, http_proxy_service},
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};

/// Idle connections that are kept to the upstream: as many as the gateway keeps.
const UPSTREAM_POOL: usize = 512;

struct Bare {
    upstream: SocketAddr,
    connector: Connector,
}

/// Serves until the process is killed.
pub(crate) fn serve(listen: SocketAddr, upstream: SocketAddr) {
    let conf = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: UPSTREAM_POOL,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let bare = Bare {
        upstream,
        connector: Connector::new(None),
    };
    let mut service = http_proxy_service(&server.configuration, bare);
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run_forever();
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        (): &mut (),
    ) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(self.peer()))
    }

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> pingora::Result<bool> {
        if session.is_body_empty() {
            return Ok(false);
        }
        self.transact(session).await?;
        Ok(true)
    }
}

impl Bare {
    fn peer(&self) -> HttpPeer {
        HttpPeer::new(self.upstream, false, String::new())
    }

    async fn transact(&self, session: &mut Session) -> pingora::Result<()> {
        let mut body = BytesMut::new();
        while let Some(chunk) = session.read_request_body().await? {
            body.extend_from_slice(&chunk);
        }
        let peer = self.peer();
        let (mut upstream, _) = self.connector.get_http_session(&peer).await?;
        let request = Box::new(session.req_header().clone());
        upstream.write_request_header(request).await?;
        upstream.write_request_body(body.freeze(), true).await?;
        upstream.finish_request_body().await?;
        let (header, body) = capture(&mut upstream).await?;
        self.connector
            .release_http_session(upstream, &peer, None)
            .await;
        let done = body.is_empty();
        session
            .write_response_header(Box::new(header), done)
            .await?;
        if !done {
            session.write_response_body(Some(body), true).await?;
        }
        Ok(())
    }
}

async fn capture(upstream: &mut HttpSession) -> pingora::Result<(ResponseHeader, Bytes)> {
    upstream.read_response_header().await?;
    let header = upstream.response_header();
    let header = header
        .or_err(pingora::ErrorType::InvalidHTTPHeader, "none read")?
        .clone();
    let mut body = BytesMut::new();
    while let Some(chunk) = upstream.read_response_body().await? {
        body.extend_from_slice(&chunk);
    }
    Ok((header, body.freeze()))
}
