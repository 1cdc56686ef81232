//! Which headers pass, in which direction, and which are always there.
//!
//! Upstreams see only what is on a list: whatever else a client sends, an identity header above
//! all, ends here.

use std::{mem, net::IpAddr};

use contracts::{
    id::RequestId,
    problem::{Code, Problem},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, response};
use ipnet::IpNet;
use memchr::memchr;
use pingora::{
    ErrorType, OrErr as _,
    http::{RequestHeader, ResponseHeader},
};
use uuid::Uuid;

use crate::{
    config,
    door::head::{self, Fault},
};

mod upstream;

pub use upstream::{Upstream, for_upstream, for_websocket, target};

/// Length of a `traceparent`.
const TRACEPARENT_BYTES: usize = 55;
/// Room for what is usual on an answer, ours included.
const ANSWER_HEADERS: usize = 32;

/// What a request of HTTP/2 holds whatever is asked for.
const STREAM_BYTES: usize = 8 * 1_024;

/// Answer headers that must not leave.
static NOT_TO_CLIENT: [HeaderName; 10] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::SERVER,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("x-powered-by"),
];

/// On every answer.
const SECURITY: [(HeaderName, HeaderValue); 4] = [
    (
        header::STRICT_TRANSPORT_SECURITY,
        HeaderValue::from_static("max-age=31536000; includeSubDomains"),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];
/// On every answer that does not say something else.
const UNLESS_SAID: [(HeaderName, HeaderValue); 2] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Beginnings of names that only we may use, towards upstreams.
const OURS: [&str; 3] = ["jobseal-", "x-jobseal-", "x-consumer-"];
const OUR_TENANT: &str = "x-tenant-id";
/// Names that decide where a request ends; what differs by an underscore could be taken for them.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// Refuses what is not plainly a request to us, once `door::head` has seen to its bytes. A refusal
/// closes the connection, since nobody knows where the next request begins.
///
/// # Errors
/// The problem to answer with.
pub fn check_form(request: &RequestHeader) -> Result<(), Problem> {
    let refuse = |detail: &str| Err(Problem::new(Code::InvalidRequest, detail));
    if request.version == Version::HTTP_2 {
        check_http2(request)?;
    }
    if has_dot_segment(request.raw_path()) {
        return refuse("The path has segments that lead elsewhere.");
    }
    let headers = &request.headers;
    let upgrades = headers.contains_key(header::UPGRADE) && !asks_for_websocket(request);
    if upgrades || request.method == Method::CONNECT {
        return refuse("There is nothing to upgrade to here.");
    }
    let expected = headers.get_all(header::EXPECT).iter();
    if { expected }.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return refuse("Nothing but 100-continue can be expected.");
    }
    if headers.keys().any(looks_like_ours) {
        return refuse("A header's name differs from one of ours by an underscore.");
    }
    Ok(())
}

/// What `door::head` sees to in HTTP/1. Framing, pseudo headers and the fields that are not of
/// HTTP/2 are seen to by the `h2` crate.
fn check_http2(request: &RequestHeader) -> Result<(), Problem> {
    let target = request.raw_path();
    if target.len() > config::TARGET_MAX_BYTES {
        return Err(Fault::Target.problem());
    }
    if request.headers.len() > config::HEADERS_MAX {
        return Err(Fault::Fields.problem());
    }
    let mut lengths = request.headers.get_all(header::CONTENT_LENGTH).iter();
    let digits = |value: &HeaderValue| value.as_bytes().iter().all(u8::is_ascii_digit);
    if !lengths.next().is_none_or(digits) || lengths.next().is_some() {
        return Err(Fault::Malformed("Content-Length must be one number.").problem());
    }
    if !head::is_target(target) && request.method != Method::CONNECT {
        return Err(Fault::Malformed("The request target must be a path.").problem());
    }
    Ok(())
}

/// What a request of HTTP/2 is counted for: its fields, as they came and as a map, and its
/// answer's.
#[must_use]
pub fn held_bytes(request: &RequestHeader) -> usize {
    let fields = request.headers.iter();
    let fields: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    STREAM_BYTES + 2 * (request.raw_path().len() + fields)
}

