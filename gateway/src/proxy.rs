//! The path of a request, phases in order. This is the only `ProxyHttp` implementation.
//!
//! form → abuse → route → snapshot → who → may → how often → then either a transaction
//! (`submit`), or Pingora streams: upstream → their header → answer's header → log.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use contracts::{
    api::health::Health,
    problem::{Code, Problem},
};
use http::header;
use ipnet::IpNet;
use ops::clock::Clock;
use pingora::{
    Error, ErrorType,
    http::{RequestHeader, ResponseHeader},
    proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session},
    upstreams::peer::HttpPeer,
};
use tracing::error;

use crate::{
    abuse::Abuse,
    answer::unavailable,
    auth::Authenticator,
    config,
    ctx::{Ctx, Stop, Usage},
    drain::Drain,
    headers,
    idempotency::Idempotency,
    limit::Limiter,
    pages::Pages,
    reject,
    route::{Action, Forward, Passage, ROUTES, Routes},
    sight::Sight,
    snapshot::Snapshots,
    spool::Spool,
    submit,
    upstream::{Facts, Upstreams},
};

/// Everything a request needs, built once.
#[derive(Debug)]
pub struct Gateway {
    /// The time.
    pub clock: Clock,
    /// The routes.
    pub routes: Routes,
    /// What is believed about tenants.
    pub snapshots: Arc<Snapshots>,
    /// How old that may be.
    pub snapshot_max_age: Duration,
    /// Who asks.
    pub authenticator: Authenticator,
    /// How often they may.
    pub limiter: Arc<Limiter>,
    /// What was answered before.
    pub idempotency: Idempotency,
    /// The APIs behind.
    pub upstreams: Arc<Upstreams>,
    /// How long they may take.
    pub upstream_deadline: Duration,
    /// How long a client may take to send a body.
    pub body_deadline: Duration,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What requests cost.
    pub spool: Arc<Spool>,
    /// How the dependencies are.
    pub health: Arc<ArcSwap<Health>>,
    /// The document and its page.
    pub pages: Pages,
    /// Metrics and the log line.
    pub sight: Arc<Sight>,
    /// Who did wrong lately.
    pub abuse: Arc<Abuse>,
    /// Whether we are on the way out.
    pub drain: Drain,
}

/// What the request filter decides.
enum Step {
    /// The answer is sent.
    Answered,
    /// Pingora forwards.
    Forward,
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new(self.clock.now(), self.drain.enter())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<bool> {
        session.set_write_timeout(Some(config::CLIENT_WRITE_DEADLINE));
        if session.get_keepalive().is_some() {
            let idle = (!self.drain.has_begun()).then_some(config::CLIENT_IDLE_SECONDS);
            session.set_keepalive(idle);
        }
        match self.admit(session, ctx).await {
            Ok(Step::Answered) => Ok(true),
            Ok(Step::Forward) => Ok(false),
            Err(Stop::Problem(problem)) => {
                self.refuse(session, ctx, problem).await?;
                Ok(true)
            }
            Err(Stop::Error(error)) => Err(error),
        }
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        ctx: &mut Ctx,
    ) -> pingora::Result<Box<HttpPeer>> {
        let forward = ctx.forward()?;
        let silence = match forward.passage {
            Passage::Events => config::STREAM_IDLE,
            _ => self.upstream_deadline,
        };
        let upstream = self.upstreams.get(forward.upstream);
        upstream.peer(silence).map(Box::new).map_err(Error::into_up)
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        let host = &self.upstreams.get(ctx.forward()?.upstream).host;
        let ours = headers::Upstream {
            host,
            assertion: &ctx.assertion,
            traceparent: &ctx.traceparent,
            key: None,
            length: None,
        };
        headers::for_upstream(request, &ours)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Ctx,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // Nothing was sent, so trying once more is safe whatever the method.
        error.set_retry(!std::mem::replace(&mut ctx.retried, true));
        error
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        answer: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        if answer.status.is_informational() {
            return Ok(());
        }
        Self::check_belief(answer, ctx)?;
        headers::from_upstream(answer);
        if ctx.forward()?.passage == Passage::Events {
            // A stream may outlast the process: nobody waits for it on the way out.
            ctx.in_flight = None;
        }
        ctx.status = answer.status.as_u16();
        let length = answer
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok());
        ctx.response_bytes = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        if !self.record(ctx) {
            return Err(Error::new_in(ErrorType::HTTPStatus(503)));
        }
        self.decorate(answer, ctx)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Ctx,
    ) -> FailToProxy {
        let begun = session
            .response_written()
            .is_some_and(|w| !w.status.is_informational());
        if let Some(problem) = reject::of_pingora(error)
            && !begun
        {
            if problem.code() == Code::Internal {
                error!(%error, request.id = %ctx.request_id, "the gateway failed");
            }
            session.set_keepalive(None);
            self.refuse(session, ctx, problem).await.ok();
        }
        FailToProxy {
            error_code: ctx.status,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, ctx: &mut Ctx) {
        ctx.response_bytes = ctx.response_bytes.max(session.body_bytes_sent() as u64);
        let request = session.req_header();
        self.sight
            .note(ctx, request.method.as_str(), request.uri.path());
        self.abuse.note(ctx, &request.headers);
        ctx.in_flight = None;
    }

    /// Pingora's line would show the query, which is the client's.
    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Ctx,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        metrics::counter!("gateway_upstream_retries_total").increment(1);
        true
    }

    /// Our own line says it.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Ctx, _error: &Error) -> bool {
        true
    }
}

