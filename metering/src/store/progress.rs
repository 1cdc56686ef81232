//! Keeping count of progress: where the inboxes stand, and up to when they had everything.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Store;

impl Store {
    /// Next offset of each partition of the topic that the consumer takes in.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn offsets(&self, consumer: &str, topic: &str) -> anyhow::Result<BTreeMap<i32, i64>> {
        let sql = "\
            -- metering.offsets\n\
            SELECT partition, next_offset FROM metering.inbox_offsets\n\
            WHERE consumer = $1 AND topic = $2";
        let client = self.client().await?;
        let rows = client.query(sql, &[&consumer, &topic]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Records that the consumer has taken in everything that Kafka had at `as_of`.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn caught_up(&self, consumer: &str, as_of: Timestamp) -> anyhow::Result<()> {
        let sql = "\
            -- metering.caught_up\n\
            INSERT INTO metering.progress AS known (consumer, as_of) VALUES ($1, $2)\n\
            ON CONFLICT (consumer) DO UPDATE SET as_of = greatest(known.as_of, EXCLUDED.as_of)";
        let client = self.client().await?;
        client.execute(sql, &[&consumer, &as_of]).await?;
        Ok(())
    }

    /// Up to when all of `consumers` had everything; `None` before each first caught up.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn as_of(&self, consumers: &[&str]) -> anyhow::Result<Option<Timestamp>> {
        let sql = "\
            -- metering.as_of\n\
            SELECT CASE WHEN count(*) = cardinality($1::text[]) THEN min(as_of) END\n\
            FROM metering.progress WHERE consumer = ANY($1)";
        let client = self.client().await?;
        Ok(client.query_one(sql, &[&consumers]).await?.get(0))
    }
}
