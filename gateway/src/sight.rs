//! What operators see of requests: one line each, and rate, errors and duration by route.

use std::{sync::Arc, time::Duration};

use contracts::problem::Code;
use metrics::{Counter, Histogram, counter, histogram};
use tracing::{Level, enabled};

use crate::{
    auth::Principal,
    ctx::Ctx,
    route::ROUTES,
    sight::access::{AccessLog, Line},
};

pub mod access;

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
    routes: Vec<RouteMetrics>,
    access: Option<Arc<AccessLog>>,
}

struct RouteMetrics {
    requests: [Counter; CLASSES.len()],
    seconds: Histogram,
}

impl Sight {
    /// Registers the metrics of every route. Lines go to `access`, if they are wanted.
    #[must_use]
    pub fn new(access: &Arc<AccessLog>) -> Self {
        let routes = ROUTES
            .iter()
            .map(|route| (route.template, route.method.to_string()));
        let routes = routes.chain([(NO_ROUTE, NO_ROUTE.to_owned())]);
        let wanted = enabled!(target: ACCESS, Level::INFO);
        Self {
            routes: routes
                .map(|(template, method)| RouteMetrics::new(template, method))
                .collect(),
            access: wanted.then(|| Arc::clone(access)),
        }
    }

    /// Notes a request that has ended.
    pub fn note(&self, ctx: &Ctx, method: &str, path: &str) {
        let status = if ctx.status == 0 {
            CLIENT_GONE
        } else {
            ctx.status
        };
        let took = ctx.started.elapsed();
        let of_route = &self.routes[ctx.route.unwrap_or(ROUTES.len())];
        of_route.note(status, took);
        let Some(access) = &self.access else { return };
        let principal = ctx.principal.as_ref();
        access.add(&Line {
            timestamp: ctx.arrived_at,
            level: "INFO",
            message: "request",
            method,
            path,
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

impl RouteMetrics {
    fn new(template: &'static str, method: String) -> Self {
        let requests = CLASSES.map(|class| {
            let method = method.clone();
            counter!(
                "gateway_requests_total",
                "route" => template, "method" => method, "status" => class
            )
        });
        let seconds =
            histogram!("gateway_request_seconds", "route" => template, "method" => method);
        Self { requests, seconds }
    }

    fn note(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        self.requests[class].increment(1);
        self.seconds.record(took.as_secs_f64());
    }
}
