//! Looks for batches on the chain, saves what the look changed, and announces what is final: in
//! one transaction, so that nothing is final without being told, nor told without being final.

use alloy::primitives::Address;
use anyhow::Context as _;
use contracts::event::{BATCH_CONFIRMED_TYPE, BatchConfirmed, proto_time};
use deadpool_postgres::Transaction;
use jiff::Timestamp;
use ops::outbox::{self, Message};
use tracing::{error, info, warn};

use crate::{
    batch::{Batch, Change, State},
    lane::Lane,
    sight::{Inclusion, Sighting, View},
    store::{SCHEMA, batches, confirmations},
};

/// Brings the batches up to what the view shows; returns those that are not final.
pub(crate) async fn confirm(
    lane: &mut Lane,
    view: &View,
    mut looked_at: Vec<Batch>,
) -> anyhow::Result<Vec<Batch>> {
    let mut changed = Vec::new();
    for batch in &mut looked_at {
        let sighting = view.sighting(batch.number, batch.reference().commitment());
        anyhow::ensure!(
            sighting != Sighting::Foreign,
            "the registry confirmed another batch {} than this database has: restored from a \
             backup, or another relayer with its own database",
            batch.number
        );
        let change;
        (*batch, change) = batch.seen(sighting);
        changed.extend(change.map(|change| (*batch, change)));
    }
    if !changed.is_empty() {
        save(lane, &changed).await?;
        for (batch, change) in &changed {
            report(batch, *change);
            match (change, batch.state) {
                (Change::Finalized, State::Finalized(_, at)) => {
                    lane.last_final = lane.last_final.max(batch.number);
                    lane.final_block = lane.final_block.max(at.block.number);
                }
                // Perhaps because who may sign was answered wrongly.
                (Change::Reverted | Change::Stalled, _) => lane.confirmers = None,
                _ => {}
            }
        }
    }
    looked_at.retain(|batch| !matches!(batch.state, State::Finalized(..)));
    Ok(looked_at)
}

async fn save(lane: &Lane, changed: &[(Batch, Change)]) -> anyhow::Result<()> {
    let now = lane.clock.now();
    let mut client = lane.session.client().await?;
    let transaction = lane.session.begin(&mut client).await?;
    for (batch, _) in changed {
        batches::save(&transaction, lane.id, batch, now).await?;
        if let State::Finalized(_, at) = batch.state {
            announce(&transaction, lane, batch, at, now).await?;
        }
    }
    transaction.commit().await?;
    Ok(())
}

/// The event's identity follows from chain, contract and number: a batch that becomes final twice
/// is told twice and heard once.
async fn announce(
    transaction: &Transaction<'_>,
    lane: &Lane,
    batch: &Batch,
    at: Inclusion,
    now: Timestamp,
) -> anyhow::Result<()> {
    let registry: Address = lane.key.registry;
    let jobs = confirmations::announced(transaction, lane.id, batch.number).await?;
    let event = BatchConfirmed {
        chain_id: lane.key.chain_id,
        registry: registry.to_vec(),
        batch_number: batch.number,
        first_sequence: batch.first_sequence,
        jobs_root: batch.jobs_root.to_vec(),
        transaction_hash: at.transaction.to_vec(),
        block_number: at.block.number,
        block_hash: at.block.hash.to_vec(),
        finalized_at: Some(proto_time(now)),
        jobs,
    };
    let record = event.record().context("make the event of a final batch")?;
    let message = Message {
        topic: record.topic,
        key: record.key.into_bytes(),
        source: record.attributes.source,
        id: record.attributes.id,
        kind: BATCH_CONFIRMED_TYPE,
        time: record.attributes.time,
        traceparent: None,
        value: record.value,
    };
    outbox::append(transaction, SCHEMA, &message).await?;
    Ok(())
}

fn report(batch: &Batch, change: Change) {
    let number = batch.number;
    metrics::counter!("relayer_batch_changes_total", "change" => change.name()).increment(1);
    match (change, batch.state) {
        (Change::Included, State::Included(_, at)) => info!(
            batch.number = number, block.number = at.block.number,
            tx.hash = %at.transaction, "included"
        ),
        (Change::Finalized, _) => info!(batch.number = number, "finalized"),
        (Change::FinalityViolated, _) => error!(
            batch.number = number,
            batch.state = batch.state.name(),
            "ALARM: finality violated: the block that held the batch was final and is gone"
        ),
        (Change::Stalled, _) => error!(
            batch.number = number,
            batch.reverts = batch.reverts,
            "ALARM: stalled: the batch reverts again and again; nothing more is spent on it until \
             a person has found the cause and runs `relayer resume`"
        ),
        (other, _) => warn!(
            batch.number = number,
            change = other.name(),
            "not on chain any more"
        ),
    }
}
