//! What operators see of requests: one line each, and rate, errors and duration by route.

use std::time::Duration;

use contracts::problem::Code;
use metrics::{Counter, Histogram, counter, histogram};
use tracing::{field::display, info};

use crate::{auth::Principal, ctx::Ctx, route::ROUTES};

/// Status classes, which are the label's values.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// The label of requests that no route has.
const NO_ROUTE: &str = "none";
/// What is logged as the status when the client left before an answer.
const CLIENT_GONE: u16 = 499;

/// Handles of the metrics, one set a route and one for requests without.
pub struct Sight {
    routes: Vec<RouteMetrics>,
}

struct RouteMetrics {
    requests: [Counter; CLASSES.len()],
    seconds: Histogram,
}

impl Sight {
    /// Registers the metrics of every route.
    #[must_use]
    pub fn new() -> Self {
        let routes = ROUTES
            .iter()
            .map(|route| (route.template, route.method.to_string()));
        let routes = routes.chain([(NO_ROUTE, NO_ROUTE.to_owned())]);
        Self {
            routes: routes
                .map(|(template, method)| RouteMetrics::new(template, method))
                .collect(),
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
        let principal = ctx.principal.as_ref();
        let tenant = principal.map(|principal| display(principal.identity().tenant));
        let key = principal.and_then(Principal::key_id).map(display);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        info!(
            target: "gateway::access",
            {
                http.method = method,
                http.path = path,
                http.route = ctx.route.map_or(NO_ROUTE, |index| ROUTES[index].template),
                http.status_code = status,
                problem.code = ctx.code.map(Code::as_str),
                request.id = %ctx.request_id,
                request.bytes = ctx.request_bytes,
                response.bytes = ctx.response_bytes,
                duration_us = took_us,
                client.address = %ctx.address,
                tenant.id = tenant,
                key.id = key,
                replayed = ctx.replayed,
            },
            "request"
        );
    }
}

impl Default for Sight {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Sight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sight")
            .field("routes", &self.routes.len())
            .finish()
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
