//! Every refusal becomes a problem here, and every answer of our own is written here.

use std::time::Duration;

use bytes::Bytes;
use contracts::{
    id::RequestId,
    problem::{Code, Problem},
};
use http::{HeaderValue, Method, StatusCode, header};
use pingora::{Error, ErrorSource, ErrorType, http::ResponseHeader, proxy::Session};

use crate::{config, headers, upstream::Failure};

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
        Failure::NoRoom(lack) => lack.problem(),
    }
}

/// The problem that an error of Pingora's is; `None` when nobody is there to be told.
#[must_use]
pub fn of_pingora(error: &Error) -> Option<Problem> {
    use ErrorType::{
        ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout, ConnectionClosed, H2Error,
        HTTPStatus, InvalidHTTPHeader, ReadError, ReadTimedout, SocketError, WriteError,
        WriteTimedout,
    };
    let problem = match (error.esource(), error.etype()) {
        (ErrorSource::Upstream, ReadTimedout | WriteTimedout) => failure(Failure::Timeout),
        (_, HTTPStatus(503))
        | (
            ErrorSource::Upstream,
            ConnectError | ConnectNoRoute | ConnectRefused | ConnectTimedout | SocketError,
        ) => unreachable_upstream(),
        (_, HTTPStatus(502)) | (ErrorSource::Upstream, _) => failure(Failure::Broken),
        // Of a stream that the client reset, Pingora does not say whose failure it is.
        (ErrorSource::Downstream, ReadError | ConnectionClosed | WriteTimedout | H2Error)
        | (_, WriteError) => return None,
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

/// A problem as the bytes of a last answer, for connections that Pingora never saw.
#[must_use]
pub(crate) fn whole(problem: &Problem, request_id: RequestId) -> Vec<u8> {
    let body = problem.to_json_bytes();
    let status = problem.status();
    let mut header = ResponseHeader::build(status, None).expect("every code has a status");
    let of_problem = problem.headers().into_iter();
    let last = [
        (header::CONTENT_LENGTH, HeaderValue::from(body.len())),
        (header::CONNECTION, HeaderValue::from_static("close")),
    ];
    for (name, value) in of_problem.chain(last) {
        header
            .insert_header(name, value)
            .expect("a problem's headers are headers");
    }
    headers::complete(&mut header, request_id, |_| {}).expect("our own headers are headers");
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in &header.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    bytes
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
    let bare = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
    if !bare.contains(&header.status) {
        header.set_content_length(body.len())?;
    }
    // HTTP/2 would send what HTTP/1 leaves off by itself.
    let bare = body.is_empty() || session.req_header().method == Method::HEAD;
    let header = Box::new(header);
    session.write_response_header(header, bare).await?;
    if !bare {
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
