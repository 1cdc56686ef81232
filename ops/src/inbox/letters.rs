//! The command `dead-letters` of every service with an inbox: what lies there and why, and handing
//! it in again once the cause is gone.

use std::{fmt::Write as _, io::Write as _, process::ExitCode};

use clap::{Args, Subcommand};
use deadpool_postgres::{Object, Transaction};
use jiff::Timestamp;
use tokio_postgres::Row;

use super::{Handler, Handling, Place, Poison, Record, store};
use crate::{
    config::{CommandOptions, LogOptions},
    postgres::{self, Migration, Pool, explain, is_outage},
};

/// Letters shown, and read at a time.
const PAGE: i64 = 1_000;

/// What `dead-letters` does.
#[derive(Clone, Debug, Subcommand)]
pub enum DeadLetters {
    /// Show the records that could not be taken in, and why; the oldest first, at most 1,000.
    List(CommandOptions),
    /// Hand records in again, each in a transaction of its own. One that is taken in now, or was
    /// meanwhile, is deleted; the others are kept with the new reason, and the exit code is 1.
    Replay(ReplayOptions),
}

/// Configuration of `dead-letters replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayOptions {
    /// Which, by the ids that `list` shows.
    #[arg(
        value_name = "ID",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub ids: Vec<i64>,
    /// All of them.
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: its own type is documented")]
    pub command: CommandOptions,
}

/// What became of letters that were handed in again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Those that were taken in.
    pub taken: Vec<i64>,
    /// Those that were refused again, with the new reason.
    pub kept: Vec<(i64, String)>,
    /// Those that are not there.
    pub missing: Vec<i64>,
}

impl DeadLetters {
    /// How the command speaks of itself.
    #[must_use]
    pub fn log(&self) -> &LogOptions {
        match self {
            Self::List(options) => &options.log,
            Self::Replay(options) => &options.command.log,
        }
    }

    /// Does it, with the handling of all consumers whose progress is in `schema`.
    ///
    /// # Errors
    /// When Postgres fails, or the schema is not at the newest version in `all`.
    pub async fn run<H: Handler>(
        &self,
        schema: &str,
        all: &[Migration],
        handlings: &[Handling<H>],
    ) -> anyhow::Result<ExitCode> {
        match self {
            Self::List(options) => {
                let pool = postgres::open(&options.database, schema, all).await?;
                std::io::stdout().write_all(list(&pool, schema).await?.as_bytes())?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Replay(options) => {
                let pool = postgres::open(&options.command.database, schema, all).await?;
                let ids = Some(&options.ids).filter(|_| !options.all);
                let replayed = replay(&pool, schema, handlings, ids.map(Vec::as_slice)).await?;
                std::io::stdout().write_all(replayed.to_string().as_bytes())?;
                Ok(ExitCode::from(u8::from(!replayed.is_complete())))
            }
        }
    }
}

impl Replayed {
    fn is_complete(&self) -> bool {
        self.kept.is_empty() && self.missing.is_empty()
    }
}

impl std::fmt::Display for Replayed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (id, reason) in &self.kept {
            writeln!(formatter, "{id} is kept: {}", reason.escape_debug())?;
        }
        for id in &self.missing {
            writeln!(formatter, "{id} is not there")?;
        }
        let (taken, kept) = (self.taken.len(), self.kept.len());
        writeln!(formatter, "{taken} taken in, {kept} kept")
    }
}

/// The letters as a table.
///
/// # Errors
/// When Postgres fails.
pub async fn list(pool: &Pool, schema: &str) -> anyhow::Result<String> {
    let sql = format!(
        "-- ops.letters_list\n\
         SELECT id, topic, partition, record_offset, created_at, reason\n\
         FROM {schema}.dead_letters ORDER BY id LIMIT $1"
    );
    let rows = pool.get().await?.query(&sql, &[&PAGE]).await?;
    let mut table = format!(
        "{:>8}  {:20}  {:>9}  {:>10}  {:20}  REASON\n",
        "ID", "TOPIC", "PARTITION", "OFFSET", "TIME"
    );
    for row in rows {
        let (id, topic, partition): (i64, &str, i32) = (row.get(0), row.get(1), row.get(2));
        let (offset, time): (i64, Timestamp) = (row.get(3), row.get(4));
        let time = time.strftime("%Y-%m-%dT%H:%M:%SZ");
        // A reason may repeat what a stranger sent: nothing of it may command the terminal.
        let reason = row.get::<_, &str>(5).escape_debug();
        writeln!(
            table,
            "{id:>8}  {topic:20}  {partition:>9}  {offset:>10}  {time}  {reason}"
        )?;
    }
    Ok(table)
}

