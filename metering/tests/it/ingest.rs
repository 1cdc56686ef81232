//! Exactly once: whatever is told twice, killed, garbled or late.

use contracts::event::{Confirmed, Kind, Record, USAGE_RECORDED};
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;

use crate::app::{App, DEADLINE, call, job_event, job_life, now, output, tenant};
use ops::testing::eventually;

/// Calls and jobs of a few tenants, some 5,000 raw events.
fn crowd(tenants: usize, calls: usize, jobs: usize) -> Vec<Record> {
    let time = now();
    let mut records = Vec::new();
    for _ in 0..tenants {
        let tenant = tenant();
        records.extend((0..calls).map(|_| call(tenant, time).record().unwrap()));
        records.extend((0..jobs).flat_map(|_| job_life(tenant, time)));
    }
    records
}

/// What `crowd` must come to, by unit.
fn expected(tenants: usize, calls: usize, jobs: usize) -> Vec<(String, Decimal)> {
    let sums = [
        ("CALL", tenants * calls),
        ("COMPUTE_UNIT", tenants * jobs * 3),
        ("CONFIRMATION", tenants * jobs),
        ("JOB", tenants * jobs),
        ("MILLISECOND", tenants * jobs * 40),
    ];
    sums.map(|(unit, sum)| (unit.to_owned(), Decimal::from(sum)))
        .to_vec()
}

async fn events(app: &App) -> i64 {
    app.number("SELECT count(*) FROM metering.events").await
}

