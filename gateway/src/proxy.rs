//! The path of a request, phases in order.
//!
//! form → abuse → route → snapshot → who → may → how often → then a transaction (`submit`), a
//! stream of events (`streams`), or what is passed on (`pass`): upstream → answer → log.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use contracts::{
    api::health::Health,
    assertion::Scope,
    problem::{Code, Problem},
};
use http::Version;
use ipnet::IpNet;
use ops::{clock::Clock, telemetry::Spans};
use pingora::{Error, proxy::Session};
use tracing::error;

use crate::{
    abuse::Abuse,
    answer::unavailable,
    auth::{Authenticator, Principal},
    budget::{Account, Budget, Lack},
    config,
    ctx::{Ctx, Stop, Usage},
    drain::Drain,
    headers,
    idempotency::Idempotency,
    keys::{self, Keys},
    limit::Limiter,
    pages::Pages,
    pass, reject,
    route::{Action, Forward, KEYS, Passage, ROUTES, Routes},
    sight::Sight,
    signature::{replay::Replays, require_digest},
    snapshot::Snapshots,
    spool::Spool,
    streams::{self, Streams},
    submit::{self, To},
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
    /// API keys as tenants manage them.
    pub keys: Keys,
    /// What was signed and seen.
    pub replays: Replays,
    /// How old a signature may be, in seconds.
    pub signature_window: i64,
    /// The APIs behind.
    pub upstreams: Arc<Upstreams>,
    /// How long they may take.
    pub upstream_deadline: Duration,
    /// How many streams of theirs there may be.
    pub streams: Streams,
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
    /// How many bytes requests may hold.
    pub budget: Arc<Budget>,
    /// Spans of requests, where somebody collects them.
    pub spans: Option<Spans>,
    /// Whether we are on the way out.
    pub drain: Drain,
}

