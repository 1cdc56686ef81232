//! A client that sends bytes as they are.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const DEADLINE: Duration = Duration::from_secs(10);

/// The answer to `bytes` on a connection of their own, up to its end.
pub(crate) async fn exchange(listen: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(listen).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    to_the_end(&mut stream).await
}

/// What comes until the other side closes.
pub(crate) async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let read = tokio::time::timeout(DEADLINE, read).await;
    let told = String::from_utf8_lossy(&answer).into_owned();
    // A reset after the answer is as good an end.
    assert!(read.is_ok(), "the connection stays open after: {told}");
    told
}

/// One answer with a length, on a connection that goes on.
pub(crate) async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = async {
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|l| {
                        l.to_lowercase()
                            .strip_prefix("content-length: ")
                            .map(str::to_owned)
                    })
                    .map_or(0, |length| length.parse().unwrap());
                if body.len() >= length {
                    return text;
                }
            }
            assert!(
                stream.read_buf(&mut bytes).await.unwrap() > 0,
                "closed: {text}"
            );
        }
    };
    tokio::time::timeout(DEADLINE, read)
        .await
        .expect("it answers")
}
