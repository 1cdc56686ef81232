//! What a tenant sees of its usage over HTTP, and what nobody else does.

use std::collections::BTreeMap;

use contracts::{
    api::usage::UsageEvent,
    assertion::Scope,
    id::{JobId, RequestId, TenantId},
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use metering::{
    event::{About, Fact},
    ingest,
    meter::Measure,
};
use rust_decimal::Decimal;
use serde_json::json;

use crate::app::{App, now, tenant};

fn fact(tenant: TenantId, measure: Measure, quantity: u32, time: Timestamp) -> Fact {
    let request = RequestId::generate(time);
    let endpoint = "/v1/jobs".to_owned();
    let (source, event_id, about) = if measure == Measure::Calls {
        let about = About::Request {
            request,
            endpoint,
            status_code: 202,
        };
        ("/gateway", request.to_string(), about)
    } else {
        let job = JobId::generate(time);
        (
            "/jobs",
            contracts::event::job_event_id(job, 3),
            About::Job(job),
        )
    };
    Fact {
        source,
        event_id,
        id_time: time,
        measure,
        quantity: quantity.into(),
        tenant,
        occurred_at: time,
        about,
        dimensions: BTreeMap::new(),
    }
}

/// Usage whose invoice one can compute by hand.
fn month_of_usage(tenant: TenantId, time: Timestamp) -> Vec<Fact> {
    vec![
        fact(tenant, Measure::Calls, 100_000, time),
        fact(tenant, Measure::Calls, 51_000, time),
        fact(tenant, Measure::ComputeUnits, 10_250, time),
        fact(tenant, Measure::CompletedJobs, 12, time),
        fact(tenant, Measure::ComputeMilliseconds, 12_345, time),
        fact(tenant, Measure::Confirmations, 7, time),
    ]
}

#[tokio::test]
async fn the_invoice_is_what_one_computes_by_hand() {
    let app = App::start().await;
    let (tenant, time) = (tenant(), now());
    app.record(&month_of_usage(tenant, time)).await;
    let api = app.api().await;
    let month = time.to_zoned(TimeZone::UTC).strftime("%Y-%m").to_string();
    let answer = api
        .get(tenant, &format!("/v1/invoices/preview?month={month}"))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let invoice = answer.json();
    assert_eq!(invoice["tenant_id"], json!(tenant));
    assert_eq!(
        (&invoice["plan"], &invoice["currency"]),
        (&json!("standard"), &json!("USD"))
    );
    assert_eq!(invoice["total"], "85.62", "{invoice}");
    assert_eq!(
        invoice["lines"][0],
        json!({
            "meter": "API_USAGE", "unit": "CALL", "quantity": "151000", "included": "1000",
            "tiers": [
                {"quantity": "100000", "unit_price": "0.0005", "amount": "50"},
                {"quantity": "50000", "unit_price": "0.0003", "amount": "15"},
            ],
            "amount": "65",
        })
    );
    let amounts: Vec<_> = (1..5)
        .map(|line| invoice["lines"][line]["amount"].as_str().unwrap())
        .collect();
    assert_eq!(amounts, ["20.225", "0.02", "0.02345", "0.35"]);

    let empty = api
        .get(tenant, "/v1/invoices/preview?month=2020-02")
        .await
        .json();
    assert_eq!(
        (&empty["total"], &empty["lines"][0]["quantity"]),
        (&json!("0.00"), &json!("0"))
    );
    assert_eq!(empty["period_end"], "2020-03-01T00:00:00Z");

    let prices = api.get(tenant, "/v1/prices").await.json();
    let tier = json!({"up_to": "100000", "unit_price": "0.0005"});
    assert_eq!(prices["data"][0]["tiers"][0], tier, "{prices}");
    assert_eq!(prices["data"][4]["included"], "0");
}

#[tokio::test]
async fn usage_is_summed_by_period_and_says_until_when_it_is_complete() {
    let app = App::start().await;
    let (tenant, time) = (tenant(), now());
    let hours_ago = |hours| time - SignedDuration::from_hours(hours);
    let times = [time, hours_ago(1), hours_ago(1), hours_ago(30)];
    app.record(&times.map(|time| fact(tenant, Measure::Calls, 1, time)))
        .await;
    app.record(&[fact(tenant, Measure::ComputeUnits, 5, time)])
        .await;
    let api = app.api().await;
    let path =
        |granularity: &str| format!("/v1/usage?from={}&granularity={granularity}", hours_ago(48));
    let usage = api.get(tenant, &path("hour")).await.json();
    assert_eq!(
        usage.get("as_of"),
        None,
        "not before ingest caught up: {usage}"
    );
    let calls: Vec<_> = usage["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|bucket| bucket["meter"] == "API_USAGE")
        .map(|bucket| {
            (
                bucket["quantity"].as_str().unwrap(),
                bucket["events"].as_i64().unwrap(),
            )
        })
        .collect();
    assert_eq!(calls, [("1", 1), ("2", 2), ("1", 1)], "{usage}");
    let expected = json!([
        {"meter": "API_USAGE", "unit": "CALL", "quantity": "4", "events": 4},
        {"meter": "JOB_SUBMISSION", "unit": "COMPUTE_UNIT", "quantity": "5", "events": 1},
    ]);
    for granularity in ["hour", "day", "month"] {
        let usage = api.get(tenant, &path(granularity)).await.json();
        assert_eq!(usage["totals"], expected, "{granularity}");
        assert_eq!(usage["granularity"], granularity);
    }
    app.store.caught_up(ingest::USAGE, time).await.unwrap();
    app.store
        .caught_up(ingest::JOBS, hours_ago(1))
        .await
        .unwrap();
    let only = api
        .get(tenant, &(path("day") + "&meter=JOB_SUBMISSION"))
        .await
        .json();
    assert_eq!(only["as_of"], json!(hours_ago(1)));
    assert_eq!(only["totals"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn raw_events_stream_as_lines_in_order_each_once() {
    let app = App::start().await;
    let (mine, theirs) = (tenant(), tenant());
    // More than two pages, many of them at the same time.
    let start = now() - SignedDuration::from_secs(600);
    let times = (0..2_500).map(|n| start + SignedDuration::from_millis(n / 7));
    let facts: Vec<Fact> = times
        .map(|time| fact(mine, Measure::Calls, 1, time))
        .collect();
    app.record(&facts).await;
    app.record(&[fact(theirs, Measure::Calls, 1, start)]).await;
    app.record(&[fact(mine, Measure::Confirmations, 1, start)])
        .await;
    let api = app.api().await;
    let path = format!("/v1/usage/events?from={start}&meter=API_USAGE");
    let answer = api.get(mine, &path).await;
    assert_eq!(
        (answer.status.as_u16(), answer.content_type.as_str()),
        (200, "application/x-ndjson")
    );
    assert!(answer.body.ends_with('\n'));
    let lines: Vec<UsageEvent> = answer
        .body
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut ids: Vec<_> = lines.iter().map(|line| line.event_id.clone()).collect();
    let mut recorded: Vec<_> = facts.iter().map(|fact| fact.event_id.clone()).collect();
    ids.sort();
    recorded.sort();
    assert_eq!(ids, recorded);
    assert!(lines.is_sorted_by_key(|line| line.occurred_at));
    let first = &lines[0];
    assert_eq!(
        (first.source.as_str(), first.quantity),
        ("/gateway", Decimal::ONE)
    );
    assert_eq!(
        (first.endpoint.as_deref(), first.status_code),
        (Some("/v1/jobs"), Some(202))
    );
    assert_eq!(
        first.request_id.map(|id| id.to_string()),
        Some(first.event_id.clone())
    );
    let nothing = api.get(mine, &format!("/v1/usage/events?to={start}")).await;
    assert_eq!((nothing.status.as_u16(), nothing.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_tenant_sees_its_own_and_needs_the_scope() {
    let app = App::start().await;
    let (mine, theirs) = (tenant(), tenant());
    app.record(&month_of_usage(mine, now())).await;
    let api = app.api().await;
    let paths = [
        "/v1/usage",
        "/v1/usage/events",
        "/v1/invoices/preview",
        "/v1/prices",
    ];
    for path in paths {
        let refused = api.get_as(mine, &[Scope::JobsAdmin], path).await;
        assert_eq!(refused.status, 403, "{path}");
        assert_eq!(refused.json()["code"], "ACCESS_DENIED");
        assert_eq!(refused.content_type, "application/problem+json");
        assert_eq!(api.get_bare(path).await.status, 401, "{path}");
        let other = api.get(theirs, path).await;
        assert_eq!(other.status, 200, "{path}");
        assert!(!other.body.contains(&mine.to_string()) && !other.body.contains("151000"));
    }
    assert_eq!(api.get(theirs, "/v1/usage/events").await.body, "");
    assert_eq!(api.get(theirs, "/v1/usage").await.json()["data"], json!([]));
    assert_eq!(
        api.get(theirs, "/v1/invoices/preview").await.json()["total"],
        "0.00"
    );
    assert_eq!(api.get(mine, "/v1/elsewhere").await.status, 404);
}

#[tokio::test]
async fn a_bad_parameter_is_named() {
    let app = App::start().await;
    let (api, tenant) = (app.api().await, tenant());
    let bad = [
        ("/v1/usage?from=yesterday", "from"),
        ("/v1/usage?granularity=week", "granularity"),
        ("/v1/usage?meter=COFFEE", "meter"),
        ("/v1/usage?colour=red", "colour"),
        (
            "/v1/usage?from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z",
            "from",
        ),
        (
            "/v1/usage?granularity=hour&from=2026-01-01T00:00:00Z&to=2026-06-01T00:00:00Z",
            "from",
        ),
        ("/v1/usage?from=-009999-01-03T00:00:00Z", "from"),
        ("/v1/usage/events?from=-009999-01-03T00:00:00Z", "from"),
        ("/v1/usage/events?to=never", "to"),
        ("/v1/invoices/preview?month=2026-13", "month"),
        ("/v1/invoices/preview?month=november", "month"),
    ];
    for (path, parameter) in bad {
        let answer = api.get(tenant, path).await;
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        let problem = answer.json();
        assert_eq!(problem["code"], "INVALID_REQUEST");
        assert!(
            problem["detail"].as_str().unwrap().contains(parameter),
            "{path}: {problem}"
        );
    }
}