/// Whether a request asks, in good form, for a WebSocket (RFC 6455).
#[must_use]
pub fn asks_for_websocket(request: &RequestHeader) -> bool {
    let headers = &request.headers;
    let only = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        value.to_str().ok()
    };
    let is = |name, wanted: &str| only(name).is_some_and(|v| v.eq_ignore_ascii_case(wanted));
    let nominates = only(&header::CONNECTION).is_some_and(|value| {
        let mut tokens = value.split(',').map(str::trim);
        tokens.any(|token| token.eq_ignore_ascii_case("upgrade"))
    });
    request.version == Version::HTTP_11
        && request.method == Method::GET
        && is(&header::UPGRADE, "websocket")
        && is(&header::SEC_WEBSOCKET_VERSION, "13")
        && nominates
        && only(&header::SEC_WEBSOCKET_KEY).is_some()
        && !headers.contains_key(header::CONTENT_LENGTH)
        && !headers.contains_key(header::TRANSFER_ENCODING)
}

/// Who sent the request: the peer, or whom a trusted peer says, read from the right for as long as
/// the addresses are of trusted proxies.
#[must_use]
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut client = peer;
    let fields: Vec<&HeaderValue> = headers.get_all(FORWARDED_FOR).iter().collect();
    let fields = fields.iter().rev().map(|value| value.as_bytes());
    for element in fields.flat_map(|field| field.rsplit(|byte| *byte == b',')) {
        if !is_trusted(client) {
            break;
        }
        // What cannot be read was written by someone who is not to be believed.
        let text = std::str::from_utf8(element).unwrap_or_default();
        let Ok(address) = text.trim().parse::<IpAddr>() else {
            break;
        };
        client = address.to_canonical();
    }
    client
}

/// The trace that a request belongs to: the client's, or a new one.
#[must_use]
pub fn traceparent(headers: &HeaderMap) -> String {
    let given = headers
        .get(TRACEPARENT)
        .and_then(|value| value.to_str().ok());
    if let Some(text) = given.filter(|text| is_traceparent(text)) {
        return text.to_owned();
    }
    let (trace, span) = (Uuid::new_v4(), Uuid::new_v4());
    let (_, span) = span.as_bytes().split_at(size_of::<u64>());
    let mut made = String::with_capacity(TRACEPARENT_BYTES);
    made.push_str("00-");
    made.push_str(trace.simple().encode_lower(&mut Uuid::encode_buffer()));
    made.push('-');
    let mut digits = [0; 2 * size_of::<u64>()];
    made.push_str(const_hex::encode_to_str(span, &mut digits).expect("there is room"));
    made.push_str("-01");
    made
}

/// An upstream's answer without what it says to us alone.
#[must_use]
pub fn from_upstream(answer: &ResponseHeader) -> ResponseHeader {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = answer.status;
    parts.headers = HeaderMap::with_capacity(ANSWER_HEADERS);
    for (name, value) in &answer.headers {
        if NOT_TO_CLIENT.contains(name) || is_ours(name.as_str()) {
            continue;
        }
        // The length is said once, as a number, and only of a body that there can be.
        if name == header::CONTENT_LENGTH
            && (answer.status == StatusCode::NO_CONTENT
                || !value.as_bytes().iter().all(u8::is_ascii_digit)
                || parts.headers.contains_key(name))
        {
            continue;
        }
        parts.headers.append(name.clone(), value.clone());
    }
    parts.into()
}

/// Adds what is on every answer, unless the answer says otherwise, and what `more` adds.
///
/// # Errors
/// When a value is no header value, which none of ours can be.
pub fn complete(
    answer: &mut ResponseHeader,
    request_id: RequestId,
    more: impl FnOnce(&mut HeaderMap),
) -> pingora::Result<()> {
    let request_id = request_id.with_text(value)?;
    edit(answer, |headers| {
        for (name, value) in SECURITY {
            headers.insert(name, value);
        }
        for (name, value) in UNLESS_SAID {
            headers.entry(name).or_insert(value);
        }
        headers.insert(REQUEST_ID, request_id);
        more(headers);
    });
    Ok(())
}

/// Pingora's own edits look each name up again by its letters, and keep a second map of them.
fn edit(answer: &mut ResponseHeader, work: impl FnOnce(&mut HeaderMap)) {
    let (empty, ()) = http::Response::new(()).into_parts();
    let mut parts = response::Parts::from(mem::replace(answer, empty.into()));
    work(&mut parts.headers);
    *answer = parts.into();
}

