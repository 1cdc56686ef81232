//! The delivery loop: claim as many as there are free slots, send each under its lease, record
//! what came of it. No connection is held while sending.

use std::time::Duration;

use jiff::Timestamp;
use ops::{clock::Clock, config::Key32, lease::LeaseError, postgres::Pool};
use rand::RngExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span, warn};
use uuid::Uuid;

use crate::{
    client::{Report, Sender, TOTAL_DEADLINE, Webhook},
    delivery::Outcome,
    share::{Slots, share_out},
    sign::Secret,
    store::{
        attempts,
        claims::{self, Claimed},
        deliveries, endpoints, health,
    },
};
use contracts::id::MessageId;

/// How long a delivery may be under way: the exchange, and room to record it.
const LEASE: Duration = TOTAL_DEADLINE.saturating_add(Duration::from_secs(15));
/// Pause between looks while nothing ends.
const IDLE_POLL: Duration = Duration::from_millis(100);
/// Pause after Postgres failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Sends what is due.
#[derive(Clone, Debug)]
pub struct Worker {
    /// The database.
    pub pool: Pool,
    /// The HTTP client.
    pub sender: Sender,
    /// Decrypts the secrets.
    pub key: Key32,
    /// Dates attempts.
    pub clock: Clock,
    /// Most deliveries under way at a time.
    pub slots: usize,
}

impl Worker {
    /// Delivers until the process stops; then waits for what is under way.
    ///
    /// # Errors
    /// Never by itself: outages of Postgres are waited out.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let owner = Uuid::now_v7();
        let mut under_way = JoinSet::new();
        while !stop.is_cancelled() {
            while under_way.try_join_next().is_some() {}
            let free = self.slots.saturating_sub(under_way.len());
            match self.claim(owner, free).await {
                Ok(claimed) => {
                    for one in claimed {
                        let this = self.clone();
                        under_way.spawn(async move { this.deliver(one).await });
                    }
                    // All that may go out now is out; whatever ends makes room for more.
                    tokio::select! {
                        () = stop.cancelled() => {}
                        Some(_) = under_way.join_next() => {}
                        () = tokio::time::sleep(IDLE_POLL) => {}
                    }
                }
                Err(cause) => {
                    warn!(
                        error = ops::postgres::explain(&cause),
                        "cannot claim deliveries"
                    );
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(RETRY_PAUSE) => {}
                    }
                }
            }
        }
        while under_way.join_next().await.is_some() {}
        Ok(())
    }

    /// Claims what is due and may go out; its attempts are on record when this returns.
    async fn claim(&self, owner: Uuid, free: usize) -> anyhow::Result<Vec<Claimed>> {
        if free == 0 {
            return Ok(Vec::new());
        }
        let (all, now) = (self.slots, self.clock.now());
        let mut client = self.pool.get().await?;
        let owed = claims::owed(&client, owner, now).await?;
        let chosen = share_out(&owed, Slots { all, free }, now);
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let transaction = client.transaction().await?;
        let claimed = claims::claim(&transaction, owner, LEASE, &chosen, now).await?;
        transaction.commit().await?;
        Ok(claimed)
    }

    async fn deliver(&self, claimed: Claimed) {
        let message = MessageId::from_uuid(claimed.lease.id);
        let span = info_span!(
            "webhooks.delivery.send", message.id = %message, attempt = claimed.attempt
        );
        ops::telemetry::continue_trace(&span, claimed.traceparent.as_deref());
        let work = async {
            let started = self.clock.now();
            let report = self.send(message, &claimed, started).await;
            let outcome = match report.outcome {
                Outcome::Accepted => "accepted",
                Outcome::Gone => "gone",
                Outcome::Failed(_) => "failed",
                Outcome::Refused => "refused",
            };
            metrics::counter!("webhooks_attempts_total", "outcome" => outcome).increment(1);
            if let Err(cause) = self.record(&claimed, started, &report).await {
                // The lease runs out and the delivery is sent again: at least once.
                warn!(
                    error = ops::postgres::explain(&cause),
                    "cannot record an attempt"
                );
            }
        };
        work.instrument(span).await;
    }

    async fn send(&self, message: MessageId, claimed: &Claimed, now: Timestamp) -> Report {
        let id = message.to_string();
        let timestamp = now.as_second();
        let signature = match self.signature(&id, timestamp, claimed, now).await {
            Ok(signature) => signature,
            Err(cause) => {
                warn!(error = format!("{cause:#}"), "cannot sign");
                let error = Some("the webhook could not be signed".to_owned());
                return Report {
                    outcome: Outcome::Failed(None),
                    status: None,
                    error,
                    body: None,
                };
            }
        };
        let webhook = Webhook {
            url: &claimed.url,
            id: &id,
            timestamp,
            signature,
            traceparent: ops::telemetry::traceparent(),
            body: claimed.body.clone(),
        };
        self.sender.send(webhook, now).await
    }

    /// One signature for each secret that is active now.
    async fn signature(
        &self,
        id: &str,
        timestamp: i64,
        claimed: &Claimed,
        now: Timestamp,
    ) -> anyhow::Result<String> {
        let client = self.pool.get().await?;
        let stored = endpoints::active_secrets(&client, &[claimed.endpoint], now).await?;
        let mut signatures = Vec::with_capacity(stored.len());
        for (endpoint, ciphertext) in stored {
            let secret = Secret::open(&self.key, endpoint, &ciphertext)?;
            signatures.push(secret.sign(id, timestamp, &claimed.body));
        }
        anyhow::ensure!(!signatures.is_empty(), "the endpoint has no secret");
        Ok(signatures.join(" "))
    }

    async fn record(
        &self,
        claimed: &Claimed,
        started: Timestamp,
        report: &Report,
    ) -> anyhow::Result<()> {
        let now = self.clock.now();
        let jitter = rand::rng().random_range(-1.0..=1.0);
        let attempted = claimed.delivery.attempted(&report.outcome, now, jitter);
        let took = i64::try_from(now.duration_since(started).as_millis())?;
        let (message, error) = (claimed.lease.id, report.error.as_deref());
        let mut client = self.pool.get().await?;
        let transaction = client.transaction().await?;
        attempts::finish(&transaction, message, claimed.attempt, took, report).await?;
        // The endpoint's row before its delivery's, as everyone locks them.
        let endpoint = claimed.endpoint;
        health::attempted(&transaction, endpoint, &report.outcome, now).await?;
        if report.outcome == Outcome::Gone {
            let reason = "the endpoint answered 410 Gone";
            endpoints::disable(&transaction, endpoint, reason, now).await?;
        }
        match deliveries::leases()
            .guard(&transaction, &claimed.lease)
            .await
        {
            Ok(()) => {
                let standing = endpoints::standing(&transaction, endpoint).await?;
                let next = attempted.follow(standing, now);
                deliveries::settle(&transaction, message, next, error).await?;
            }
            // Sent late or replayed meanwhile: the attempt is on record, its effect is another's.
            Err(LeaseError::Fenced) => warn!("the delivery's lease was lost"),
            Err(LeaseError::Postgres(error)) => return Err(error.into()),
        }
        transaction.commit().await?;
        Ok(())
    }
}
