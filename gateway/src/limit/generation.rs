//! When Redis was last found empty: what tells a flush from a tenant that nobody heard of for long.
//! After a flush buckets start empty, because nobody knows what was spent just before.

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

/// How often it is looked. Buckets that a gateway used a moment ago it misses by itself, at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Begins a generation where there is none: at time 0 if there never was one, else now.
const BEGIN: &str = "\
local born = redis.call('GET', KEYS[1])
if born then return tonumber(born) end
local time = redis.call('TIME')
born = ARGV[1] == 'first' and 0 or time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], string.format('%.0f', born))
return born";

/// Milliseconds of Redis's clock at which it was last found empty; 0 while it never was.
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
        let key = redis.shared_key("generation");
        let known = redis.get::<Option<u64>>(&key).await?;
        let born = if let Some(born) = known {
            born
        } else {
            let first = is_first(redis, pool).await?;
            let first = Value::from_static_str(if first { "first" } else { "again" });
            redis.run(&Script::new(BEGIN), key, vec![first]).await?
        };
        if self.0.swap(born, Ordering::Relaxed) < born {
            info!(redis.born_ms = born, "Redis was empty: buckets start empty");
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
