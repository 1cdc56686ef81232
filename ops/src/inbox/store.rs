//! The Postgres side of the inbox: offsets, identities, dead letters.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use deadpool_postgres::{GenericClient, Transaction};
use tracing::warn;

use super::{Event, Offsets, Place, Poison, Record};
use crate::lease::LeaseError;

/// The offsets that the consumer has reached, by topic and partition.
pub(super) async fn reached(
    client: &impl GenericClient,
    schema: &str,
    consumer: &str,
) -> anyhow::Result<BTreeMap<(String, i32), i64>> {
    let sql = format!(
        "-- ops.inbox_reached\n\
         SELECT topic, partition, next_offset FROM {schema}.inbox_offsets WHERE consumer = $1"
    );
    let rows = client.query(&sql, &[&consumer]).await?;
    Ok(rows
        .iter()
        .map(|row| ((row.get(0), row.get(1)), row.get(2)))
        .collect())
}

/// Next offsets of the partitions that hold `bounds`, which were asked for after what was
/// `reached`. One that is new to this consumer begins with the oldest record that Kafka still has.
///
/// # Errors
/// When Postgres fails, or an offset that was reached before is not in Kafka (any more): going on
/// elsewhere would skip records or repeat them, so only a person may decide that.
pub(super) async fn offsets(
    client: &impl GenericClient,
    schema: &str,
    consumer: &str,
    reached: &BTreeMap<(String, i32), i64>,
    bounds: &BTreeMap<Place, Range<i64>>,
) -> anyhow::Result<Offsets> {
    let sql = format!(
        "-- ops.inbox_offset\n\
         INSERT INTO {schema}.inbox_offsets AS known (consumer, topic, partition, next_offset)\n\
         VALUES ($1, $2, $3, $4) ON CONFLICT (consumer, topic, partition)\n\
         DO UPDATE SET next_offset = known.next_offset RETURNING next_offset, xmax = 0"
    );
    let mut offsets = Offsets::new();
    for (place, held) in bounds {
        let Place { topic, partition } = place;
        if let Some(next) = reached.get(&((*topic).to_owned(), *partition)) {
            require_held(schema, consumer, *place, *next, held)?;
        }
        let row = client
            .query_one(&sql, &[&consumer, topic, partition, &held.start])
            .await?;
        let (next, new) = (row.get(0), row.get(1));
        if new && held.start > 0 {
            warn!(
                consumer,
                kafka.topic = topic,
                kafka.partition = partition,
                kafka.offset = held.start,
                "new to this partition, whose beginning has expired: taking in what is left"
            );
        }
        offsets.insert(*place, next);
    }
    Ok(offsets)
}

fn require_held(
    schema: &str,
    consumer: &str,
    place: Place,
    next: i64,
    held: &Range<i64>,
) -> anyhow::Result<()> {
    let Place { topic, partition } = place;
    let Range { start, end } = held;
    let go_on = |offset: &i64| {
        format!(
            "by: UPDATE {schema}.inbox_offsets SET next_offset = {offset} WHERE consumer = \
             '{consumer}' AND topic = '{topic}' AND partition = {partition}"
        )
    };
    anyhow::ensure!(
        next >= *start,
        "topic {topic}, partition {partition}: the next offset is {next}, but the oldest that \
         Kafka still has is {start}: {} records are LOST to {consumer}. Find out what they were, \
         then go on without them {}",
        start - next,
        go_on(start)
    );
    anyhow::ensure!(
        next <= *end,
        "topic {topic}, partition {partition}: the next offset is {next}, but the partition \
         ends at {end}: was the topic made anew? If so, {consumer} may begin again {}",
        go_on(start)
    );
    Ok(())
}

/// Moves the offsets past `records` if they still stand where this consumer left them; returns
/// where they then stand.
pub(super) async fn advance(
    transaction: &Transaction<'_>,
    schema: &str,
    consumer: &str,
    offsets: &Offsets,
    records: &[Record],
) -> Result<Offsets, LeaseError> {
    let sql = format!(
        "-- ops.inbox_advance\n\
         UPDATE {schema}.inbox_offsets SET next_offset = $5\n\
         WHERE consumer = $1 AND topic = $2 AND partition = $3 AND next_offset = $4"
    );
    let mut moved = offsets.clone();
    for record in records {
        moved.insert(record.place, record.offset + 1);
    }
    for (place, next) in &moved {
        let before = offsets.get(place).copied().unwrap_or(0);
        if before == *next {
            continue;
        }
        let Place { topic, partition } = place;
        let updated = transaction
            .execute(&sql, &[&consumer, topic, partition, &before, next])
            .await?;
        if updated == 0 {
            return Err(LeaseError::Fenced);
        }
    }
    Ok(moved)
}

/// Records the identities of events; returns those that were not known, as `(source, id)`.
pub(super) async fn new_identities<I>(
    transaction: &Transaction<'_>,
    schema: &str,
    consumer: &str,
    events: &[(Event, I)],
) -> Result<HashSet<(String, String)>, tokio_postgres::Error> {
    let sql = format!(
        "-- ops.inbox_identities\n\
         INSERT INTO {schema}.inbox_events (consumer, ce_source, ce_id)\n\
         SELECT $1, told.source, told.id\n\
         FROM unnest($2::text[], $3::text[]) AS told (source, id)\n\
         ON CONFLICT DO NOTHING RETURNING ce_source, ce_id"
    );
    let sources: Vec<&str> = events
        .iter()
        .map(|(event, _)| event.source.as_str())
        .collect();
    let ids: Vec<&str> = events.iter().map(|(event, _)| event.id.as_str()).collect();
    let rows = transaction
        .query(&sql, &[&consumer, &sources, &ids])
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Lays a record in the dead-letter table, unless it lies there: offsets may have been set back.
pub(super) async fn bury(
    transaction: &Transaction<'_>,
    schema: &str,
    consumer: &str,
    record: &Record,
    reason: &Poison,
) -> Result<(), tokio_postgres::Error> {
    let sql = format!(
        "-- ops.inbox_bury\n\
         INSERT INTO {schema}.dead_letters\n    \
         (consumer, topic, partition, record_offset, key, headers, value, reason)\n\
         SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE NOT EXISTS (\n    \
         SELECT FROM {schema}.dead_letters WHERE consumer = $1 AND topic = $2\n    \
         AND partition = $3 AND record_offset = $4\n    \
         AND key IS NOT DISTINCT FROM $5 AND headers = $6\n    \
         AND value IS NOT DISTINCT FROM $7)"
    );
    // Postgres text cannot hold NUL; the value column keeps the exact bytes.
    let headers: serde_json::Map<String, serde_json::Value> = record
        .headers
        .iter()
        .map(|(name, text)| (name.replace('\0', "␀"), text.replace('\0', "␀").into()))
        .collect();
    let headers = serde_json::Value::Object(headers);
    let Place { topic, partition } = record.place;
    transaction
        .execute(
            &sql,
            &[
                &consumer,
                &topic,
                &partition,
                &record.offset,
                &record.key,
                &headers,
                &record.value,
                &reason.0,
            ],
        )
        .await?;
    Ok(())
}

/// The headers of a dead letter, as they were kept.
pub(super) fn headers(kept: serde_json::Value) -> BTreeMap<String, String> {
    serde_json::from_value(kept).unwrap_or_default()
}
