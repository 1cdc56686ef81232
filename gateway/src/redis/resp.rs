//! The language of Redis (RESP 2), as far as it is spoken here.

use std::io;

use bytes::Bytes;
use fred::types::Value;
use memchr::memchr;

/// What Redis said, or what it complained of.
pub(super) type Reply = Result<Value, String>;

/// How deep answers may be nested.
const DEPTH_MAX: usize = 4;
/// Largest answer, or number of answers in one.
const LENGTH_MAX: i64 = 64 * 1_024 * 1_024;

/// Appends a command.
pub(super) fn write(out: &mut Vec<u8>, command: &[Value]) {
    let mut digits = itoa::Buffer::new();
    let mut head = |out: &mut Vec<u8>, kind: u8, length: usize| {
        out.push(kind);
        out.extend_from_slice(digits.format(length).as_bytes());
        out.extend_from_slice(b"\r\n");
    };
    head(out, b'*', command.len());
    for value in command {
        let mut digits = itoa::Buffer::new();
        let text = match value {
            Value::Integer(number) => digits.format(*number).as_bytes(),
            other => other.as_bytes().unwrap_or_default(),
        };
        head(out, b'$', text.len());
        out.extend_from_slice(text);
        out.extend_from_slice(b"\r\n");
    }
}

/// The first reply of some bytes, and how many it takes; `None` while it is not whole.
///
/// # Errors
/// When no more bytes can make a reply of them.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<(Reply, usize)>> {
    let mut rest = bytes;
    let reply = read(&mut rest, DEPTH_MAX)?;
    Ok(reply.map(|reply| (reply, bytes.len() - rest.len())))
}

fn read(rest: &mut &[u8], depth: usize) -> io::Result<Option<Reply>> {
    let Some(end) = memchr(b'\n', rest) else {
        return Ok(None);
    };
    let (line, after) = rest.split_at(end + 1);
    let Some((kind, text)) = line.strip_suffix(b"\r\n").and_then(<[u8]>::split_first) else {
        return Err(malformed());
    };
    *rest = after;
    let length = || {
        number(text)
            .filter(|length| (-1..=LENGTH_MAX).contains(length))
            .ok_or_else(malformed)
    };
    let value = match kind {
        b'+' => Value::Bytes(Bytes::copy_from_slice(text)),
        b'-' => return Ok(Some(Err(String::from_utf8_lossy(text).into_owned()))),
        b':' => Value::Integer(number(text).ok_or_else(malformed)?),
        b'$' => match usize::try_from(length()?) {
            Err(_) => Value::Null,
            Ok(length) => {
                let Some(whole) = rest.get(..length + 2) else {
                    return Ok(None);
                };
                let content = whole.strip_suffix(b"\r\n").ok_or_else(malformed)?;
                *rest = &rest[length + 2..];
                Value::Bytes(Bytes::copy_from_slice(content))
            }
        },
        b'*' if depth > 0 => match usize::try_from(length()?) {
            Err(_) => Value::Null,
            Ok(length) => {
                let mut values = Vec::new();
                for _ in 0..length {
                    match read(rest, depth - 1)? {
                        None => return Ok(None),
                        // No script of ours says that.
                        Some(Err(_)) => return Err(malformed()),
                        Some(Ok(value)) => values.push(value),
                    }
                }
                Value::Array(values)
            }
        },
        _ => return Err(malformed()),
    };
    Ok(Some(Ok(value)))
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not of Redis")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &'static str) -> Value {
        Value::Bytes(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_command_is_written_as_redis_reads_it() {
        let mut out = Vec::new();
        let command = [Value::from_static_str("SET"), text("k"), Value::Integer(-7)];
        write(&mut out, &command);
        let wanted = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n-7\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }

    #[test]
    fn a_reply_is_read_once_it_is_whole_and_never_further() {
        for (bytes, wanted) in [
            ("+OK\r\n", Ok(text("OK"))),
            (":-12\r\n", Ok(Value::Integer(-12))),
            ("$-1\r\n", Ok(Value::Null)),
            ("$4\r\na\r\nb\r\n", Ok(text("a\r\nb"))),
            (
                "*3\r\n$1\r\na\r\n:1\r\n*1\r\n$0\r\n\r\n",
                Ok(Value::Array(vec![
                    text("a"),
                    Value::Integer(1),
                    Value::Array(vec![text("")]),
                ])),
            ),
            ("-NOSCRIPT none\r\n", Err("NOSCRIPT none".to_owned())),
        ] {
            let more = format!("{bytes}+next\r\n");
            for length in 0..bytes.len() {
                assert!(parse(&more.as_bytes()[..length]).unwrap().is_none());
            }
            let (reply, length) = parse(more.as_bytes()).unwrap().unwrap();
            assert_eq!((reply, length), (wanted, bytes.len()));
        }
        for bad in ["OK\r\n", "$x\r\n", "$1\r\nabc", ":\r\n", "\n", "$-2\r\n"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse("*1\r\n".repeat(DEPTH_MAX + 1).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((_, length))) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
