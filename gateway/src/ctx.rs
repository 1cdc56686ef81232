//! One request as the phases pass it on, and what can end it early.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use contracts::{
    id::{RequestId, TenantId},
    problem::{Code, Problem},
};
use ipnet::IpNet;
use jiff::Timestamp;
use ops::telemetry::{OpenSpan, Spans};
use pingora::{Error, ErrorType, http::RequestHeader};

use crate::{
    auth::Principal,
    budget::{Hold, Lack},
    drain::InFlight,
    headers,
    limit::{Verdict, quota::Used},
    reject,
    route::{Forward, ROUTES, Route},
    rule::Rule,
    signature::Signed,
    upstream::Failure,
};

/// One request, as far as it has come.
#[derive(Debug)]
pub struct Ctx {
    /// When it began.
    pub started: Instant,
    /// The same by the wall clock.
    pub arrived_at: Timestamp,
    /// Its name.
    pub request_id: RequestId,
    /// The client's address.
    pub address: IpAddr,
    /// The trace it belongs to.
    pub traceparent: String,
    /// Its route's number in [`ROUTES`].
    pub route: Option<usize>,
    /// Who asks.
    pub principal: Option<Principal>,
    /// How they stand with their limits, once they are counted.
    pub verdict: Option<Verdict>,
    /// How they stand with the month's compute units, once they are charged.
    pub quota: Option<Used>,
    /// The answer's status; zero before there is one.
    pub status: u16,
    /// The answer's problem, if it is one.
    pub code: Option<Code>,
    /// Size of the request's body.
    pub request_bytes: u64,
    /// Size of the answer's body, as far as known.
    pub response_bytes: u64,
    /// Whether the answer was given before.
    pub replayed: bool,
    /// What operators say about its route.
    pub rule: Option<Arc<Rule>>,
    /// What its signature says, where it must have one.
    pub(crate) signed: Option<Signed>,
    pub(crate) usage: Usage,
    /// Whether something is known against the address.
    pub(crate) watched: bool,
    pub(crate) in_flight: Option<InFlight>,
    /// What it holds beyond what every request does.
    pub(crate) hold: Hold,
    /// The request's own span, where somebody collects them.
    pub(crate) span: Option<OpenSpan>,
}

/// How far the usage record of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// The request is not admitted: there will be none.
    None,
    /// It is due before the answer.
    Due,
    /// It is written.
    Recorded,
}

/// What ends a request early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// With this answer.
    Problem(Problem),
    /// Without one: the client is gone, or the failure is Pingora's.
    Error(Box<Error>),
}

impl Ctx {
    pub(crate) fn new(now: Timestamp, in_flight: InFlight) -> Self {
        Self {
            started: Instant::now(),
            arrived_at: now,
            request_id: RequestId::generate(now),
            address: Ipv4Addr::UNSPECIFIED.into(),
            traceparent: String::new(),
            route: None,
            principal: None,
            verdict: None,
            quota: None,
            status: 0,
            code: None,
            request_bytes: 0,
            response_bytes: 0,
            replayed: false,
            rule: None,
            signed: None,
            usage: Usage::None,
            watched: false,
            in_flight: Some(in_flight),
            hold: Hold::default(),
            span: None,
        }
    }

    /// Learns who is there, as far as the connection and its headers tell.
    pub(crate) fn meet(
        &mut self,
        peer: Option<IpAddr>,
        request: &RequestHeader,
        trusted_proxies: &[IpNet],
    ) {
        let peer = peer.unwrap_or(self.address);
        self.address = headers::client_address(peer, &request.headers, trusted_proxies);
        self.traceparent = headers::traceparent(&request.headers);
    }

    /// How long its upstream may take, which is at most `longest`.
    pub(crate) fn deadline(&self, longest: Duration) -> Duration {
        let said = self.rule.as_ref().and_then(|rule| rule.timeout);
        said.map_or(longest, |said| said.min(longest))
    }

    /// Whose request it is, once it is admitted.
    pub(crate) fn tenant(&self) -> TenantId {
        let principal = self.principal.as_ref();
        let principal = principal.expect("only admitted requests are forwarded");
        principal.tenant.id
    }

    /// What the client is told for want of room; it is not charged for.
    pub(crate) fn lacking(&mut self, lack: Lack) -> Problem {
        self.usage = Usage::None;
        lack.problem()
    }

    /// What the client is told of an exchange that failed, which is not charged for where it is we
    /// who had no room for the answer.
    pub(crate) fn failed(&mut self, failure: Failure) -> Problem {
        match failure {
            Failure::NoRoom(lack) => self.lacking(lack),
            failure => reject::failure(failure),
        }
    }

    /// Begins the request's span; upstreams are told of it instead of the client's.
    pub(crate) fn begin_span(&mut self, spans: &Spans) {
        self.span = spans.start("gateway.request.serve", &self.traceparent);
        if let Some(span) = &self.span {
            self.traceparent = span.traceparent();
        }
    }

    pub(crate) fn route(&self) -> Option<&'static Route> {
        self.route.map(|index| &ROUTES[index])
    }

    pub(crate) fn forward(&self) -> pingora::Result<&'static Forward> {
        let forward = self.route().and_then(Route::forward);
        forward.ok_or_else(|| Error::explain(ErrorType::InternalError, "nowhere to forward to"))
    }
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<Box<Error>> for Stop {
    fn from(error: Box<Error>) -> Self {
        Self::Error(error)
    }
}
