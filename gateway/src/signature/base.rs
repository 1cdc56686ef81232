//! The signature base of a request (RFC 9421, section 2.5): the text that is signed.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue, header};
use pingora::http::RequestHeader;
use sfv::{InnerList, ListEntry, SerializeValue as _};

/// The schemes that a request may have been sent by, with their ports.
pub(super) const SCHEMES: [Scheme; 2] = [
    Scheme {
        name: "https",
        port: ":443",
    },
    Scheme {
        name: "http",
        port: ":80",
    },
];

/// One scheme.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scheme {
    name: &'static str,
    /// The port that is left out, as it stands at the end of an authority.
    port: &'static str,
}

/// The base, as if the request had been sent by `scheme`; `None` where a component is not there.
pub(super) fn of(
    request: &RequestHeader,
    names: &[&str],
    covered: &InnerList,
    scheme: &Scheme,
) -> Option<String> {
    let mut base = String::new();
    for name in names {
        let value = component(request, name, scheme)?;
        writeln!(base, "\"{name}\": {value}").ok()?;
    }
    let parameters = vec![ListEntry::InnerList(covered.clone())];
    let parameters = parameters.serialize_value().ok()?;
    write!(base, "\"@signature-params\": {parameters}").ok()?;
    Some(base)
}

fn component(request: &RequestHeader, name: &str, scheme: &Scheme) -> Option<String> {
    let target = request.uri.path_and_query();
    let target = || target.map_or("/", |target| target.as_str());
    Some(match name {
        "@method" => request.method.as_str().to_owned(),
        "@scheme" => scheme.name.to_owned(),
        "@authority" => authority(request, scheme)?,
        "@target-uri" => format!(
            "{}://{}{}",
            scheme.name,
            authority(request, scheme)?,
            target()
        ),
        "@request-target" => target().to_owned(),
        "@path" => request.uri.path().to_owned(),
        "@query" => format!("?{}", request.uri.query().unwrap_or_default()),
        derived if derived.starts_with('@') => return None,
        field => values(&request.headers, field)?,
    })
}

/// Host and port as the client addressed them, in lower case.
fn authority(request: &RequestHeader, scheme: &Scheme) -> Option<String> {
    let authority = match request.uri.authority() {
        Some(authority) => authority.as_str(),
        None => request.headers.get(header::HOST)?.to_str().ok()?,
    };
    let authority = authority.to_ascii_lowercase();
    let bare = authority.strip_suffix(scheme.port).map(str::to_owned);
    Some(bare.unwrap_or(authority))
}

/// All values of a field, in their order. A name in capitals names no field.
fn values(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = headers.get_all(name).iter().map(HeaderValue::to_str);
    let mut joined = values.next()?.ok()?.trim().to_owned();
    for value in values {
        joined.push_str(", ");
        joined.push_str(value.ok()?.trim());
    }
    (!name.bytes().any(|byte| byte.is_ascii_uppercase())).then_some(joined)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use ring::hmac;
    use sfv::Parser;

    use super::*;

    #[test]
    fn the_example_of_the_rfc_has_the_signature_of_the_rfc() {
        // RFC 9421, B.2.5.
        let mut request = RequestHeader::build("POST", b"/foo?param=Value&Pet=dog", None).unwrap();
        request.insert_header("host", "example.com").unwrap();
        let date = "Tue, 20 Apr 2021 02:07:55 GMT";
        request.insert_header("date", date).unwrap();
        let json = "application/json";
        request.insert_header("content-type", json).unwrap();
        let input = "sig-b25=(\"date\" \"@authority\" \"content-type\");created=1618884473\
                     ;keyid=\"test-shared-secret\"";
        let input = Parser::parse_dictionary(input.as_bytes()).unwrap();
        let Some(ListEntry::InnerList(covered)) = input.get("sig-b25") else {
            panic!("it is a list");
        };
        let names = ["date", "@authority", "content-type"];
        let base = of(&request, &names, covered, &SCHEMES[0]).unwrap();
        let secret = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8\
                      jsasjlTMtDQ==";
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(secret).unwrap());
        let signature = STANDARD.encode(hmac::sign(&key, base.as_bytes()));
        assert_eq!(signature, "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=");
    }

    #[test]
    fn components_are_those_of_the_request_as_it_was_sent() {
        let mut request = RequestHeader::build("GET", b"/v1/jobs?a=b", None).unwrap();
        request.insert_header("host", "API.example:443").unwrap();
        request.append_header("x-a", " one ").unwrap();
        request.append_header("x-a", "two").unwrap();
        for (name, value) in [
            ("@method", Some("GET")),
            ("@target-uri", Some("https://api.example/v1/jobs?a=b")),
            ("@authority", Some("api.example")),
            ("@path", Some("/v1/jobs")),
            ("@query", Some("?a=b")),
            ("x-a", Some("one, two")),
            ("X-A", None),
            ("x-b", None),
            ("@status", None),
        ] {
            let found = component(&request, name, &SCHEMES[0]);
            assert_eq!(found.as_deref(), value, "{name}");
        }
        let by_http = component(&request, "@target-uri", &SCHEMES[1]).unwrap();
        assert_eq!(by_http, "http://api.example:443/v1/jobs?a=b");
    }
}
