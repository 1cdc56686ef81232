//! One answer per key: under concurrency, after a rollback, and after expiry.

use jiff::{SignedDuration, Timestamp};
use ops::idempotency::{Claim, Request, claim};
use ops::postgres::Pool;
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::json;
use uuid::Uuid;

use crate::{count, database};

async fn in_an_hour(pool: &Pool) -> Timestamp {
    ops::testing::value(pool, "SELECT clock_timestamp() + interval '1 hour'").await
}

async fn once(
    pool: &Pool,
    request: Request<'_>,
    answer: serde_json::Value,
    expires_at: Timestamp,
) -> Claim {
    let mut client = pool.get().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let outcome = claim(&transaction, "probe", request, &answer, expires_at)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_is_fresh_and_all_get_its_answer() {
    let (_database, pool) = database().await;
    let (tenant, expires_at) = (Uuid::now_v7(), in_an_hour(&pool).await);
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let request = Request {
                    tenant,
                    key: "order-1",
                    hash: [1; 32],
                };
                (
                    n,
                    once(&pool, request, json!({ "by": n }), expires_at).await,
                )
            })
        })
        .collect();
    let (mut fresh, mut replayed) = (Vec::new(), Vec::new());
    for task in tasks {
        match task.await.unwrap() {
            (n, Claim::Fresh) => fresh.push(json!({ "by": n })),
            (_, Claim::Replay(answer)) => replayed.push(answer),
            (_, Claim::Mismatch) => panic!("the same request"),
        }
    }
    assert_eq!((fresh.len(), replayed.len()), (1, 19));
    assert!(replayed.iter().all(|answer| *answer == fresh[0]));
}

#[tokio::test]
async fn a_rollback_frees_the_key_and_another_tenant_never_holds_it() {
    let (_database, pool) = database().await;
    let expires_at = in_an_hour(&pool).await;
    let request = Request {
        tenant: Uuid::now_v7(),
        key: "k",
        hash: [1; 32],
    };
    let mut client = pool.get().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let outcome = claim(&transaction, "probe", request, &json!(1), expires_at)
        .await
        .unwrap();
    assert_eq!(outcome, Claim::Fresh);
    transaction.rollback().await.unwrap();

    assert_eq!(
        once(&pool, request, json!(2), expires_at).await,
        Claim::Fresh
    );
    let stranger = Request {
        tenant: Uuid::now_v7(),
        ..request
    };
    assert_eq!(
        once(&pool, stranger, json!(3), expires_at).await,
        Claim::Fresh
    );
    let other = Request {
        hash: [2; 32],
        ..request
    };
    assert_eq!(
        once(&pool, other, json!(4), expires_at).await,
        Claim::Mismatch
    );
    assert_eq!(
        once(&pool, request, json!(5), expires_at).await,
        Claim::Replay(json!(2))
    );
}

#[tokio::test]
async fn an_expired_key_is_free_for_any_request_and_is_swept() {
    let (_database, pool) = database().await;
    let expires_at = in_an_hour(&pool).await;
    let past = expires_at - SignedDuration::from_hours(2);
    let request = Request {
        tenant: Uuid::now_v7(),
        key: "k",
        hash: [1; 32],
    };
    assert_eq!(once(&pool, request, json!(1), past).await, Claim::Fresh);
    let other = Request {
        hash: [2; 32],
        ..request
    };
    assert_eq!(once(&pool, other, json!(2), expires_at).await, Claim::Fresh);
    assert_eq!(
        once(&pool, request, json!(3), expires_at).await,
        Claim::Mismatch
    );
    let old = Request {
        key: "old",
        ..request
    };
    assert_eq!(once(&pool, old, json!(4), past).await, Claim::Fresh);
    assert_eq!(ops::retention::sweep(&pool, "probe").await.unwrap(), 1);
    assert_eq!(
        count(&pool, "SELECT count(*) FROM probe.idempotency_keys").await,
        1
    );
}

/// Random requests on few keys against the obvious model: the first of a key decides.
#[test]
fn the_first_request_of_a_key_decides_all_later_answers() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_database, pool) = runtime.block_on(database());
    let expires_at = runtime.block_on(in_an_hour(&pool));
    let requests = proptest::collection::vec((0..2_u8, 0..3_u8, 0..2_u8), 1..25);
    TestRunner::new(ProptestConfig::with_cases(16))
        .run(&requests, |requests| {
            let tenants = [Uuid::now_v7(), Uuid::now_v7()];
            let mut model = std::collections::HashMap::new();
            for (n, (tenant, key, hash)) in requests.into_iter().enumerate() {
                let (hash, text) = ([hash; 32], key.to_string());
                let request = Request {
                    tenant: tenants[tenant as usize],
                    key: &text,
                    hash,
                };
                let got = runtime.block_on(once(&pool, request, json!(n), expires_at));
                let wanted = match model.get(&(tenant, key)) {
                    None => Claim::Fresh,
                    Some((first, answer)) if *first == hash => Claim::Replay(json!(answer)),
                    Some(_) => Claim::Mismatch,
                };
                prop_assert_eq!(got, wanted);
                model.entry((tenant, key)).or_insert((hash, n));
            }
            Ok(())
        })
        .unwrap();
}
