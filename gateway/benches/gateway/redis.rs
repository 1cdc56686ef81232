//! Redis's own count of what is asked of it.

use anyhow::Context as _;
use fred::{
    clients::Client,
    interfaces::ClientLike as _,
    types::{InfoKind, config::Config},
};
use ops::testing::service;

/// How the gateway calls Redis: by script, and by nothing else but health pings. What a script
/// does inside is counted too, under other names, and is no trip.
const CALLS: [&str; 2] = ["cmdstat_evalsha:calls=", "cmdstat_eval:calls="];

pub(crate) struct Counter(Client);

impl Counter {
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        let client = Client::new(Config::from_url(&service("REDIS_URL"))?, None, None, None);
        client.init().await?;
        Ok(Self(client))
    }

    /// Calls that Redis has had since it started.
    pub(crate) async fn calls(&self) -> anyhow::Result<u64> {
        let told: String = self.0.info(Some(InfoKind::CommandStats)).await?;
        let mut sum = 0;
        for line in told.lines() {
            let count = CALLS.iter().find_map(|call| line.strip_prefix(call));
            if let Some((count, _)) = count.and_then(|count| count.split_once(',')) {
                sum += count.parse::<u64>().context("Redis's count")?;
            }
        }
        Ok(sum)
    }
}
