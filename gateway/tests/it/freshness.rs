//! How soon three gateways on one Postgres and Redis follow a change, while a good client of all of
//! them notices nothing; and what happens when they are cut off from Postgres.

use std::time::{Duration, Instant};

use futures::future::join_all;
use ops::testing::{eventually, service, status};
use reqwest::{Response, StatusCode};
use serde_json::json;
use url::Url;

use crate::{
    app::{self, App, problem},
    cut::Line,
    issuer::{Issuer, Server},
};

/// What is promised of every change.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Pause between two requests of the good client, so that it leaves the others some of the cores.
const BREATH: Duration = Duration::from_millis(5);

/// Three gateways, and the keys of who uses them.
struct Three {
    app: App,
    urls: [String; 3],
    issuer: Server,
    /// Of another tenant, which nothing of all this concerns.
    good: String,
}

impl Three {
    async fn start(issuers: &[&Issuer], changes: &[(&str, &str)]) -> Self {
        let issuer = Server::start(issuers).await;
        let url = issuer.jwks_url();
        let changes = [&[("JWKS_URL", &url[..])], changes].concat();
        let mut app = app::start(&changes).await;
        let urls = [app.url.clone(), app.second().await, app.second().await];
        let tenant = app.admin("admin tenant create good --plan test");
        let good = app.new_key(tenant["tenant_id"].as_str().unwrap(), "jobs:read");
        let three = Self {
            app,
            urls,
            issuer,
            good,
        };
        three.become_everywhere(&three.good, StatusCode::OK).await;
        three
    }

    async fn get(&self, url: &str, credential: &str) -> Response {
        let client = &self.app.client;
        let request = client.get(format!("{url}/v1/jobs")).bearer_auth(credential);
        request.send().await.unwrap()
    }

    /// Waits until every gateway answers so, and at most as long as is promised.
    async fn become_everywhere(&self, credential: &str, wanted: StatusCode) {
        let each = self.urls.iter().map(|url| {
            eventually("the gateway follows", AT_ONCE, async || {
                (self.get(url, credential).await.status() == wanted).then_some(())
            })
        });
        join_all(each).await;
    }

    async fn read_limits_everywhere(&self, credential: &str, wanted: &str) {
        let each = self.urls.iter().map(|url| {
            eventually("the gateway limits anew", AT_ONCE, async || {
                let answer = self.get(url, credential).await;
                let policy = answer.headers().get("ratelimit-policy")?.to_str().ok()?;
                policy.contains(wanted).then_some(())
            })
        });
        join_all(each).await;
    }

    /// A client of each gateway that asks without end, and is never refused.
    async fn good_clients(&self) {
        let each = self.urls.iter().map(async |url| {
            loop {
                let answer = self.get(url, &self.good).await;
                assert_eq!(answer.status(), StatusCode::OK, "a good request failed");
                tokio::time::sleep(BREATH).await;
            }
        });
        join_all(each).await;
    }

    async fn while_good_clients_ask(&self, changes: impl Future<Output = ()>) {
        tokio::select! {
            () = changes => {}
            () = self.good_clients() => {}
        }
    }
}

#[tokio::test]
async fn every_change_reaches_three_gateways_within_a_second_and_no_good_request_fails() {
    let (first, second) = (Issuer::new("f1"), Issuer::new("f2"));
    let three = Three::start(&[&first], &[]).await;
    let app = &three.app;
    let token = |issuer: &Issuer, subject: &str, jti: &str| {
        let mut claims = Issuer::claims(&app.tenant, "jobs:read");
        (claims["sub"], claims["jti"]) = (json!(subject), json!(jti));
        issuer.sign(&claims)
    };
    let changes = async {
        let (one, two) = (token(&first, "user_a", "t1"), token(&first, "user_a", "t2"));
        let other = token(&first, "user_b", "t3");
        for token in [&one, &two, &other] {
            three.become_everywhere(token, StatusCode::OK).await;
        }
        app.admin("admin revoke jti t1");
        three
            .become_everywhere(&one, StatusCode::UNAUTHORIZED)
            .await;
        three.become_everywhere(&two, StatusCode::OK).await;
        let subject = format!("subject user_a --tenant {}", app.tenant);
        app.admin(&format!("admin revoke {subject}"));
        three
            .become_everywhere(&two, StatusCode::UNAUTHORIZED)
            .await;
        app.admin(&format!("admin restore {subject}"));
        three.become_everywhere(&two, StatusCode::OK).await;

        three.issuer.publish(&[&first, &second]);
        let new = token(&second, "user_c", "t4");
        three.become_everywhere(&new, StatusCode::OK).await;
        three.issuer.publish(&[&second]);
        app.admin("admin jwks refresh");
        three
            .become_everywhere(&other, StatusCode::UNAUTHORIZED)
            .await;
        three.become_everywhere(&new, StatusCode::OK).await;

        app.admin("admin plan create small --per-minute 777 --burst 50");
        app.admin(&format!("admin tenant set-plan {} small", app.tenant));
        three.read_limits_everywhere(&app.key, "q=777").await;
        app.admin("admin plan update small --per-minute 888");
        three.read_limits_everywhere(&app.key, "q=888").await;

        let revoked = app.admin(&format!("admin key list --tenant {}", app.tenant));
        let id = revoked[0]["key_id"].as_str().unwrap().to_owned();
        app.admin(&format!("admin key revoke {id}"));
        three
            .become_everywhere(&app.key, StatusCode::UNAUTHORIZED)
            .await;
        app.admin(&format!("admin revoke tenant {}", app.tenant));
        three
            .become_everywhere(&new, StatusCode::UNAUTHORIZED)
            .await;
    };
    three.while_good_clients_ask(changes).await;
}

