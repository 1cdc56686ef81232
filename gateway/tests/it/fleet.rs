//! One gateway, or several that share everything but their listener: each request goes to the next.

use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::{Method, RequestBuilder, Response};

use crate::app::{self, App, job};

pub(crate) const GENEROUS: &str = "--per-minute 60000 --burst 5000 --per-hour 1000000";

pub(crate) struct Fleet {
    pub(crate) app: App,
    pub(crate) urls: Vec<String>,
    next: AtomicUsize,
}

impl Fleet {
    pub(crate) async fn start(gateways: usize, changes: &[(&str, &str)]) -> Self {
        Self::start_with_plan(gateways, changes, GENEROUS).await
    }

    pub(crate) async fn start_with_plan(
        gateways: usize,
        changes: &[(&str, &str)],
        plan: &str,
    ) -> Self {
        let mut app = app::start_with_plan(changes, plan).await;
        let mut urls = vec![app.url.clone()];
        for _ in 1..gateways {
            urls.push(app.second().await);
        }
        let next = AtomicUsize::new(0);
        Self { app, urls, next }
    }

    /// A request to the next gateway.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.urls.len();
        let request = self
            .app
            .client
            .request(method, self.urls[next].clone() + path);
        request.bearer_auth(&self.app.key)
    }

    pub(crate) fn post(&self, path: &str, key: &str, body: &str) -> RequestBuilder {
        let request = self
            .request(Method::POST, path)
            .header("idempotency-key", key);
        let request = request.header("content-type", "application/json");
        request.body(body.to_owned())
    }

    pub(crate) async fn submit(&self, key: &str, text: &str) -> Response {
        let job = job(text).to_string();
        self.post("/v1/jobs", key, &job).send().await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// How many requests reached the upstreams.
    pub(crate) fn hits(&self) -> usize {
        self.app.upstreams.seen.count()
    }
}
