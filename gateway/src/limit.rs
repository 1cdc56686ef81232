//! Rate limits: token buckets per tenant, shared by all gateways in Redis, spent through leases.
//!
//! A decision costs a trip to Redis only when the lease is spent and nothing was denied lately.
//! Without Redis each gateway keeps its own share of the limit.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use contracts::{
    id::TenantId,
    problem::{Code, Problem},
};
use fred::types::Value;
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use crate::{
    limit::{
        bucket::{Policy, Taken},
        generation::Generation,
        lease::{Decision, Denied, Outcome, Standing, Tokens},
    },
    redis::{Redis, Script, Unavailable},
    snapshot::Tenant,
};

pub mod bucket;
pub mod generation;
pub mod lease;
pub mod quota;
#[cfg(test)]
mod simulation;

/// Most requests that one trip to Redis asks tokens for.
const ASK_MAX: u32 = 1_000;

/// What the text of a field has room for before it grows.
const FIELD_BYTES: usize = 80;

pub(crate) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(crate) const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Decides whether a tenant's request may go on.
#[derive(Debug)]
pub struct Limiter {
    redis: Redis,
    generation: Generation,
    script: Script,
    gateways: u32,
    started: Instant,
    tenants: RwLock<HashMap<TenantId, Arc<Local>>>,
}

/// One tenant on this gateway.
#[derive(Debug)]
struct Local {
    tokens: Mutex<Tokens>,
    /// Held by the one request that asks Redis for all.
    asking: tokio::sync::Mutex<()>,
    waiting: AtomicU32,
}

/// How a request stands with its tenant's limits, for headers and problems.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    standing: Standing,
    /// What refused, and for how many seconds.
    denied: Option<(Denied, u64)>,
}

impl Limiter {
    /// Limits shared through `redis`, of this generation, by at most `gateways`.
    #[must_use]
    pub fn new(redis: Redis, generation: Generation, gateways: u32) -> Self {
        let script = Script::new(include_str!("limit/take.lua"));
        let (started, tenants) = (Instant::now(), RwLock::default());
        Self {
            redis,
            generation,
            script,
            gateways,
            started,
            tenants,
        }
    }

    /// Decides on one request of `tenant`.
    pub async fn decide(&self, tenant: &Tenant) -> Verdict {
        let local = self.local(tenant);
        let outcome = match local.with(|tokens| tokens.decide(self.now_ms())) {
            Decision::Known(outcome) => outcome,
            Decision::Ask(want) => self.ask(tenant, &local, want).await,
        };
        match outcome {
            Outcome::Admit(standing) => Verdict {
                standing,
                denied: None,
            },
            Outcome::Deny(standing, denied) => {
                let wait_ms = denied.until_ms.saturating_sub(self.now_ms());
                let seconds = wait_ms.div_ceil(1_000).max(1);
                Verdict {
                    standing,
                    denied: Some((denied, seconds)),
                }
            }
        }
    }

    /// Returns what is leased and not spent, before the process ends.
    pub async fn surrender(&self) {
        let tenants: Vec<_> = {
            let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
            tenants
                .iter()
                .map(|(id, local)| (*id, Arc::clone(local)))
                .collect()
        };
        // The line of requests ends with them.
        let aside = self.redis.aside();
        for (tenant, local) in tenants {
            let now = self.now_ms();
            let left = local.with(|tokens| tokens.surrender(now));
            if left > 0 {
                // Unreturned tokens come back by themselves: nothing is lost by a failure.
                self.take(&aside, tenant, &local, -i64::from(left))
                    .await
                    .ok();
            }
        }
    }

    /// Asks Redis, for everyone who waits at once.
    async fn ask(&self, tenant: &Tenant, local: &Local, want: u32) -> Outcome {
        local.waiting.fetch_add(1, Ordering::Relaxed);
        let asking = local.asking.lock().await;
        let waiting = local.waiting.fetch_sub(1, Ordering::Relaxed);
        // Whoever asked before may have got enough for us, or learned that there is nothing.
        if let Decision::Known(outcome) = local.with(|tokens| tokens.spend(self.now_ms())) {
            return outcome;
        }
        let want = want.max(waiting).min(ASK_MAX);
        let asked_ms = self.now_ms();
        let taken = self
            .take(&self.redis, tenant.id, local, i64::from(want))
            .await;
        let outcome = local.with(|tokens| match &taken {
            Ok(taken) => tokens.granted(taken, asked_ms),
            Err(_) => tokens.without_redis(self.now_ms()),
        });
        drop(asking);
        outcome
    }

