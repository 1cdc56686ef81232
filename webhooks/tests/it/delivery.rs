//! Deliveries: told at least once whatever is killed, retried as the schedule says, and never sent
//! where they must not go.

use std::{collections::BTreeMap, time::Duration};

use contracts::id::TenantId;
use ops::testing::eventually;
use reqwest::StatusCode;
use serde_json::json;

use crate::app::{App, DEADLINE, Receiver, completion, now, submission};

const ENDPOINTS: &str = "/v1/webhooks/endpoints";
const DELIVERIES: &str = "/v1/webhooks/deliveries";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_told_twice_is_delivered_once_to_its_tenants_subscribers() {
    let app = App::start().await;
    let receiver = Receiver::start(&[]).await;
    let mut worker = app.worker();
    app.write("POST", ENDPOINTS, json!({ "url": receiver.url() }))
        .await;
    let event = completion(app.tenant);
    let strangers = completion(TenantId::generate(now()));
    let last = completion(app.tenant);
    app.tell(&[
        event.clone(),
        submission(app.tenant),
        event.clone(),
        strangers,
        last,
    ])
    .await;
    let told = receiver.is_told(2).await;
    eventually("all is settled", DEADLINE, || async {
        let sql = "SELECT count(*) FROM webhooks.deliveries WHERE status = 'DELIVERED'";
        (app.count(sql).await == 2).then_some(())
    })
    .await;
    assert_eq!(receiver.told().len(), 2);
    let bodies = told.iter().map(|it| {
        let body: serde_json::Value = serde_json::from_str(&it.body).unwrap();
        (it, body)
    });
    let (first, body) = bodies
        .into_iter()
        .find(|(_, body)| body["data"]["job_id"] == event.job_id)
        .expect("no order is promised between two jobs");
    assert_eq!(body["type"], "job.completed");
    assert_eq!(body["data"]["result"]["bytes"], 3);
    let listed = app
        .get(&format!("{DELIVERIES}?job_id={}", event.job_id))
        .await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    assert_eq!(listed["data"][0]["status"], "DELIVERED");
    assert_eq!(listed["data"][0]["message_id"], first.header("webhook-id"));
    assert_eq!(worker.terminate(Duration::from_secs(30)), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_retried_under_the_same_id_and_a_redirect_is_one() {
    let app = App::start().await;
    let answers = [
        (StatusCode::INTERNAL_SERVER_ERROR, ""),
        (StatusCode::FOUND, "1"),
    ];
    let receiver = Receiver::start(&answers).await;
    let _worker = app.worker();
    app.write("POST", ENDPOINTS, json!({ "url": receiver.url() }))
        .await;
    app.tell(&[completion(app.tenant)]).await;
    for attempts in 1..3 {
        receiver.is_told(attempts).await;
        eventually("the failure is recorded", DEADLINE, || async {
            let sql = "SELECT count(*) FROM webhooks.attempts WHERE status_code >= 300";
            (app.count(sql).await == i64::try_from(attempts).unwrap()).then_some(())
        })
        .await;
        // The schedule is checked where it is written; here its pause is cut short.
        app.execute("UPDATE webhooks.deliveries SET next_attempt_at = now()")
            .await;
    }
    let told = receiver.is_told(3).await;
    let id = told[0].header("webhook-id").to_owned();
    assert!(told.iter().all(|told| told.header("webhook-id") == id));
    let path = format!("{DELIVERIES}/{id}/attempts");
    let attempts = eventually("three attempts", DEADLINE, || async {
        let attempts = app.get(&path).await["data"].clone();
        (attempts[2]["status_code"] == 204).then_some(attempts)
    })
    .await;
    assert_eq!(
        (&attempts[0]["status_code"], &attempts[1]["status_code"]),
        (&json!(500), &json!(302))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_leave_nothing_untold() {
    const EVENTS: usize = 150;
    let app = App::start().await;
    let receiver = Receiver::start(&[]).await;
    app.write("POST", ENDPOINTS, json!({ "url": receiver.url() }))
        .await;
    let events: Vec<_> = (0..EVENTS).map(|_| completion(app.tenant)).collect();
    app.tell(&events).await;
    let mut worker = app.worker();
    for round in 1..4 {
        receiver.is_told(round * 20).await;
        worker.kill();
        // A dead worker's leases run out by themselves; waiting for that would only be slow.
        app.execute(
            "UPDATE webhooks.deliveries SET lease_expires_at = now() - interval '1 s'; \
             UPDATE webhooks.leases SET lease_expires_at = now() - interval '1 s'",
        )
        .await;
        worker = app.worker();
    }
    eventually("everything is delivered", DEADLINE, || async {
        let sql = "SELECT count(*) FROM webhooks.deliveries WHERE status = 'DELIVERED'";
        (app.count(sql).await == i64::try_from(EVENTS).unwrap()).then_some(())
    })
    .await;
    let mut by_job: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for told in receiver.told() {
        let body: serde_json::Value = serde_json::from_str(&told.body).unwrap();
        let ids = by_job
            .entry(body["data"]["job_id"].to_string())
            .or_default();
        ids.push(told.header("webhook-id").to_owned());
    }
    assert_eq!(by_job.len(), EVENTS);
    for ids in by_job.values_mut() {
        ids.dedup();
        assert_eq!(ids.len(), 1, "a repetition keeps its id");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gone_disables_and_what_came_meanwhile_is_kept_until_it_is_enabled() {
    let app = App::start().await;
    let receiver = Receiver::start(&[(StatusCode::GONE, "")]).await;
    let _worker = app.worker();
    let created = app
        .write("POST", ENDPOINTS, json!({ "url": receiver.url() }))
        .await;
    let one = format!("{ENDPOINTS}/{}", created["endpoint_id"].as_str().unwrap());
    app.tell(&[completion(app.tenant)]).await;
    eventually("the endpoint is disabled", DEADLINE, || async {
        (app.get(&one).await["enabled"] == false).then_some(())
    })
    .await;
    app.tell(&[completion(app.tenant)]).await;
    let held = eventually("the next event is held", DEADLINE, || async {
        app.get(&format!("{DELIVERIES}?status=HELD")).await["data"]
            .get(0)
            .cloned()
    })
    .await;
    assert_eq!(receiver.told().len(), 1);
    app.write("PATCH", &one, json!({ "enabled": true })).await;
    let told = receiver.is_told(2).await;
    assert_eq!(told[1].header("webhook-id"), held["message_id"]);
    let given_up = told[0].header("webhook-id");
    app.write(
        "POST",
        &format!("{DELIVERIES}/{given_up}/replay"),
        json!({}),
    )
    .await;
    let told = receiver.is_told(3).await;
    assert_eq!(told[2].header("webhook-id"), given_up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_became_forbidden_is_refused_without_a_retry() {
    let app = App::start().await;
    let receiver = Receiver::start(&[]).await;
    let _worker = app.worker();
    app.write("POST", ENDPOINTS, json!({ "url": receiver.url() }))
        .await;
    // 127.0.0.1 is allowed by name, its neighbour is not.
    app.execute("UPDATE webhooks.endpoints SET url = 'http://127.0.0.2:1/'")
        .await;
    let forbidden = completion(app.tenant);
    app.tell(std::slice::from_ref(&forbidden)).await;
    let path = format!("{DELIVERIES}?job_id={}", forbidden.job_id);
    let delivery = eventually("the delivery is given up", DEADLINE, || async {
        let found = app.get(&path).await["data"].get(0).cloned();
        found.filter(|delivery| delivery["status"] == "FAILED")
    })
    .await;
    assert_eq!(delivery["attempts"], 1);
    assert!(
        delivery["last_error"]
            .as_str()
            .unwrap()
            .contains("not public"),
        "{delivery}"
    );
    assert!(receiver.told().is_empty());
}
