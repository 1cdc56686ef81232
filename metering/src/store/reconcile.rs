//! Adding up: do the raw events sum to the aggregates?

use std::fmt;

use contracts::id::TenantId;
use jiff::Timestamp;
use rust_decimal::Decimal;

use super::Store;

/// Most differences that are named; one is already an alarm.
const NAMED_MAX: i64 = 100;

/// What the comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconciliation {
    /// Raw events there are.
    pub events: i64,
    /// Facts that wait in the quarantine for an operator.
    pub quarantined: i64,
    /// Records that nobody could read.
    pub dead_letters: i64,
    /// The first hours in which the sums differ; none if all is well.
    pub differences: Vec<Difference>,
}

/// An hour in which raw events and aggregate differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Whose usage.
    pub tenant: TenantId,
    /// The hour.
    pub window_start: Timestamp,
    /// The meter.
    pub meter: String,
    /// The unit.
    pub unit: String,
    /// Sum and number of the raw events.
    pub raw: (Decimal, i64),
    /// What the aggregate says.
    pub aggregate: (Decimal, i64),
}

impl Store {
    /// Compares all raw events with all aggregates, in one snapshot.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn reconcile(&self) -> anyhow::Result<Reconciliation> {
        let differences = "\
            -- metering.reconcile\n\
            WITH raw AS (\n    \
                SELECT tenant_id, date_trunc('hour', occurred_at, 'UTC') AS window_start,\n        \
                    meter, unit, sum(quantity) AS quantity, count(*) AS events\n    \
                FROM metering.events GROUP BY 1, 2, 3, 4\n\
            )\n\
            SELECT tenant_id, window_start, meter, unit,\n    \
                coalesce(raw.quantity, 0) AS raw_quantity,\n    \
                coalesce(raw.events, 0) AS raw_events,\n    \
                coalesce(known.quantity, 0) AS quantity, coalesce(known.events, 0) AS events\n\
            FROM raw FULL JOIN metering.aggregates AS known\n    \
                USING (tenant_id, window_start, meter, unit)\n\
            WHERE (raw.quantity, raw.events) IS DISTINCT FROM (known.quantity, known.events)\n\
            ORDER BY 1, 2, 3, 4 LIMIT $1";
        let counts = "\
            -- metering.reconcile_counts\n\
            SELECT (SELECT count(*) FROM metering.events) AS events,\n    \
                (SELECT count(*) FROM metering.quarantine) AS quarantined,\n    \
                (SELECT count(*) FROM metering.dead_letters) AS dead_letters";
        let mut client = self.client().await?;
        let snapshot = client
            .build_transaction()
            .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await?;
        // All of the past may take longer than any statement of a running process.
        snapshot
            .batch_execute("-- metering.take_time\nSET LOCAL statement_timeout = 0")
            .await?;
        let rows = snapshot.query(differences, &[&NAMED_MAX]).await?;
        let counts = snapshot.query_one(counts, &[]).await?;
        Ok(Reconciliation {
            events: counts.get("events"),
            quarantined: counts.get("quarantined"),
            dead_letters: counts.get("dead_letters"),
            differences: rows.iter().map(difference).collect(),
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tenant,
            window_start,
            meter,
            unit,
            raw,
            aggregate,
        } = self;
        write!(
            f,
            "{tenant} {window_start} {meter} {unit}: raw events {} ({}), aggregate {} ({})",
            raw.0, raw.1, aggregate.0, aggregate.1
        )
    }
}

fn difference(row: &tokio_postgres::Row) -> Difference {
    Difference {
        tenant: TenantId::from_uuid(row.get("tenant_id")),
        window_start: row.get("window_start"),
        meter: row.get("meter"),
        unit: row.get("unit"),
        raw: (row.get("raw_quantity"), row.get("raw_events")),
        aggregate: (row.get("quantity"), row.get("events")),
    }
}
