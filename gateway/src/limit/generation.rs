//! When Redis was last found empty, or restarted: what tells a flush, or a snapshot of an earlier
//! time, from a tenant that nobody heard of for long. Since then buckets fill from empty and quotas
//! are taken again from metering, because nobody knows what was spent just before.
//!
//! A restarted Redis is not believed, whatever it saves: neither snapshots nor an append-only file,
//! which is written once a second, hold the last requests; nor is a replica that took its place.
//! What it keeps of answers stands all the same: an answer never changes, and one that is missing
//! is in the service's own record.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fred::types::Value;
use ops::postgres::Pool;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::redis::{Redis, Script};

/// Where Redis keeps when its generation began, and of which run of the server it is.
pub(crate) const KEY: &str = "generation_of_run";
/// How often it is looked. Buckets that a gateway used a moment ago it misses by itself, at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// When the present generation began, 0 being before there was any, or -1 where none is known and
/// the caller does not say whether there ever was one. A generation is of one run of the server.
const LOOK: &str = "\
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local known = redis.call('HMGET', KEYS[1], 'born', 'run')
if known[1] and known[2] == run then return tonumber(known[1]) end
if not known[1] and ARGV[1] == '' then return -1 end
local time = redis.call('TIME')
local born = ARGV[1] == 'first' and 0 or time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'born', string.format('%.0f', born), 'run', run)
return born";

/// Milliseconds of Redis's clock at which it was last found empty or restarted; 0 while it never
/// was.
#[derive(Clone, Debug, Default)]
pub struct Generation(Arc<AtomicU64>);

impl Generation {
    /// As known now.
    #[must_use]
    pub fn born_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Looks once.
    ///
    /// # Errors
    /// When Redis or, where it holds no generation, Postgres does not answer.
    pub async fn look(&self, redis: &Redis, pool: &Pool) -> anyhow::Result<()> {
        let (key, script) = (redis.shared_key(KEY), Script::new(LOOK));
        let look = async |of: &'static str| {
            let arguments = vec![Value::from_static_str(of)];
            redis.run::<i64>(&script, key.clone(), arguments).await
        };
        let mut born = look("").await?;
        if born < 0 {
            let first = is_first(redis, pool).await?;
            born = look(if first { "first" } else { "again" }).await?;
        }
        let born = u64::try_from(born).unwrap_or(0);
        if self.0.swap(born, Ordering::Relaxed) < born {
            info!(
                redis.born_ms = born,
                "Redis was empty or restarted: buckets start empty"
            );
        }
        Ok(())
    }

    /// Looks again and again until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn follow(
        self,
        redis: Redis,
        pool: Pool,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            // That Redis is away is said elsewhere; what is known then stays.
            self.look(&redis, &pool).await.ok();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}

/// Whether nobody ever began a generation there; says so once.
async fn is_first(redis: &Redis, pool: &Pool) -> anyhow::Result<bool> {
    let sql = "-- gateway.begin_generation\n\
               INSERT INTO gateway.redis_prefixes (prefix) VALUES ($1) ON CONFLICT DO NOTHING";
    let inserted = pool.get().await?.execute(sql, &[&redis.prefix()]).await?;
    Ok(inserted == 1)
}
