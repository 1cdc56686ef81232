//! `GET /v1/usage/events`: every billable fact, one JSON object a line, oldest first.
//!
//! Read page by page, holding no connection while the client takes its time: neither the tenant's
//! number of events nor a slow reader costs memory or a snapshot of the database.

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use contracts::{
    api::usage::{UsageEvent, UsageEventsQuery},
    id::{JobId, RequestId},
    problem::Problem,
    server::{Principal, Query},
};
use futures::{Stream, stream::try_unfold};

use super::{Api, authorize, failed, invalid};
use crate::store::{
    Store,
    usage::{After, RawEvent, Selection},
};

/// Events read, and sent, at a time.
const PAGE: i64 = 1_000;
/// The media type of an answer.
const NDJSON: &str = "application/x-ndjson";

/// Answers with a stream. A failure after its first page breaks the connection off, so that a part
/// is never mistaken for the whole.
pub(super) async fn get(
    State(api): State<Api>,
    principal: Principal,
    Query(query): Query<UsageEventsQuery>,
) -> Result<Response, Problem> {
    authorize(&principal)?;
    // An event has an exact time; what is absent is the same as for the sums.
    let span = api.span(query.from, query.to)?;
    let from = query.from.unwrap_or(span.from);
    let to = query.to.unwrap_or(span.to);
    if from >= to {
        return Err(invalid("from", "order", "must be before `to`"));
    }
    let selection = Selection {
        tenant: principal.tenant(),
        from,
        to,
        meter: query.meter,
    };
    let first = api
        .store
        .events(&selection, &After::default(), PAGE)
        .await
        .map_err(failed)?;
    let body = Body::from_stream(lines(api.store, selection, first));
    Ok(([(header::CONTENT_TYPE, NDJSON)], body).into_response())
}

/// The pages from `first` on, as lines.
fn lines(
    store: Store,
    selection: Selection,
    first: Vec<RawEvent>,
) -> impl Stream<Item = anyhow::Result<Bytes>> {
    let start = (store, Some(first));
    try_unfold(start, move |(store, page)| async move {
        let Some(page) = page else { return Ok(None) };
        let Some(last) = page.last() else {
            return Ok(None);
        };
        let full = i64::try_from(page.len()).unwrap_or(i64::MAX) >= PAGE;
        let after = After::from(last);
        let text = render(&page);
        // One page ahead of the client, so that it never waits for a page's first byte alone.
        let next = if full {
            let page = store.events(&selection, &after, PAGE).await;
            Some(page.inspect_err(|cause| {
                tracing::error!(error = ops::postgres::explain(cause), "events break off");
            })?)
        } else {
            None
        };
        Ok(Some((text, (store, next))))
    })
}

fn render(page: &[RawEvent]) -> Bytes {
    let mut text = Vec::with_capacity(page.len() * 256);
    for event in page {
        serde_json::to_writer(&mut text, &line(event)).expect("strings and numbers have JSON");
        text.push(b'\n');
    }
    text.into()
}

fn line(event: &RawEvent) -> UsageEvent {
    UsageEvent {
        event_id: event.event_id.clone(),
        source: event.source.clone(),
        meter: event.measure.meter(),
        quantity: event.quantity.normalize(),
        unit: event.measure.unit(),
        occurred_at: event.occurred_at,
        job_id: event.job_id.map(JobId::from_uuid),
        request_id: event.request_id.map(RequestId::from_uuid),
        endpoint: event.endpoint.clone(),
        status_code: event.status_code,
    }
}
