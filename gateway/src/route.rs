//! Every route on one page: who may, where to, and how.

use contracts::{
    assertion::{Audience, Scope},
    problem::{Code, Problem},
};
use http::Method;
use matchit::Router;

use crate::keys::serve::Call;

/// One method of one path.
#[derive(Debug)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path's template, which is also its label in metrics and usage records.
    pub template: &'static str,
    /// What happens to a request.
    pub action: Action,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// The gateway answers by itself, to anyone.
    Own(Page),
    /// The gateway answers by itself, to whom may.
    Keys(Call, Option<Transaction>),
    /// An upstream answers, to whom may.
    Forward(Forward),
}

/// What the gateway shows by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/v1/health`
    Health,
    /// `/v1/openapi.json`
    OpenApi,
    /// `/docs`
    Docs,
}

/// How a request reaches an upstream.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// Which one.
    pub upstream: Audience,
    /// Any one of these scopes is enough; the first is named to who has none.
    pub scopes: &'static [Scope],
    /// Whether a request is charged.
    pub billable: bool,
    /// How the request and its answer pass.
    pub passage: Passage,
}

/// How a request and its answer pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// No body; the answer streams.
    Stream,
    /// No body; the answer is a stream of events that may last.
    Events,
    /// The body is read whole and decided upon, then the answer captured.
    Transaction(Transaction),
}

/// What a route with a body wants. Whoever carries it out keeps a record of its idempotency key, in
/// the transaction that acts: so it may be sent again where its outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// What the body must be.
    pub body: Body,
    /// Whether an idempotency key must come with it; one may always.
    pub key_required: bool,
    /// Whether the answer shows a secret, and therefore is never kept.
    pub secret: bool,
}

/// What a body must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// A job, valid for its type.
    Job,
    /// JSON; what it means is the upstream's to say.
    Json,
    /// JSON or nothing.
    OptionalJson,
}

/// The table, compiled for look-up.
#[derive(Debug)]
pub struct Routes {
    paths: Router<Vec<usize>>,
}

const READ_JOBS: &[Scope] = &Scope::READ_JOBS;
const CANCEL_JOBS: &[Scope] = &Scope::CANCEL_JOBS;
const HOOKS_READ: &[Scope] = &[Scope::WebhooksRead];
const HOOKS_WRITE: &[Scope] = &[Scope::WebhooksWrite];
const BILLING: &[Scope] = &[Scope::BillingRead];
/// Who may manage API keys.
pub const KEYS: &[Scope] = &[Scope::KeysAdmin];

const JOB: &str = "/v1/jobs/{job_id}";
const ENDPOINTS: &str = "/v1/webhooks/endpoints";
const ENDPOINT: &str = "/v1/webhooks/endpoints/{endpoint_id}";
const ROTATE: &str = "/v1/webhooks/endpoints/{endpoint_id}/rotate-secret";
const TEST: &str = "/v1/webhooks/endpoints/{endpoint_id}/test";
const DELIVERIES: &str = "/v1/webhooks/deliveries";
const DELIVERY: &str = "/v1/webhooks/deliveries/{message_id}";
const ATTEMPTS: &str = "/v1/webhooks/deliveries/{message_id}/attempts";
const API_KEYS: &str = "/v1/api-keys";
const API_KEY: &str = "/v1/api-keys/{key_id}";
const REPLAY: &str = "/v1/webhooks/deliveries/{message_id}/replay";

const SUBMIT: Transaction = Transaction {
    body: Body::Job,
    key_required: true,
    secret: false,
};
const CREATION: Transaction = Transaction {
    body: Body::Json,
    key_required: false,
    secret: true,
};
const ROTATION: Transaction = Transaction {
    body: Body::OptionalJson,
    ..CREATION
};
const CHANGE: Transaction = Transaction {
    secret: false,
    ..CREATION
};
const ACT: Transaction = Transaction {
    secret: false,
    ..ROTATION
};