    async fn take(
        &self,
        redis: &Redis,
        tenant: TenantId,
        local: &Local,
        want: i64,
    ) -> Result<Taken, Unavailable> {
        let now = self.now_ms();
        let (policies, past) = local.with(|tokens| (*tokens.policies(), tokens.past(now)));
        let mut arguments = vec![
            Value::from(want),
            Value::from(self.generation.born_ms().to_string()),
            Value::from(past.seen_ms.to_string()),
        ];
        arguments.extend(past.seen.map(|tokens| Value::from(i64::from(tokens))));
        arguments.push(Value::from(i64::from(past.owed)));
        for policy in &policies {
            arguments.push(Value::from(policy.capacity.to_string()));
            arguments.push(Value::from(policy.per_ms.to_string()));
        }
        let keys = vec![
            redis.key("rate", tenant, ""),
            redis.shared_key(generation::KEY),
        ];
        let answer: Result<Vec<i64>, _> = redis.run(&self.script, keys, arguments).await;
        if answer == Err(Unavailable::Unasked) {
            local.with(|tokens| tokens.owe(past.owed));
        }
        let [granted, retry, violated, first, second, now] = answer?[..] else {
            return Err(Unavailable::Unanswered);
        };
        let count = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        Ok(Taken {
            granted: count(granted),
            retry_ms: u64::try_from(retry).unwrap_or(0),
            violated: [violated & 1 != 0, violated & 2 != 0],
            remaining: [count(first), count(second)],
            at_ms: u64::try_from(now).unwrap_or(0),
        })
    }

    fn local(&self, tenant: &Tenant) -> Arc<Local> {
        let policies = Policy::of(&tenant.plan);
        let known = {
            let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
            tenants.get(&tenant.id).cloned()
        };
        if let Some(local) = known
            && local.with(|tokens| tokens.follows(&policies))
        {
            return local;
        }
        // Unknown, or the plan changed: what was leased under the old one is forgotten.
        let local = Arc::new(Local {
            tokens: Mutex::new(Tokens::new(policies, self.gateways, self.now_ms())),
            asking: tokio::sync::Mutex::new(()),
            waiting: AtomicU32::new(0),
        });
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants.insert(tenant.id, Arc::clone(&local));
        local
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Local {
    fn with<R>(&self, work: impl FnOnce(&mut Tokens) -> R) -> R {
        work(&mut self.tokens.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Verdict {
    /// The problem to answer with, if the request may not go on.
    #[must_use]
    pub fn refusal(&self) -> Option<Problem> {
        let (denied, seconds) = self.denied?;
        let violated = self.standing.policies.iter().zip(denied.violated);
        let names: Vec<String> = violated
            .filter(|(_, violated)| *violated)
            .map(|(policy, _)| policy.name.to_owned())
            .collect();
        let detail = format!("Too many requests. Try again in {seconds} s.");
        let problem = Problem::new(Code::RateLimitExceeded, detail);
        Some(
            problem
                .with_retry_after(seconds)
                .with_violated_policies(names),
        )
    }

    /// The fields of draft-ietf-httpapi-ratelimit-headers and the customary triple.
    #[must_use]
    pub fn fields(&self, now: Timestamp) -> [(HeaderName, HeaderValue); 5] {
        let Standing {
            policies,
            remaining,
        } = self.standing;
        let reset = |index: usize| match self.denied {
            Some((denied, seconds)) if denied.violated[index] => seconds,
            _ => policies[index].seconds_to_full(remaining[index]),
        };
        let (mut published, mut standing) = (FieldText::new(), FieldText::new());
        for (index, policy) in policies.iter().enumerate() {
            published.item(policy.name);
            published.parameter(";q=", policy.quota);
            published.parameter(";w=", policy.window_seconds);
            standing.item(policy.name);
            standing.parameter(";r=", remaining[index]);
            standing.parameter(";t=", reset(index));
        }
        // The triple speaks of the limit that is nearest.
        let nearest = usize::from(remaining[1] < remaining[0]);
        let at = now.as_second().saturating_add_unsigned(reset(nearest));
        [
            (POLICY, published.value()),
            (LIMIT, standing.value()),
            (X_LIMIT, policies[nearest].quota.into()),
            (X_REMAINING, remaining[nearest].into()),
            (X_RESET, at.into()),
        ]
    }
}

/// The text of a field, in memory that becomes the field.
struct FieldText(String);

impl FieldText {
    fn new() -> Self {
        Self(String::with_capacity(FIELD_BYTES))
    }

    fn item(&mut self, name: &str) {
        let open = if self.0.is_empty() { "\"" } else { ", \"" };
        for part in [open, name, "\""] {
            self.0.push_str(part);
        }
    }

    fn parameter(&mut self, name: &str, value: impl itoa::Integer) {
        self.0.push_str(name);
        self.0.push_str(itoa::Buffer::new().format(value));
    }

    fn value(self) -> HeaderValue {
        HeaderValue::try_from(self.0).expect("names and numbers are visible ASCII")
    }
}
