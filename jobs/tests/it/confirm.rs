//! Confirmations from the relayer: each applied once, whatever Kafka brings, and only if it fits.

use std::time::Instant;

use alloy::primitives::{Address, B256};
use contracts::{
    event::{BatchConfirmed, ConfirmedJob, RELAYER_CONFIRMED, Record, proto_time},
    id::{JobId, TenantId},
    merkle::JobsTree,
    registry::{Leaf, LeafStatus, chain_job_id, tenant_hash},
};
use jobs::{
    inbox,
    job::Finality,
    store::{self, Batch, Place},
};
use ops::{
    admin::Flag,
    kafka,
    lifecycle::Lifecycle,
    testing::{
        eventually,
        records::{Told, produce},
    },
};
use serde_json::{Value, json};

use crate::app::{PATIENCE, TestApp, Who, digest, sealed};

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

/// The root of the tree of jobs that ended, each with its sequence; none if one did not.
pub(crate) async fn root(app: &TestApp, jobs: &[(&str, u64)]) -> B256 {
    let client = app.pool.get().await.unwrap();
    let sql = "SELECT tenant_id, submitter, content_hash, outcome_hash, status FROM jobs.jobs
        WHERE job_id = $1 AND outcome_hash IS NOT NULL";
    let mut leaves = Vec::new();
    for (job, sequence) in jobs {
        let job: JobId = job.parse().unwrap();
        let Some(row) = client.query_opt(sql, &[&job.uuid()]).await.unwrap() else {
            return B256::ZERO;
        };
        let word = |column| B256::from_slice(row.get(column));
        let leaf = Leaf {
            sequence: *sequence,
            jobId: chain_job_id(job),
            submitter: Address::from_slice(row.get("submitter")),
            tenant: tenant_hash(TenantId::from_uuid(row.get("tenant_id"))),
            contentHash: word("content_hash"),
            resultHash: word("outcome_hash"),
            status: match row.get("status") {
                "COMPLETED" => LeafStatus::Completed.as_u8(),
                _ => LeafStatus::Failed.as_u8(),
            },
        };
        leaves.push(leaf.hash());
    }
    JobsTree::new(&leaves).map_or(B256::ZERO, |tree| tree.root())
}

async fn batch(app: &TestApp, tenant: TenantId, number: u64, jobs: &[&str]) -> BatchConfirmed {
    let finality = finality(app);
    let places: Vec<(&str, u64)> = jobs.iter().copied().zip(number * 10..).collect();
    let jobs = places.iter().map(|(job, sequence)| ConfirmedJob {
        job_id: (*job).to_owned(),
        tenant_id: tenant.to_string(),
        sequence: *sequence,
    });
    BatchConfirmed {
        chain_id: finality.chain_id,
        registry: finality.registry.to_vec(),
        batch_number: number,
        first_sequence: number * 10,
        jobs_root: root(app, &places).await.to_vec(),
        transaction_hash: finality.transaction_hash.to_vec(),
        block_number: finality.block_number,
        block_hash: vec![2; 32],
        finalized_at: Some(proto_time(app.clock.now())),
        jobs: jobs.collect(),
    }
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

/// Takes in all that was sent, until `last` is final.
async fn take_in_until_final(app: &TestApp, who: &Who, last: &str) {
    let lifecycle = Lifecycle::default();
    let (pool, clock) = (app.pool.clone(), app.clock.clone());
    let inbox = inbox::consumer(pool, app.kafka.clone(), clock, Flag::default());
    lifecycle.spawn("inbox", inbox.run(lifecycle.stopping()));
    eventually("the last batch is applied", PATIENCE, async || {
        let shown = app.show(who, last).await;
        (shown["blockchain_confirmation"]["status"] == "FINALIZED").then_some(())
    })
    .await;
    lifecycle.stop();
    lifecycle.run_until_stopped(PATIENCE).await;
}

async fn computed(app: &TestApp, who: &Who, jobs: &[Value]) -> Vec<String> {
    let mut ids = Vec::new();
    for job in jobs {
        ids.push(app.submit(who, job).await);
    }
    assert_eq!(app.worker(8).step().await.unwrap(), jobs.len());
    ids
}

#[tokio::test]
async fn a_batch_told_twice_is_applied_once_and_nonsense_does_not_stop_the_partition() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let tenant = who.claims.tenant;
    let jobs = computed(&app, &who, &["a", "b", "c"].map(sealed)).await;

    kafka::ensure_topics(&app.kafka, &[RELAYER_CONFIRMED])
        .await
        .unwrap();
    // All have the same key, and so are taken in one after the other.
    let first = batch(&app, tenant, 1, &[&jobs[0], &jobs[1]]).await;
    let first = first.record().unwrap();
    send(&app, &first).await;
    send(&app, &first).await;
    // The same under another name, as after the identities were forgotten: mined once more, too.
    let mut again = batch(&app, tenant, 1, &[&jobs[0], &jobs[1]]).await;
    again.block_number += 1;
    let mut again = again.record().unwrap();
    again.attributes.id.push_str("-again");
    send(&app, &again).await;
    let mut nonsense = batch(&app, tenant, 2, &[]).await.record().unwrap();
    nonsense.value = b"nonsense".to_vec();
    send(&app, &nonsense).await;
    let last = batch(&app, tenant, 3, &[&jobs[2]]).await;
    send(&app, &last.record().unwrap()).await;
    take_in_until_final(&app, &who, &jobs[2]).await;

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
    let reasons = "SELECT count(*) FROM jobs.dead_letters WHERE reason LIKE '%not protobuf%'";
    assert_eq!(app.count(reasons).await, 1);
    assert_eq!(app.count("SELECT count(*) FROM jobs.dead_letters").await, 1);
}

