//! What a request cost: one record for each admitted request, written to the spool before the
//! answer's last byte.

use std::{cell::RefCell, time::Duration};

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

/// What a record has room for before it grows.
const TYPICAL_BYTES: usize = 512;

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
    // In memory that the next record uses again.
    thread_local! {
        static FRAMED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(TYPICAL_BYTES));
        static EVENT: RefCell<UsageRecorded> = RefCell::default();
    }
    EVENT.with_borrow_mut(|event| {
        fill(event, request);
        FRAMED.with_borrow_mut(|framed| {
            segment::frame_into(framed, |framed| event.encode_raw(framed));
            spool.append(framed)
        })
    })
}

fn fill(event: &mut UsageRecorded, request: &Admitted<'_>) {
    let identity = request.principal.identity();
    let set = |field: &mut String, text: &str| {
        field.clear();
        field.push_str(text);
    };
    identity
        .tenant
        .with_text(|id| set(&mut event.tenant_id, id));
    request
        .request_id
        .with_text(|id| set(&mut event.request_id, id));
    match request.principal.key_id() {
        Some(id) => {
            let field = event.key_id.get_or_insert_default();
            id.with_text(|id| set(field, id));
        }
        None => event.key_id = None,
    }
    set(&mut event.subject, identity.subject.as_str());
    set(&mut event.endpoint, request.route.template);
    set(&mut event.method, request.route.method.as_str());
    event.status_code = u32::from(request.status);
    event.duration_us = u64::try_from(request.took.as_micros()).unwrap_or(u64::MAX);
    event.occurred_at = Some(proto_time(request.arrived_at));
    event.request_bytes = request.request_bytes;
    event.response_bytes = request.response_bytes;
    event.replayed = request.replayed;
    event.billable = request.route.billable() && request.status < 500;
}