impl Gateway {
    /// Serves one request to its log line.
    ///
    /// # Errors
    /// When nothing more can be said on its connection.
    pub(crate) async fn handle(&self, session: &mut Session) -> pingora::Result<()> {
        let mut ctx = Ctx::new(self.clock.now(), self.drain.enter());
        session.set_write_timeout(Some(config::CLIENT_WRITE_DEADLINE));
        if session.get_keepalive().is_some() {
            let idle = (!self.drain.has_begun()).then_some(config::CLIENT_IDLE_SECONDS);
            session.set_keepalive(idle);
        }
        let outcome = match self.serve(session, &mut ctx).await {
            Err(Stop::Problem(problem)) => self.refuse(session, &mut ctx, problem).await,
            Err(Stop::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        if let Err(error) = &outcome {
            self.fail(session, &mut ctx, error).await;
        }
        ctx.response_bytes = ctx.response_bytes.max(session.body_bytes_sent() as u64);
        let request = session.req_header();
        self.sight
            .note(&mut ctx, request.method.as_str(), request.uri.path());
        self.abuse.note(&ctx, &request.headers);
        outcome
    }

    /// Says what went wrong, where somebody is there to hear it and nothing was said yet.
    async fn fail(&self, session: &mut Session, ctx: &mut Ctx, error: &Error) {
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
    }

    /// Everything that is decided before a request goes anywhere, and where it then goes.
    async fn serve(&self, session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
        let request = session.req_header();
        ctx.meet(
            session
                .client_addr()
                .and_then(|a| a.as_inet())
                .map(SocketAddr::ip),
            request,
            &self.trusted_proxies,
        );
        if let Some(spans) = &self.spans {
            ctx.begin_span(spans);
        }
        if request.version == Version::HTTP_2 {
            let (source, bytes) = (self.abuse.source(ctx.address), headers::held_bytes(request));
            let room = self.budget.add_wire(&mut ctx.hold, source, bytes);
            room.map_err(Lack::problem)?;
        }
        if let Err(problem) = headers::check_form(request) {
            session.set_keepalive(None);
            return Err(problem.into());
        }
        if let Err(problem) = self.abuse.admit(ctx, &request.headers) {
            session.set_keepalive(None);
            return Err(problem.into());
        }
        let index = self.routes.find(&request.method, request.uri.path())?;
        ctx.route = Some(index);
        if session.is_upgrade_req() && !ROUTES[index].may_upgrade() {
            session.set_keepalive(None);
            let detail = "There is nothing to upgrade to here.";
            return Err(Problem::new(Code::InvalidRequest, detail).into());
        }
        let forward = match &ROUTES[index].action {
            Action::Own(page) => {
                return Ok(self.show(session, ctx, *page).await?);
            }
            Action::Keys(call, transaction) => {
                self.identify(session, ctx, KEYS).await?;
                return keys::serve::serve(self, session, ctx, *call, *transaction).await;
            }
            Action::Forward(forward) => forward,
        };
        ctx.rule = self.snapshots.load().rules.get(index).cloned().flatten();
        if let Some(rule) = &ctx.rule {
            rule.check(ctx.arrived_at)?;
        }
        self.identify(session, ctx, forward.scopes).await?;
        if let Passage::Transaction(transaction) = forward.passage {
            return submit::serve(self, session, ctx, To::Upstream(forward), transaction).await;
        }
        require_no_body(session)?;
        require_digest(ctx.signed.as_ref(), b"")?;
        if forward.passage == Passage::Events {
            return streams::serve(self, session, ctx, forward).await;
        }
        pass::serve(self, session, ctx, forward).await
    }

    /// Who asks, whether they may, and whether not too often. After this a request is admitted.
    async fn identify(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        scopes: &[Scope],
    ) -> Result<(), Problem> {
        let snapshot = self.snapshots.load();
        self.require_fresh(ctx.started)?;
        let headers = &session.req_header().headers;
        let principal = self
            .authenticator
            .authenticate(headers, &snapshot, ctx.arrived_at)
            .await
            .map_err(|refusal| refusal.problem())?;
        drop(snapshot);
        let principal = ctx.principal.insert(principal);
        principal.require_any(scopes)?;
        principal.tenant.require_address(ctx.address)?;
        if let Some(signing) = &principal.tenant.signing {
            let window = self.signature_window;
            let signed = signing.verify(session.req_header(), ctx.arrived_at, window)?;
            ctx.signed = Some(signed);
        }
        self.require_room(ctx.route)?;
        let verdict = ctx
            .verdict
            .insert(self.limiter.decide(&principal.tenant).await);
        if let Some(refusal) = verdict.refusal() {
            return Err(refusal);
        }
        if let Some(signed) = &ctx.signed {
            let (replays, tenant) = (&self.replays, principal.tenant.id);
            replays
                .require_first(tenant, signed, ctx.arrived_at)
                .await?;
        }
        ctx.usage = Usage::Due;
        Ok(())
    }

    /// Whether whoever sent this request would still be admitted, as who they are now; a refusal is
    /// not charged.
    pub(crate) fn renew_here(&self, ctx: &mut Ctx, scopes: &[Scope]) -> Result<(), Problem> {
        let principal = ctx.principal.as_ref();
        let principal = principal.expect("only admitted requests go on");
        let signed = ctx.signed.is_some();
        let renewed = self.renew(principal, scopes, ctx.address, signed);
        let renewed = renewed.and_then(|now| self.require_room(ctx.route).map(|()| now));
        ctx.principal = Some(renewed.inspect_err(|_| ctx.usage = Usage::None)?);
        Ok(())
    }

    /// What cannot be recorded must not be asked of anybody, if it is billed.
    fn require_room(&self, route: Option<usize>) -> Result<(), Problem> {
        let billable = route.is_some_and(|index| ROUTES[index].billable());
        if !billable || self.spool.has_room() {
            return Ok(());
        }
        metrics::counter!("gateway_spool_refused_total").increment(1);
        Err(unavailable("Usage cannot be recorded at the moment."))
    }

    /// Whoever was admitted a while ago, if they still would be, as who they are now.
    pub(crate) fn renew(
        &self,
        principal: &Principal,
        scopes: &[Scope],
        address: IpAddr,
        signed: bool,
    ) -> Result<Principal, Problem> {
        self.require_fresh(Instant::now())?;
        let snapshot = self.snapshots.load();
        let now = self.clock.now();
        let renewed = self.authenticator.renew(principal, &snapshot, now);
        let principal = renewed.map_err(|refusal| refusal.problem())?;
        principal.require_any(scopes)?;
        principal.tenant.require_address(address)?;
        if principal.tenant.signing.is_some() && !signed {
            let detail = "This tenant's requests must be signed.";
            return Err(Problem::new(Code::InvalidToken, detail));
        }
        Ok(principal)
    }

    fn require_fresh(&self, now: Instant) -> Result<(), Problem> {
        if self.snapshots.fresh_within(self.snapshot_max_age, now) {
            return Ok(());
        }
        Err(unavailable("Credentials cannot be checked at the moment."))
    }

    /// Where an admitted request's bytes are counted.
    pub(crate) fn account<'a>(&'a self, ctx: &'a mut Ctx) -> Account<'a> {
        Account {
            budget: &self.budget,
            tenant: ctx.tenant(),
            hold: &mut ctx.hold,
        }
    }

    /// The statement to an upstream about who asks.
    pub(crate) fn assertion(
        &self,
        session: &Session,
        ctx: &Ctx,
        forward: &Forward,
        body_sha256: &str,
    ) -> String {
        let request = session.req_header();
        let facts = Facts {
            method: request.method.as_str(),
            target: headers::target(request),
            body_sha256,
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

/// Refuses a body where there is nothing to be done with one.
pub(crate) fn require_no_body(session: &mut Session) -> Result<(), Problem> {
    if session.is_body_empty() {
        return Ok(());
    }
    session.set_keepalive(None);
    let detail = "This route takes no body.";
    Err(Problem::new(Code::InvalidRequest, detail))
}
