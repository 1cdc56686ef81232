//! The four mechanisms against real Postgres and Kafka: what they promise when everything goes
//! well, when two of them run at once, and when one is cut off between any two steps.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test owns its tasks, runs in real time, and fails when it cannot go on"
)]

mod idempotency;
mod inbox;
mod lease;
mod outbox;
mod partitions;
mod postgres;
mod retention;
mod stall;
mod wire;

use std::time::Duration;

use ops::{postgres::Pool, testing::TestDatabase};

/// Long enough for two busy cores, short enough to fail a hung test.
const DEADLINE: Duration = Duration::from_mins(1);

/// A fresh database with the mechanisms' tables in schema `probe`.
async fn database() -> (TestDatabase, Pool) {
    TestDatabase::with_schema("probe", &ops::postgres::mechanisms("probe")).await
}

async fn count(pool: &Pool, sql: &str) -> i64 {
    ops::testing::value(pool, sql).await
}

#[tokio::test]
async fn a_process_refuses_a_schema_it_does_not_know() {
    let database = TestDatabase::create().await;
    let pool = database.pool();
    let all = ops::postgres::migrations("probe", &[("V10__more", "CREATE TABLE probe.more ()")]);
    let missing = ops::postgres::require_schema(&pool, "probe", &all)
        .await
        .unwrap_err();
    assert!(
        missing.to_string().contains("run `migrate` first"),
        "{missing}"
    );
    let (one, two) = tokio::join!(
        ops::postgres::migrate(&pool, "probe", &all),
        ops::postgres::migrate(&pool, "probe", &all),
    );
    one.unwrap();
    two.unwrap();
    ops::postgres::require_schema(&pool, "probe", &all)
        .await
        .unwrap();
    let older = ops::postgres::mechanisms("probe");
    let newer = ops::postgres::require_schema(&pool, "probe", &older)
        .await
        .unwrap_err();
    assert!(
        newer.to_string().contains("newer than this program's"),
        "{newer}"
    );
}
