//! A lane, one registry and one gas key, worked by one process at a time under a lease. A tick
//! reads in order: seal what is due, look at the chain, confirm what is there, send what is not.

use std::{sync::Arc, time::Duration};

use alloy::{primitives::Address, signers::local::PrivateKeySigner};
use anyhow::Context as _;
use deadpool_postgres::GenericClient;
use jiff::{SignedDuration, Timestamp};
use ops::{
    admin::Flag,
    clock::Clock,
    lease::{Lease, LeaseError, LeaseTable, while_leased},
    postgres::Pool,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    batch::Batch,
    batcher,
    chain::Chain,
    close::Turn,
    config::LaneOptions,
    finalizer, sender,
    sight::{Cursor, Sought, View},
    signer::Attesters,
    store::{self, LaneKey, LaneRow, SCHEMA, Session, batches},
};

mod open;

use open::{adopt, change_gas_key};

/// How long a worker may be silent before another takes over.
const LEASE: Duration = Duration::from_secs(10);
/// How often the chain is looked at while there is nothing to confirm, and how often metrics are
/// read that cost a query.
const IDLE_LOOK: SignedDuration = SignedDuration::from_secs(5);
/// What a tick may take, however much there is to read: what takes longer hangs on something.
const TICK_DEADLINE: Duration = Duration::from_mins(2);
/// How far below the block of the last final batch at signing logs are looked for: should finality
/// itself have failed, the batch may stand there.
const LOOK_BACK: u64 = 64;

/// The keys of a lane.
#[derive(Debug)]
pub struct Keys {
    /// Who signs batches.
    pub attesters: Attesters,
    /// Who pays.
    pub gas: PrivateKeySigner,
}

/// Everything a lane is worked with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The database.
    pub pool: Pool,
    /// The endpoints.
    pub chain: Arc<Chain>,
    /// Which lane.
    pub key: LaneKey,
    /// The keys.
    pub keys: Arc<Keys>,
    /// How it works.
    pub options: LaneOptions,
    /// The first block that may hold batches of before.
    pub first_block: u64,
    /// The present.
    pub clock: Clock,
    /// Set while looks at the chain succeed, or another process works the lane.
    pub ready: Flag,
}

/// A lane in work.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) id: i64,
    pub(crate) key: LaneKey,
    pub(crate) session: Session,
    pub(crate) chain: Arc<Chain>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) options: LaneOptions,
    pub(crate) clock: Clock,
    /// The newest final batch.
    pub(crate) last_final: u64,
    /// Its block, or the registry's first; no later batch stands below.
    pub(crate) final_block: u64,
    /// Whether a shared batch or a job that goes alone is closed next, where both wait.
    pub(crate) turn: Turn,
    /// The tenant of the last job that went alone.
    pub(crate) alone_last: Uuid,
    /// Which of our attesters may sign, by the epoch in which that was asked.
    pub(crate) confirmers: Option<(u32, Vec<Address>)>,
    /// Whether the contract was paused at the last look.
    pub(crate) paused: bool,
    /// The first final batch that the contract's cursor no longer covers.
    doubted: Option<u64>,
    looked_at: Option<Timestamp>,
    measured_at: Option<Timestamp>,
}

/// Works the lane until the process stops, whenever this process holds its lease. The lease is the
/// registry's, not the gas key's: two keys would only outbid each other for the same batches.
///
/// # Errors
/// Never by itself: outages are waited out.
pub async fn run(setup: Setup, stop: CancellationToken) -> anyhow::Result<()> {
    let leases = LeaseTable::named(SCHEMA);
    let name = format!("lane {}/{:#x}", setup.key.chain_id, setup.key.registry);
    setup.ready.set(true);
    while_leased(&setup.pool, &leases, &name, LEASE, &stop, |lease, over| {
        let setup = setup.clone();
        async move {
            let outcome = work(&setup, lease, over).await;
            setup.ready.set(outcome.is_ok());
            outcome
        }
    })
    .await
}

async fn work(setup: &Setup, lease: Lease<String>, over: CancellationToken) -> anyhow::Result<()> {
    let mut lane = Lane::open(setup, lease).await.context("open the lane")?;
    let mut last_failure = String::new();
    loop {
        // Dropped in the middle, a tick leaves what a crash would leave: everything written down.
        let outcome = tokio::select! {
            biased;
            () = over.cancelled() => return Ok(()),
            outcome = timeout(TICK_DEADLINE, lane.tick()) => {
                outcome.context("a tick hangs: the lane is given up")?
            }
        };
        setup.ready.set(outcome.is_ok());
        let failure = outcome
            .as_ref()
            .err()
            .map(ops::postgres::explain)
            .unwrap_or_default();
        if !failure.is_empty() && failure != last_failure {
            warn!(error = failure, "tick failed; trying again");
        }
        last_failure = failure;
        if let Err(cause) = outcome {
            if matches!(cause.downcast_ref(), Some(LeaseError::Fenced)) {
                return Err(cause);
            }
            metrics::counter!("relayer_tick_failures_total").increment(1);
        }
        tokio::select! {
            () = over.cancelled() => return Ok(()),
            () = tokio::time::sleep(setup.options.poll()) => {}
        }
    }
}

/// Refuses a registry that is ahead of this database: what it confirmed would be confirmed again.
pub(crate) fn require_not_behind(row: &LaneRow, cursor: Cursor) -> anyhow::Result<()> {
    anyhow::ensure!(
        cursor.next_batch <= row.next_batch && cursor.next_sequence <= row.next_sequence,
        "the registry expects batch {} and sequence {}, this database only {} and {}: it was \
         restored from a backup, or another relayer with its own database uses the registry",
        cursor.next_batch,
        cursor.next_sequence,
        row.next_batch,
        row.next_sequence
    );
    Ok(())
}