#[tokio::test]
async fn a_batch_that_does_not_fit_its_jobs_is_a_dead_letter_with_the_reason_and_moves_none() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let tenant = who.claims.tenant;
    let mut asked = ["a", "b", "c"].map(sealed).to_vec();
    asked.push(digest("d"));
    let jobs = computed(&app, &who, &asked).await;
    let [good, last, misfit, unasked] = [&jobs[0], &jobs[1], &jobs[2], &jobs[3]];
    let waiting = app.submit(&who, &sealed("e")).await;
    let unknown = JobId::generate(app.clock.now()).to_string();
    let stranger = TenantId::generate(app.clock.now());

    let mut other_result = batch(&app, tenant, 6, &[misfit]).await;
    other_result.jobs_root = vec![1; 32];
    let mut twice = batch(&app, tenant, 7, &[misfit]).await;
    twice.jobs.push(twice.jobs[0].clone());
    kafka::ensure_topics(&app.kafka, &[RELAYER_CONFIRMED])
        .await
        .unwrap();
    for batch in [
        batch(&app, tenant, 1, &[good]).await,
        batch(&app, tenant, 2, &[misfit, &unknown]).await,
        batch(&app, stranger, 3, &[misfit]).await,
        batch(&app, tenant, 4, &[misfit, unasked]).await,
        batch(&app, tenant, 5, &[misfit, &waiting]).await,
        other_result,
        twice,
        // Each job has one sequence.
        batch(&app, tenant, 8, &[misfit, good]).await,
        batch(&app, tenant, 9, &[last]).await,
    ] {
        send(&app, &batch.record().unwrap()).await;
    }
    take_in_until_final(&app, &who, last).await;

    let client = app.pool.get().await.unwrap();
    let sql = "SELECT reason FROM jobs.dead_letters ORDER BY record_offset";
    let rows = client.query(sql, &[]).await.unwrap();
    let reasons: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    for (reason, part) in reasons.iter().zip([
        "is none of our jobs",
        "is not the job of tenant_",
        "COMPLETED (NOT_REQUIRED)",
        "PENDING (QUEUED)",
        "root",
        "jobs is malformed",
        "COMPLETED (FINALIZED)",
    ]) {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_eq!(reasons.len(), 7, "{reasons:?}");
    let shown = app.show(&who, misfit).await;
    assert_eq!(
        shown["blockchain_confirmation"],
        json!({ "status": "QUEUED" })
    );
}

/// Measured on two busy cores, built as tests are: 0.08 s, and 0.19 s in a table of 100,000 jobs.
#[tokio::test]
async fn the_largest_batch_is_marked_and_told_in_a_statement_for_each_table() {
    const JOBS: i64 = 1_024;
    let app = TestApp::start().await;
    let who = app.somebody();
    let tenant = who.claims.tenant;
    computed(&app, &who, &[sealed("a")]).await;
    let mut client = app.pool.get().await.unwrap();
    let copies = "INSERT INTO jobs.jobs SELECT (jsonb_populate_record(job, jsonb_build_object(
        'job_id', overlay(gen_random_uuid()::text PLACING '7' FROM 15 FOR 1)))).*
        FROM jobs.jobs AS job, generate_series(2, $1::bigint)";
    client.execute(copies, &[&JOBS]).await.unwrap();
    let rows = client.query("SELECT job_id FROM jobs.jobs", &[]).await;
    let ids: Vec<_> = rows.unwrap().iter().map(|row| row.get(0)).collect();
    let ids: Vec<JobId> = ids.into_iter().map(JobId::from_uuid).collect();
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let sequences: Vec<_> = names.iter().map(String::as_str).zip(1..).collect();
    let jobs_root = root(&app, &sequences).await;
    let place = |sequence| Place {
        tenant,
        finality: Finality {
            sequence,
            ..finality(&app)
        },
    };
    let places = ids.into_iter().zip((1..).map(place)).collect();
    let batch = Batch { jobs_root, places };
    count_statements(&app).await;

    let began = Instant::now();
    let transaction = client.transaction().await.unwrap();
    let fits = store::confirm(&transaction, &batch, app.clock.now()).await;
    fits.unwrap().unwrap();
    transaction.commit().await.unwrap();
    let took = began.elapsed();

    let told = "SELECT count(*) FROM jobs.outbox WHERE ce_type = 'job.confirmed'";
    assert_eq!(app.count(told).await, JOBS);
    let statements = app.count("SELECT last_value FROM statements").await;
    assert_eq!(statements, 3, "took {took:?}");
}

/// From now on counts the statements that write to the tables of jobs, their events and the outbox.
async fn count_statements(app: &TestApp) {
    let tables = ["jobs", "job_events", "outbox"].map(|table| {
        format!(
            "CREATE TRIGGER count_statement AFTER INSERT OR UPDATE ON jobs.{table}
            EXECUTE FUNCTION count_statement();"
        )
    });
    let sql = format!(
        "CREATE SEQUENCE statements START 0 MINVALUE 0; SELECT nextval('statements');
        CREATE FUNCTION count_statement() RETURNS trigger LANGUAGE plpgsql
            AS $$BEGIN PERFORM nextval('statements'); RETURN NULL; END$$; {}",
        tables.concat()
    );
    let client = app.pool.get().await.unwrap();
    client.batch_execute(&sql).await.unwrap();
}
