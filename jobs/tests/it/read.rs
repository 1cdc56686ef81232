//! Seeing jobs: one's own, one's team's, the tenant's, and never anybody else's.

use axum::http::StatusCode;
use contracts::{api::jobs::JobStatus, assertion::Scope, job_type::JobType};
use jiff::SignedDuration;
use jobs::store::{Filter, Viewer, list};
use ops::testing::examined;
use serde_json::{Value, json};

use crate::app::{TestApp, Who, digest, fail, sealed, sleep};

async fn ids(app: &TestApp, who: &Who, query: &str) -> (Vec<String>, Option<String>) {
    let answer = app.get(who, &format!("/v1/jobs{query}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let data = answer.body["data"].as_array().unwrap();
    let ids = data
        .iter()
        .map(|job| job["job_id"].as_str().unwrap().to_owned())
        .collect();
    (ids, answer.body["next_cursor"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn a_list_is_walked_by_its_cursor_newest_first() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let mut submitted = Vec::new();
    for index in 0..5 {
        app.clock.advance(SignedDuration::from_millis(2));
        submitted.insert(0, app.submit(&who, &digest(&index.to_string())).await);
    }
    let mut walked = Vec::new();
    let mut query = "?limit=2".to_owned();
    loop {
        let (page, next) = ids(&app, &who, &query).await;
        assert!(page.len() <= 2);
        walked.extend(page);
        let Some(next) = next else { break };
        query = format!("?limit=2&cursor={next}");
        // What comes meanwhile is newer than the page before and moves nothing.
        app.clock.advance(SignedDuration::from_millis(2));
        app.submit(&who, &digest("new")).await;
    }
    assert_eq!(walked, submitted);
    let bad = app.get(&who, "/v1/jobs?cursor=x").await;
    assert_eq!(bad.code(), "INVALID_REQUEST");
}

#[tokio::test]
async fn a_list_is_filtered_by_status_and_type() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let done = app.submit(&who, &digest("a")).await;
    app.worker(1).step().await.unwrap();
    let waiting = app.submit(&who, &sleep(1)).await;
    assert_eq!(
        ids(&app, &who, "?status=COMPLETED").await.0,
        std::slice::from_ref(&done)
    );
    assert_eq!(
        ids(&app, &who, "?status=PENDING&type=sleep").await.0,
        [waiting]
    );
    assert_eq!(ids(&app, &who, "?type=digest").await.0, [done]);
    assert_eq!(
        app.get(&who, "/v1/jobs?status=DONE").await.code(),
        "INVALID_REQUEST"
    );
}

#[tokio::test]
async fn a_list_by_status_or_type_reads_a_few_rows_of_many_jobs() {
    const MANY: usize = 20_000;
    let app = TestApp::start().await;
    let who = app.somebody();
    let failed = app.submit(&who, &fail(&json!({}))).await;
    app.submit(&who, &digest("a")).await;
    app.worker(3).step().await.unwrap();
    let client = app.pool.get().await.unwrap();
    // The digest over and over, with ids on either side of the one that failed.
    let columns = "SELECT string_agg(quote_ident(column_name), ', ') \
        FROM information_schema.columns WHERE table_schema = 'jobs' AND table_name = 'jobs' \
        AND column_name <> 'job_id'";
    let columns: String = client.query_one(columns, &[]).await.unwrap().get(0);
    let fill = format!(
        "INSERT INTO jobs.jobs (job_id, {columns}) SELECT gen_random_uuid(), {columns}
        FROM jobs.jobs, generate_series(1, {MANY}) WHERE job_type = 'digest'"
    );
    client.batch_execute(&fill).await.unwrap();
    drop(client);
    let everybody = Viewer {
        tenant: who.claims.tenant,
        everything: true,
        subject: who.claims.subject.clone(),
        team: None,
    };
    let own = Viewer {
        everything: false,
        ..everybody.clone()
    };
    let of_status = Filter {
        status: Some(JobStatus::Failed),
        ..Filter::default()
    };
    let of_type = Filter {
        job_type: Some(JobType::Fail),
        ..Filter::default()
    };
    for statistics in ["", "ANALYZE jobs.jobs"] {
        for (viewer, filter) in [
            (&everybody, &of_status),
            (&own, &of_status),
            (&everybody, &of_type),
        ] {
            let mut client = app.pool.get().await.unwrap();
            client.batch_execute(statistics).await.unwrap();
            let transaction = client.transaction().await.unwrap();
            let before = examined(&transaction, "jobs.jobs").await;
            let found = list(&transaction, viewer, filter, 50).await.unwrap();
            let read = examined(&transaction, "jobs.jobs").await - before;
            let found: Vec<String> = found
                .iter()
                .map(|record| record.job.facts.id.to_string())
                .collect();
            assert_eq!(found, std::slice::from_ref(&failed));
            assert!(read < 20, "{read} for {filter:?} after {statistics:?}");
        }
    }
}

#[tokio::test]
async fn a_list_that_takes_too_long_is_given_up() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let mut client = app.pool.get().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let lock = "LOCK TABLE jobs.jobs IN ACCESS EXCLUSIVE MODE";
    transaction.batch_execute(lock).await.unwrap();
    let answer = app.get(&who, "/v1/jobs").await;
    assert_eq!(answer.code(), "SERVICE_UNAVAILABLE", "{}", answer.body);
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn another_tenants_and_another_users_jobs_do_not_exist() {
    let app = TestApp::start().await;
    let owner = app.somebody().in_team("red");
    let job = app.submit(&owner, &digest("a")).await;
    let path = format!("/v1/jobs/{job}");
    let teammate = owner.colleague("user_2").with_scope(Scope::JobsReadTeam);
    let strangers = [
        app.somebody(),
        app.somebody().with_scope(Scope::JobsAdmin),
        owner.colleague("user_2"),
        teammate.clone().in_team("blue"),
    ];
    for stranger in &strangers {
        for path in [path.clone(), format!("{path}/events")] {
            let answer = app.get(stranger, &path).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code()),
                (404, "JOB_NOT_FOUND")
            );
        }
        assert_eq!(app.cancel(stranger, &job).await.code(), "JOB_NOT_FOUND");
        assert!(ids(&app, stranger, "").await.0.is_empty());
    }
    for unknown in ["job_0", "x", &job.replace("job_", "")] {
        let answer = app.get(&owner, &format!("/v1/jobs/{unknown}")).await;
        assert_eq!(answer.code(), "JOB_NOT_FOUND");
    }
    let admin = owner.colleague("user_3").with_scope(Scope::JobsAdmin);
    for insider in [&owner, &teammate, &admin] {
        assert_eq!(app.show(insider, &job).await["subject"], "user_1");
        assert_eq!(ids(&app, insider, "").await.0, std::slice::from_ref(&job));
    }
    // A team's members see each other's jobs, but end only their own.
    assert_eq!(app.cancel(&teammate, &job).await.code(), "ACCESS_DENIED");
    assert_eq!(app.cancel(&admin, &job).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_job_is_shown_whole() {
    let app = TestApp::start().await;
    let who = app.somebody();
    let mut body = sealed("abc");
    body["metadata"] = json!({ "order": "17" });
    body["priority"] = json!(7);
    let job = app.submit(&who, &body).await;
    let waiting = app.show(&who, &job).await;
    assert_eq!(waiting["status"], "PENDING");
    assert_eq!(
        waiting["blockchain_confirmation"],
        json!({ "status": "QUEUED" })
    );
    assert_eq!(waiting["result"], Value::Null);
    app.worker(1).step().await.unwrap();
    let done = app.show(&who, &job).await;
    assert_eq!(done["status"], "COMPLETED");
    assert_eq!(done["type"], "digest");
    assert_eq!(done["attempts"], 1);
    assert_eq!(done["priority"], 7);
    assert_eq!(done["metadata"], json!({ "order": "17" }));
    assert_eq!(done["result"]["bytes"], 3);
    assert_eq!(done["blockchain_confirmation"]["status"], "QUEUED");
    assert!(done["ended_at"].is_string() && done["compute_ms"].is_u64());
}
