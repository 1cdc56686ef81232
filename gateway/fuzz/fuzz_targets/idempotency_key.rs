//! An idempotency key that is read is short and visible, and the same when it is quoted.

#![no_main]

use gateway::idempotency::{HEADER, KEY_MAX_BYTES, Key};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

fn read(bytes: &[u8]) -> Option<Key> {
    let mut headers = HeaderMap::new();
    headers.insert(HEADER, HeaderValue::from_bytes(bytes).ok()?);
    Key::of(&headers).ok()?
}

fuzz_target!(|bytes: &[u8]| {
    let Some(key) = read(bytes) else { return };
    let text = key.as_str();
    assert!((1..=KEY_MAX_BYTES).contains(&text.len()));
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    assert_eq!(read(format!("\"{escaped}\"").as_bytes()), Some(key));
});
