//! All SQL of this service, by what it is for: one file each for recording facts, reading usage,
//! reading prices, and keeping count of progress.

use deadpool_postgres::Object;
use ops::postgres::Pool;

pub mod prices;
pub mod progress;
pub mod reconcile;
pub mod record;
pub mod usage;

/// Reads what was recorded. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Pool,
}

impl Store {
    /// The store behind a pool.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        Self { pool }
    }

    async fn client(&self) -> anyhow::Result<Object> {
        Ok(self.pool.get().await?)
    }
}
