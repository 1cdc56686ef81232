//! Signature fields of any form are refused, since nobody who makes them up has the key.

#![no_main]

use std::collections::HashMap;

use gateway::signature::{Signing, SigningKey};
use http::HeaderValue;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use pingora::http::RequestHeader;
use ring::hmac;

const WINDOW: i64 = 300;
const KEY: &str = "sig_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a";

fuzz_target!(|fields: (&[u8], &[u8], &[u8])| {
    let mut request =
        RequestHeader::build("POST", b"/v1/jobs?a=b", None).expect("a request of our own");
    let names = ["signature-input", "signature", "content-digest"];
    for (name, bytes) in names.into_iter().zip([fields.0, fields.1, fields.2]) {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            request.append_header(name, value).ok();
        }
    }
    let key = SigningKey {
        key: hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]),
        expires_at: None,
    };
    let id = KEY.parse().expect("an id of our own");
    let signing = Signing {
        keys: HashMap::from([(id, key)]),
    };
    let outcome = signing.verify(&request, Timestamp::UNIX_EPOCH, WINDOW);
    assert!(outcome.is_err(), "nobody signed it");
});
