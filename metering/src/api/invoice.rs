//! `GET /v1/invoices/preview`: what a month's invoice would be now.

use std::collections::BTreeMap;

use axum::extract::State;
use contracts::{
    api::usage::{Granularity, InvoiceLine, InvoicePreview, InvoiceQuery, InvoiceTier},
    problem::Problem,
    server::{Json, Principal, Query},
};
use rust_decimal::Decimal;

use super::{Api, authorize, failed, invalid};
use crate::{
    meter::Measure,
    price::{Line, Part, total},
    store::{prices::STANDARD_PLAN, usage::Selection},
    window::Month,
};

/// Answers with one line for each price of the plan, used or not.
pub(super) async fn get(
    State(api): State<Api>,
    principal: Principal,
    Query(query): Query<InvoiceQuery>,
) -> Result<Json<InvoicePreview>, Problem> {
    authorize(&principal)?;
    let month = match &query.month {
        Some(text) => {
            Month::parse(text).map_err(|error| invalid("month", "format", &error.to_string()))?
        }
        None => Month::containing(api.clock.now()),
    };
    preview(&api, &principal, month)
        .await
        .map(Json)
        .map_err(failed)
}

async fn preview(api: &Api, principal: &Principal, month: Month) -> anyhow::Result<InvoicePreview> {
    let (from, to) = (month.start(), month.end());
    let selection = Selection {
        tenant: principal.tenant(),
        from,
        to,
        meter: None,
    };
    // Read first: the sums may then hold more than it promises, never less.
    let as_of = api.as_of().await?;
    let sums = api.store.sums(&selection, Granularity::Month).await?;
    let used: BTreeMap<Measure, Decimal> =
        sums.iter().map(|sum| (sum.measure, sum.quantity)).collect();
    let plan = api.store.plan(STANDARD_PLAN).await?;
    let lines = plan.lines(|measure| used.get(&measure).copied().unwrap_or_default())?;
    Ok(InvoicePreview {
        tenant_id: principal.tenant(),
        period_start: from,
        period_end: to,
        as_of,
        plan: plan.name,
        currency: plan.currency,
        total: total(&lines)?,
        lines: lines.iter().map(line).collect(),
    })
}

fn line(line: &Line) -> InvoiceLine {
    InvoiceLine {
        meter: line.measure.meter(),
        unit: line.measure.unit(),
        quantity: line.quantity.normalize(),
        included: line.included.normalize(),
        tiers: line.tiers.iter().map(tier).collect(),
        amount: line.amount.normalize(),
    }
}

fn tier(part: &Part) -> InvoiceTier {
    let Part {
        quantity,
        unit_price,
        amount,
    } = *part;
    InvoiceTier {
        quantity,
        unit_price,
        amount,
    }
}
