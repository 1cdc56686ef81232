//! `gateway admin rollout`: a second version of an upstream takes over by steps, or is called back.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use ops::clock::Clock;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Row};
use url::Url;

use crate::store::traffic::{audience, rollouts};

#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// Send tenants to a new version, more of them with each step.
    Start(Start),
    /// Show the rollouts and the shares they have now.
    Status,
    /// Send every tenant back, at once.
    Rollback {
        /// Of which upstream: jobs, relayer, metering or webhooks.
        upstream: String,
        /// Why, for who looks later.
        #[arg(long, default_value = "by hand")]
        reason: String,
    },
    /// Forget a rollout, once the configuration names its version, or after a rollback.
    Finish {
        /// Of which upstream.
        upstream: String,
    },
}

#[derive(Args, Debug)]
pub(super) struct Start {
    /// Of which upstream: jobs, relayer, metering or webhooks.
    upstream: String,
    /// What the new version is called.
    #[arg(long)]
    version: String,
    /// Where it is, as `http://host:port`; it believes the upstream's assertion key.
    #[arg(long)]
    url: Url,
    /// The shares of the tenants, in per cent.
    #[arg(long, value_delimiter = ',', default_value = "10,50,90,100")]
    steps: Vec<i16>,
    /// The time between two steps.
    #[arg(long, default_value = "15m", value_parser = humantime::parse_duration)]
    every: Duration,
    /// When the first step is; now if not given.
    #[arg(long)]
    at: Option<Timestamp>,
}

pub(super) async fn carry_out(
    client: &impl GenericClient,
    command: RolloutCommand,
    clock: &Clock,
) -> anyhow::Result<Value> {
    match command {
        RolloutCommand::Start(start) => begin(client, &start, clock.now()).await,
        RolloutCommand::Status => status(client, clock.now()).await,
        RolloutCommand::Rollback { upstream, reason } => {
            let sql = "-- gateway.roll_back\n\
                       UPDATE gateway.rollouts\n\
                       SET rolled_back_at = clock_timestamp(), reason = $2\n\
                       WHERE upstream = $1 AND rolled_back_at IS NULL";
            let changed = client.execute(sql, &[&upstream, &reason]).await?;
            ensure!(
                changed == 1,
                "there is no rollout of {upstream} to roll back"
            );
            Ok(json!({ "rolled_back": upstream }))
        }
        RolloutCommand::Finish { upstream } => {
            let sql = "-- gateway.finish_rollout\n\
                       DELETE FROM gateway.rollouts WHERE upstream = $1";
            let changed = client.execute(sql, &[&upstream]).await?;
            ensure!(changed == 1, "there is no rollout of {upstream}");
            Ok(json!({ "finished": upstream }))
        }
    }
}

async fn begin(
    client: &impl GenericClient,
    start: &Start,
    now: Timestamp,
) -> anyhow::Result<Value> {
    let Start {
        upstream,
        version,
        url,
        steps,
        every,
        at,
    } = start;
    audience(upstream)?;
    ensure!(
        url.scheme() == "http" && url.host().is_some() && url.path() == "/",
        "{url} is not of the form http://host:port"
    );
    let grows = steps.is_sorted_by(|one, next| one < next);
    let in_range = steps.iter().all(|step| (1..=100).contains(step));
    ensure!(
        !steps.is_empty() && grows && in_range,
        "steps grow, from 1 to 100 at most"
    );
    let first = at.unwrap_or(now);
    let times = (0..u32::try_from(steps.len())?).map(|number| {
        let later = first.checked_add(every.saturating_mul(number));
        later.context("--every is too long")
    });
    let times = times.collect::<anyhow::Result<Vec<Timestamp>>>()?;
    let sql = "-- gateway.start_rollout\n\
               WITH started AS (\n    \
               INSERT INTO gateway.rollouts (upstream, version, url) VALUES ($1, $2, $3)\n    \
               ON CONFLICT (upstream) DO UPDATE SET version = EXCLUDED.version,\n        \
               url = EXCLUDED.url, started_at = clock_timestamp(),\n        \
               rolled_back_at = NULL, reason = NULL\n    \
               WHERE rollouts.rolled_back_at IS NOT NULL RETURNING upstream\n\
               ), old AS (\n    \
               DELETE FROM gateway.rollout_steps s USING started\n    \
               WHERE s.upstream = started.upstream\n\
               )\n\
               INSERT INTO gateway.rollout_steps (upstream, starts_at, percent)\n\
               SELECT started.upstream, step.*\n\
               FROM started, unnest($4::timestamptz[], $5::smallint[]) AS step";
    let inserted = client
        .execute(sql, &[upstream, version, &url.as_str(), &times, steps])
        .await;
    let inserted = super::tables::explain(inserted, &format!("version {version}"))?;
    ensure!(
        inserted > 0,
        "a rollout of {upstream} is under way: roll it back or finish it first"
    );
    Ok(json!({ "upstream": upstream, "version": version, "steps": steps, "starts": times }))
}

async fn status(client: &impl GenericClient, now: Timestamp) -> anyhow::Result<Value> {
    let sql = "-- gateway.rollout_status\n\
               SELECT upstream, version, url, started_at, rolled_back_at, reason\n\
               FROM gateway.rollouts ORDER BY upstream";
    let rows = client.query(sql, &[]).await?;
    let known = rollouts(client).await?;
    let show = |row: &Row| {
        let upstream = row.get::<_, &str>("upstream");
        let rollout = known
            .iter()
            .find(|rollout| rollout.upstream.as_str() == upstream);
        let steps = rollout.into_iter().flat_map(|rollout| &rollout.steps);
        let steps = steps.map(|step| json!({ "at": step.starts_at, "percent": step.percent }));
        json!({
            "upstream": upstream,
            "version": row.get::<_, &str>("version"),
            "url": row.get::<_, &str>("url"),
            "percent": rollout.map(|rollout| rollout.percent(now)),
            "started_at": row.get::<_, Timestamp>("started_at"),
            "rolled_back_at": row.get::<_, Option<Timestamp>>("rolled_back_at"),
            "reason": row.get::<_, Option<&str>>("reason"),
            "steps": steps.collect::<Vec<_>>(),
        })
    };
    Ok(rows.iter().map(show).collect())
}
