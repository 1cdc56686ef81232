//! Two versions of an upstream: tenants move once, by the clock, and back at once on order.

use std::time::Duration;

use ops::testing::{eventually, free_address};
use reqwest::StatusCode;

use crate::{
    app::{self, ALL_SCOPES, App},
    upstream::Upstreams,
};

/// Whether the new version answers a tenant now.
async fn is_new(app: &App, new: &Upstreams, key: &str) -> bool {
    is_new_at(&app.url, app, new, key).await
}

/// The same of a gateway at this URL.
async fn is_new_at(gateway: &str, app: &App, new: &Upstreams, key: &str) -> bool {
    let before = (app.upstreams.seen.count(), new.seen.count());
    let url = format!("{gateway}/v1/jobs");
    let answer = app.client.get(url).bearer_auth(key).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let after = (app.upstreams.seen.count(), new.seen.count());
    let (stable, new) = (after.0 - before.0, after.1 - before.1);
    assert_eq!(stable + new, 1, "one answer");
    new == 1
}

/// Keys of so many tenants, which the gateway at this URL knows.
async fn keys(app: &App, gateway: &str, count: usize) -> Vec<String> {
    let mut keys = Vec::new();
    for _ in 0..count {
        let tenant = app.admin("admin tenant create t --plan test");
        let tenant = tenant["tenant_id"].as_str().unwrap();
        keys.push(app.new_key(tenant, ALL_SCOPES));
    }
    let known = async || {
        let url = format!("{gateway}/v1/jobs");
        let last = app.client.get(url).bearer_auth(keys.last().unwrap());
        (last.send().await.unwrap().status() == StatusCode::OK).then_some(())
    };
    eventually("the keys are known", Duration::from_secs(5), known).await;
    keys
}

#[tokio::test]
async fn tenants_move_to_a_new_version_once_and_a_rollback_takes_all_back_at_once() {
    let app = app::start(&[]).await;
    let new = Upstreams::start().await;
    let url = &new.environment["JOBS_URL"];
    let keys = keys(&app, &app.url, 12).await;
    let start = format!("admin rollout start jobs --version v2 --url {url}");
    app.admin(&format!("{start} --steps 1,50,100 --every 2s"));
    let again = app.run(&format!("{start} --steps 5"));
    assert_eq!(again.status.code(), Some(1), "one at a time");
    let (mut moved, mut halfway) = (vec![false; keys.len()], false);
    let all = async || {
        for (key, moved) in keys.iter().zip(&mut moved) {
            let now = is_new(&app, &new, key).await;
            assert!(now || !*moved, "nobody moves back");
            *moved = now;
        }
        let count = moved.iter().filter(|moved| **moved).count();
        halfway |= (1..keys.len()).contains(&count);
        (count == keys.len()).then_some(())
    };
    let mut all = all;
    for _ in 0..600 {
        if all().await.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(halfway, "not all at once");
    let status = &app.admin("admin rollout status")[0];
    assert_eq!(
        (&status["version"], &status["percent"]),
        (&"v2".into(), &100.into())
    );
    let host = &new.seen.last().headers["host"];
    assert_eq!(format!("http://{}", host.to_str().unwrap()), *url);
    let metrics = app.metrics().await;
    assert!(metrics.contains("version=\"v2\""), "{metrics}");
    app.admin("admin rollout rollback jobs");
    let back = async || (!is_new(&app, &new, &keys[0]).await).then_some(());
    eventually("it is called back", Duration::from_secs(1), back).await;
    for key in &keys {
        assert!(!is_new(&app, &new, key).await);
    }
    let status = &app.admin("admin rollout status")[0];
    assert_eq!(
        (&status["percent"], &status["reason"]),
        (&0.into(), &"by hand".into())
    );
    app.admin("admin rollout finish jobs");
    assert_eq!(app.admin("admin rollout status"), serde_json::json!([]));
}

#[tokio::test]
async fn a_new_version_that_is_not_there_costs_nobody_an_answer() {
    let app = app::start(&[]).await;
    let nowhere = free_address();
    let start = format!("admin rollout start jobs --version v2 --url http://{nowhere}");
    app.admin(&format!("{start} --steps 100"));
    let tried = async || {
        assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
        app.metrics().await.contains("version=\"v2\"").then_some(())
    };
    eventually("it is tried", Duration::from_secs(5), tried).await;
    for number in 0..20 {
        assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
        let answer = app.submit(&format!("{number}"), "a").await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
    }
}

#[tokio::test]
async fn gateways_agree_on_which_tenants_have_the_new_version() {
    let mut app = app::start(&[]).await;
    let second = app.second().await;
    let new = Upstreams::start().await;
    let keys = keys(&app, &second, 16).await;
    let url = &new.environment["JOBS_URL"];
    let start = format!("admin rollout start jobs --version v2 --url {url}");
    app.admin(&format!("{start} --steps 50"));
    let mut told = Vec::new();
    for gateway in [&app.url, &second] {
        let follows = async || {
            let mut are_new = Vec::new();
            for key in &keys {
                are_new.push(is_new_at(gateway, &app, &new, key).await);
            }
            are_new.contains(&true).then_some(are_new)
        };
        let told_here = eventually("it follows", Duration::from_secs(5), follows).await;
        assert!(told_here.contains(&false), "not all at once");
        told.push(told_here);
    }
    // Asked again: the first answers of either may be from the middle of the change.
    for (gateway, told) in [&app.url, &second].into_iter().zip(&mut told) {
        for (key, is_new) in keys.iter().zip(told) {
            *is_new = is_new_at(gateway, &app, &new, key).await;
        }
    }
    assert_eq!(told[0], told[1]);
}
