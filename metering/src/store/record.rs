//! Recording: raw facts and their sums, in the transaction that moves the inbox's offsets.
//!
//! Order of locks, the same for every consumer: days, then the table (only to add a partition),
//! then raw events, then aggregates, each sorted. So two consumers wait for each other but never in
//! a ring.

use std::collections::BTreeSet;

use contracts::id::{JobId, RequestId};
use deadpool_postgres::Transaction;
use jiff::{Timestamp, civil::Date};
use rust_decimal::Decimal;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::{
    event::{About, Fact},
    window::{Placement, Reason, midnight},
};

/// What became of some facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Facts that were counted, by the meter and unit they went to.
    pub counted: Vec<(String, String, i64)>,
    /// Facts that an earlier transaction, or an earlier fact among these, had told.
    pub repeated: i64,
    /// Facts kept aside, with the reason of each.
    pub quarantined: Vec<Reason>,
}

/// The columns that raw events and quarantine have, one entry a fact.
#[derive(Default)]
struct Columns<'a> {
    source: Vec<&'a str>,
    event_id: Vec<&'a str>,
    meter: Vec<&'static str>,
    unit: Vec<&'static str>,
    event_time: Vec<Timestamp>,
    tenant_id: Vec<Uuid>,
    quantity: Vec<Decimal>,
    occurred_at: Vec<Timestamp>,
    job_id: Vec<Option<Uuid>>,
    request_id: Vec<Option<Uuid>>,
    endpoint: Vec<Option<&'a str>>,
    status_code: Vec<Option<i32>>,
    dimensions: Vec<serde_json::Value>,
    /// Empty for facts that are counted.
    reason: Vec<&'static str>,
}

/// Facts as rows.
const TOLD: &str = "\
    unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::uuid[],
        $7::numeric[], $8::timestamptz[], $9::uuid[], $10::uuid[], $11::text[], $12::int[],
        $13::jsonb[], $14::text[])
    AS told (source, event_id, meter, unit, event_time, tenant_id,
        quantity, occurred_at, job_id, request_id, endpoint, status_code,
        dimensions, reason)";

const COLUMNS: &str = "source, event_id, meter, unit, event_time, tenant_id, quantity, \
                       occurred_at, job_id, request_id, endpoint, status_code, dimensions";

/// Records facts in the caller's transaction: those inside the window once each, with their sums;
/// the others in the quarantine.
///
/// # Errors
/// When Postgres fails; the transaction is then void.
pub async fn record(
    transaction: &Transaction<'_>,
    facts: &[&Fact],
    now: Timestamp,
) -> Result<Recorded, tokio_postgres::Error> {
    let mut recorded = Recorded::default();
    let (mut days, mut counted, mut aside) =
        (BTreeSet::new(), Columns::default(), Columns::default());
    for fact in facts {
        match Placement::of(fact.id_time, fact.occurred_at, now) {
            Placement::Counted(day) => {
                days.insert(day);
                counted.push(fact, "");
            }
            Placement::Quarantined(reason) => {
                recorded.quarantined.push(reason);
                aside.push(fact, reason.as_str());
            }
        }
    }
    if !days.is_empty() {
        partition(transaction, &days).await?;
        recorded.counted = count(transaction, &counted).await?;
        let told = i64::try_from(counted.source.len()).unwrap_or(i64::MAX);
        recorded.repeated = told - recorded.counted.iter().map(|(_, _, n)| n).sum::<i64>();
    }
    if !recorded.quarantined.is_empty() {
        quarantine(transaction, &aside).await?;
    }
    Ok(recorded)
}

/// Makes the partitions of days that have none. Attaching one blocks no reader and no writer.
async fn partition(
    transaction: &Transaction<'_>,
    days: &BTreeSet<Date>,
) -> Result<(), tokio_postgres::Error> {
    let sql = "\
        -- metering.claim_days\n\
        INSERT INTO metering.event_days (day) SELECT day FROM unnest($1::date[]) AS day\n\
        ORDER BY day ON CONFLICT DO NOTHING RETURNING day";
    let days: Vec<Date> = days.iter().copied().collect();
    let statement = transaction.prepare_cached(sql).await?;
    for row in transaction.query(&statement, &[&days]).await? {
        let day: Date = row.get("day");
        let table = format!("metering.events_{}", day.strftime("%Y%m%d"));
        let (from, to) = (midnight(day), midnight(day.tomorrow().unwrap_or(Date::MAX)));
        let sql = format!(
            "-- metering.add_partition\n\
             CREATE TABLE {table} (LIKE metering.events INCLUDING ALL);\n\
             ALTER TABLE metering.events ATTACH PARTITION {table}\n    \
             FOR VALUES FROM ('{from}') TO ('{to}')"
        );
        transaction.batch_execute(&sql).await?;
    }
    Ok(())
}

