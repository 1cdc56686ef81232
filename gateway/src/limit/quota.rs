//! The monthly quota of compute units: counted in Redis when a key is claimed, judged against the
//! plan, and taken again from metering where Redis does not know how much was used.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use contracts::{
    api::usage::{Unit, UsageResponse},
    assertion::{self, Audience, Claims, LIFETIME_MAX_SECONDS, Role, Scope},
    id::{RequestId, TenantId},
    problem::{Code, Problem},
};
use fred::types::Value;
use futures::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderName, HeaderValue};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use ops::{clock::Clock, config::Key32};
use reqwest::Url;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    config::UpstreamOptions,
    limit::{LIMIT, POLICY, generation::Generation},
    redis::{Redis, Script},
};

/// The quota's name in headers and problems.
const NAME: &str = "month";
/// How long a month's count is kept: longer than any month.
pub const KEPT: Duration = Duration::from_hours(40 * 24);
/// Tenants whose use is asked for at once; more are asked for when they come again.
const ASKED_MAX: usize = 256;
/// How many of them metering is asked for at the same time: one that hangs holds up no other.
const ASKED_AT_ONCE: usize = 16;
/// A tenant is not asked for again so soon.
const ASKED_EVERY: Duration = Duration::from_secs(5);
/// How long metering may take.
const METERING_DEADLINE: Duration = Duration::from_secs(2);
/// What is asked of metering: this month's compute units.
const USAGE: &str = "/v1/usage?granularity=month&meter=JOB_SUBMISSION";

/// Takes metering's count where it is the larger one, once a generation: what Redis counted since
/// it was empty is among what metering knows, but for the last moments.
const SEED: &str = "\
if redis.call('HGET', KEYS[1], 'known') == ARGV[3] then return 0 end
local used = tonumber(redis.call('HGET', KEYS[1], 'used')) or 0
redis.call('HSET', KEYS[1], 'used', string.format('%.0f', math.max(used, tonumber(ARGV[1]))))
redis.call('HSET', KEYS[1], 'known', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1";

/// Compute units a month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// What is bought.
    pub units: u64,
    /// How many percent beyond that are let through.
    pub buffer_percent: u8,
    /// Whether more than that is let through too, and billed.
    pub overage: bool,
}

/// A calendar month in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Month(Date);

/// How a tenant stands with the quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The quota.
    pub quota: Quota,
    /// Units used in the month.
    pub units: u64,
}

/// Asks metering, in the background, what was used before Redis knew. Clones share it.
#[derive(Clone, Debug)]
pub struct Seeder {
    wanted: mpsc::Sender<TenantId>,
    asked: Arc<Mutex<HashMap<TenantId, Instant>>>,
}

/// The other end of a [`Seeder`].
pub struct Seeding {
    wanted: mpsc::Receiver<TenantId>,
    redis: Redis,
    generation: Generation,
    metering: Url,
    key: Key32,
    client: reqwest::Client,
    clock: Clock,
}

impl Quota {
    /// Most units in a month; `None` where overage goes on.
    #[must_use]
    pub fn most(&self) -> Option<u64> {
        let buffer = u128::from(self.units) * u128::from(self.buffer_percent) / 100;
        let buffer = u64::try_from(buffer).unwrap_or(u64::MAX);
        (!self.overage).then(|| self.units.saturating_add(buffer))
    }
}

impl Month {
    /// The month of a moment.
    #[must_use]
    pub fn of(now: Timestamp) -> Self {
        Self(now.to_zoned(TimeZone::UTC).date().first_of_month())
    }

    /// Its length in seconds.
    #[must_use]
    pub fn seconds(self) -> i64 {
        i64::from(self.0.days_in_month()) * 86_400
    }

    /// Seconds from `now` to its end, at least 1.
    #[must_use]
    pub fn seconds_left(self, now: Timestamp) -> u64 {
        let first = self
            .0
            .to_zoned(TimeZone::UTC)
            .map(|zoned| zoned.timestamp());
        let end = first.map_or(i64::MAX, |first| first.as_second() + self.seconds());
        u64::try_from(end - now.as_second()).unwrap_or(0).max(1)
    }

    /// The key of a tenant's count.
    #[must_use]
    pub fn place(self, redis: &Redis, tenant: TenantId) -> String {
        let month = format!(":{:04}-{:02}", self.0.year(), self.0.month());
        redis.key("quota", tenant, &month)
    }
}

impl Used {
    /// The problem of a request that is too much.
    #[must_use]
    pub fn refusal(&self, now: Timestamp) -> Problem {
        let Self { quota, units } = self;
        let detail = format!(
            "The month's {} compute units are used up ({units} used, with a buffer of {} %).",
            quota.units, quota.buffer_percent
        );
        Problem::new(Code::RateLimitExceeded, detail)
            .with_retry_after(Month::of(now).seconds_left(now))
            .with_violated_policies(vec![NAME.to_owned()])
    }

    /// Further members of the fields of draft-ietf-httpapi-ratelimit-headers.
    #[must_use]
    pub fn fields(&self, now: Timestamp) -> [(HeaderName, HeaderValue); 2] {
        let month = Month::of(now);
        let (quota, left) = (
            self.quota.units,
            self.quota.units.saturating_sub(self.units),
        );
        let policy = format!(
            "\"{NAME}\";q={quota};w={};qu=\"compute-units\"",
            month.seconds()
        );
        let standing = format!("\"{NAME}\";r={left};t={}", month.seconds_left(now));
        let value = |text: String| HeaderValue::try_from(text).expect("visible ASCII");
        [(POLICY, value(policy)), (LIMIT, value(standing))]
    }
}

