//! Computing jobs: fairly, as often as needed, and under a lease that fences.

use std::{collections::BTreeMap, time::Duration};

use alloy::primitives::{B256, keccak256};
use contracts::{
    event::{JobEvent, Kind},
    id::TenantId,
};
use jiff::SignedDuration;
use jobs::{
    job::{Job, Verdict},
    store::{Slots, StoreError},
    upkeep::take_over,
};
use ops::testing::eventually;
use serde_json::json;
use uuid::Uuid;

use crate::app::{PATIENCE, TestApp, digest, fail, sealed, sleep};

/// Longer than any backoff.
const LATER: SignedDuration = SignedDuration::from_mins(1);
const TTL: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_retryable_failure_is_tried_three_times_and_then_final() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let payload = json!({ "retryable": true, "message": "no luck" });
    let job = app.submit(&who, &fail(&payload)).await;
    let worker = app.worker(1);
    for attempt in 1..=3 {
        assert_eq!(worker.step().await.unwrap(), 1);
        assert_eq!(app.show(&who, &job).await["attempts"], attempt);
        assert_eq!(worker.step().await.unwrap(), 0, "the backoff is waited for");
        app.clock.advance(LATER);
    }
    let shown = app.show(&who, &job).await;
    assert_eq!(shown["status"], "FAILED");
    assert_eq!(
        shown["error"],
        json!({ "code": "RETRIES_EXHAUSTED", "detail": "no luck" })
    );
    let started = "job.started";
    assert_eq!(
        app.events(&job).await,
        ["job.submitted", started, started, started, "job.failed"]
    );
    assert_eq!(app.active().await, 0);
}

#[tokio::test]
async fn a_permanent_failure_is_final_and_one_that_passes_is_forgotten() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let permanent = app.submit(&who, &fail(&json!({ "message": "a\0b" }))).await;
    let passing = app
        .submit(&who, &fail(&json!({ "retryable": true, "times": 1 })))
        .await;
    let worker = app.worker(3);
    worker.step().await.unwrap();
    app.clock.advance(LATER);
    worker.step().await.unwrap();
    let shown = app.show(&who, &permanent).await;
    assert_eq!(
        (&shown["status"], &shown["attempts"]),
        (&json!("FAILED"), &json!(1))
    );
    assert_eq!(
        shown["error"],
        json!({ "code": "EXECUTION_FAILED", "detail": "a\0b" })
    );
    let shown = app.show(&who, &passing).await;
    assert_eq!(
        (&shown["status"], &shown["result"]),
        (&json!("COMPLETED"), &json!({"attempts": 2}))
    );
}

#[tokio::test]
async fn slots_are_shared_between_tenants_by_weight_and_a_jobs_priority_counts_only_within() {
    let app = TestApp::start().await;
    let (busy, calm) = (app.somebody(), app.somebody());
    let mut urgent = digest("u");
    urgent["priority"] = json!(9);
    for _ in 0..12 {
        app.submit(&busy, &urgent).await;
    }
    for _ in 0..12 {
        app.submit(&calm, &digest("c")).await;
    }
    let shares = async |free| {
        let slots = Slots { all: 8, free };
        let work = app
            .store
            .claim(Uuid::now_v7(), TTL, slots, app.clock.now())
            .await
            .unwrap();
        let mut shares = BTreeMap::<TenantId, usize>::new();
        for work in work {
            *shares.entry(work.job.facts.tenant).or_default() += 1;
        }
        let of = |tenant| shares.get(&tenant).copied().unwrap_or(0);
        (of(busy.claims.tenant), of(calm.claims.tenant))
    };
    assert_eq!(shares(8).await, (4, 4));
    assert_eq!(shares(4).await, (2, 2));

    // A third comes late: it catches up before the others get more.
    let mut late = app.somebody();
    late.claims.priority = 5;
    for _ in 0..3 {
        app.submit(&late, &digest("l")).await;
    }
    assert_eq!(shares(3).await, (0, 0));
}

