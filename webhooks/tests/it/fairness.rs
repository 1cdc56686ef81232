//! Fairness: endpoints that hang or fail take nothing from those that answer, and a long backlog
//! costs a claim nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::Transaction;
use ops::testing::{eventually, examined};
use reqwest::StatusCode;
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpListener};
use uuid::Uuid;
use webhooks::{
    health::IN_FLIGHT_MAX,
    share::{Slots, share_out},
    store::claims,
};

use crate::app::{App, DEADLINE, Receiver, now};

const ENDPOINTS: &str = "/v1/webhooks/endpoints";
/// Few enough that the dead endpoints below could hold them all, at their full share.
const SLOTS: usize = 32;
const DEAD: usize = 8;
const TRUST: &str = "UPDATE webhooks.endpoints SET health = 'TRUSTED'";

/// Takes every connection and never answers.
struct Dead {
    address: SocketAddr,
    hanging: Arc<AtomicUsize>,
}

impl Dead {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hanging = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&hanging);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    while stream
                        .read(&mut [0; 1_024])
                        .await
                        .is_ok_and(|read| read > 0)
                    {}
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, hanging }
    }

    fn url(&self, nth: usize) -> String {
        format!("http://{}/{nth}", self.address)
    }

    async fn hang(&self) {
        eventually("the dead endpoints hang", DEADLINE, || async {
            (self.hanging.load(Ordering::SeqCst) > 0).then_some(())
        })
        .await;
    }
}

impl App {
    /// An endpoint that is owed `deliveries`, the first of them for an hour.
    pub(crate) async fn owe(&self, url: &str, deliveries: usize) -> String {
        // The application's idempotency key is the path.
        let path = format!("{ENDPOINTS}?{url}");
        let created = self.write("POST", &path, json!({ "url": url })).await;
        self.execute(&format!(
            "INSERT INTO webhooks.deliveries (message_id, endpoint_id, tenant_id, event_source,
                event_id, body, status, next_attempt_at, created_at)
            SELECT overlay(gen_random_uuid()::text PLACING '7' FROM 15 FOR 1)::uuid, endpoint_id,
                tenant_id, '/test', n::text, '{{}}', 'PENDING',
                now() - interval '1 hour' + n * interval '1 millisecond', now()
            FROM webhooks.endpoints, generate_series(1, {deliveries}) n WHERE url = '{url}'"
        ))
        .await;
        format!("{ENDPOINTS}/{}", created["endpoint_id"].as_str().unwrap())
    }
}