impl Seeder {
    /// A seeder, and what does its work.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(
        redis: Redis,
        generation: Generation,
        upstreams: &UpstreamOptions,
        clock: Clock,
    ) -> anyhow::Result<(Self, Seeding)> {
        // The client needs a TLS provider even for plain http; a second installation is refused.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let (asked, wanted) = mpsc::channel(ASKED_MAX);
        let client = reqwest::Client::builder()
            .timeout(METERING_DEADLINE)
            .build()
            .context("set up the client of metering")?;
        let seeding = Seeding {
            wanted,
            redis,
            generation,
            metering: upstreams.metering_url.clone(),
            key: upstreams.metering_assertion_key.clone(),
            client,
            clock,
        };
        let seeder = Self {
            wanted: asked,
            asked: Arc::default(),
        };
        Ok((seeder, seeding))
    }

    /// Has a tenant's use asked for, unless it was a moment ago.
    pub fn ask(&self, tenant: TenantId) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        asked.retain(|_, at| now.duration_since(*at) < ASKED_EVERY);
        // Where too many are asked for, the next claim asks again.
        if asked.len() < ASKED_MAX && !asked.contains_key(&tenant) {
            asked.insert(tenant, now);
            self.wanted.try_send(tenant).ok();
        }
    }
}

impl Seeding {
    /// Asks for each until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let seed = Script::new(SEED);
        let mut wanted = std::mem::replace(&mut self.wanted, mpsc::channel(1).1);
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(()) = under_way.next() => {}
                tenant = wanted.recv(), if under_way.len() < ASKED_AT_ONCE => {
                    let Some(tenant) = tenant else { return Ok(()) };
                    under_way.push(self.seed_or_say(&seed, tenant));
                }
            }
        }
    }

    async fn seed_or_say(&self, script: &Script, tenant: TenantId) {
        if let Err(error) = self.seed(script, tenant).await {
            let error = format!("{error:#}");
            warn!(tenant.id = %tenant, error, "the month's compute units are not known");
        }
    }

    async fn seed(&self, script: &Script, tenant: TenantId) -> anyhow::Result<()> {
        let now = self.clock.now();
        let place = Month::of(now).place(&self.redis, tenant);
        let born = self.generation.born_ms().to_string();
        let known: Option<String> = self.redis.field(&place, "known").await?;
        if known.as_ref() == Some(&born) {
            return Ok(());
        }
        let used = self.used(tenant, now).await?;
        let kept = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
        let arguments = vec![
            Value::from(used.to_string()),
            Value::from(kept),
            Value::from(born),
        ];
        self.redis.run::<i64>(script, place, arguments).await?;
        Ok(())
    }

    /// The month's compute units up to now, as metering counts them.
    async fn used(&self, tenant: TenantId, now: Timestamp) -> anyhow::Result<u64> {
        let claims = Claims {
            aud: Audience::Metering,
            tenant,
            subject: "gateway".parse().context("our own name")?,
            scopes: vec![Scope::BillingRead],
            role: Role::Developer,
            team: None,
            submitter: None,
            active_jobs_limit: None,
            priority: 5,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            request_id: RequestId::generate(now),
            traceparent: None,
            method: "GET".to_owned(),
            path: USAGE.to_owned(),
            body_sha256: assertion::sha256_hex(b""),
            expires_at: now.as_second() + LIFETIME_MAX_SECONDS - 5,
        };
        let request = self.client.get(self.metering.join(USAGE)?);
        let signed = assertion::sign(&claims, self.key.expose());
        let response = request.header(assertion::HEADER, signed).send().await?;
        let usage: UsageResponse = response.error_for_status()?.json().await?;
        let units = usage
            .totals
            .iter()
            .filter(|total| total.unit == Unit::ComputeUnit);
        let units = units
            .map(|total| total.quantity)
            .sum::<rust_decimal::Decimal>();
        Ok(u64::try_from(units.ceil()).unwrap_or(u64::MAX))
    }
}

impl std::fmt::Debug for Seeding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seeding").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_ends_after_its_buffer_or_never() {
        let quota = |units, buffer_percent, overage| Quota {
            units,
            buffer_percent,
            overage,
        };
        assert_eq!(quota(1_000, 10, false).most(), Some(1_100));
        assert_eq!(quota(0, 100, false).most(), Some(0));
        assert_eq!(quota(u64::MAX, 100, false).most(), Some(u64::MAX));
        assert_eq!(quota(1_000, 10, true).most(), None);
    }

    #[test]
    fn a_month_ends_at_the_first_of_the_next_in_utc() {
        let now: Timestamp = "2028-02-28T23:59:59Z".parse().unwrap();
        let month = Month::of(now);
        assert_eq!(
            (month.seconds(), month.seconds_left(now)),
            (29 * 86_400, 86_401)
        );
        let next: Timestamp = "2028-03-01T00:00:00Z".parse().unwrap();
        assert_eq!(month.seconds_left(next), 1);
        assert_ne!(Month::of(next), month);
    }
}
