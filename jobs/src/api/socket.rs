//! A job's events over a WebSocket (RFC 6455): one text message each, pings while there are none,
//! and a close in good order after the last.

use std::pin::pin;

use axum::{
    body::Bytes,
    extract::{
        WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    response::Response,
};
use contracts::api::jobs::JobEventView;
use futures::{Stream, StreamExt as _};

use super::follow::KEEP_ALIVE;

/// Clients have nothing to say; this much of it is read.
const MESSAGE_MAX_BYTES: usize = 4 * 1_024;

/// Agrees to the upgrade, and then tells `events`.
pub(super) fn answer(
    upgrade: WebSocketUpgrade,
    events: impl Stream<Item = JobEventView> + Send + 'static,
) -> Response {
    upgrade
        .max_message_size(MESSAGE_MAX_BYTES)
        .on_upgrade(|socket| tell(socket, events))
}

async fn tell(mut socket: WebSocket, events: impl Stream<Item = JobEventView>) {
    let mut events = pin!(events);
    loop {
        let message = tokio::select! {
            event = events.next() => match event {
                Some(event) => {
                    let text = serde_json::to_string(&event).expect("an event has a JSON form");
                    Message::text(text)
                }
                None => break,
            },
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                // Pings are answered for us.
                Some(Ok(_)) => continue,
            },
            () = tokio::time::sleep(KEEP_ALIVE) => Message::Ping(Bytes::default()),
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
    // The client that is gone needs no farewell.
    socket.send(Message::Close(None)).await.ok();
}