#[tokio::test]
async fn a_key_that_the_issuer_withdraws_is_gone_within_the_ttl() {
    let (first, second) = (Issuer::new("w1"), Issuer::new("w2"));
    let three = Three::start(&[&first, &second], &[("JWKS_TTL_SECONDS", "2")]).await;
    let claims = Issuer::claims(&three.app.tenant, "jobs:read");
    let (gone, stays) = (first.sign(&claims), second.sign(&claims));
    let changes = async {
        three.become_everywhere(&gone, StatusCode::OK).await;
        three.issuer.publish(&[&second]);
        let started = Instant::now();
        for url in &three.urls {
            eventually("the key is gone", Duration::from_secs(3), async || {
                let status = three.get(url, &gone).await.status();
                (status == StatusCode::UNAUTHORIZED).then_some(())
            })
            .await;
        }
        assert!(started.elapsed() < Duration::from_secs(3));
        three.become_everywhere(&stays, StatusCode::OK).await;
    };
    three.while_good_clients_ask(changes).await;
}

#[tokio::test]
async fn made_up_keys_cost_few_fetches_and_do_not_delay_a_new_one() {
    let (first, second) = (Issuer::new("s1"), Issuer::new("s2"));
    let three = Three::start(&[&first], &[]).await;
    let claims = Issuer::claims(&three.app.tenant, "jobs:read");
    let fetched = || three.issuer.fetched().iter().sum::<usize>();
    let (before, started) = (fetched(), Instant::now());
    let url = &three.urls[0];
    let spray = async |worker: usize| {
        for number in 0.. {
            let kid = format!("made-up-{worker}-{number}");
            let header = json!({ "alg": "EdDSA", "kid": kid });
            let answer = three.get(url, &first.sign_as(&header, &claims)).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        }
    };
    let changes = async {
        let wait = async || (fetched() >= before + 4).then_some(());
        eventually("the spray is on", Duration::from_secs(10), wait).await;
        three.issuer.publish(&[&first, &second]);
        let published = Instant::now();
        // Believed on first sight: it waits for the reading that finds it.
        let answer = three.get(url, &second.sign(&claims)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(published.elapsed() < AT_ONCE, "{:?}", published.elapsed());
    };
    tokio::select! {
        () = three.while_good_clients_ask(changes) => {}
        _ = join_all((0..16).map(spray)) => {}
    }
    // Two a second, and one that may be under way.
    let most = 2 * usize::try_from(started.elapsed().as_millis()).unwrap() / 1_000 + 2;
    let count = fetched() - before;
    assert!(count <= most, "{count} fetches, at most {most}");
    let [whole, unchanged] = three.issuer.fetched();
    assert!(
        whole <= 4 && unchanged >= 3,
        "{whole} whole, {unchanged} not"
    );
}

#[tokio::test]
async fn cut_off_from_postgres_they_let_nobody_in_for_ever_and_come_back_by_themselves() {
    let database = Url::parse(&service("DATABASE_URL")).unwrap();
    let host = database.host_str().unwrap();
    let line = Line::to(format!("{host}:{}", database.port().unwrap_or(5_432))).await;
    let mut app = app::start(&[("SNAPSHOT_MAX_AGE_SECONDS", "4")]).await;
    let mut through = Url::parse(app.database.url()).unwrap();
    through.set_host(Some("127.0.0.1")).unwrap();
    through.set_port(Some(line.address.port())).unwrap();
    app.kill_and_restart(&[("DATABASE_URL", through.as_str())])
        .await;
    line.cut();
    let cut = Instant::now();
    let token = app.issuer.sign(&Issuer::claims(&app.tenant, "jobs:read"));
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
    let unready = async || (status(app.admin, "/readyz").await != Some(200)).then_some(());
    eventually("it is not ready", Duration::from_secs(4), unready).await;
    assert!(
        cut.elapsed() > Duration::from_secs(2),
        "{:?}",
        cut.elapsed()
    );
    // Up to the bound what is known is believed, and not after.
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
    let refused = eventually("nobody is let in", Duration::from_secs(3), async || {
        let answer = app.get("/v1/jobs").await;
        (answer.status() != StatusCode::OK).then_some(answer)
    })
    .await;
    let took = cut.elapsed();
    assert!(
        took > Duration::from_millis(2_900) && took < Duration::from_secs(6),
        "{took:?}"
    );
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(problem(refused).await["code"], "SERVICE_UNAVAILABLE");
    let by_token = app.client.get(format!("{}/v1/jobs", app.url));
    let by_token = by_token.bearer_auth(token).send().await.unwrap();
    assert_eq!(by_token.status(), StatusCode::SERVICE_UNAVAILABLE);
    line.mend();
    app.ready().await;
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
}
