//! A head that passes has one reading: another parser finds the same end and the same framing.

#![no_main]

use gateway::door::head::{check, end};
use httparse::{EMPTY_HEADER, Request, Status};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(at)) = end(bytes, 0) else { return };
    let head = &bytes[..at];
    // However the bytes come, the head ends there and not before.
    for seen in [1, at / 2, at - 1] {
        assert_eq!(end(&head[..seen], 0), Ok(None));
        assert_eq!(end(head, seen), Ok(Some(at)));
    }
    if check(head).is_err() {
        return;
    }
    let mut fields = [EMPTY_HEADER; 256];
    let mut request = Request::new(&mut fields);
    let parsed = request.parse(head);
    assert_eq!(parsed, Ok(Status::Complete(at)));
    let count = |name: &str| {
        let named = request.headers.iter();
        named
            .filter(|field| field.name.eq_ignore_ascii_case(name))
            .count()
    };
    let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
    assert!(
        lengths + codings <= 1,
        "two ways to find the end of the body"
    );
    assert!(count("host") <= 1);
    assert!(request.version == Some(1) || codings == 0);
    assert!(
        head.iter()
            .all(|byte| *byte >= b' ' || b"\r\n\t".contains(byte))
    );
});