#[tokio::test]
async fn what_is_told_twice_is_billed_once() {
    let app = App::start().await;
    let told = crowd(2, 30, 10);
    app.produce(&told).await;
    app.produce(&told).await;
    let mut ingest = app.ingest();
    app.until_caught_up().await;
    let sums: Vec<_> = app.sums().await.into_iter().collect();
    assert_eq!(sums, expected(2, 30, 10));

    // Nor does it hang on the inbox's memory alone: the raw events know their identities.
    app.pool
        .get()
        .await
        .unwrap()
        .execute("TRUNCATE metering.inbox_events", &[])
        .await
        .unwrap();
    app.produce(&told).await;
    app.until_caught_up().await;
    let sums: Vec<_> = app.sums().await.into_iter().collect();
    assert_eq!(sums, expected(2, 30, 10));
    app.assert_reconciled().await;
    let (code, said) = output(app.command(&["check", "--reconcile"]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ingest.terminate(DEADLINE), Some(0));
}

#[tokio::test]
async fn killed_over_and_over_it_still_bills_each_event_exactly_once() {
    let app = App::start().await;
    let (tenants, calls, jobs) = (5, 500, 125);
    let told = crowd(tenants, calls, jobs);
    let mut rest = told.as_slice();
    for round in 0..3 {
        let before = events(&app).await;
        let (part, later) = rest.split_at(told.len() / 4);
        rest = later;
        let mut ingest = app.ingest();
        app.produce(part).await;
        eventually("some events are in", DEADLINE, || async {
            (events(&app).await > before).then_some(())
        })
        .await;
        ingest.kill();
        assert!(events(&app).await > before, "round {round}");
        app.assert_reconciled().await;
    }
    let _ingest = app.ingest();
    app.produce(rest).await;
    app.until_caught_up().await;
    let sums: Vec<_> = app.sums().await.into_iter().collect();
    assert_eq!(sums, expected(tenants, calls, jobs));
    app.assert_reconciled().await;
    assert_eq!(
        app.number("SELECT count(*) FROM metering.dead_letters")
            .await,
        0
    );
    assert_eq!(
        app.number("SELECT count(*) FROM metering.quarantine").await,
        0
    );
}

#[tokio::test]
async fn of_two_processes_one_works_and_the_other_takes_over() {
    let app = App::start().await;
    let told = crowd(3, 200, 50);
    let (first, second) = told.split_at(told.len() / 2);
    let mut one = app.ingest();
    app.produce(first).await;
    app.until_caught_up().await;
    let mut two = app.ingest();
    app.produce(second).await;
    one.kill();
    app.until_caught_up().await;
    let sums: Vec<_> = app.sums().await.into_iter().collect();
    assert_eq!(sums, expected(3, 200, 50));
    app.assert_reconciled().await;
    assert_eq!(two.terminate(DEADLINE), Some(0));
}

#[tokio::test]
async fn what_cannot_be_read_is_a_dead_letter_and_what_follows_is_billed() {
    let app = App::start().await;
    let tenant = tenant();
    let (good, after) = (call(tenant, now()).record().unwrap(), call(tenant, now()));
    let garbled = Record {
        value: vec![0xff; 7],
        ..call(tenant, now()).record().unwrap()
    };
    let mut nobodys = call(tenant, now());
    nobodys.tenant_id = "acme".to_owned();
    // One partition for all: what follows the bad ones must wait for them.
    let nobodys = Record {
        key: good.key.clone(),
        ..nobodys.record().unwrap()
    };
    let after = after.record().unwrap();
    app.produce(&[good, garbled, nobodys, after]).await;
    let mut ingest = app.ingest();
    app.until_caught_up().await;
    let sql = "SELECT reason FROM metering.dead_letters ORDER BY record_offset";
    let reasons = app.texts(sql).await;
    let [first, second] = reasons.as_slice() else {
        panic!("{reasons:?}")
    };
    assert!(first.contains("not protobuf"), "{first}");
    assert!(second.contains("tenant_id"), "{second}");
    assert_eq!(
        app.texts("SELECT topic FROM metering.dead_letters").await[0],
        USAGE_RECORDED
    );
    assert_eq!(events(&app).await, 2);
    app.assert_reconciled().await;
    assert_eq!(ingest.terminate(DEADLINE), Some(0));
}

#[tokio::test]
async fn a_late_event_reopens_its_hour_and_one_beyond_the_window_is_kept_aside() {
    let app = App::start().await;
    let tenant = tenant();
    let ago = |days: i64| now() - SignedDuration::from_hours(24 * days);
    let (late, too_late) = (ago(34), ago(36));
    let told = |time: Timestamp| call(tenant, time).record().unwrap();
    let mut ingest = app.ingest();
    app.produce(&[told(late)]).await;
    app.until_caught_up().await;
    let sql = "SELECT quantity::bigint FROM metering.aggregates";
    assert_eq!(app.number(sql).await, 1);

    app.produce(&[told(late), told(too_late)]).await;
    // Its id is of today, but it says it happened long ago.
    let claims = Kind::Confirmed(Confirmed::default());
    let job = contracts::id::JobId::generate(now());
    app.produce(&[job_event(tenant, job, 1, too_late, claims)])
        .await;
    app.until_caught_up().await;
    assert_eq!(app.number(sql).await, 2);
    assert_eq!(events(&app).await, 2);
    let reasons = app
        .texts("SELECT reason FROM metering.quarantine ORDER BY reason")
        .await;
    assert_eq!(
        reasons,
        ["id_older_than_35_days", "occurred_outside_the_window"]
    );
    app.assert_reconciled().await;
    assert_eq!(ingest.terminate(DEADLINE), Some(0));
}

#[tokio::test]
async fn a_missing_raw_event_is_found_and_named() {
    let app = App::start().await;
    let tenant = tenant();
    app.produce(&[call(tenant, now()).record().unwrap()]).await;
    let _ingest = app.ingest();
    app.until_caught_up().await;
    app.pool
        .get()
        .await
        .unwrap()
        .execute("DELETE FROM metering.events", &[])
        .await
        .unwrap();
    let (code, said) = output(app.command(&["check", "--reconcile"]));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("differs: {tenant}")), "{said}");
    assert!(
        said.contains("API_USAGE CALL: raw events 0 (0), aggregate 1 (1)"),
        "{said}"
    );
}
