//! Reading price plans.

use anyhow::Context as _;
use rust_decimal::Decimal;

use super::Store;
use crate::{
    meter::Measure,
    price::{Plan, Price, Tier},
};

/// The plan that every tenant is charged by.
pub const STANDARD_PLAN: &str = "standard";

impl Store {
    /// A plan with its prices, in the order of an invoice's lines.
    ///
    /// # Errors
    /// When Postgres fails, or the plan's rows are no prices.
    pub async fn plan(&self, name: &str) -> anyhow::Result<Plan> {
        let sql = "\
            -- metering.plan\n\
            SELECT currency, meter, unit, included, up_to, unit_price\n\
            FROM metering.price_plans JOIN metering.prices ON prices.plan = price_plans.name\n    \
                JOIN metering.price_tiers USING (plan, meter, unit)\n\
            WHERE name = $1 ORDER BY meter, unit, position";
        let client = self.client().await?;
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&name]).await?;
        let currency = rows
            .first()
            .context("the price plan has no prices")?
            .get("currency");
        let mut prices = Vec::new();
        for measure in Measure::ALL {
            let of_measure = |row: &&tokio_postgres::Row| {
                row.get::<_, &str>("meter") == measure.meter().as_str()
                    && row.get::<_, &str>("unit") == measure.unit().as_str()
            };
            let steps: Vec<_> = rows.iter().filter(of_measure).collect();
            let Some(first) = steps.first() else { continue };
            let included: Decimal = first.get("included");
            let tier = |row: &&tokio_postgres::Row| Tier {
                up_to: row.get("up_to"),
                unit_price: row.get("unit_price"),
            };
            let price = Price::new(measure, included, steps.iter().map(tier).collect());
            prices.push(price.with_context(|| format!("plan {name}: {measure:?}"))?);
        }
        Ok(Plan {
            name: name.to_owned(),
            currency,
            prices,
        })
    }
}
