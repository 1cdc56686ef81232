//! Confirmations from the relayer: each applied once, whatever Kafka brings.

use contracts::event::{BatchConfirmed, ConfirmedJob, RELAYER_CONFIRMED, Record, proto_time};
use jobs::{inbox, job::Finality};
use ops::{
    admin::Flag,
    kafka,
    lifecycle::Lifecycle,
    testing::{
        eventually,
        records::{Told, produce},
    },
};
use serde_json::json;

use crate::app::{PATIENCE, TestApp, Who, sealed};

pub(crate) fn finality(app: &TestApp) -> Finality {
    Finality {
        chain_id: 31_337,
        registry: "0x00000000000000000000000000000000000000bb"
            .parse()
            .unwrap(),
        batch_number: 1,
        sequence: 1,
        transaction_hash: [9; 32].into(),
        block_number: 17,
        confirmed_at: app.clock.now(),
    }
}

fn batch(app: &TestApp, who: &Who, number: u64, jobs: &[&str]) -> Record {
    let finality = finality(app);
    let jobs = jobs
        .iter()
        .zip(number * 10..)
        .map(|(job, sequence)| ConfirmedJob {
            job_id: (*job).to_owned(),
            tenant_id: who.claims.tenant.to_string(),
            sequence,
        });
    let batch = BatchConfirmed {
        chain_id: finality.chain_id,
        registry: finality.registry.to_vec(),
        batch_number: number,
        first_sequence: number * 10,
        jobs_root: vec![1; 32],
        transaction_hash: finality.transaction_hash.to_vec(),
        block_number: finality.block_number,
        block_hash: vec![2; 32],
        finalized_at: Some(proto_time(app.clock.now())),
        jobs: jobs.collect(),
    };
    batch.record().unwrap()
}

async fn send(app: &TestApp, record: &Record) {
    let told = Told {
        topic: record.topic,
        key: &record.key,
        headers: record.attributes.headers(),
        value: &record.value,
    };
    produce(&app.kafka, [told]).await;
}

#[tokio::test]
async fn a_batch_told_twice_is_applied_once_and_nonsense_does_not_stop_the_partition() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let mut jobs = Vec::new();
    for text in ["a", "b", "c"] {
        jobs.push(app.submit(&who, &sealed(text)).await);
    }
    app.worker(3).step().await.unwrap();
    let unasked = app.submit(&who, &crate::app::digest("d")).await;
    app.worker(1).step().await.unwrap();

    kafka::ensure_topics(&app.kafka, &[RELAYER_CONFIRMED])
        .await
        .unwrap();
    // All have the same key, and so are taken in one after the other.
    let first = batch(&app, &who, 1, &[&jobs[0], &jobs[1], &unasked]);
    send(&app, &first).await;
    send(&app, &first).await;
    let mut nonsense = batch(&app, &who, 2, &[]);
    nonsense.value = b"nonsense".to_vec();
    send(&app, &nonsense).await;
    send(&app, &batch(&app, &who, 3, &[&jobs[2]])).await;

    let lifecycle = Lifecycle::default();
    let (pool, clock) = (app.pool.clone(), app.clock.clone());
    let inbox = inbox::consumer(pool, app.kafka.clone(), clock, Flag::default());
    lifecycle.spawn("inbox", inbox.run(lifecycle.stopping()));
    eventually("the last batch is applied", PATIENCE, async || {
        let shown = app.show(&who, &jobs[2]).await;
        (shown["blockchain_confirmation"]["status"] == "FINALIZED").then_some(())
    })
    .await;
    lifecycle.stop();
    lifecycle.run_until_stopped(PATIENCE).await;

    for (job, batch, sequence) in [(&jobs[0], 1, 10), (&jobs[1], 1, 11), (&jobs[2], 3, 30)] {
        let events = [
            "job.submitted",
            "job.started",
            "job.completed",
            "job.confirmed",
        ];
        assert_eq!(app.events(job).await, events);
        let confirmation = &app.show(&who, job).await["blockchain_confirmation"];
        assert_eq!(confirmation["batch_number"], batch);
        assert_eq!(confirmation["sequence"], sequence);
        assert_eq!(confirmation["block_number"], 17);
        assert_eq!(
            confirmation["registry"],
            "0x00000000000000000000000000000000000000bb"
        );
    }
    // It was never asked to be confirmed, and did not hold up those that were.
    let shown = app.show(&who, &unasked).await;
    assert_eq!(
        shown["blockchain_confirmation"],
        json!({ "status": "NOT_REQUIRED" })
    );
    let reasons = "SELECT count(*) FROM jobs.dead_letters WHERE reason LIKE '%not protobuf%'";
    assert_eq!(app.count(reasons).await, 1);
    assert_eq!(app.count("SELECT count(*) FROM jobs.dead_letters").await, 1);
}
