//! The head of the request that goes upstream: only listed headers of the client's, then ours.

use contracts::assertion;
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora::{ErrorType, OrErr as _, http::RequestHeader};

use super::TRACEPARENT;
use crate::idempotency;

/// Request headers that go upstream as they came; all others stay here.
static TO_UPSTREAM: [HeaderName; 8] = [
    header::ACCEPT,
    header::ACCEPT_LANGUAGE,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::USER_AGENT,
    HeaderName::from_static("last-event-id"),
    TRACESTATE,
];

/// What the head that goes upstream has room for before it grows.
const UPSTREAM_BYTES: usize = 2 * 1_024;
const ASSERTION: HeaderName = HeaderName::from_static(assertion::HEADER);
const REPLAY_ONLY: HeaderName = HeaderName::from_static(assertion::REPLAY_ONLY);
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(idempotency::HEADER);
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What an upstream is sent in place of a client's headers.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// Who asks, stated by us.
    pub assertion: &'a str,
    /// The trace.
    pub traceparent: &'a str,
    /// The idempotency key, without quotes.
    pub key: Option<&'a idempotency::Key>,
    /// Whether it shall only repeat an answer that it gave before.
    pub replay_only: bool,
    /// The body's length, if it has one.
    pub length: Option<usize>,
    /// The key of the client's handshake, where a WebSocket is asked for.
    pub websocket: Option<&'a HeaderValue>,
}

impl Upstream<'_> {
    /// What goes upstream to `host`: only listed headers of the client's, then ours.
    fn each(&self, request: &RequestHeader, host: &str, mut put: impl FnMut(&HeaderName, &[u8])) {
        put(&header::HOST, host.as_bytes());
        for (name, value) in &request.headers {
            if TO_UPSTREAM.contains(name) {
                put(name, value.as_bytes());
            }
        }
        put(&ASSERTION, self.assertion.as_bytes());
        put(&TRACEPARENT, self.traceparent.as_bytes());
        if let Some(key) = self.key {
            put(&IDEMPOTENCY_KEY, key.as_str().as_bytes());
        }
        if self.replay_only {
            put(&REPLAY_ONLY, b"true");
        }
        if let Some(length) = self.length {
            let mut digits = itoa::Buffer::new();
            put(&header::CONTENT_LENGTH, digits.format(length).as_bytes());
        }
        if let Some(key) = self.websocket {
            put(&header::CONNECTION, b"Upgrade");
            put(&header::UPGRADE, b"websocket");
            put(&header::SEC_WEBSOCKET_VERSION, b"13");
            put(&header::SEC_WEBSOCKET_KEY, key.as_bytes());
        }
    }
}

/// The head of the request that goes upstream to `host` in place of the client's, as bytes.
#[must_use]
pub fn for_upstream(request: &RequestHeader, ours: &Upstream<'_>, host: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(UPSTREAM_BYTES);
    let line = [request.method.as_str(), " ", target(request)];
    for part in line {
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes.extend_from_slice(b" HTTP/1.1\r\n");
    ours.each(request, host, |name, value| {
        for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    });
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// The same as a header.
///
/// # Errors
/// When a value is no header value, which none of ours can be.
pub fn for_websocket(
    request: &RequestHeader,
    ours: &Upstream<'_>,
    host: &str,
) -> pingora::Result<RequestHeader> {
    let mut headers = HeaderMap::new();
    let mut outcome = Ok(());
    ours.each(request, host, |name, value| {
        match HeaderValue::from_bytes(value) {
            Ok(value) => {
                headers.append(name.clone(), value);
            }
            Err(error) => outcome = Err(error),
        }
    });
    outcome.or_err(ErrorType::InvalidHTTPHeader, "not a header value")?;
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = request.method.clone();
    parts.uri = request.uri.clone();
    parts.version = Version::HTTP_11;
    parts.headers = headers;
    Ok(parts.into())
}

/// Path and query as they go upstream.
#[must_use]
pub fn target(request: &RequestHeader) -> &str {
    let target = request.uri.path_and_query();
    target.map_or("/", |target| target.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_headers_go_upstream_and_ours_are_only_ours() {
        let mut request = RequestHeader::build("GET", b"/v1/jobs", None).unwrap();
        for (name, value) in [
            ("accept", "*/*"),
            ("authorization", "Bearer secret"),
            ("x-api-key", "secret"),
            ("jobseal-assertion", "forged"),
            ("jobseal-replay-only", "true"),
            ("x-jobseal-tenant", "forged"),
            ("x-consumer-id", "forged"),
            ("x-forwarded-for", "1.2.3.4"),
            ("cookie", "a=b"),
        ] {
            request.append_header(name, value).unwrap();
        }
        let ours = Upstream {
            assertion: "stated",
            traceparent: "00-x",
            key: None,
            replay_only: false,
            length: Some(2),
            websocket: None,
        };
        let lines = [
            "GET /v1/jobs HTTP/1.1",
            "host: jobs:80",
            "accept: */*",
            "jobseal-assertion: stated",
            "traceparent: 00-x",
            "content-length: 2",
            "\r\n",
        ];
        let sent = for_upstream(&request, &ours, "jobs:80");
        assert_eq!(String::from_utf8(sent).unwrap(), lines.join("\r\n"));
        let key = HeaderValue::from_static("x");
        let ours = Upstream {
            websocket: Some(&key),
            ..ours
        };
        let asked = for_websocket(&request, &ours, "jobs:80").unwrap();
        assert_eq!(asked.headers.len(), 9);
        assert_eq!(asked.headers["jobseal-assertion"], "stated");
        assert_eq!(asked.headers["upgrade"], "websocket");
    }
}
