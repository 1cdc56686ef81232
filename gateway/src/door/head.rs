//! The head of an HTTP/1 request as bytes, before any parser: it has one reading, or is refused.
//!
//! Pingora's parser is lenient where two parsers differ: it takes a bare LF for a line's end,
//! skips empty lines before a request, escapes a target that is none, drops Content-Length beside
//! Transfer-Encoding and folds equal lengths into one. What passes here it leaves as it is.

use memchr::memchr;

use crate::{
    budget::Lack,
    config::{HEADERS_MAX, HEADERS_MAX_BYTES, TARGET_MAX_BYTES},
};

/// Longest method; those that exist have at most 7 letters.
const METHOD_MAX_BYTES: usize = 16;
/// A first line longer than this has a target that is too long, wherever it ends.
const LINE_MAX_BYTES: usize = TARGET_MAX_BYTES + METHOD_MAX_BYTES + 16;
/// Most digits of a length, so that it fits any integer.
const LENGTH_MAX_DIGITS: usize = 18;
/// What a client may say about its connection; to name another field would have it removed.
const OF_CONNECTION: [&[u8]; 4] = [b"close", b"keep-alive", b"te", b"upgrade"];

/// What may stand in a target: visible ASCII without delimiters (RFC 3986).
static OF_TARGET: Bytes = Bytes::new(b"!$%&'()*+,-./:;=?@[]_~");
/// In a name (RFC 9110).
static OF_TOKEN: Bytes = Bytes::new(b"-_.!#$%&'*+^`|~");
/// In a host with or without a port.
static OF_HOST: Bytes = Bytes::new(b".-_~:[]");

/// Letters, digits and some others, by look-up: each byte of a head is asked for.
struct Bytes([bool; 256]);

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has no or several readings.
    Malformed(&'static str),
    /// Its target is too long.
    Target,
    /// Its fields are too many or too large.
    Fields,
    /// It did not come in time.
    Late,
    /// There are as many connections as may be.
    Crowded,
    /// There are as many connections of its address as may be.
    Share,
    /// There is no room for it among what is held.
    Full(Lack),
}

/// What has been seen of the fields that say where a request ends and whom it is for.
#[derive(Default)]
struct Framing {
    hosts: u8,
    lengths: u8,
    codings: u8,
}

/// Where a head ends, if it does in `head`; of that, `seen` bytes were looked at before.
///
/// # Errors
/// When no more bytes can make a good head of it.
pub fn end(head: &[u8], seen: usize) -> Result<Option<usize>, Fault> {
    if head.first().is_some_and(|byte| !byte.is_ascii_uppercase()) {
        return Err(Fault::Malformed("A request begins with a method."));
    }
    let mut from = seen.saturating_sub(3);
    while let Some(at) = memchr(b'\n', &head[from..]).map(|at| from + at) {
        match head[at + 1..] {
            [b'\n', ..] => return within(at + 2).map(Some),
            [b'\r', b'\n', ..] => return within(at + 3).map(Some),
            _ => from = at + 1,
        }
    }
    if head.len() > LINE_MAX_BYTES && memchr(b'\n', &head[..LINE_MAX_BYTES]).is_none() {
        return Err(Fault::Target);
    }
    within(head.len()).map(|_| None)
}

/// Whether a whole head has one reading.
///
/// # Errors
/// Why it is refused.
pub fn check(head: &[u8]) -> Result<(), Fault> {
    let (line, mut rest) = split_line(head)?;
    let modern = check_request_line(line)?;
    let mut framing = Framing::default();
    let mut fields = 0;
    loop {
        let (line, after) = split_line(rest)?;
        if line.is_empty() {
            return framing.check(modern);
        }
        fields += 1;
        if fields > HEADERS_MAX {
            return Err(Fault::Fields);
        }
        let (name, value) = split_field(line)?;
        framing.note(name, value)?;
        rest = after;
    }
}

