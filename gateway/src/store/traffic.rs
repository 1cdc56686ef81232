//! What operators said about upstreams and routes, as gateways read it.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use contracts::assertion::Audience;
use jiff::Timestamp;
use tokio_postgres::{GenericClient, Row};
use tracing::warn;
use url::Url;

use crate::{
    route::ROUTES,
    rule::Rule,
    upstream::rollout::{self, Rollout, Step},
};

/// Every rollout that can be read.
pub(crate) async fn rollouts(client: &impl GenericClient) -> anyhow::Result<Vec<Rollout>> {
    let sql = "-- gateway.rollouts\n\
               SELECT upstream, version, url, rolled_back_at IS NOT NULL AS rolled_back,\n    \
               ARRAY(SELECT starts_at FROM gateway.rollout_steps s\n        \
               WHERE s.upstream = r.upstream ORDER BY starts_at) AS starts,\n    \
               ARRAY(SELECT percent FROM gateway.rollout_steps s\n        \
               WHERE s.upstream = r.upstream ORDER BY starts_at) AS percents\n\
               FROM gateway.rollouts r ORDER BY upstream";
    let rows = client.query(sql, &[]).await?;
    // One that cannot be read must not take all else with it.
    let readable = |row: &Row| {
        rollout(row)
            .inspect_err(|error| warn!(error = format!("{error:#}"), "a rollout is unreadable"))
            .ok()
    };
    Ok(rows.iter().filter_map(readable).collect())
}

fn rollout(row: &Row) -> anyhow::Result<Rollout> {
    let starts: Vec<Timestamp> = row.get("starts");
    let percents: Vec<i16> = row.get("percents");
    let step = |(starts_at, percent)| {
        let percent = u8::try_from(percent)?;
        anyhow::Ok(Step { starts_at, percent })
    };
    let url: Url = row.get::<_, &str>("url").parse()?;
    Ok(Rollout {
        upstream: audience(row.get("upstream"))?,
        version: row.get("version"),
        host: rollout::host(&url),
        steps: starts
            .into_iter()
            .zip(percents)
            .map(step)
            .collect::<anyhow::Result<_>>()?,
        rolled_back: row.get("rolled_back"),
    })
}

/// The upstream of this name.
pub(crate) fn audience(name: &str) -> anyhow::Result<Audience> {
    let all = [
        Audience::Jobs,
        Audience::Relayer,
        Audience::Metering,
        Audience::Webhooks,
    ];
    let found = all.into_iter().find(|audience| audience.as_str() == name);
    found.with_context(|| format!("there is no upstream {name}"))
}

/// What is said about each route, by its number.
pub(crate) async fn rules(client: &impl GenericClient) -> anyhow::Result<Vec<Option<Arc<Rule>>>> {
    let sql = "-- gateway.routes\n\
               SELECT method, template, timeout_ms, deprecated_at, sunset_at, served_after\n\
               FROM gateway.routes";
    let rows = client.query(sql, &[]).await?;
    let rule = |row: &Row| {
        let timeout = row.get::<_, Option<i32>>("timeout_ms");
        let timeout = timeout.and_then(|ms| u64::try_from(ms).ok());
        Arc::new(Rule::new(
            timeout.map(Duration::from_millis),
            row.get("deprecated_at"),
            row.get("sunset_at"),
            row.get("served_after"),
        ))
    };
    let of_route = |(method, template): (&str, &str)| {
        let found = rows.iter().find(|row| {
            row.get::<_, &str>("method") == method && row.get::<_, &str>("template") == template
        });
        found.map(rule)
    };
    let routes = ROUTES
        .iter()
        .map(|route| (route.method.as_str(), route.template));
    Ok(routes.map(of_route).collect())
}
