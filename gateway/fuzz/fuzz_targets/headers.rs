//! The head of a request: what passes the form check can be read in one way only, and addresses and
//! traces are taken from nobody who is not to be believed.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use gateway::headers::{check_form, client_address, traceparent};
use http::header;
use libfuzzer_sys::fuzz_target;
use pingora::http::RequestHeader;

const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

fuzz_target!(|raw: &[u8]| {
    let mut lines = raw.split(|byte| *byte == b'\n');
    let target = lines.next().unwrap_or_default();
    let Ok(mut request) = RequestHeader::build("POST", target, None) else {
        return;
    };
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = String::from_utf8_lossy(&line[..colon]).into_owned();
        request
            .append_header(name, line[colon + 1..].trim_ascii())
            .ok();
    }
    if check_form(&request).is_ok() {
        let count = |name| request.headers.get_all(name).iter().count();
        let (lengths, codings) = (
            count(header::CONTENT_LENGTH),
            count(header::TRANSFER_ENCODING),
        );
        assert!(lengths <= 1 && codings <= 1);
        assert!(request.raw_path().starts_with(b"/"));
    }
    assert_eq!(client_address(STRANGER, &request.headers, &[]), STRANGER);
    let trace = traceparent(&request.headers);
    assert_eq!((trace.len(), &trace[..3]), (55, "00-"));
});