/// Inserts the facts that are new, and adds exactly those to their aggregates.
async fn count(
    transaction: &Transaction<'_>,
    facts: &Columns<'_>,
) -> Result<Vec<(String, String, i64)>, tokio_postgres::Error> {
    let sql = format!(
        "-- metering.count\n\
         WITH new AS (\n    \
             INSERT INTO metering.events ({COLUMNS}) SELECT {COLUMNS} FROM {TOLD}\n    \
             ORDER BY event_time, source, event_id, meter, unit\n    \
             ON CONFLICT DO NOTHING\n    \
             RETURNING tenant_id, meter, unit, quantity,\n        \
                 date_trunc('hour', occurred_at, 'UTC') AS window_start\n\
         ), summed AS (\n    \
             INSERT INTO metering.aggregates AS known\n    \
             (tenant_id, window_start, meter, unit, quantity, events)\n    \
             SELECT tenant_id, window_start, meter, unit, sum(quantity), count(*)\n    \
             FROM new GROUP BY tenant_id, window_start, meter, unit\n    \
             ORDER BY tenant_id, window_start, meter, unit\n    \
             ON CONFLICT (tenant_id, window_start, meter, unit) DO UPDATE SET\n        \
                 quantity = known.quantity + EXCLUDED.quantity,\n        \
                 events = known.events + EXCLUDED.events, updated_at = clock_timestamp()\n\
         )\n\
         SELECT meter, unit, count(*) FROM new GROUP BY meter, unit"
    );
    let statement = transaction.prepare_cached(&sql).await?;
    let rows = transaction.query(&statement, &facts.parameters()).await?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect())
}

async fn quarantine(
    transaction: &Transaction<'_>,
    facts: &Columns<'_>,
) -> Result<(), tokio_postgres::Error> {
    let sql = format!(
        "-- metering.quarantine\n\
         INSERT INTO metering.quarantine ({COLUMNS}, reason) SELECT {COLUMNS}, reason FROM {TOLD}\n\
         ORDER BY source, event_id, meter, unit ON CONFLICT DO NOTHING"
    );
    let statement = transaction.prepare_cached(&sql).await?;
    transaction.execute(&statement, &facts.parameters()).await?;
    Ok(())
}

impl<'a> Columns<'a> {
    fn push(&mut self, fact: &'a Fact, reason: &'static str) {
        self.source.push(fact.source);
        self.event_id.push(&fact.event_id);
        self.meter.push(fact.measure.meter().as_str());
        self.unit.push(fact.measure.unit().as_str());
        self.event_time.push(fact.id_time);
        self.tenant_id.push(fact.tenant.uuid());
        self.quantity.push(fact.quantity);
        self.occurred_at.push(fact.occurred_at);
        self.job_id.push(fact.about.job().map(JobId::uuid));
        self.request_id
            .push(fact.about.request().map(RequestId::uuid));
        let (endpoint, status_code) = match &fact.about {
            About::Request {
                endpoint,
                status_code,
                ..
            } => (Some(endpoint.as_str()), Some(i32::from(*status_code))),
            About::Job(_) => (None, None),
        };
        self.endpoint.push(endpoint);
        self.status_code.push(status_code);
        let dimensions = fact
            .dimensions
            .iter()
            .map(|(name, text)| (*name, text.as_str()));
        self.dimensions.push(dimensions.collect());
        self.reason.push(reason);
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![
            &self.source,
            &self.event_id,
            &self.meter,
            &self.unit,
            &self.event_time,
            &self.tenant_id,
            &self.quantity,
            &self.occurred_at,
            &self.job_id,
            &self.request_id,
            &self.endpoint,
            &self.status_code,
            &self.dimensions,
            &self.reason,
        ]
    }
}
