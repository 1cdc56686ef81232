//! What operators see of requests: one line each; rate, errors and duration by route and plan; and
//! a span, where somebody collects them.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use contracts::problem::Code;
use metrics::{Counter, Histogram, counter, histogram};
use tracing::{Level, enabled};

use crate::{
    auth::Principal,
    ctx::Ctx,
    route::ROUTES,
    sight::{
        access::{AccessLog, Line},
        path::shown,
    },
};

pub mod access;
pub mod path;

/// Most plans that are labels of their own; the requests of all others are counted together.
const PLANS_MAX: usize = 16;
/// The label of requests that nobody is known to have sent, and of those of plans beyond the most.
const NO_PLAN: &str = "none";
const OTHER_PLANS: &str = "other";
/// Status classes, which are the label's values.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// The label of requests that no route has.
const NO_ROUTE: &str = "none";
/// What is logged as the status when the client left before an answer.
const CLIENT_GONE: u16 = 499;
/// By this name `RUST_LOG` turns the access log off.
const ACCESS: &str = "gateway::access";

/// Handles of the metrics, one set a route and one for requests without, and the access log.
pub struct Sight {
    routes: Vec<[OnceLock<RouteMetrics>; PLANS_MAX + 2]>,
    access: Option<Arc<AccessLog>>,
}

/// Plans that are labels, in the order in which they were first heard of.
static KNOWN_PLANS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A plan's place among the labels, for as long as the process lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanLabel(usize);

struct RouteMetrics {
    requests: [Counter; CLASSES.len()],
    seconds: Histogram,
}

impl Sight {
    /// Nothing is counted yet. Lines go to `access`, if they are wanted.
    #[must_use]
    pub fn new(access: &Arc<AccessLog>) -> Self {
        let wanted = enabled!(target: ACCESS, Level::INFO);
        let each = || std::array::from_fn(|_| OnceLock::new());
        Self {
            routes: (0..=ROUTES.len()).map(|_| each()).collect(),
            access: wanted.then(|| Arc::clone(access)),
        }
    }

    /// Notes a request that has ended.
    pub fn note(&self, ctx: &mut Ctx, method: &str, path: &str) {
        let status = if ctx.status == 0 {
            CLIENT_GONE
        } else {
            ctx.status
        };
        let took = ctx.started.elapsed();
        let label = ctx.principal.as_ref();
        let label = label.map_or(PlanLabel::default(), |principal| {
            principal.tenant.plan.label
        });
        let route = ctx.route.unwrap_or(ROUTES.len());
        self.routes[route][label.0]
            .get_or_init(|| RouteMetrics::new(route, label))
            .note(status, took);
        if let Some(span) = ctx.span.take() {
            span.end(attributes(ctx, method, status));
        }
        let Some(access) = &self.access else { return };
        let principal = ctx.principal.as_ref();
        access.add(&Line {
            timestamp: ctx.arrived_at,
            level: "INFO",
            message: "request",
            method,
            path: shown(ctx.route, path),
            route: ctx.route.map_or(NO_ROUTE, |index| ROUTES[index].template),
            status,
            problem: ctx.code.map(Code::as_str),
            request_id: ctx.request_id,
            request_bytes: ctx.request_bytes,
            response_bytes: ctx.response_bytes,
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            address: ctx.address,
            tenant: principal.map(|principal| principal.identity().tenant),
            key: principal.and_then(Principal::key_id),
            replayed: ctx.replayed,
            target: ACCESS,
        });
    }
}

impl std::fmt::Debug for Sight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sight")
            .field("routes", &self.routes.len())
            .finish_non_exhaustive()
    }
}

impl PlanLabel {
    /// The label of the plan of this name: always the same, one of a bounded number.
    #[must_use]
    pub fn of(plan: &str) -> Self {
        let mut known = KNOWN_PLANS.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.iter().position(|known| known == plan);
        let place = place.unwrap_or_else(|| {
            if known.len() < PLANS_MAX {
                known.push(plan.to_owned());
                known.len() - 1
            } else {
                PLANS_MAX
            }
        });
        Self(place + 1)
    }

    fn text(self) -> String {
        let known = KNOWN_PLANS.lock().unwrap_or_else(PoisonError::into_inner);
        match self.0.checked_sub(1) {
            None => NO_PLAN.to_owned(),
            Some(place) => known
                .get(place)
                .map_or(OTHER_PLANS, String::as_str)
                .to_owned(),
        }
    }
}

/// What a span says: neither paths nor queries, which hold what is the tenant's.
fn attributes(ctx: &Ctx, method: &str, status: u16) -> Vec<(&'static str, String)> {
    let route = ctx.route.map_or(NO_ROUTE, |index| ROUTES[index].template);
    let mut all = vec![
        ("http.request.method", method.to_owned()),
        ("http.route", route.to_owned()),
        ("http.response.status_code", status.to_string()),
        ("request.id", ctx.request_id.to_string()),
    ];
    if let Some(principal) = &ctx.principal {
        all.push(("tenant.id", principal.identity().tenant.to_string()));
    }
    if let Some(code) = ctx.code {
        all.push(("error.type", code.as_str().to_owned()));
    }
    all
}

impl RouteMetrics {
    fn new(route: usize, plan: PlanLabel) -> Self {
        let (template, method) = ROUTES.get(route).map_or_else(
            || (NO_ROUTE, NO_ROUTE.to_owned()),
            |route| (route.template, route.method.to_string()),
        );
        let plan = plan.text();
        let requests = CLASSES.map(|class| {
            counter!(
                "gateway_requests_total", "route" => template, "method" => method.clone(),
                "plan" => plan.clone(), "status" => class
            )
        });
        let seconds = histogram!(
            "gateway_request_seconds", "route" => template, "method" => method, "plan" => plan
        );
        Self { requests, seconds }
    }

    fn note(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        self.requests[class].increment(1);
        self.seconds.record(took.as_secs_f64());
    }
}
