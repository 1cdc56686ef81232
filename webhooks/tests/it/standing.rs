//! Endpoints that are disabled, enabled and deleted: what they are owed follows, however long it is
//! and whoever is at work on it meanwhile; and how many there may be.

use std::sync::atomic::{AtomicBool, Ordering};

use contracts::assertion::Scope;
use jiff::Timestamp;
use ops::testing::eventually;
use reqwest::StatusCode;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use uuid::Uuid;
use webhooks::{
    store::{
        deliveries::{self, Replayed},
        endpoints::{self, Endpoint},
        follow::FOLLOW_MAX,
        queue,
    },
    upkeep,
};

use crate::app::{App, DEADLINE, Receiver, now, telling};

const DELIVERIES: &str = "/v1/webhooks/deliveries";

impl App {
    async fn in_status(&self, status: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM webhooks.deliveries WHERE status = '{status}'");
        self.count(&sql).await
    }

    /// The detail of the refusal of a POST.
    async fn refused(&self, path: &str) -> String {
        let scopes = [Scope::WebhooksWrite];
        let (status, answer) = self.request(self.tenant, &scopes, "POST", path, None).await;
        assert_eq!(status, StatusCode::CONFLICT, "{answer}");
        assert_eq!(answer["code"], "CONFLICT");
        answer["detail"].as_str().unwrap().to_owned()
    }

    async fn delete(&self, path: &str) {
        let scopes = [Scope::WebhooksWrite];
        let (status, _) = self
            .request(self.tenant, &scopes, "DELETE", path, None)
            .await;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }

    /// Until nothing is left to be moved; the number of batches.
    async fn follow_all(&self) -> usize {
        let mut batches = 0;
        while upkeep::follow_all(&self.pool, now()).await.unwrap() > 0 {
            batches += 1;
        }
        batches
    }

    /// Replays the delivery due last while a change of its endpoint waits for the replay: neither
    /// may hold what the other needs.
    async fn replay_meets<T>(&self, change: impl Future<Output = T>) -> T {
        let mut client = self.pool.get().await.unwrap();
        let replay = client.transaction().await.unwrap();
        let last = "SELECT message_id, endpoint_id FROM webhooks.deliveries \
            ORDER BY next_attempt_at DESC LIMIT 1";
        let row = replay.query_one(last, &[]).await.unwrap();
        let (message, endpoint) = (row.get(0), row.get(1));
        endpoints::hold_standing(&replay, endpoint).await.unwrap();
        let changed = AtomicBool::new(false);
        let change = async {
            let done = change.await;
            changed.store(true, Ordering::SeqCst);
            done
        };
        let finish = async {
            self.waits_or(&changed).await;
            let tenant = self.tenant.uuid();
            let replayed = deliveries::replay(&replay, tenant, message, now()).await;
            assert_eq!(replayed.unwrap(), Replayed::Queued);
            replay.commit().await.unwrap();
        };
        tokio::join!(change, finish).0
    }

