//! The watchers that ask: the chain for batches, the API for jobs and for usage events. Cheap
//! enough to run beside the load: lists, never one request per job.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use contracts::api::{Page, jobs::JobView, usage::UsageEvent};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::{
    chain::Chain,
    client::Api,
    log::Route,
    request::{Call, Credential},
    watch::Tracker,
};

/// How often the chain is asked for new batches.
const CHAIN_EVERY: Duration = Duration::from_millis(500);
/// How often the job list is read; webhooks are faster, this is for when they are not.
const LIST_EVERY: Duration = Duration::from_secs(2);
/// How often the usage events are read, at most.
const USAGE_EVERY: Duration = Duration::from_secs(1);
/// Reading the usage events takes at most this share of the time.
const USAGE_SHARE: u32 = 5;
/// Items of a page.
const PAGE: u32 = contracts::api::PAGE_MAX;

/// Sees batches as the chain confirms them, from the block `from` on.
pub(crate) async fn chain(chain: Chain, from: u64, tracker: Arc<Tracker>) {
    let mut next = from;
    loop {
        // A chain that is away for a moment is asked again.
        if let Ok(head) = chain.head().await
            && head >= next
            && let Ok(batches) = chain.batches(next, head).await
        {
            let at = Instant::now();
            for confirmed in batches {
                tracker.sealed(confirmed.batch.firstSequence, confirmed.batch.jobCount, at);
            }
            next = head + 1;
        }
        sleep(CHAIN_EVERY).await;
    }
}

/// Sees jobs end and become final in the tenant's list.
pub(crate) async fn list(api: Api, credential: Credential, tracker: Arc<Tracker>) {
    loop {
        sleep(LIST_EVERY).await;
        let mut cursor = None;
        while let Some(oldest) = tracker.oldest_unsettled() {
            let path = list_path(cursor.as_deref());
            let call = Call::get(Route::ListJobs, path, Some(&credential));
            let Ok(answer) = api.call(call).await else {
                break;
            };
            let Ok(page) = answer.json::<Page<JobView>>() else {
                break;
            };
            let at = Instant::now();
            page.data.iter().for_each(|view| tracker.viewed(view, at));
            // Newest first: what is older than the oldest open job has nothing new to tell.
            let passed = page.data.last().is_none_or(|view| view.job_id < oldest);
            cursor = page.next_cursor.filter(|_| !passed);
            if cursor.is_none() {
                break;
            }
        }
    }
}

/// Sees billable facts arrive that happened from `since` on, whichever month that is.
pub(crate) async fn usage(
    api: Api,
    credential: Credential,
    since: Timestamp,
    tracker: Arc<Tracker>,
) {
    let path = usage_path("/v1/usage/events", since, None);
    loop {
        let began = Instant::now();
        if tracker.awaits_billing() {
            let call = Call::get(Route::Billing, &path, Some(&credential));
            if let Ok(answer) = api.call(call).await {
                let at = Instant::now();
                for event in usage_events(&answer.body).unwrap_or_default() {
                    tracker.billed(&event, at);
                }
            }
        }
        sleep(USAGE_EVERY.max(began.elapsed() * USAGE_SHARE)).await;
    }
}

/// The path of a page of the job list.
pub(crate) fn list_path(cursor: Option<&str>) -> String {
    paged("/v1/jobs", cursor)
}

/// A list's path, which may have a query already, with its page.
pub(crate) fn paged(path: &str, cursor: Option<&str>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &PAGE.to_string());
    if let Some(cursor) = cursor {
        query.append_pair("cursor", cursor);
    }
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}{}", query.finish())
}

/// The path of usage from a time on, up to another or the present.
pub(crate) fn usage_path(path: &str, from: Timestamp, to: Option<Timestamp>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("from", &from.to_string());
    if let Some(to) = to {
        query.append_pair("to", &to.to_string());
    }
    format!("{path}?{}", query.finish())
}

/// The events that an NDJSON body holds.
pub(crate) fn usage_events(body: &[u8]) -> anyhow::Result<Vec<UsageEvent>> {
    let lines = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice(line).context("a usage event is not of its form"))
        .collect()
}