#[tokio::test]
async fn one_tenants_long_jobs_leave_slots_for_who_comes_next() {
    let app = TestApp::start().await;
    let (greedy, late) = (app.somebody(), app.somebody());
    for _ in 0..20 {
        app.submit(&greedy, &sleep(60_000)).await;
    }
    let owner = Uuid::now_v7();
    let claim = async |free| {
        let slots = Slots { all: 8, free };
        let claimed = app.store.claim(owner, TTL, slots, app.clock.now()).await;
        let tenants = claimed.unwrap().into_iter();
        let tenants = tenants.map(|work| work.job.facts.tenant);
        tenants.collect::<Vec<TenantId>>()
    };
    assert_eq!(claim(8).await, [greedy.claims.tenant; 6]);
    assert_eq!(claim(2).await, []);
    for _ in 0..3 {
        app.submit(&late, &digest("l")).await;
    }
    assert_eq!(claim(2).await, [late.claims.tenant; 2]);
    // A second worker has slots of its own.
    let other = app
        .store
        .claim(Uuid::now_v7(), TTL, Slots::free(4), app.clock.now());
    assert_eq!(other.await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_worker_paused_past_its_lease_is_fenced() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &digest("a")).await;
    let (now, short) = (app.clock.now(), Duration::from_millis(50));
    let paused = app
        .store
        .claim(Uuid::now_v7(), short, Slots::free(1), now)
        .await
        .unwrap()
        .pop()
        .unwrap();
    let owner = Uuid::now_v7();
    eventually("the lease runs out", PATIENCE, async || {
        let taken = take_over(&app.store, &app.clock, owner, TTL).await.unwrap();
        (taken == 1).then_some(())
    })
    .await;
    assert_eq!(app.show(&who, &job).await["status"], "PENDING");
    app.clock.advance(LATER);
    assert_eq!(app.worker(1).step().await.unwrap(), 1);

    let complete = |job: Job| job.complete(now, "\"stale\"".to_owned()).map(Verdict::Over);
    let stale = app.store.finish(&paused.lease, complete).await;
    assert!(matches!(stale, Err(StoreError::Fenced)));
    let shown = app.show(&who, &job).await;
    assert_eq!(
        (&shown["status"], &shown["result"]["bytes"]),
        (&json!("COMPLETED"), &json!(1))
    );
    let events = [
        "job.submitted",
        "job.started",
        "job.started",
        "job.completed",
    ];
    assert_eq!(app.events(&job).await, events);
    assert_eq!(app.active().await, 0);
}

#[tokio::test]
async fn a_job_that_loses_every_worker_fails_and_the_sweep_may_crash_in_between() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &digest("a")).await;
    let short = Duration::from_millis(20);
    for _ in 0..3 {
        app.clock.advance(LATER);
        let now = app.clock.now();
        assert_eq!(
            app.store
                .claim(Uuid::now_v7(), short, Slots::free(1), now)
                .await
                .unwrap()
                .len(),
            1
        );
        // A sweep that took the lease over and died.
        eventually("the lease runs out", PATIENCE, async || {
            let taken = app
                .store
                .take_over_lost(Uuid::now_v7(), short, 10)
                .await
                .unwrap();
            (!taken.is_empty()).then_some(())
        })
        .await;
        eventually("the sweep's lease runs out", PATIENCE, async || {
            let taken = take_over(&app.store, &app.clock, Uuid::now_v7(), TTL)
                .await
                .unwrap();
            (taken == 1).then_some(())
        })
        .await;
    }
    let shown = app.show(&who, &job).await;
    assert_eq!(
        (&shown["status"], &shown["error"]["code"]),
        (&json!("FAILED"), &json!("WORKER_LOST"))
    );
    assert_eq!(app.active().await, 0);
}

#[tokio::test]
async fn what_is_sealed_is_the_payload_as_sent_and_the_result_as_shown() {
    let app = TestApp::start().await;
    let mut who = app.somebody();
    who.claims.submitter = Some(
        "0x00000000000000000000000000000000000000aa"
            .parse()
            .unwrap(),
    );
    who.claims.traceparent =
        Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let job = app.submit(&who, &sealed("abc")).await;
    app.worker(1).step().await.unwrap();
    let client = app.pool.get().await.unwrap();
    let sql = "SELECT value, traceparent FROM jobs.outbox WHERE ce_type = 'job.completed'";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, Option<String>>(1), who.claims.traceparent);
    let event = JobEvent::from_value(row.get(0)).unwrap();
    assert_eq!(event.job_id, job);
    let seal = event.seal().unwrap();
    let (content, result, salt) = seal.hashes().unwrap();
    let hash = |bytes: &[u8]| keccak256([salt.as_slice(), bytes].concat());
    assert_ne!(salt, B256::ZERO);
    assert_eq!(content, hash(br#"{"text":"abc"}"#));
    let Some(Kind::Completed(completed)) = &event.kind else {
        panic!()
    };
    assert_eq!(result, hash(&completed.result_json));
    assert_eq!(
        seal.submitter_address().unwrap(),
        who.claims.submitter.unwrap()
    );
    assert!(!seal.individual);
    let shown: String = client
        .query_one("SELECT result FROM jobs.jobs", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(completed.result_json, shown.as_bytes());
}
