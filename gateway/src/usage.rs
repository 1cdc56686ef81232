//! What a request cost: one record for each admitted request, written to the spool before the
//! answer's last byte.

use std::time::Duration;

use contracts::{
    event::{UsageRecorded, proto_time},
    id::RequestId,
};
use jiff::Timestamp;
use prost::Message as _;

use crate::{
    auth::Principal,
    route::Route,
    spool::{Spool, SpoolError, segment},
};

/// What is known of an admitted request once its answer is.
#[derive(Clone, Copy, Debug)]
pub struct Admitted<'a> {
    /// The request.
    pub request_id: RequestId,
    /// When it arrived.
    pub arrived_at: Timestamp,
    /// How long it took up to now.
    pub took: Duration,
    /// Who asked.
    pub principal: &'a Principal,
    /// For what.
    pub route: &'a Route,
    /// The answer's status.
    pub status: u16,
    /// Size of the request's body.
    pub request_bytes: u64,
    /// Size of the answer's body, as far as known.
    pub response_bytes: u64,
    /// Whether the answer was given before.
    pub replayed: bool,
}

/// Writes the record of a request. What failed on our side costs nothing.
///
/// # Errors
/// When the spool does not take it: the request must then not be answered as if it had.
pub fn record(spool: &Spool, request: &Admitted<'_>) -> Result<(), SpoolError> {
    let identity = request.principal.identity();
    let event = UsageRecorded {
        tenant_id: identity.tenant.to_string(),
        request_id: request.request_id.to_string(),
        key_id: request.principal.key_id().map(|id| id.to_string()),
        subject: identity.subject.to_string(),
        endpoint: request.route.template.to_owned(),
        method: request.route.method.to_string(),
        status_code: u32::from(request.status),
        duration_us: u64::try_from(request.took.as_micros()).unwrap_or(u64::MAX),
        occurred_at: Some(proto_time(request.arrived_at)),
        request_bytes: request.request_bytes,
        response_bytes: request.response_bytes,
        replayed: request.replayed,
        billable: request.route.billable() && request.status < 500,
    };
    let framed = segment::frame_with(event.encoded_len(), |buffer| event.encode_raw(buffer));
    spool.append(&framed)
}
