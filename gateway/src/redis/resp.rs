//! Commands and answers in the language of Redis (RESP 2).

use std::io;

use bytes::BytesMut;
use fred::types::Value;
use redis_protocol::resp2::{
    decode::decode_bytes_mut,
    encode::extend_encode_borrowed,
    types::{BorrowedFrame, BytesFrame},
};

/// What Redis said, or what it complained of.
pub(super) type Reply = Result<Value, String>;

/// Appends a command.
pub(super) fn write(out: &mut BytesMut, command: &[Value]) {
    let words: Vec<_> = command
        .iter()
        .map(|value| match value {
            Value::Integer(number) => BorrowedFrame::Integer(*number),
            text => BorrowedFrame::BulkString(text.as_bytes().unwrap_or_default()),
        })
        .collect();
    // A command consists of bulk strings only, numbers too.
    extend_encode_borrowed(out, &BorrowedFrame::Array(&words), true)
        .expect("the buffer is extended to the command's length");
}

/// Takes the first reply; `None` while it is not whole.
///
/// # Errors
/// When no more bytes can make a reply of them.
pub(super) fn take(heard: &mut BytesMut) -> io::Result<Option<Reply>> {
    let read = decode_bytes_mut(heard);
    let read = read.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(read.map(|(frame, ..)| reply(frame)))
}

fn reply(frame: BytesFrame) -> Reply {
    Ok(match frame {
        BytesFrame::SimpleString(text) | BytesFrame::BulkString(text) => Value::Bytes(text),
        BytesFrame::Integer(number) => Value::Integer(number),
        BytesFrame::Null => Value::Null,
        BytesFrame::Error(complaint) => return Err(complaint.to_string()),
        BytesFrame::Array(frames) => {
            let values: Result<_, _> = frames.into_iter().map(reply).collect();
            Value::Array(values?)
        }
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn text(text: &'static str) -> Value {
        Value::Bytes(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_command_is_written_as_redis_reads_it() {
        let mut out = BytesMut::new();
        let command = [Value::from_static_str("SET"), text("k"), Value::Integer(-7)];
        write(&mut out, &command);
        assert_eq!(out, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n-7\r\n");
    }

    #[test]
    fn a_reply_is_taken_once_it_is_whole_and_never_further() {
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
                let mut heard = BytesMut::from(&more[..length]);
                assert!(take(&mut heard).unwrap().is_none());
                assert_eq!(heard.len(), length);
            }
            let mut heard = BytesMut::from(more.as_str());
            assert_eq!(take(&mut heard).unwrap().unwrap(), wanted);
            assert_eq!(heard, "+next\r\n");
        }
        assert!(take(&mut BytesMut::from("OK\r\n")).is_err());
    }
}