/// Whether every byte of a target may stand in one: visible ASCII without delimiters (RFC 3986)
/// and without a fragment, which is not for servers.
pub(crate) fn is_target(target: &[u8]) -> bool {
    target.first() == Some(&b'/') && OF_TARGET.hold(target)
}

impl Bytes {
    const fn new(others: &[u8]) -> Self {
        let mut held = [false; 256];
        let mut byte = 0;
        while byte < u8::MAX {
            held[byte as usize] = byte.is_ascii_alphanumeric();
            byte += 1;
        }
        let mut at = 0;
        while at < others.len() {
            held[others[at] as usize] = true;
            at += 1;
        }
        Self(held)
    }

    fn hold(&self, text: &[u8]) -> bool {
        text.iter().all(|byte| self.0[usize::from(*byte)])
    }
}

impl Framing {
    fn note(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            4 if is("host") => {
                self.hosts = self.hosts.saturating_add(1);
                ensure(
                    !value.is_empty() && OF_HOST.hold(value),
                    "The Host is not one name with or without a port.",
                )
            }
            14 if is("content-length") => {
                self.lengths = self.lengths.saturating_add(1);
                let digits = value.iter().all(u8::is_ascii_digit);
                ensure(
                    digits && (1..=LENGTH_MAX_DIGITS).contains(&value.len()),
                    "Content-Length must be one number.",
                )
            }
            17 if is("transfer-encoding") => {
                self.codings = self.codings.saturating_add(1);
                ensure(
                    value.eq_ignore_ascii_case(b"chunked"),
                    "The only Transfer-Encoding is chunked.",
                )
            }
            10 if is("connection") => {
                let known = |option: &[u8]| {
                    let option = option.trim_ascii();
                    OF_CONNECTION.iter().any(|k| option.eq_ignore_ascii_case(k))
                };
                let options = value.split(|byte| *byte == b',');
                let detail = "Connection names what is not of the connection.";
                ensure({ options }.all(known), detail)
            }
            _ => Ok(()),
        }
    }

    /// `modern` is whether the request is of HTTP/1.1.
    fn check(&self, modern: bool) -> Result<(), Fault> {
        let detail = "A request has one Host.";
        ensure(self.hosts == 1 || (self.hosts == 0 && !modern), detail)?;
        ensure(self.lengths <= 1, "Content-Length must be one number.")?;
        ensure(
            self.codings <= 1,
            "The only Transfer-Encoding is chunked, once.",
        )?;
        ensure(
            self.codings == 0 || modern,
            "HTTP/1.0 has no Transfer-Encoding.",
        )?;
        let detail = "Content-Length and Transfer-Encoding exclude each other.";
        ensure(self.codings + self.lengths <= 1, detail)
    }
}

/// Method, target and version with one space between; whether the version is 1.1.
fn check_request_line(line: &[u8]) -> Result<bool, Fault> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Fault::Malformed(
            "A request line is a method, a target and a version.",
        ));
    };
    ensure(
        method.len() <= METHOD_MAX_BYTES && method.iter().all(u8::is_ascii_uppercase),
        "The method is not one.",
    )?;
    if target.len() > TARGET_MAX_BYTES {
        return Err(Fault::Target);
    }
    ensure(is_target(target), "The request target must be a path.")?;
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Fault::Malformed("The version is not spoken here.")),
    }
}

/// The first line, which ends with CR LF and has neither within, and what follows it.
fn split_line(bytes: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let detail = "The headers have malformed line ends.";
    let end = memchr(b'\n', bytes).ok_or(Fault::Malformed(detail))?;
    let line = bytes[..end].strip_suffix(b"\r");
    Ok((line.ok_or(Fault::Malformed(detail))?, &bytes[end + 1..]))
}

/// Name and value; of the space around a value only the customary one before it is taken off.
fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let colon = memchr(b':', line).unwrap_or(0);
    let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or(&[]));
    ensure(
        !name.is_empty() && OF_TOKEN.hold(name),
        "A header's name is not one.",
    )?;
    // Without an early exit, so that it is done by many bytes at once.
    let is_bad = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    let bad = value.iter().fold(false, |bad, byte| bad | is_bad(byte));
    ensure(!bad, "A header's value has control characters.")?;
    Ok((name, value.strip_prefix(b" ").unwrap_or(value)))
}

