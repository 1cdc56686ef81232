//! Cancelling: at once, whoever computes the job, and never after its end.

use std::time::Duration;

use axum::http::StatusCode;
use contracts::assertion::Scope;
use futures::future::join;
use jobs::{
    job::Verdict,
    store::{Slots, StoreError},
};
use uuid::Uuid;

use crate::app::{TestApp, digest, sealed, sleep};

#[tokio::test]
async fn a_waiting_job_is_cancelled_once_however_often_it_is_asked() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &sealed("a")).await;
    for _ in 0..2 {
        let answer = app.cancel(&who, &job).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body["status"], "CANCELLED");
        assert_eq!(
            answer.body["blockchain_confirmation"]["status"],
            "NOT_REQUIRED"
        );
    }
    assert_eq!(app.events(&job).await, ["job.submitted", "job.cancelled"]);
    assert_eq!(app.active().await, 0);
    assert_eq!(app.worker(1).step().await.unwrap(), 0);
}

#[tokio::test]
async fn an_ended_job_is_not_cancellable() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &digest("a")).await;
    app.worker(1).step().await.unwrap();
    let answer = app.cancel(&who, &job).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (409, "JOB_NOT_CANCELLABLE")
    );
}

#[tokio::test]
async fn cancelling_a_job_that_is_computed_fences_its_worker() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let job = app.submit(&who, &sleep(60_000)).await;
    let ttl = Duration::from_secs(15);
    let now = app.clock.now();
    let mut work = app
        .store
        .claim(Uuid::now_v7(), ttl, Slots::free(1), now)
        .await
        .unwrap()
        .pop()
        .unwrap();
    assert_eq!(app.cancel(&who, &job).await.body["status"], "CANCELLED");

    let renewed = app.store.renew(&mut work.lease, ttl).await;
    assert!(matches!(renewed, Err(StoreError::Fenced)));
    let complete = |job: jobs::job::Job| job.complete(now, "1".to_owned()).map(Verdict::Over);
    let finished = app.store.finish(&work.lease, complete).await;
    assert!(matches!(finished, Err(StoreError::Fenced)));
    assert_eq!(
        app.events(&job).await,
        ["job.submitted", "job.started", "job.cancelled"]
    );
    assert_eq!(app.active().await, 0);
}

#[tokio::test]
async fn of_a_cancel_and_a_completion_at_once_exactly_one_wins() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let worker = app.worker(1);
    for _ in 0..10 {
        let job = app.submit(&who, &digest("a")).await;
        let (answer, stepped) = join(app.cancel(&who, &job), worker.step()).await;
        stepped.unwrap();
        let status = app.show(&who, &job).await["status"].clone();
        let last = app.events(&job).await.pop().unwrap();
        match answer.status {
            StatusCode::OK => assert_eq!(
                (status, last.as_str()),
                ("CANCELLED".into(), "job.cancelled")
            ),
            StatusCode::CONFLICT => {
                assert_eq!(
                    (status, last.as_str()),
                    ("COMPLETED".into(), "job.completed")
                );
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(app.active().await, 0);
}

#[tokio::test]
async fn who_holds_only_the_scope_of_the_whole_tenant_may_cancel_and_who_only_reads_may_not() {
    let app = TestApp::start().await;
    let owner = app.somebody().in_team("red");
    let holding = |scopes: &[Scope]| {
        let mut other = owner.colleague("user_2");
        other.claims.scopes = scopes.to_vec();
        other
    };
    let job = app.submit(&owner, &digest("a")).await;
    let teammate = [Scope::JobsReadTeam, Scope::JobsSubmit];
    for scopes in [&[Scope::JobsReadTeam], &[Scope::JobsRead], &teammate[..]] {
        let answer = app.cancel(&holding(scopes), &job).await;
        assert_eq!(answer.code(), "ACCESS_DENIED", "{scopes:?}");
    }
    let answer = app.cancel(&holding(&[Scope::JobsAdmin]), &job).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
}
