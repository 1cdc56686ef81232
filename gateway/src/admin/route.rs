//! `gateway admin route`: what is said about a route while gateways run.

use anyhow::ensure;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use ops::clock::Clock;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Row};

use crate::route::ROUTES;

#[derive(Debug, Subcommand)]
pub(super) enum RouteCommand {
    /// Say on every answer that the route is deprecated (RFC 9745).
    Deprecate {
        #[command(flatten)]
        route: Which,
        /// Since when, or from when on; now if not given.
        #[arg(long)]
        at: Option<Timestamp>,
    },
    /// Say on every answer when the route ends (RFC 8594); from then on it is gone (410).
    Sunset {
        #[command(flatten)]
        route: Which,
        /// When it ends.
        #[arg(long)]
        at: Timestamp,
        /// Serve it afterwards all the same.
        #[arg(long)]
        serve_after: bool,
    },
    /// Give the route's upstream less time than `UPSTREAM_DEADLINE_MS`.
    Timeout {
        #[command(flatten)]
        route: Which,
        /// How much, in milliseconds.
        milliseconds: i32,
    },
    /// Say nothing about the route any more.
    Clear {
        #[command(flatten)]
        route: Which,
    },
    /// List what is said.
    List,
}

#[derive(Args, Debug)]
pub(super) struct Which {
    /// The method.
    method: String,
    /// The path's template, such as `/v1/jobs/{job_id}`.
    template: String,
}

pub(super) async fn carry_out(
    client: &impl GenericClient,
    command: RouteCommand,
    clock: &Clock,
) -> anyhow::Result<Value> {
    let which = match command {
        RouteCommand::Deprecate { route, at } => {
            let sql = "-- gateway.deprecate_route\n\
                       INSERT INTO gateway.routes (method, template, deprecated_at)\n\
                       VALUES ($1, $2, $3) ON CONFLICT (method, template)\n\
                       DO UPDATE SET deprecated_at = EXCLUDED.deprecated_at";
            let route = route.known()?;
            let at = at.unwrap_or_else(|| clock.now());
            let (method, template) = (&route.method, &route.template);
            client.execute(sql, &[method, template, &at]).await?;
            route
        }
        RouteCommand::Sunset {
            route,
            at,
            serve_after,
        } => {
            let sql = "-- gateway.sunset_route\n\
                       INSERT INTO gateway.routes (method, template, sunset_at, served_after)\n\
                       VALUES ($1, $2, $3, $4) ON CONFLICT (method, template)\n\
                       DO UPDATE SET sunset_at = EXCLUDED.sunset_at,\n    \
                       served_after = EXCLUDED.served_after";
            let route = route.known()?;
            let (method, template) = (&route.method, &route.template);
            client
                .execute(sql, &[method, template, &at, &serve_after])
                .await?;
            route
        }
        RouteCommand::Timeout {
            route,
            milliseconds,
        } => {
            let sql = "-- gateway.time_route\n\
                       INSERT INTO gateway.routes (method, template, timeout_ms)\n\
                       VALUES ($1, $2, $3) ON CONFLICT (method, template)\n\
                       DO UPDATE SET timeout_ms = EXCLUDED.timeout_ms";
            let route = route.known()?;
            ensure!(milliseconds > 0, "a route needs some time");
            let (method, template) = (&route.method, &route.template);
            client
                .execute(sql, &[method, template, &milliseconds])
                .await?;
            route
        }
        RouteCommand::Clear { route } => {
            let sql = "-- gateway.clear_route\n\
                       DELETE FROM gateway.routes WHERE method = $1 AND template = $2";
            client
                .execute(sql, &[&route.method, &route.template])
                .await?;
            route
        }
        RouteCommand::List => return list(client).await,
    };
    Ok(json!({ "method": which.method, "template": which.template }))
}

impl Which {
    fn known(self) -> anyhow::Result<Self> {
        let known = ROUTES.iter().any(|route| {
            route.method.as_str() == self.method
                && route.template == self.template
                && route.forward().is_some()
        });
        ensure!(
            known,
            "no upstream has a route {} {}",
            self.method,
            self.template
        );
        Ok(self)
    }
}

async fn list(client: &impl GenericClient) -> anyhow::Result<Value> {
    let sql = "-- gateway.list_routes\n\
               SELECT method, template, timeout_ms, deprecated_at, sunset_at, served_after\n\
               FROM gateway.routes ORDER BY template, method";
    let rows = client.query(sql, &[]).await?;
    let show = |row: &Row| {
        json!({
            "method": row.get::<_, &str>("method"),
            "template": row.get::<_, &str>("template"),
            "timeout_ms": row.get::<_, Option<i32>>("timeout_ms"),
            "deprecated_at": row.get::<_, Option<Timestamp>>("deprecated_at"),
            "sunset_at": row.get::<_, Option<Timestamp>>("sunset_at"),
            "served_after": row.get::<_, bool>("served_after"),
        })
    };
    Ok(rows.iter().map(show).collect())
}