    /// Waits until some transaction waits for another one, or `done` without having waited.
    async fn waits_or(&self, done: &AtomicBool) {
        eventually("the other one waits", DEADLINE, || async {
            let waiting = "SELECT count(*) FROM pg_stat_activity \
                WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let over = done.load(Ordering::SeqCst) || self.count(waiting).await > 0;
            over.then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_disabled_endpoint_is_owed_is_held_and_sent_once_it_is_enabled() {
    let app = App::start().await;
    let receiver = Receiver::start(&[]).await;
    let one = app.owe(&receiver.url(), 3).await;
    app.write("PATCH", &one, json!({ "enabled": false })).await;
    app.follow_all().await;
    assert_eq!(app.in_status("HELD").await, 3);
    let listed = app.get(&format!("{DELIVERIES}?status=HELD")).await;
    let id = listed["data"][0]["message_id"].as_str().unwrap();
    for path in [format!("{DELIVERIES}/{id}/replay"), format!("{one}/test")] {
        let detail = app.refused(&path).await;
        assert!(detail.contains("disabled"), "{detail}");
    }
    assert_eq!(app.in_status("HELD").await, 3);
    app.write("PATCH", &one, json!({ "enabled": true })).await;
    app.follow_all().await;
    assert_eq!(app.in_status("PENDING").await, 3);
    let _worker = app.worker();
    receiver.is_told(3).await;
}

#[tokio::test]
async fn what_a_deleted_endpoint_was_owed_has_visibly_failed() {
    let app = App::start().await;
    let one = app.owe("https://example.com/one", 2).await;
    let other = app.owe("https://example.com/other", 2).await;
    app.write("PATCH", &other, json!({ "enabled": false }))
        .await;
    app.follow_all().await;
    for path in [one, other] {
        app.delete(&path).await;
    }
    app.follow_all().await;
    let listed = app.get(&format!("{DELIVERIES}?status=FAILED")).await;
    let failed = listed["data"].as_array().unwrap();
    assert_eq!(failed.len(), 4);
    for delivery in failed {
        assert_eq!(delivery["last_error"], "the endpoint was deleted");
    }
    let id = failed[0]["message_id"].as_str().unwrap();
    let detail = app.refused(&format!("{DELIVERIES}/{id}/replay")).await;
    assert!(detail.contains("deleted"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_fails_after_its_endpoint_was_disabled_is_not_tried_again() {
    let app = App::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let one = app.owe(&url, 1).await;
    let _worker = app.worker();
    let (mut stream, _) = listener.accept().await.unwrap();
    let read = stream.read(&mut [0; 1_024]).await.unwrap();
    assert!(read > 0);
    app.write("PATCH", &one, json!({ "enabled": false })).await;
    let answer = b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(answer).await.unwrap();
    eventually("the attempt is settled", DEADLINE, || async {
        let settled = "SELECT count(*) FROM webhooks.deliveries \
            WHERE last_error IS NOT NULL AND lease_expires_at IS NULL";
        (app.count(settled).await == 1).then_some(())
    })
    .await;
    assert_eq!(app.in_status("HELD").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_arrives_while_its_endpoint_is_disabled_is_held() {
    let app = App::start().await;
    let one = app.owe("https://example.com/one", 0).await;
    let mut client = app.pool.get().await.unwrap();
    let intake = client.transaction().await.unwrap();
    let told = [telling(app.tenant, "1")];
    queue::queue(&intake, &told, now()).await.unwrap();
    let disabled = AtomicBool::new(false);
    let disable = async {
        app.write("PATCH", &one, json!({ "enabled": false })).await;
        disabled.store(true, Ordering::SeqCst);
    };
    let commit = async {
        app.waits_or(&disabled).await;
        intake.commit().await.unwrap();
    };
    tokio::join!(disable, commit);
    app.follow_all().await;
    assert_eq!(app.in_status("HELD").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_backlog_holds_up_no_request_and_follows_in_batches() {
    let app = App::start().await;
    let one = app.owe("https://example.com/one", FOLLOW_MAX + 1).await;
    let all = i64::try_from(FOLLOW_MAX + 1).unwrap();
    let mut client = app.pool.get().await.unwrap();
    let busy = client.transaction().await.unwrap();
    let lock = "SELECT FROM webhooks.deliveries LIMIT 1 FOR UPDATE";
    busy.query_one(lock, &[]).await.unwrap();
    for enabled in [false, true, false] {
        app.write("PATCH", &one, json!({ "enabled": enabled }))
            .await;
    }
    // Nor does the batch wait for the one that somebody is at work on: it comes with the next.
    let moved = upkeep::follow_all(&app.pool, now()).await.unwrap();
    assert_eq!(i64::try_from(moved).unwrap(), all - 1);
    busy.commit().await.unwrap();
    assert_eq!(app.follow_all().await, 1);
    assert_eq!(app.in_status("HELD").await, all);
    app.write("PATCH", &one, json!({ "enabled": true })).await;
    assert_eq!(app.follow_all().await, 2);
    assert_eq!(app.in_status("PENDING").await, all);
    app.delete(&one).await;
    assert_eq!(app.follow_all().await, 2);
    assert_eq!(app.in_status("FAILED").await, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disabling_an_endpoint_and_a_replay_wait_for_each_other_and_both_succeed() {
    let app = App::start().await;
    let one = app.owe("https://example.com/one", 2).await;
    let disable = app.write("PATCH", &one, json!({ "enabled": false }));
    app.replay_meets(disable).await;
    app.follow_all().await;
    assert_eq!(app.in_status("HELD").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_410_and_a_replay_wait_for_each_other_and_both_succeed() {
    let app = App::start().await;
    let receiver = Receiver::start(&[(StatusCode::GONE, "")]).await;
    let one = app.owe(&receiver.url(), 2).await;
    let gone = async {
        let worker = app.worker();
        eventually("the endpoint is disabled", DEADLINE, || async {
            (app.get(&one).await["enabled"] == false).then_some(())
        })
        .await;
        worker
    };
    let _worker = app.replay_meets(gone).await;
    eventually("the replayed delivery is held", DEADLINE, || async {
        (app.in_status("HELD").await == 1).then_some(())
    })
    .await;
    assert_eq!(app.in_status("FAILED").await, 1);
    assert_eq!(receiver.told().len(), 1);
}

fn endpoint(now: Timestamp) -> Endpoint {
    Endpoint {
        id: Uuid::now_v7(),
        url: "https://example.com".to_owned(),
        events: vec!["job.completed".to_owned()],
        description: None,
        enabled: true,
        disabled_reason: None,
        created_at: now,
        updated_at: now,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_endpoints_at_once_are_not_one_too_many() {
    const LIMIT: i64 = 1;
    let app = App::start().await;
    let tenant = app.tenant.uuid();
    let (mut first, mut second) = (app.pool.get().await.unwrap(), app.pool.get().await.unwrap());
    let first = first.transaction().await.unwrap();
    let one = endpoint(now());
    assert!(
        endpoints::insert(&first, tenant, &one, LIMIT)
            .await
            .unwrap()
    );
    let done = AtomicBool::new(false);
    let insert = async {
        let second = second.transaction().await.unwrap();
        let other = endpoint(now());
        let inserted = endpoints::insert(&second, tenant, &other, LIMIT).await;
        done.store(true, Ordering::SeqCst);
        inserted.unwrap()
    };
    let commit = async {
        app.waits_or(&done).await;
        first.commit().await.unwrap();
    };
    let (inserted, ()) = tokio::join!(insert, commit);
    assert!(!inserted);
}
