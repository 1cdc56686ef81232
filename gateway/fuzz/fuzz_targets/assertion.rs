//! Only what was signed under the key is believed, whatever was signed.

#![no_main]

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::assertion::{Audience, Expectation, sign, verify};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use ring::hmac;

const KEY: [u8; 32] = [7; 32];

fuzz_target!(|data: &[u8]| {
    let expected = Expectation {
        now: Timestamp::UNIX_EPOCH,
        audience: Audience::Jobs,
        method: "GET",
        path_and_query: "/v1/jobs",
        body_sha256: "",
    };
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(verify(text, &KEY, &expected).is_err(), "nobody signed it");
    }
    // Signed by us, so that its claims are read.
    let body = URL_SAFE_NO_PAD.encode(data);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &KEY), body.as_bytes());
    let signed = format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag));
    if let Ok(claims) = verify(&signed, &KEY, &expected) {
        let again = verify(&sign(&claims, &KEY), &KEY, &expected);
        assert_eq!(again.as_ref(), Ok(&claims));
    }
});