fn value(text: &str) -> pingora::Result<HeaderValue> {
    HeaderValue::from_str(text).or_err(ErrorType::InvalidHTTPHeader, "not a header value")
}

fn looks_like_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.contains('_') && {
        let meant = name.replace('_', "-");
        is_ours(&meant) || FRAMING.contains(&meant.as_str())
    }
}

fn is_ours(name: &str) -> bool {
    name == OUR_TENANT || OURS.iter().any(|ours| name.starts_with(ours))
}

/// Whether a segment of the path is `.` or `..`, which some take for a way and some for a name.
fn has_dot_segment(target: &[u8]) -> bool {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or(target);
    memchr(b'.', path).is_some() && { path.split(|byte| *byte == b'/') }
        .any(|part| matches!(part, b"." | b".."))
}

/// Whether the text is of W3C Trace Context's form, version 00, with ids that are not zero.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str| {
        part.bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    match parts[..] {
        ["00", trace, span, flags] => {
            (trace.len(), span.len(), flags.len()) == (32, 16, 2)
                && parts.iter().all(|part| hex(part))
                && !zero(trace)
                && !zero(span)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/v1/jobs", None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn what_is_not_plainly_a_request_to_us_is_refused() {
        assert!(check_form(&request(&[("accept", "*/*"), ("expect", "100-Continue")])).is_ok());
        for bad in [
            request(&[("upgrade", "websocket")]),
            request(&[("expect", "200-ok")]),
            request(&[("jobseal_assertion", "x")]),
            request(&[("x_tenant_id", "x")]),
            request(&[("transfer_encoding", "chunked")]),
        ] {
            assert!(check_form(&bad).is_err(), "{bad:?}");
        }
        let of = |path: &[u8], version| {
            let mut request = RequestHeader::build("GET", path, None).unwrap();
            request.set_version(version);
            check_form(&request)
        };
        assert!(of(b"/v1/jobs/a.b?c=../d", Version::HTTP_11).is_ok());
        for path in [&b"/v1/jobs/.."[..], b"/v1/./jobs", b"/.", b"/../v1/jobs?a"] {
            assert!(of(path, Version::HTTP_11).is_err());
        }
        assert!(of(b"/v1/jobs", Version::HTTP_2).is_ok());
        for path in [&b"http://a/v1/jobs"[..], b"*", b"/a\\b"] {
            assert!(of(path, Version::HTTP_2).is_err());
        }
    }

    #[test]
    fn a_forwarded_address_is_believed_only_as_far_as_trusted_proxies_wrote_it() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let address = |peer: &str, field: &'static str| {
            let request = request(&[("x-forwarded-for", field)]);
            client_address(peer.parse().unwrap(), &request.headers, &trusted).to_string()
        };
        assert_eq!(address("192.0.2.1", "203.0.113.9"), "192.0.2.1");
        assert_eq!(address("10.0.0.1", "203.0.113.9"), "203.0.113.9");
        assert_eq!(
            address("10.0.0.1", "1.1.1.1, 203.0.113.9, 10.0.0.2"),
            "203.0.113.9"
        );
        assert_eq!(address("10.0.0.1", "1.1.1.1, nonsense"), "10.0.0.1");
        // A byte that is no letter ends the walk where it stands, and hides nothing after it.
        let mut forged = RequestHeader::build("GET", b"/", None).unwrap();
        for value in [&b"203.0.113.5"[..], b"\xff, 198.51.100.8"] {
            let value = HeaderValue::from_bytes(value).unwrap();
            forged.append_header("x-forwarded-for", value).unwrap();
        }
        let found = client_address("10.0.0.1".parse().unwrap(), &forged.headers, &trusted);
        assert_eq!(found.to_string(), "198.51.100.8");
        assert_eq!(address("::ffff:10.0.0.1", "2001:db8::1"), "2001:db8::1");
    }

    #[test]
    fn a_good_traceparent_is_kept_and_a_bad_one_replaced() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(
            traceparent(&request(&[("traceparent", good)]).headers),
            good
        );
        for bad in [
            "",
            "00-0-0-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            let request = request(&[("traceparent", bad)]);
            let made = traceparent(&request.headers);
            assert!(made != bad && is_traceparent(&made), "{made}");
        }
    }
}