fn within(length: usize) -> Result<usize, Fault> {
    if length > HEADERS_MAX_BYTES {
        return Err(Fault::Fields);
    }
    Ok(length)
}

fn ensure(holds: bool, otherwise: &'static str) -> Result<(), Fault> {
    if holds {
        Ok(())
    } else {
        Err(Fault::Malformed(otherwise))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*, sample};

    use super::*;

    /// Fields of which some exclude each other.
    const FIELDS: [&str; 8] = [
        "Host: a\r\n",
        "Host: b\r\n",
        "Content-Length: 4\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding: chunked\r\n",
        "Connection: keep-alive\r\n",
        "Accept: */*\r\n",
    ];

    fn fields(lines: &str) -> Result<(), Fault> {
        check(format!("POST /v1/jobs HTTP/1.1\r\n{lines}\r\n").as_bytes())
    }

    #[test]
    fn what_has_one_reading_passes() {
        for good in [
            "Host: a\r\n",
            "Host:a:80\r\ncontent-length: 10\r\nConnection: keep-alive, TE\r\n",
            "host: [::1]:80\r\nTransfer-Encoding: Chunked\r\nA: b\t c\r\nB:\r\n",
        ] {
            assert_eq!(fields(good), Ok(()), "{good}");
        }
        assert_eq!(check(b"GET / HTTP/1.0\r\n\r\n"), Ok(()));
    }

    #[test]
    fn where_a_head_ends_is_found_however_it_comes() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        let whole = head.len() - 4;
        let mut seen = 0;
        for length in 1..=whole {
            let found = end(&head[..length], seen).unwrap();
            assert_eq!(found, (length >= whole).then_some(whole), "{length}");
            seen = length;
        }
        assert_eq!(end(b"GET / HTTP/1.1\nHost: a\n\n", 0), Ok(Some(24)));
        assert!(end(b"\r\nGET", 0).is_err());
        assert!(end(b"\x16\x03\x01", 0).is_err());
        assert_eq!(end(&[b'A'; 9_000], 0), Err(Fault::Target));
        let large = [&b"GET / HTTP/1.1\r\n"[..], &vec![b'A'; 40_000]].concat();
        assert_eq!(end(&large, 0), Err(Fault::Fields));
    }

    proptest! {
        #[test]
        fn whatever_passes_is_read_by_another_parser_as_it_is(
            fields in sample::subsequence(FIELDS.to_vec(), 0..=FIELDS.len()),
            noise in collection::vec((any::<sample::Index>(), any::<u8>()), 0..3),
        ) {
            let lines = fields.concat();
            let mut head = format!("POST /v1/jobs HTTP/1.1\r\n{lines}\r\n").into_bytes();
            for (place, byte) in noise {
                *place.get_mut(&mut head) = byte;
            }
            let Ok(Some(at)) = end(&head, 0) else { return Ok(()) };
            let head = &head[..at];
            // However the bytes come, the head ends there and not before.
            for seen in 1..at {
                prop_assert_eq!(end(&head[..seen], 0), Ok(None));
                prop_assert_eq!(end(head, seen), Ok(Some(at)));
            }
            if check(head).is_err() {
                return Ok(());
            }
            prop_assert!(!head.windows(2).any(|two| two[1] == b'\n' && two[0] != b'\r'));
            prop_assert!(!head.contains(&0));
            let mut parsed = [httparse::EMPTY_HEADER; 16];
            let mut request = httparse::Request::new(&mut parsed);
            prop_assert_eq!(request.parse(head), Ok(httparse::Status::Complete(at)));
            let count = |name: &str| {
                let named = request.headers.iter();
                named.filter(|field| field.name.eq_ignore_ascii_case(name)).count()
            };
            prop_assert!(count("content-length") + count("transfer-encoding") <= 1);
            prop_assert_eq!(count("host"), 1);
        }
    }
}
