//! `GET /v1/usage`: sums by hour, day or month.

use std::collections::BTreeMap;

use axum::extract::State;
use contracts::{
    api::usage::{Granularity, UsageBucket, UsageQuery, UsageResponse, UsageTotal},
    problem::Problem,
    server::{Json, Principal, Query},
};
use jiff::SignedDuration;
use rust_decimal::Decimal;

use super::{Api, Span, authorize, failed, invalid};
use crate::{
    meter::Measure,
    store::usage::{Selection, Sum},
};

/// Most hours, days and months one answer covers, so that it has at most a few thousand entries.
const HOURS_MAX: i64 = 31 * 24;
const DAYS_MAX: i64 = 400;
const MONTHS_MAX: i64 = 120;

/// Answers with the periods that have any usage, and their sums.
pub(super) async fn get(
    State(api): State<Api>,
    principal: Principal,
    Query(query): Query<UsageQuery>,
) -> Result<Json<UsageResponse>, Problem> {
    authorize(&principal)?;
    let granularity = query.granularity.unwrap_or_default();
    let span = api.span(query.from, query.to)?;
    bounded(span, granularity)?;
    let Span { from, to } = span;
    let selection = Selection {
        tenant: principal.tenant(),
        from,
        to,
        meter: query.meter,
    };
    // Read first: the sums may then hold more than it promises, never less.
    let as_of = api.as_of().await.map_err(failed)?;
    let sums = api
        .store
        .sums(&selection, granularity)
        .await
        .map_err(failed)?;
    Ok(Json(UsageResponse {
        tenant_id: principal.tenant(),
        from,
        to,
        granularity,
        as_of,
        totals: totals(&sums).map_err(failed)?,
        data: sums.iter().map(bucket).collect(),
    }))
}

fn bounded(span: Span, granularity: Granularity) -> Result<(), Problem> {
    let (hours, rule) = match granularity {
        Granularity::Hour => (HOURS_MAX, "must be at most 31 days before `to` for hours"),
        Granularity::Day => (
            DAYS_MAX * 24,
            "must be at most 400 days before `to` for days",
        ),
        Granularity::Month => (
            MONTHS_MAX * 31 * 24,
            "must be at most 120 months before `to` for months",
        ),
    };
    if span.to.duration_since(span.from) > SignedDuration::from_hours(hours) {
        return Err(invalid("from", "range", rule));
    }
    Ok(())
}

fn bucket(sum: &Sum) -> UsageBucket {
    UsageBucket {
        period_start: sum.period_start,
        meter: sum.measure.meter(),
        unit: sum.measure.unit(),
        quantity: sum.quantity.normalize(),
        events: sum.events,
    }
}

fn totals(sums: &[Sum]) -> anyhow::Result<Vec<UsageTotal>> {
    let mut totals: BTreeMap<Measure, (Decimal, u64)> = BTreeMap::new();
    for sum in sums {
        let (quantity, events) = totals.entry(sum.measure).or_default();
        let larger = quantity.checked_add(sum.quantity);
        *quantity = larger.ok_or_else(|| anyhow::anyhow!("a total has too many digits"))?;
        *events = events.saturating_add(sum.events);
    }
    let total = |(measure, (quantity, events)): (Measure, (Decimal, u64))| UsageTotal {
        meter: measure.meter(),
        unit: measure.unit(),
        quantity: quantity.normalize(),
        events,
    };
    Ok(totals.into_iter().map(total).collect())
}