/// Hands letters in again: those with `ids`, or all that there are now.
///
/// # Errors
/// When Postgres is not there; what was taken in until then stays so.
pub async fn replay<H: Handler>(
    pool: &Pool,
    schema: &str,
    handlings: &[Handling<H>],
    ids: Option<&[i64]>,
) -> anyhow::Result<Replayed> {
    let all;
    let ids = if let Some(ids) = ids {
        ids
    } else {
        all = every(pool, schema).await?;
        &all
    };
    let mut replayed = Replayed::default();
    let mut client = pool.get().await?;
    for &id in ids {
        match hand_in(&mut client, schema, handlings, id).await? {
            Outcome::Taken => replayed.taken.push(id),
            Outcome::Kept(reason) => replayed.kept.push((id, reason)),
            Outcome::Missing => replayed.missing.push(id),
        }
    }
    Ok(replayed)
}

async fn every(pool: &Pool, schema: &str) -> anyhow::Result<Vec<i64>> {
    let sql = format!("-- ops.letters_every\nSELECT id FROM {schema}.dead_letters ORDER BY id");
    let rows = pool.get().await?.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

enum Outcome {
    Taken,
    Kept(String),
    Missing,
}

async fn hand_in<H: Handler>(
    client: &mut Object,
    schema: &str,
    handlings: &[Handling<H>],
    id: i64,
) -> anyhow::Result<Outcome> {
    let [read, delete, keep] = [
        "-- ops.letters_read\nSELECT * FROM {schema}.dead_letters WHERE id = $1 FOR UPDATE",
        "-- ops.letters_delete\nDELETE FROM {schema}.dead_letters WHERE id = $1",
        "-- ops.letters_keep\nUPDATE {schema}.dead_letters SET reason = $2 WHERE id = $1",
    ]
    .map(|sql| sql.replace("{schema}", schema));
    let mut transaction = client.transaction().await?;
    let Some(row) = transaction.query_opt(&read, &[&id]).await? else {
        return Ok(Outcome::Missing);
    };
    // A savepoint, since what Postgres refuses ends what it was asked in.
    let attempt = transaction.transaction().await?;
    let outcome = match take_in(&attempt, schema, handlings, &row).await {
        Ok(()) => {
            attempt.commit().await?;
            transaction.execute(&delete, &[&id]).await?;
            Outcome::Taken
        }
        Err(cause) if is_outage(cause.as_ref()) => return Err(cause),
        Err(cause) => {
            attempt.rollback().await?;
            let Poison(reason) = Poison(explain(&cause)).storable();
            transaction.execute(&keep, &[&id, &reason]).await?;
            Outcome::Kept(reason)
        }
    };
    transaction.commit().await?;
    Ok(outcome)
}

async fn take_in<H: Handler>(
    attempt: &Transaction<'_>,
    schema: &str,
    handlings: &[Handling<H>],
    row: &Row,
) -> anyhow::Result<()> {
    let (consumer, topic): (&str, &str) = (row.get("consumer"), row.get("topic"));
    let found = handlings.iter().find_map(|handling| {
        let topic = handling.topics.iter().find(|known| **known == topic)?;
        (handling.name == consumer).then_some((handling, *topic))
    });
    let Some((handling, topic)) = found else {
        anyhow::bail!("nothing here takes in {topic} as {consumer}");
    };
    let record = Record {
        place: Place {
            topic,
            partition: row.get("partition"),
        },
        offset: row.get("record_offset"),
        key: row.get("key"),
        headers: store::headers(row.get("headers")),
        value: row.get("value"),
        // A header that could not be read was not kept: what is left may do.
        flaw: None,
    };
    let understood = handling.understand(&record)?;
    let understood = understood.into_iter().collect();
    handling.apply(attempt, schema, understood).await
}
