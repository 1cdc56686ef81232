//! `GET /v1/prices`: what the tenant is charged by.

use axum::extract::State;
use contracts::{
    api::usage::{self, PriceModel, PriceTier, Prices},
    problem::Problem,
    server::{Json, Principal},
};

use super::{Api, authorize, failed};
use crate::{
    price::{Price, Tier},
    store::prices::STANDARD_PLAN,
};

/// Answers with every price of the tenant's plan.
pub(super) async fn get(
    State(api): State<Api>,
    principal: Principal,
) -> Result<Json<Prices>, Problem> {
    authorize(&principal)?;
    let plan = api.store.plan(STANDARD_PLAN).await.map_err(failed)?;
    let data = plan.prices.iter().map(price).collect();
    Ok(Json(Prices {
        plan: plan.name,
        currency: plan.currency,
        data,
    }))
}

fn price(price: &Price) -> usage::Price {
    usage::Price {
        meter: price.measure().meter(),
        unit: price.measure().unit(),
        model: PriceModel::Graduated,
        included: price.included().normalize(),
        tiers: price.tiers().iter().map(tier).collect(),
    }
}

fn tier(tier: &Tier) -> PriceTier {
    PriceTier {
        up_to: tier.up_to.map(|up_to| up_to.normalize()),
        unit_price: tier.unit_price.normalize(),
    }
}