/// Every route.
pub static ROUTES: [Route; 29] = [
    own("/v1/health", Page::Health),
    own("/v1/openapi.json", Page::OpenApi),
    own("/docs", Page::Docs),
    transaction(
        Method::POST,
        "/v1/jobs",
        Audience::Jobs,
        &[Scope::JobsSubmit],
        SUBMIT,
    ),
    stream(Method::GET, "/v1/jobs", Audience::Jobs, READ_JOBS),
    stream(Method::GET, JOB, Audience::Jobs, READ_JOBS),
    stream(Method::DELETE, JOB, Audience::Jobs, CANCEL_JOBS),
    events("/v1/jobs/{job_id}/events", Audience::Jobs, READ_JOBS),
    stream(
        Method::GET,
        "/v1/jobs/{job_id}/proof",
        Audience::Relayer,
        READ_JOBS,
    ),
    stream(Method::GET, ENDPOINTS, Audience::Webhooks, HOOKS_READ),
    transaction(
        Method::POST,
        ENDPOINTS,
        Audience::Webhooks,
        HOOKS_WRITE,
        CREATION,
    ),
    stream(Method::GET, ENDPOINT, Audience::Webhooks, HOOKS_READ),
    transaction(
        Method::PATCH,
        ENDPOINT,
        Audience::Webhooks,
        HOOKS_WRITE,
        CHANGE,
    ),
    stream(Method::DELETE, ENDPOINT, Audience::Webhooks, HOOKS_WRITE),
    transaction(
        Method::POST,
        ROTATE,
        Audience::Webhooks,
        HOOKS_WRITE,
        ROTATION,
    ),
    transaction(Method::POST, TEST, Audience::Webhooks, HOOKS_WRITE, ACT),
    stream(Method::GET, DELIVERIES, Audience::Webhooks, HOOKS_READ),
    stream(Method::GET, DELIVERY, Audience::Webhooks, HOOKS_READ),
    stream(Method::GET, ATTEMPTS, Audience::Webhooks, HOOKS_READ),
    transaction(Method::POST, REPLAY, Audience::Webhooks, HOOKS_WRITE, ACT),
    bill("/v1/usage"),
    bill("/v1/usage/events"),
    bill("/v1/invoices/preview"),
    bill("/v1/prices"),
    keys(Method::POST, API_KEYS, Call::Create, Some(CREATION)),
    keys(Method::GET, API_KEYS, Call::List, None),
    keys(Method::GET, API_KEY, Call::Show, None),
    keys(Method::DELETE, API_KEY, Call::Revoke, None),
    keys(
        Method::POST,
        "/v1/api-keys/{key_id}/rotate",
        Call::Rotate,
        Some(ROTATION),
    ),
];

impl Route {
    /// How the request reaches an upstream, if it does.
    #[must_use]
    pub fn forward(&self) -> Option<&Forward> {
        match &self.action {
            Action::Forward(forward) => Some(forward),
            Action::Own(_) | Action::Keys(..) => None,
        }
    }

    /// Whether a WebSocket may be asked for.
    #[must_use]
    pub fn may_upgrade(&self) -> bool {
        let forward = self.forward();
        forward.is_some_and(|forward| forward.passage == Passage::Events)
    }

    /// Whether a request is charged.
    #[must_use]
    pub fn billable(&self) -> bool {
        match &self.action {
            Action::Own(_) => false,
            Action::Keys(..) => true,
            Action::Forward(forward) => forward.billable,
        }
    }
}

impl Routes {
    /// Compiles [`ROUTES`].
    #[must_use]
    pub fn new() -> Self {
        let mut paths: Router<Vec<usize>> = Router::new();
        for (index, route) in ROUTES.iter().enumerate() {
            match paths.at_mut(route.template) {
                Ok(found) => found.value.push(index),
                Err(_) => paths
                    .insert(route.template, vec![index])
                    .expect("a test compiles the table"),
            }
        }
        Self { paths }
    }

    /// The number of the route of `path` (without query) with `method`.
    ///
    /// # Errors
    /// 404 where no route has the path, 405 where none has the method.
    pub fn find(&self, method: &Method, path: &str) -> Result<usize, Problem> {
        // No template needs another byte, and no upstream shall be asked to interpret one.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/_-.".contains(&b);
        let found = path
            .bytes()
            .all(plain)
            .then(|| self.paths.at(path).ok())
            .flatten();
        let Some(found) = found else {
            return Err(Problem::new(Code::NotFound, "There is no such route."));
        };
        let of_path = || found.value.iter().copied();
        of_path()
            .find(|index| ROUTES[*index].method == *method)
            .ok_or_else(|| {
                let allow: Vec<&str> = of_path()
                    .map(|index| ROUTES[index].method.as_str())
                    .collect();
                let detail = format!("{method} is not allowed here.");
                Problem::new(Code::MethodNotAllowed, detail).with_allow(allow.join(", "))
            })
    }
}

