//! Every refusal becomes a problem here, and every answer of our own is written here.

use std::time::Duration;

use bytes::Bytes;
use contracts::problem::{Code, Problem};
use http::StatusCode;
use pingora::{Error, ErrorSource, ErrorType, http::ResponseHeader, proxy::Session};

use crate::{config, upstream::Failure};

/// How long, and for how many bytes, a client that is still sending is heard after a refusal:
/// closing at once would take the answer away from it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX_BYTES: usize = 2 * config::BODY_MAX_BYTES;
/// When to try again after an upstream could not be reached, in seconds.
const RETRY_AFTER_SECONDS: u64 = 1;

/// The problem that a failed exchange with an upstream is.
#[must_use]
pub fn failure(failure: Failure) -> Problem {
    match failure {
        Failure::Unreachable => unreachable_upstream(),
        Failure::Timeout => Problem::new(
            Code::GatewayTimeout,
            "The service behind the gateway took too long.",
        ),
        Failure::Broken | Failure::TooLarge => {
            Problem::new(Code::BadGateway, "The service behind the gateway failed.")
        }
    }
}

/// The problem that an error of Pingora's is; `None` when nobody is there to be told.
#[must_use]
pub fn of_pingora(error: &Error) -> Option<Problem> {
    use ErrorType::{
        ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout, ConnectionClosed,
        HTTPStatus, InvalidHTTPHeader, ReadError, ReadTimedout, SocketError, WriteError,
        WriteTimedout,
    };
    let problem = match (error.esource(), error.etype()) {
        (_, HTTPStatus(503)) => unreachable_upstream(),
        (ErrorSource::Upstream, ConnectTimedout | ReadTimedout | WriteTimedout) => {
            failure(Failure::Timeout)
        }
        (ErrorSource::Upstream, ConnectError | ConnectNoRoute | ConnectRefused | SocketError) => {
            unreachable_upstream()
        }
        (_, HTTPStatus(502)) | (ErrorSource::Upstream, _) => failure(Failure::Broken),
        (ErrorSource::Downstream, ReadError | WriteError | ConnectionClosed | WriteTimedout) => {
            return None;
        }
        (ErrorSource::Downstream, ReadTimedout) => Problem::new(
            Code::RequestTimeout,
            "The request was not received in time.",
        ),
        (ErrorSource::Downstream, _) | (_, InvalidHTTPHeader) => {
            Problem::new(Code::InvalidRequest, "The request is malformed.")
        }
        _ => Problem::internal(),
    };
    Some(problem)
}

/// Sends a complete answer.
///
/// # Errors
/// When the client is gone.
pub async fn send(
    session: &mut Session,
    mut header: ResponseHeader,
    body: Bytes,
) -> pingora::Result<()> {
    if header.status != StatusCode::NO_CONTENT {
        header.set_content_length(body.len())?;
    }
    session
        .write_response_header(Box::new(header), body.is_empty())
        .await?;
    if !body.is_empty() {
        session.write_response_body(Some(body), true).await?;
    }
    linger(session).await;
    Ok(())
}

/// Reads on for a little while what a refused client is still sending.
async fn linger(session: &mut Session) {
    if session.is_body_done() {
        return;
    }
    let drain = async {
        let mut read = 0;
        while let Ok(Some(chunk)) = session.read_request_body().await {
            read += chunk.len();
            if read > LINGER_MAX_BYTES {
                break;
            }
        }
    };
    tokio::time::timeout(LINGER, drain).await.ok();
}

fn unreachable_upstream() -> Problem {
    Problem::new(
        Code::ServiceUnavailable,
        "The service behind the gateway cannot be reached.",
    )
    .with_retry_after(RETRY_AFTER_SECONDS)
}
