//! Reading usage: sums from the aggregates, and raw events page by page.

use contracts::{
    api::usage::{Granularity, Meter},
    id::TenantId,
};
use jiff::Timestamp;
use rust_decimal::Decimal;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::Store;
use crate::{meter::Measure, window::WINDOW};

/// The usage of one tenant that a request is about.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// Whose usage.
    pub tenant: TenantId,
    /// From this time.
    pub from: Timestamp,
    /// To this time, exclusive.
    pub to: Timestamp,
    /// Only this meter.
    pub meter: Option<Meter>,
}

/// The usage of one measure in one period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// When the period begins.
    pub period_start: Timestamp,
    /// What was counted.
    pub measure: Measure,
    /// How much.
    pub quantity: Decimal,
    /// Of how many facts.
    pub events: u64,
}

/// A raw event as it was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct RawEvent {
    /// Who told of it.
    pub source: String,
    /// The event's id.
    pub event_id: String,
    /// What was counted.
    pub measure: Measure,
    /// How much.
    pub quantity: Decimal,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// The job it is about.
    pub job_id: Option<Uuid>,
    /// The request it is about.
    pub request_id: Option<Uuid>,
    /// The request's route template.
    pub endpoint: Option<String>,
    /// The answer's status.
    pub status_code: Option<u16>,
}

/// Where the next page of raw events begins: behind this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct After {
    occurred_at: Option<Timestamp>,
    source: String,
    event_id: String,
    meter: String,
    unit: String,
}

impl Store {
    /// The sums of the selection's hours, by period, oldest first.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn sums(
        &self,
        selection: &Selection,
        granularity: Granularity,
    ) -> anyhow::Result<Vec<Sum>> {
        let sql = "\
            -- metering.sums\n\
            SELECT date_trunc($5, window_start, 'UTC') AS period_start, meter, unit,\n    \
                sum(quantity) AS quantity, sum(events)::bigint AS events\n\
            FROM metering.aggregates\n\
            WHERE tenant_id = $1 AND window_start >= $2 AND window_start < $3\n    \
                AND ($4::text IS NULL OR meter = $4)\n\
            GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";
        let field = match granularity {
            Granularity::Hour => "hour",
            Granularity::Day => "day",
            Granularity::Month => "month",
        };
        let meter = selection.meter.map(Meter::as_str);
        let Selection {
            tenant, from, to, ..
        } = selection;
        let client = self.client().await?;
        let statement = client.prepare_cached(sql).await?;
        let rows = client
            .query(&statement, &[&tenant.uuid(), from, to, &meter, &field])
            .await?;
        rows.iter().map(sum).collect()
    }

    /// The next page of the selection's raw events, at most `limit`, in the order of their time.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn events(
        &self,
        selection: &Selection,
        after: &After,
        limit: i64,
    ) -> anyhow::Result<Vec<RawEvent>> {
        let sql = "\
            -- metering.events_page\n\
            SELECT source, event_id, meter, unit, quantity, occurred_at, job_id, request_id,\n    \
                endpoint, status_code\n\
            FROM metering.events\n\
            WHERE tenant_id = $1 AND occurred_at < $2\n    \
                AND event_time >= $3 AND event_time < $4\n    \
                AND ($5::text IS NULL OR meter = $5) AND occurred_at >= $6\n    \
                AND (occurred_at, source, event_id, meter, unit) > ($6, $7, $8, $9, $10)\n\
            ORDER BY occurred_at, source, event_id, meter, unit LIMIT $11";
        let Selection {
            tenant,
            from,
            to,
            meter,
        } = selection;
        // A fact's id and occurrence were both inside the window of one moment, so partitions
        // farther than two of its lengths away need not be looked at.
        let earliest = from.saturating_sub(WINDOW * 2).unwrap_or(Timestamp::MIN);
        let latest = to.saturating_add(WINDOW * 2).unwrap_or(Timestamp::MAX);
        let start = after.occurred_at.unwrap_or(*from);
        let (tenant, meter) = (tenant.uuid(), meter.map(Meter::as_str));
        let parameters: [&(dyn ToSql + Sync); 11] = [
            &tenant,
            to,
            &earliest,
            &latest,
            &meter,
            &start,
            &after.source,
            &after.event_id,
            &after.meter,
            &after.unit,
            &limit,
        ];
        let client = self.client().await?;
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &parameters).await?;
        rows.iter().map(raw_event).collect()
    }
}

impl From<&RawEvent> for After {
    fn from(event: &RawEvent) -> Self {
        Self {
            occurred_at: Some(event.occurred_at),
            source: event.source.clone(),
            event_id: event.event_id.clone(),
            meter: event.measure.meter().as_str().to_owned(),
            unit: event.measure.unit().as_str().to_owned(),
        }
    }
}

fn sum(row: &Row) -> anyhow::Result<Sum> {
    Ok(Sum {
        period_start: row.get("period_start"),
        measure: Measure::parse(row.get("meter"), row.get("unit"))?,
        quantity: row.try_get("quantity")?,
        events: u64::try_from(row.get::<_, i64>("events"))?,
    })
}

fn raw_event(row: &Row) -> anyhow::Result<RawEvent> {
    let status_code: Option<i32> = row.get("status_code");
    Ok(RawEvent {
        source: row.get("source"),
        event_id: row.get("event_id"),
        measure: Measure::parse(row.get("meter"), row.get("unit"))?,
        quantity: row.try_get("quantity")?,
        occurred_at: row.get("occurred_at"),
        job_id: row.get("job_id"),
        request_id: row.get("request_id"),
        endpoint: row.get("endpoint"),
        status_code: status_code.map(u16::try_from).transpose()?,
    })
}
