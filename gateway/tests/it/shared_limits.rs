//! One tenant's limit shared by three gateways, under five times the load that it allows; and what
//! becomes of it while Redis is killed, held, or flushed. `JOBSEAL_LONG` makes minutes of seconds.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use ops::testing::eventually;
use reqwest::StatusCode;

use crate::{fleet::Fleet, redis, seconds};

/// A request of the load: when it was sent, and how it ended.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Duration,
    took: Duration,
    status: StatusCode,
}

/// Sends `per_second` requests on a schedule, whatever becomes of them, while `meanwhile` goes on.
async fn load(
    fleet: &Fleet,
    per_second: u32,
    lasting: Duration,
    meanwhile: impl Future<Output = ()>,
) -> Vec<Sent> {
    let (started, sent) = (Instant::now(), Mutex::new(Vec::new()));
    let one = async |at: Duration| {
        let asked = Instant::now();
        let response = fleet.get("/v1/jobs").await;
        let (took, status) = (asked.elapsed(), response.status());
        sent.lock().unwrap().push(Sent { at, took, status });
    };
    let schedule = async {
        let mut on_their_way = FuturesUnordered::new();
        let mut next = Duration::ZERO;
        while next < lasting {
            tokio::select! {
                () = tokio::time::sleep_until((started + next).into()) => {
                    on_their_way.push(one(next));
                    next += Duration::from_secs(1) / per_second;
                }
                Some(()) = on_their_way.next() => {}
            }
        }
        while on_their_way.next().await.is_some() {}
    };
    tokio::join!(schedule, meanwhile);
    let mut sent = sent.into_inner().unwrap();
    sent.sort_by_key(|request| request.at);
    sent
}

/// When requests were admitted. Whatever was not was 429.
fn admitted(sent: &[Sent]) -> Vec<Duration> {
    let mut admitted = Vec::new();
    for request in sent {
        match request.status {
            StatusCode::OK => admitted.push(request.at),
            status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
        }
    }
    admitted
}

/// The largest number of admissions beyond `burst + rate * window`, over all windows.
fn excess(admitted: &[Duration], burst: f64, per_second: f64) -> f64 {
    let mut worst = f64::NEG_INFINITY;
    for (first, from) in admitted.iter().enumerate() {
        for (count, to) in admitted[first..].iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let count = count as f64 + 1.0;
            let window = to.saturating_sub(*from).as_secs_f64();
            worst = worst.max(count - burst - per_second * window);
        }
    }
    worst
}

#[tokio::test]
async fn three_gateways_under_five_times_the_load_keep_one_limit_and_waste_none_of_it() {
    const BURST: f64 = 100.0;
    const RATE: f64 = 1_000.0 / 60.0;
    let plan = "--per-minute 1000 --burst 100 --per-hour 1000000";
    let changes = [("GATEWAYS_MAX", "3")];
    let fleet = Fleet::start_with_plan(3, &changes, plan).await;
    let lasting = seconds(180, 15);
    let sent = load(&fleet, 83, lasting, async {}).await;
    let admitted = admitted(&sent);
    // Requests are sent on a schedule, and arrive up to this much off it.
    let late = sent.iter().map(|request| request.took).max().unwrap();
    let leases = BURST * 0.02 * 3.0;
    let excess = excess(&admitted, BURST, RATE);
    let bound = leases + RATE * late.as_secs_f64();
    assert!(
        excess <= bound,
        "{excess} admitted beyond policy, of {bound}"
    );
    let policy = BURST + RATE * lasting.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let part = admitted.len() as f64 / policy;
    assert!(part >= 0.97, "{part} of {policy}");
}