impl Default for Routes {
    fn default() -> Self {
        Self::new()
    }
}

const fn own(template: &'static str, page: Page) -> Route {
    Route {
        method: Method::GET,
        template,
        action: Action::Own(page),
    }
}

const fn stream(
    method: Method,
    template: &'static str,
    upstream: Audience,
    scopes: &'static [Scope],
) -> Route {
    forward(method, template, upstream, scopes, Passage::Stream)
}

const fn events(template: &'static str, upstream: Audience, scopes: &'static [Scope]) -> Route {
    forward(Method::GET, template, upstream, scopes, Passage::Events)
}

const fn transaction(
    method: Method,
    template: &'static str,
    upstream: Audience,
    scopes: &'static [Scope],
    what: Transaction,
) -> Route {
    forward(
        method,
        template,
        upstream,
        scopes,
        Passage::Transaction(what),
    )
}

const fn forward(
    method: Method,
    template: &'static str,
    upstream: Audience,
    scopes: &'static [Scope],
    passage: Passage,
) -> Route {
    let action = Action::Forward(Forward {
        upstream,
        scopes,
        billable: true,
        passage,
    });
    Route {
        method,
        template,
        action,
    }
}

const fn keys(
    method: Method,
    template: &'static str,
    call: Call,
    transaction: Option<Transaction>,
) -> Route {
    let action = Action::Keys(call, transaction);
    Route {
        method,
        template,
        action,
    }
}

/// Looking at the bill is free.
const fn bill(template: &'static str) -> Route {
    let (upstream, scopes, passage) = (Audience::Metering, BILLING, Passage::Stream);
    let action = Action::Forward(Forward {
        upstream,
        scopes,
        billable: false,
        passage,
    });
    Route {
        method: Method::GET,
        template,
        action,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(method: &Method, path: &str) -> Result<&'static str, (u16, Option<String>)> {
        match Routes::new().find(method, path) {
            Ok(index) => Ok(ROUTES[index].template),
            Err(problem) => Err((problem.status().as_u16(), problem.details().allow.clone())),
        }
    }

    #[test]
    fn each_route_is_found_by_its_own_template() {
        let routes = Routes::new();
        for (index, route) in ROUTES.iter().enumerate() {
            let path = route.template.replace(['{', '}'], "");
            assert_eq!(
                routes.find(&route.method, &path).ok(),
                Some(index),
                "{path}"
            );
        }
    }

    #[test]
    fn what_routes_accept_stands_in_the_document() {
        let document: serde_json::Value = serde_json::from_str(contracts::OPENAPI_JSON).unwrap();
        let ours = |route: &&Route| !matches!(route.action, Action::Own(_));
        for route in ROUTES.iter().filter(ours) {
            let method = route.method.as_str().to_lowercase();
            let operation = &document["paths"][route.template][&method];
            let parameter = |name: &str| {
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let mut parameters = parameters.filter(|parameter| parameter["name"] == name);
                parameters
                    .next()
                    .map(|parameter| parameter["required"] == true)
            };
            let transaction = match &route.action {
                Action::Keys(_, transaction) => *transaction,
                Action::Forward(forward) => match forward.passage {
                    Passage::Transaction(transaction) => Some(transaction),
                    Passage::Stream | Passage::Events => None,
                },
                Action::Own(_) => None,
            };
            let what = format!("{method} {}", route.template);
            let required = transaction.map(|transaction| transaction.key_required);
            assert_eq!(parameter("Idempotency-Key"), required, "{what}");
            for name in ["after", "Upgrade", "Last-Event-ID"] {
                assert_eq!(
                    parameter(name).is_some(),
                    route.may_upgrade(),
                    "{what} {name}"
                );
            }
        }
    }

    #[test]
    fn a_path_without_a_route_is_404_and_a_method_without_one_405() {
        assert_eq!(
            find(&Method::GET, "/v1/jobs/job_1/proof"),
            Ok("/v1/jobs/{job_id}/proof")
        );
        for path in [
            "/",
            "/v1",
            "/v1/jobs/",
            "/v1/jobs/a/b",
            "/v1/jobs/a%2Fproof",
            "/v2/jobs",
        ] {
            assert_eq!(find(&Method::GET, path), Err((404, None)), "{path}");
        }
        let allow = Some("POST, GET".to_owned());
        assert_eq!(find(&Method::PUT, "/v1/jobs"), Err((405, allow)));
    }
}