impl Gateway {
    /// Everything that is decided before a request goes anywhere.
    async fn admit(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Step, Stop> {
        let request = session.req_header();
        ctx.meet(
            session
                .client_addr()
                .and_then(|a| a.as_inet())
                .map(SocketAddr::ip),
            request,
            &self.trusted_proxies,
        );
        if let Err(problem) = headers::check_form(request) {
            session.set_keepalive(None);
            return Err(problem.into());
        }
        self.abuse.admit(ctx, &request.headers)?;
        let index = self.routes.find(&request.method, request.uri.path())?;
        ctx.route = Some(index);
        let forward = match &ROUTES[index].action {
            Action::Own(page) => {
                self.show(session, ctx, *page).await?;
                return Ok(Step::Answered);
            }
            Action::Forward(forward) => forward,
        };
        self.identify(session, ctx, forward).await?;
        match forward.passage {
            Passage::Transaction(transaction) => {
                submit::serve(self, session, ctx, forward, transaction).await?;
                Ok(Step::Answered)
            }
            Passage::Stream | Passage::Events => {
                if !session.is_body_empty() {
                    session.set_keepalive(None);
                    let detail = "This route takes no body.";
                    return Err(Problem::new(Code::InvalidRequest, detail).into());
                }
                ctx.assertion = self.assertion(session, ctx, forward, b"");
                Ok(Step::Forward)
            }
        }
    }

    /// Who asks, whether they may, and whether not too often. After this a request is admitted.
    async fn identify(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        forward: &Forward,
    ) -> Result<(), Problem> {
        let snapshot = self.snapshots.load();
        if !self
            .snapshots
            .fresh_within(self.snapshot_max_age, ctx.started)
        {
            return Err(unavailable("Credentials cannot be checked at the moment."));
        }
        let headers = &session.req_header().headers;
        let principal = self
            .authenticator
            .authenticate(headers, &snapshot, ctx.arrived_at)
            .await
            .map_err(|refusal| refusal.problem())?;
        drop(snapshot);
        let principal = ctx.principal.insert(principal);
        principal.require_any(forward.scopes)?;
        if forward.billable && !self.spool.has_room() {
            metrics::counter!("gateway_spool_refused_total").increment(1);
            return Err(unavailable("Usage cannot be recorded at the moment."));
        }
        let verdict = ctx
            .verdict
            .insert(self.limiter.decide(&principal.tenant).await);
        if let Some(refusal) = verdict.refusal() {
            return Err(refusal);
        }
        ctx.usage = Usage::Due;
        Ok(())
    }

    /// The statement to an upstream about who asks.
    pub(crate) fn assertion(
        &self,
        session: &Session,
        ctx: &Ctx,
        forward: &Forward,
        body: &[u8],
    ) -> String {
        let request = session.req_header();
        let facts = Facts {
            method: request.method.as_str(),
            target: target(request),
            body,
            address: ctx.address,
            request_id: ctx.request_id,
            traceparent: &ctx.traceparent,
        };
        let principal = ctx
            .principal
            .as_ref()
            .expect("only admitted requests are forwarded");
        self.upstreams
            .get(forward.upstream)
            .assertion(principal, &facts, self.clock.now())
    }
}

/// Path and query as they go upstream.
pub(crate) fn target(request: &RequestHeader) -> &str {
    request
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str())
}