#[tokio::test]
async fn a_killed_redis_costs_no_5xx_and_each_gateway_keeps_its_share() {
    let (mut own, plan) = (redis::Server::start().await, "--per-minute 1200 --burst 40");
    let url = own.url();
    let changes = [("REDIS_URL", url.as_str()), ("GATEWAYS_MAX", "3")];
    let fleet = Fleet::start_with_plan(3, &changes, &format!("{plan} --per-hour 1000000")).await;
    let lasting = seconds(60, 8);
    let sent = load(&fleet, 100, lasting, async {
        tokio::time::sleep(lasting / 8).await;
        own.kill();
    })
    .await;
    let admitted = admitted(&sent);
    // From a second after the loss on: three shares of a third, that began empty.
    let from = lasting / 8 + Duration::from_secs(1);
    let after: Vec<Duration> = admitted.into_iter().filter(|at| *at > from).collect();
    assert!(excess(&after, 40.0, 20.0) <= 6.0);
    let window = lasting.saturating_sub(from).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let part = after.len() as f64 / (20.0 * window);
    assert!((0.8..=1.2).contains(&part), "{part} of the rate");
    within_the_command_timeout(&sent, &fleet);
    own.restart().await;
    counts_again(&fleet, &url).await;
}

#[tokio::test]
async fn a_redis_that_hangs_costs_no_5xx_and_no_more_than_its_timeout() {
    let (own, plan) = (redis::Server::start().await, "--per-minute 1200 --burst 40");
    let url = own.url();
    let changes = [("REDIS_URL", url.as_str()), ("GATEWAYS_MAX", "3")];
    let fleet = Fleet::start_with_plan(3, &changes, &format!("{plan} --per-hour 1000000")).await;
    let held = seconds(30, 4);
    let sent = load(&fleet, 100, held + Duration::from_secs(4), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        own.pause(true);
        tokio::time::sleep(held).await;
        own.pause(false);
    })
    .await;
    // The shared bucket filled meanwhile, and pays for what the shares let through.
    let excess = excess(&admitted(&sent), 40.0, 20.0);
    assert!(excess <= 6.0 + 20.0 * 0.5, "{excess}");
    within_the_command_timeout(&sent, &fleet);
    counts_again(&fleet, &url).await;
}

#[tokio::test]
async fn after_a_flush_buckets_start_empty() {
    let (own, plan) = (redis::Server::start().await, "--per-minute 600 --burst 100");
    let url = own.url();
    let changes = [("REDIS_URL", url.as_str()), ("GATEWAYS_MAX", "3")];
    let fleet = Fleet::start_with_plan(3, &changes, &format!("{plan} --per-hour 1000000")).await;
    let lasting = seconds(60, 8);
    let sent = load(&fleet, 60, lasting, async {
        tokio::time::sleep(lasting / 4).await;
        for _ in 0..3 {
            let _: String = redis::ask(&url, &["FLUSHALL"]).await;
            tokio::time::sleep(lasting / 8).await;
        }
    })
    .await;
    // Not a token more for three flushes.
    let excess = excess(&admitted(&sent), 100.0, 10.0);
    assert!(excess <= 6.0 + 10.0 * 0.5, "{excess}");
}

/// No request waited longer than for Redis, three times until the breaker opened at most, and for
/// the machine.
fn within_the_command_timeout(sent: &[Sent], fleet: &Fleet) {
    let timeout: u64 = fleet.app.variable("REDIS_DEADLINE_MS").parse().unwrap();
    let mut took: Vec<Duration> = sent.iter().map(|request| request.took).collect();
    took.sort_unstable();
    let slow = Duration::from_millis(timeout + 250);
    let worst = took[took.len() - 1 - took.len() / 100];
    assert!(
        worst <= slow,
        "99 % took up to {worst:?}, allowed are {slow:?}"
    );
}

/// Redis counts, and within a few seconds the tenant has its rate again: what it was given without
/// Redis it has paid.
async fn counts_again(fleet: &Fleet, url: &str) {
    let counted = async || {
        fleet.get("/v1/jobs").await;
        let found = redis::keys(url, fleet.app.variable("REDIS_PREFIX")).await;
        found.iter().any(|key| key.contains(":rate:")).then_some(())
    };
    eventually("Redis counts again", Duration::from_secs(10), counted).await;
    let let_in = async || (fleet.get("/v1/jobs").await.status() == StatusCode::OK).then_some(());
    eventually("the tenant is let in", Duration::from_secs(5), let_in).await;
    let lasting = Duration::from_secs(3);
    let sent = load(fleet, 60, lasting, async {}).await;
    let admitted = admitted(&sent).len();
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let part = admitted as f64 / (20.0 * lasting.as_secs_f64());
    assert!(part >= 0.8, "{part} of the rate");
}
