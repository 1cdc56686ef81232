//! Tenants are apart on every route, ask only from where they may, and have their role's share of
//! active jobs.

use gateway::route::{Action, Body, Passage, ROUTES, Route};
use ops::testing::eventually;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::app::{self, App, problem};

/// What a request of the route carries, if it carries anything.
fn body(route: &Route) -> Option<Value> {
    let transaction = match &route.action {
        Action::Own(_) => None,
        Action::Keys(_, transaction) => *transaction,
        Action::Forward(forward) => match forward.passage {
            Passage::Transaction(transaction) => Some(transaction),
            Passage::Stream | Passage::Events => None,
        },
    };
    transaction.map(|transaction| match transaction.body {
        Body::Job => app::job("hello"),
        Body::Json => json!({ "scopes": ["jobs:read"] }),
        Body::OptionalJson => json!({}),
    })
}

async fn ask(app: &App, credential: &str, route: &Route, path: &str) -> Response {
    let mut request = app
        .client
        .request(route.method.clone(), format!("{}{path}", app.url))
        .bearer_auth(credential);
    if let Some(body) = body(route) {
        // The same for both tenants: a key of one is nothing to the other.
        let key = format!("{}-{path}", route.method).replace('/', "-");
        request = request.json(&body).header("idempotency-key", key);
    }
    request.send().await.unwrap()
}

async fn key_of(app: &App, tenant: &str, more: &str) -> String {
    let create = format!(
        "admin key create --tenant {tenant} --scopes {} {more}",
        app::ALL_SCOPES
    );
    let key = app.admin(create.trim())["key"].as_str().unwrap().to_owned();
    let deadline = std::time::Duration::from_secs(2);
    eventually("the key is known", deadline, async || {
        let request = app.client.get(format!("{}/v1/jobs", app.url));
        let answer = request.bearer_auth(&key).send().await.unwrap();
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    key
}

#[tokio::test]
async fn tenants_are_apart_on_every_route() {
    let app = app::start(&[]).await;
    let other = app.admin("admin tenant create t2 --plan test");
    let other = other["tenant_id"].as_str().unwrap().to_owned();
    let others_key = key_of(&app, &other, "").await;
    let mine = app.admin(&format!("admin key list --tenant {}", app.tenant));
    let mine = mine[0]["key_id"].as_str().unwrap().to_owned();
    let parties = [(&app.tenant, &app.key), (&other, &others_key)];
    for route in &ROUTES {
        let name = format!("{} {}", route.method, route.template);
        let path = route
            .template
            .replace("{key_id}", &mine)
            .replace(['{', '}'], "");
        let seen = app.upstreams.seen.count();
        match route.action {
            Action::Own(_) => {}
            // The first tenant's own key, asked for by the second one.
            Action::Keys(..) if route.template.contains("key_id") => {
                let answer = ask(&app, &others_key, route, &path).await;
                assert_eq!(problem(answer).await["code"], "NOT_FOUND", "{name}");
            }
            Action::Keys(..) => {
                for (_, key) in parties {
                    let answer = ask(&app, key, route, &path).await;
                    assert!(answer.status().is_success(), "{name}: {}", answer.status());
                    let text = answer.text().await.unwrap();
                    let shows_mine = text.contains(&mine);
                    let lists = route.method == Method::GET;
                    assert_eq!(shows_mine, lists && *key == app.key, "{name}: {text}");
                }
            }
            Action::Forward(_) => {
                for (index, (tenant, key)) in parties.into_iter().enumerate() {
                    let answer = ask(&app, key, route, &path).await;
                    assert!(answer.status().is_success(), "{name}: {}", answer.status());
                    assert!(
                        !answer.headers().contains_key("idempotency-replayed"),
                        "{name}"
                    );
                    assert_eq!(app.upstreams.seen.count(), seen + index + 1, "{name}");
                    let claims = app.upstreams.seen.last().claims;
                    assert_eq!(claims.tenant.to_string(), *tenant, "{name}");
                }
            }
        }
        if matches!(route.action, Action::Own(_)) {
            continue;
        }
        // Nobody, and somebody who may nothing here.
        let request = app
            .client
            .request(route.method.clone(), format!("{}{path}", app.url));
        let nobody = request.send().await.unwrap();
        assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED, "{name}");
    }
    assert_eq!(app.get("/v1/jobs").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_tenant_asks_only_from_where_it_is_allowed_to() {
    let app = app::start(&[("TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let allow =
        |networks: &str| app.admin(&format!("admin tenant allow {} {networks}", app.tenant));
    let from = async |route: (Method, &str), address: &str| {
        let request = app.request(route.0, route.1);
        request
            .header("x-forwarded-for", address)
            .send()
            .await
            .unwrap()
    };
    let get = || (Method::GET, "/v1/jobs");
    assert_eq!(from(get(), "203.0.113.9").await.status(), StatusCode::OK);
    allow("192.0.2.0/24,2001:db8:1::/48");
    let refused = eventually(
        "the list is followed",
        std::time::Duration::from_secs(2),
        async || {
            let answer = from(get(), "203.0.113.9").await;
            (answer.status() == StatusCode::FORBIDDEN).then_some(answer)
        },
    )
    .await;
    let refused = problem(refused).await;
    assert_eq!(refused["code"], "ACCESS_DENIED");
    assert!(refused["detail"].as_str().unwrap().contains("203.0.113.9"));
    let seen = app.upstreams.seen.count();
    for route in &ROUTES {
        if matches!(route.action, Action::Own(_)) {
            continue;
        }
        let path = route.template.replace(['{', '}'], "");
        let answer = from((route.method.clone(), &path), "2001:db8:2::1").await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(app.upstreams.seen.count(), seen);
    for address in ["192.0.2.255", "2001:db8:1:ffff::1", "::ffff:192.0.2.1"] {
        assert_eq!(
            from(get(), address).await.status(),
            StatusCode::OK,
            "{address}"
        );
    }
    // What a client wrote itself is not its address.
    let forged = from(get(), "192.0.2.1, 203.0.113.9").await;
    assert_eq!(forged.status(), StatusCode::FORBIDDEN);
    allow("--anywhere");
    eventually(
        "from anywhere again",
        std::time::Duration::from_secs(2),
        async || {
            let answer = from(get(), "203.0.113.9").await;
            (answer.status() == StatusCode::OK).then_some(())
        },
    )
    .await;
    for wrong in ["10.0.0.0/33", "nonsense", ""] {
        let order = format!("admin tenant allow {} {wrong}", app.tenant);
        assert_eq!(app.run(order.trim()).status.code(), Some(64), "{wrong}");
    }
}

#[tokio::test]
async fn active_jobs_are_limited_by_role_and_plan() {
    let app = app::start(&[]).await;
    for (plan, cap, limits) in [
        ("narrow", 100, [50, 100, 100]),
        ("wide", 1_000, [50, 200, 1_000]),
    ] {
        app.admin(&format!("admin plan create {plan} --active-jobs {cap}"));
        let tenant = app.admin(&format!("admin tenant create {plan} --plan {plan}"));
        let tenant = tenant["tenant_id"].as_str().unwrap().to_owned();
        for (role, limit) in ["developer", "team_lead", "admin"].into_iter().zip(limits) {
            key_of(&app, &tenant, &format!("--role {role}")).await;
            let claims = app.upstreams.seen.last().claims;
            assert_eq!(claims.active_jobs_limit, Some(limit), "{plan} {role}");
        }
    }
}
