//! `GET /v1/jobs/{job_id}/events`: server-sent events, from the first one or from the one after
//! `Last-Event-ID`, until the last event that the job will have.
//!
//! A client that asks for a WebSocket gets the same events as text messages (`socket`).
//!
//! A stream looks at its job's events at an interval, and holds no connection while it waits.

use std::{collections::VecDeque, time::Duration};

use axum::{
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use contracts::{
    api::jobs::{FollowJobQuery, JobEventView, JobView},
    assertion::Scope,
    id::{JobId, TenantId},
    problem::{Code, Problem},
    server::{Path, Principal, Query},
};
use futures::{Stream, StreamExt as _, stream};
use tokio::time::Instant;

use super::{Api, socket, streams::Permit, view::view};
use crate::{
    job::{Confirmation, Job, is_last},
    store::Told,
};

/// How often a stream looks for new events.
const POLL: Duration = Duration::from_millis(250);
/// How often a silent stream shows that it lives.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest life of one stream; the client then comes back with its `Last-Event-ID`.
const STREAM_MAX: Duration = Duration::from_mins(15);
/// How long a client waits before it comes back.
const COME_BACK: Duration = Duration::from_secs(1);
/// Seconds after which a stream may have become free.
const RETRY_AFTER_SECONDS: u64 = 5;

/// Follows a job.
pub(super) async fn follow(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<String>,
    Query(from): Query<FollowJobQuery>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    principal.require_one_of(&Scope::READ_JOBS)?;
    let job = api.visible(&principal, &id).await?.job;
    let after = match from.after {
        Some(after) => in_range(after)?,
        None => last_event_id(&headers)?,
    };
    let over = after >= job.events && is_settled(&job);
    let wants_socket = headers.contains_key(header::UPGRADE);
    if over && !wants_socket {
        // Which tells an EventSource not to come back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let permit = api.streams.open(principal.tenant()).ok_or_else(|| {
        Problem::new(
            Code::ServiceUnavailable,
            "As many streams are open as may be.",
        )
        .with_retry_after(RETRY_AFTER_SECONDS)
    })?;
    let following = Following {
        api,
        tenant: principal.tenant(),
        job: job.facts.id,
        after,
        found: VecDeque::new(),
        over,
        until: Instant::now() + STREAM_MAX,
        _permit: permit,
    };
    let events = stream::unfold(following, Following::next);
    if wants_socket {
        let upgrade =
            upgrade.map_err(|refused| Problem::new(Code::InvalidRequest, refused.body_text()))?;
        return Ok(socket::answer(upgrade, events));
    }
    Ok(Sse::new(as_sse(events))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// One open stream.
struct Following {
    api: Api,
    tenant: TenantId,
    job: JobId,
    after: u64,
    found: VecDeque<(Told, JobView)>,
    over: bool,
    until: Instant,
    _permit: Permit,
}

impl Following {
    async fn next(mut self) -> Option<(JobEventView, Self)> {
        loop {
            if let Some((told, job)) = self.found.pop_front() {
                self.after = told.number;
                let event = JobEventView {
                    event_number: told.number,
                    event_type: told.event_type,
                    occurred_at: told.at,
                    job,
                };
                return Some((event, self));
            }
            if self.over || self.api.stopping.is_cancelled() || Instant::now() >= self.until {
                return None;
            }
            if let Err(problem) = self.look().await {
                // The cause was logged where it happened; the client comes back by itself.
                tracing::debug!(%problem, "stream ends early");
                return None;
            }
            if self.found.is_empty() {
                tokio::select! {
                    () = self.api.stopping.cancelled() => {}
                    () = tokio::time::sleep(POLL) => {}
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), Problem> {
        let told = self.api.store.events(self.job, self.after).await?;
        let Some(newest) = told.last() else {
            return Ok(());
        };
        let record = self.api.store.find(self.tenant, self.job).await?;
        let record = record.ok_or_else(super::no_such_job)?;
        self.over = is_last(newest.event_type, record.job.confirmation.status());
        let job = view(record)?;
        self.found = told.into_iter().map(|told| (told, job.clone())).collect();
        Ok(())
    }
}

/// Events as an `EventSource` reads them.
fn as_sse(
    events: impl Stream<Item = JobEventView>,
) -> impl Stream<Item = Result<Event, axum::Error>> {
    events.map(|event| {
        Event::default()
            .id(event.event_number.to_string())
            .event(event.event_type.as_str())
            .retry(COME_BACK)
            .json_data(event)
    })
}

/// Whether every event of the job has happened.
fn is_settled(job: &Job) -> bool {
    !job.is_active() && job.confirmation != Confirmation::Queued
}

fn last_event_id(headers: &HeaderMap) -> Result<u64, Problem> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(0);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    in_range(number.unwrap_or(u64::MAX))
}

fn in_range(number: u64) -> Result<u64, Problem> {
    if i64::try_from(number).is_ok() {
        return Ok(number);
    }
    let detail = "The event's number is not one of ours.";
    Err(Problem::new(Code::InvalidRequest, detail))
}