/// Dead endpoints with long backlogs and this `history`, then a live one beside them.
async fn a_live_endpoint_is_told_beside_dead_ones(history: &str) -> App {
    const EACH: usize = 300;
    let app = App::start().await;
    let (dead, live) = (Dead::start().await, Receiver::start(&[]).await);
    for nth in 0..DEAD {
        app.owe(&dead.url(nth), EACH).await;
    }
    app.execute(history).await;
    let _worker = app.worker_with_slots(SLOTS);
    dead.hang().await;
    app.owe(&live.url(), 200).await;
    live.is_told(200).await;
    let sql = "SELECT count(*) FROM webhooks.deliveries JOIN webhooks.endpoints USING (endpoint_id)
        WHERE status = 'PENDING' AND url NOT LIKE '%/hook'";
    assert_eq!(app.count(sql).await, i64::try_from(DEAD * EACH).unwrap());
    app
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_never_answered_leave_room_for_a_live_one() {
    let app = a_live_endpoint_is_told_beside_dead_ones("").await;
    let sql = "SELECT coalesce(max(under_way), 0) FROM (SELECT count(*) AS under_way
        FROM webhooks.deliveries JOIN webhooks.endpoints USING (endpoint_id)
        WHERE lease_expires_at > now() AND url NOT LIKE '%/hook' GROUP BY endpoint_id) each";
    assert_eq!(app.count(sql).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_failed_for_long_leave_room_for_a_live_one() {
    let history = "UPDATE webhooks.endpoints SET health = 'ON_PROBATION', failures = 99,
        probe_at = now()";
    a_live_endpoint_is_told_beside_dead_ones(history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_die_all_at_once_leave_room_for_a_live_one() {
    a_live_endpoint_is_told_beside_dead_ones(TRUST).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_endpoint_is_probed_and_trusted_again_after_one_success() {
    let app = App::start().await;
    let receiver = Receiver::start(&[(StatusCode::INTERNAL_SERVER_ERROR, ""); 30]).await;
    app.owe(&receiver.url(), 30).await;
    app.execute(TRUST).await;
    let _worker = app.worker();
    let one = |condition: &str| {
        let sql = format!("SELECT count(*) FROM webhooks.endpoints WHERE {condition}");
        let app = &app;
        async move { (app.count(&sql).await == 1).then_some(()) }
    };
    eventually("the circuit opens", DEADLINE, || {
        one("failures > 5 AND health = 'ON_PROBATION'")
    })
    .await;
    receiver.recover();
    eventually("the circuit closes", DEADLINE, || async {
        // The pauses of probes are checked where they are written; here they are cut short.
        app.execute("UPDATE webhooks.endpoints SET probe_at = now() WHERE probe_at > now()")
            .await;
        one("failures = 0 AND health = 'TRUSTED'").await
    })
    .await;
    // The schedule is checked where it is written; here its pauses are cut short.
    app.execute("UPDATE webhooks.deliveries SET next_attempt_at = now() WHERE status = 'PENDING'")
        .await;
    eventually("everything is delivered", DEADLINE, || async {
        let sql = "SELECT count(*) FROM webhooks.deliveries WHERE status = 'DELIVERED'";
        (app.count(sql).await == 30).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_address_is_not_judged_by_the_old_one() {
    let app = App::start().await;
    let (dead, receiver) = (Dead::start().await, Receiver::start(&[]).await);
    let endpoint = app.owe(&dead.url(0), 1).await;
    app.execute(
        "UPDATE webhooks.endpoints SET health = 'ON_PROBATION', failures = 99,
        probe_at = now() + interval '1 day'",
    )
    .await;
    let _worker = app.worker();
    app.write("PATCH", &endpoint, json!({ "url": receiver.url() }))
        .await;
    receiver.is_told(1).await;
    assert_eq!(dead.hanging.load(Ordering::SeqCst), 0);
}

/// What a worker would send now.
async fn choose(transaction: &Transaction<'_>, owner: Uuid) -> Vec<Uuid> {
    let owed = claims::owed(transaction, owner, now()).await.unwrap();
    let slots = Slots {
        all: 256,
        free: 256,
    };
    share_out(&owed, slots, now())
}

async fn claim(transaction: &Transaction<'_>, owner: Uuid, chosen: &[Uuid]) -> usize {
    let ttl = Duration::from_mins(1);
    let claimed = claims::claim(transaction, owner, ttl, chosen, now()).await;
    claimed.unwrap().len()
}

#[tokio::test]
async fn a_claim_reads_a_few_rows_of_a_long_backlog() {
    let app = App::start().await;
    app.owe("https://example.com/dead", 20_000).await;
    app.execute(TRUST).await;
    for statistics in ["", "ANALYZE webhooks.deliveries"] {
        app.execute(statistics).await;
        let mut client = app.pool.get().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let before = examined(&transaction, "webhooks.deliveries").await;
        let owner = Uuid::now_v7();
        let chosen = choose(&transaction, owner).await;
        assert_eq!(claim(&transaction, owner, &chosen).await, IN_FLIGHT_MAX);
        let read = examined(&transaction, "webhooks.deliveries").await - before;
        assert!(read < 200, "{read} after {statistics:?}");
    }
}

#[tokio::test]
async fn two_workers_that_look_at_once_keep_to_one_share() {
    let app = App::start().await;
    app.owe("https://example.com/one", 100).await;
    app.execute(TRUST).await;
    let (mut first, mut second) = (app.pool.get().await.unwrap(), app.pool.get().await.unwrap());
    let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
    let first = first.transaction().await.unwrap();
    let second = second.transaction().await.unwrap();
    let (ones, others) = (choose(&first, one).await, choose(&second, other).await);
    assert_eq!(claim(&first, one, &ones).await, IN_FLIGHT_MAX);
    // Once while the other's claim is open, once after it.
    assert_eq!(claim(&second, other, &others).await, 0);
    first.commit().await.unwrap();
    assert_eq!(claim(&second, other, &others).await, 0);
    assert_eq!(choose(&second, other).await, Vec::<Uuid>::new());
}

#[tokio::test]
async fn what_was_chosen_before_its_endpoint_was_disabled_is_not_claimed() {
    let app = App::start().await;
    let one = app.owe("https://example.com/one", 1).await;
    let mut client = app.pool.get().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let owner = Uuid::now_v7();
    let chosen = choose(&transaction, owner).await;
    assert_eq!(chosen.len(), 1);
    app.write("PATCH", &one, json!({ "enabled": false })).await;
    assert_eq!(claim(&transaction, owner, &chosen).await, 0);
    assert_eq!(choose(&transaction, owner).await, Vec::<Uuid>::new());
}