impl Lane {
    async fn open(setup: &Setup, lease: Lease<String>) -> anyhow::Result<Self> {
        let session = Session::new(setup.pool.clone(), lease);
        // Read before the database: what is sealed meanwhile cannot make it look behind.
        let cursor = setup.chain.cursor().await?;
        let gas_key = setup.keys.gas.address();
        let client = session.client().await?;
        let row = match store::lane(&client, setup.key).await? {
            None => adopt(setup, &session, cursor).await?,
            Some(row) => {
                require_not_behind(&row, cursor)?;
                if row.gas_key != gas_key {
                    change_gas_key(setup, &session, &row).await?;
                }
                row
            }
        };
        let (last_final, final_block) = batches::last_final(&client, row.id).await?;
        setup.chain.remember(final_block);
        info!(lane.id = row.id, batch.next = row.next_batch, nonce.next = %row.next_nonce, "open");
        Ok(Self {
            id: row.id,
            key: setup.key,
            session,
            chain: Arc::clone(&setup.chain),
            keys: Arc::clone(&setup.keys),
            options: setup.options.clone(),
            clock: setup.clock.clone(),
            last_final,
            final_block: final_block.max(setup.first_block),
            turn: Turn::default(),
            alone_last: Uuid::nil(),
            confirmers: None,
            paused: false,
            doubted: None,
            looked_at: None,
            measured_at: None,
        })
    }

    async fn tick(&mut self) -> anyhow::Result<()> {
        batcher::seal(self).await?;
        let client = self.session.client().await?;
        let unfinal = batches::unfinal(&client, self.id, self.doubted).await?;
        drop(client);
        let now = self.clock.now();
        let idle = is_recent(self.looked_at, now) && unfinal.is_empty();
        if idle {
            return Ok(());
        }
        let gas_key = self.keys.gas.address();
        let look = self.chain.observe(gas_key, sought(&unfinal), now).await?;
        let view = &look.view;
        self.looked_at = Some(now);
        let unfinal = finalizer::confirm(self, view, unfinal).await?;
        let uncovered = view.uncovered_from();
        self.doubted = (uncovered <= self.last_final).then_some(uncovered);
        let acted = sender::act(self, view, &unfinal).await;
        self.measure(view, now).await?;
        acted?;
        match look.blind {
            Some(cause) => Err(cause.context("too few endpoints give logs: nothing becomes final")),
            None => Ok(()),
        }
    }

    /// The lane's row.
    pub(crate) async fn row(&self, client: &impl GenericClient) -> anyhow::Result<LaneRow> {
        store::lane(client, self.key)
            .await?
            .context("the lane's row is gone")
    }

    async fn measure(&mut self, view: &View, now: Timestamp) -> anyhow::Result<()> {
        let best = view.best();
        metrics::gauge!("relayer_head_block").set(gauge(best.head.number));
        metrics::gauge!("relayer_nonce", "of" => "latest").set(gauge(best.nonce.get()));
        metrics::gauge!("relayer_nonce", "of" => "pending").set(gauge(best.pending_nonce.get()));
        metrics::gauge!("relayer_endpoints_disagree").set(u8::from(view.disagrees()));
        if is_recent(self.measured_at, now) {
            return Ok(());
        }
        self.measured_at = Some(now);
        let client = self.session.client().await?;
        let own = self.row(&client).await?.next_nonce;
        metrics::gauge!("relayer_nonce", "of" => "local").set(gauge(own.get()));
        let counts = batches::counts(&client, self.id).await?;
        for state in ["sealed", "signed", "broadcast", "stalled", "included"] {
            let count = counts.iter().find(|count| count.state == state);
            let batches = count
                .and_then(|it| u32::try_from(it.batches).ok())
                .unwrap_or(0);
            metrics::gauge!("relayer_batches", "state" => state).set(batches);
        }
        let oldest = counts.iter().map(|count| count.oldest).min();
        let age = oldest.map_or(0.0, |oldest| now.duration_since(oldest).as_secs_f64());
        metrics::gauge!("relayer_oldest_unfinal_seconds").set(age);
        let gas_key = self.keys.gas.address();
        let balance = self.chain.balance(gas_key).await?;
        let low = balance < self.options.balance_low();
        metrics::gauge!("relayer_gas_balance_low").set(u8::from(low));
        if low {
            warn!(gas.address = %gas_key, gas.balance_wei = %balance, "the gas key runs dry");
        }
        Ok(())
    }
}

/// What to look for: batches that were signed, since no other can stand on the chain.
fn sought(unfinal: &[Batch]) -> Option<Sought> {
    let signed = || {
        unfinal
            .iter()
            .filter_map(|batch| Some((batch.number, batch.signed_after?)))
    };
    Some(Sought {
        first: signed().map(|(number, _)| number).min()?,
        last: signed().map(|(number, _)| number).max()?,
        from_block: signed()
            .map(|(_, block)| block)
            .min()?
            .saturating_sub(LOOK_BACK),
    })
}

fn is_recent(at: Option<Timestamp>, now: Timestamp) -> bool {
    at.is_some_and(|at| now.duration_since(at) < IDLE_LOOK)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; 2^53 is far away"
)]
fn gauge(number: u64) -> f64 {
    number as f64
}
