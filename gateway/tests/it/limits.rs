//! Rate limits: the published headers, the refusal, the recovery, and the way on without Redis.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use contracts::id::TenantId;
use gateway::{
    limit::{Limiter, generation::Generation},
    redis::Redis,
    sight::PlanLabel,
    snapshot::{Plan, Tenant},
};
use ops::{
    clock::Clock,
    testing::{eventually, prefix, service},
};
use reqwest::{Method, Response, StatusCode};
use serde_json::json;

use crate::{
    app::{self, App, problem},
    redis,
};

fn number(response: &Response, name: &str) -> i64 {
    response.headers()[name].to_str().unwrap().parse().unwrap()
}

async fn counted(app: &App) {
    // The first request may come before Redis is connected, and then counts locally.
    eventually("Redis counts", Duration::from_secs(5), async || {
        let response = app.get("/v1/jobs").await;
        (response.status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_limit_is_published_enforced_and_recovers_as_told() {
    let plan = "--per-minute 120 --burst 5 --per-hour 1000";
    let app = app::start_with_plan(&[("GATEWAYS_MAX", "1")], plan).await;
    counted(&app).await;
    let mut refused = None;
    for _ in 0..10 {
        let response = app.get("/v1/jobs").await;
        let policy = response.headers()["ratelimit-policy"].to_str().unwrap();
        assert_eq!(policy, "\"minute\";q=120;w=60, \"hour\";q=1000;w=3600");
        assert_eq!(number(&response, "x-ratelimit-limit"), 120);
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(response);
            break;
        }
        assert_eq!(response.status(), StatusCode::OK);
    }
    let refused = refused.expect("a burst of 5 does not hold 10");
    let retry_after = number(&refused, "retry-after");
    assert!((1..=2).contains(&retry_after), "{retry_after}");
    assert_eq!(number(&refused, "x-ratelimit-remaining"), 0);
    let limit = refused.headers()["ratelimit"].to_str().unwrap();
    assert!(
        limit.starts_with(&format!("\"minute\";r=0;t={retry_after}")),
        "{limit}"
    );
    let hits = app.upstreams.seen.count();
    let problem = problem(refused).await;
    assert_eq!(problem["code"], "RATE_LIMIT_EXCEEDED");
    assert_eq!(problem["retry_after"], retry_after);
    assert_eq!(problem["violated-policies"], json!(["minute"]));
    assert!(
        problem["type"]
            .as_str()
            .unwrap()
            .ends_with("quota-exceeded")
    );
    assert_eq!(app.upstreams.seen.count(), hits);
    tokio::time::sleep(Duration::from_secs(u64::try_from(retry_after).unwrap())).await;
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn buckets_that_redis_evicted_are_as_they_were_last_seen() {
    let plan = "--per-minute 60 --burst 10 --per-hour 1000";
    let app = app::start_with_plan(&[("GATEWAYS_MAX", "1")], plan).await;
    let (url, prefix) = (app.variable("REDIS_URL"), app.variable("REDIS_PREFIX"));
    let evict = async || {
        for key in redis::keys(url, &format!("{prefix}:rate:")).await {
            let _: i64 = redis::ask(url, &["DEL", &key]).await;
        }
    };
    counted(&app).await;
    // Not empty, as after a flush: nobody else's keys shall cost a tenant its own tokens.
    evict().await;
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
    while app.get("/v1/jobs").await.status() == StatusCode::OK {}
    // And not full.
    evict().await;
    let mut admitted = 0;
    for _ in 0..10 {
        admitted += u32::from(app.get("/v1/jobs").await.status() == StatusCode::OK);
    }
    assert!(admitted <= 3, "{admitted}");
}

#[tokio::test]
async fn buckets_of_an_earlier_time_are_at_best_as_they_were_last_seen() {
    let plan = "--per-minute 60 --burst 10 --per-hour 100000";
    let app = app::start_with_plan(&[("GATEWAYS_MAX", "1")], plan).await;
    let (url, prefix) = (app.variable("REDIS_URL"), app.variable("REDIS_PREFIX"));
    counted(&app).await;
    let place = redis::keys(url, &format!("{prefix}:rate:")).await.remove(0);
    let then: String = redis::ask(url, &["HGET", &place, "at"]).await;
    while app.get("/v1/jobs").await.status() == StatusCode::OK {}
    // As from a snapshot of when they were full.
    let full = ["HSET", &place, "at", &then, "t1", "10", "t2", "100000"];
    let _: i64 = redis::ask(url, &full).await;
    counted(&app).await;
    let mut admitted = 0;
    for _ in 0..8 {
        admitted += u32::from(app.get("/v1/jobs").await.status() == StatusCode::OK);
    }
    assert!(admitted <= 3, "{admitted}");
}

/// What two gateways do that saw a generation of Redis begin long ago, and look no more.
#[tokio::test]
async fn after_a_flush_that_a_gateway_has_not_noticed_nobody_gets_a_full_bucket() {
    const BURST: u32 = 20;
    let (url, prefix) = (service("REDIS_URL"), prefix("gw"));
    let limiter = || {
        let (url, deadline) = (url.clone().into(), Duration::from_secs(2));
        let redis = Redis::new(&url, &prefix, deadline).unwrap();
        Limiter::new(redis, Generation::default(), 2)
    };
    let begin = async |born: &str| {
        let place = format!("{prefix}:generation_of_run");
        let _: i64 = redis::ask(&url, &["HSET", &place, "born", born]).await;
    };
    let admitted = async |limiter: &Limiter, tenant: &Tenant| {
        let mut admitted = 0;
        for _ in 0..2 * BURST {
            admitted += u32::from(limiter.decide(tenant).await.refusal().is_none());
        }
        admitted
    };
    // Of a flush that nobody has noticed, and of one that the other gateway has.
    for noticed in [false, true] {
        let (full, drains, tenant) = (limiter(), limiter(), tenant(BURST));
        begin("0").await;
        assert_eq!(full.decide(&tenant).await.refusal(), None);
        assert!(admitted(&drains, &tenant).await >= BURST - 1);
        for key in redis::keys(&url, &prefix).await {
            let _: i64 = redis::ask(&url, &["DEL", &key]).await;
        }
        if noticed {
            let now: Vec<String> = redis::ask(&url, &["TIME"]).await;
            let micros = format!("{}{:0>6}", now[0], now[1]);
            begin(&micros[..micros.len() - 3]).await;
        }
        let admitted = admitted(&full, &tenant).await;
        assert!(admitted <= 3, "{admitted}, noticed: {noticed}");
    }
}

/// A tenant that may ask once a second.
fn tenant(burst: u32) -> Tenant {
    let plan = Plan {
        name: "test".to_owned(),
        per_minute: 60,
        burst,
        per_hour: 100_000,
        quota: None,
        active_jobs: 1,
        priority: 5,
        label: PlanLabel::default(),
    };
    Tenant {
        id: TenantId::generate(Clock::system().now()),
        plan: Arc::new(plan),
        unique_content: false,
        allowed: Vec::new(),
        signing: None,
    }
}

#[tokio::test]
async fn two_gateways_share_one_limit() {
    let plan = "--per-minute 60 --burst 20 --per-hour 1000";
    let mut one = app::start_with_plan(&[], plan).await;
    let two = one.second().await;
    counted(&one).await;
    let started = Instant::now();
    let mut admitted = 1;
    for _ in 0..30 {
        for url in [&one.url, &two] {
            let request = one
                .client
                .get(format!("{url}/v1/jobs"))
                .bearer_auth(&one.key);
            admitted += u64::from(request.send().await.unwrap().status() == StatusCode::OK);
        }
    }
    let most = 20 + started.elapsed().as_secs() + 2;
    assert!(
        (20..=most).contains(&admitted),
        "{admitted} of at most {most}"
    );
    one.gateway.kill();
}

#[tokio::test]
async fn without_redis_requests_go_on_within_this_gateways_share() {
    let mut redis = redis::Server::start().await;
    let url = redis.url();
    let plan = "--per-minute 6000 --burst 100 --per-hour 1000000";
    let changes = [("REDIS_URL", url.as_str()), ("GATEWAYS_MAX", "2")];
    let app = app::start_with_plan(&changes, plan).await;
    counted(&app).await;
    redis.kill();
    let started = Instant::now();
    let (mut admitted, mut slowest) = (0_u32, Duration::ZERO);
    while started.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        let response = app.get("/v1/jobs").await;
        slowest = slowest.max(asked.elapsed());
        match response.status() {
            StatusCode::OK => admitted += 1,
            status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
        }
    }
    // Half of 100 a second for three seconds, and what the lease still held.
    assert!((30..=3 * 50 + 60).contains(&admitted), "{admitted}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    // Transactions go on without the fast path too: both reach the service, whose record
    // arbitrates.
    for _ in 0..2 {
        eventually("admitted", Duration::from_secs(5), async || {
            let response = app.submit("k", "a").await;
            (response.status() == StatusCode::ACCEPTED).then_some(())
        })
        .await;
    }
    let arrived = app.upstreams.seen.all().into_iter();
    let submitted = arrived.filter(|request| request.method == Method::POST);
    let keys: Vec<_> = submitted
        .map(|request| request.headers["idempotency-key"].clone())
        .collect();
    assert_eq!(keys, ["k", "k"]);
    redis.restart().await;
    eventually("Redis counts again", Duration::from_secs(10), async || {
        app.submit("k2", "a").await;
        let again = app.submit("k2", "a").await;
        again.headers().get("idempotency-replayed").map(drop)
    })
    .await;
}

/// Tokens of the hour that a gateway says are left, with those it has leased.
fn left(response: &Response) -> i64 {
    let limit = response.headers()["ratelimit"].to_str().unwrap();
    let (_, hour) = limit.split_once("\"hour\";r=").unwrap();
    hour.split(';').next().unwrap().parse().unwrap()
}

/// Tokens of the hour that are in the shared bucket.
async fn shared(app: &App) -> i64 {
    let (url, prefix) = (app.variable("REDIS_URL"), app.variable("REDIS_PREFIX"));
    let keys = redis::keys(url, &format!("{prefix}:rate:")).await;
    let tokens: String = redis::ask(url, &["HGET", &keys[0], "t2"]).await;
    tokens.split('.').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_gateway_that_stops_gives_back_what_it_has_leased() {
    let plan = "--per-minute 60000 --burst 5000 --per-hour 10000";
    let changes = [("GATEWAYS_MAX", "1"), ("LAME_DUCK_MS", "1")];
    let mut app = app::start_with_plan(&changes, plan).await;
    // Connections that stay open would be waited for.
    let client = reqwest::Client::builder().pool_max_idle_per_host(0);
    app.client = client.build().unwrap();
    counted(&app).await;
    // A lease is void after a second: on a busy machine the end may come too late for one.
    for _ in 0..10 {
        let (leased, before) = loop {
            for _ in 0..50 {
                app.get("/v1/jobs").await;
            }
            let said = left(&app.get("/v1/jobs").await);
            let shared = shared(&app).await;
            if said >= shared + 5 {
                break (said - shared, shared);
            }
        };
        assert_eq!(app.gateway.terminate(Duration::from_secs(15)), Some(0));
        if shared(&app).await >= before + leased {
            return;
        }
        app.kill_and_restart(&[]).await;
    }
    panic!("leased tokens are lost");
}
