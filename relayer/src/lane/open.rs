//! The rare beginnings of a lane: its first opening, where the registry may have a history, and a
//! change of its gas key.

use tracing::info;

use super::Setup;
use crate::{
    batch::{Batch, Pending, State},
    chain::LOG_RANGE_MAX,
    sight::Cursor,
    store::{self, LaneRow, Session, batches},
};

/// Opens the lane for the first time, where the contract stands; batches of before, which other
/// databases know, are kept for the proofs of ours.
pub(super) async fn adopt(
    setup: &Setup,
    session: &Session,
    cursor: Cursor,
) -> anyhow::Result<LaneRow> {
    let earlier = earlier_batches(setup, cursor).await?;
    let gas_key = setup.keys.gas.address();
    let mut row = LaneRow {
        id: 0,
        gas_key,
        next_batch: cursor.next_batch,
        next_sequence: cursor.next_sequence,
        next_nonce: setup.chain.pending_nonce(gas_key).await?,
    };
    let now = setup.clock.now();
    let mut client = session.client().await?;
    let transaction = session.begin(&mut client).await?;
    row.id = store::create_lane(&transaction, setup.key, row).await?;
    for batch in &earlier {
        batches::insert(&transaction, row.id, batch, now).await?;
    }
    transaction.commit().await?;
    info!(
        lane.id = row.id,
        batches.earlier = earlier.len(),
        "the lane is new"
    );
    Ok(row)
}

async fn earlier_batches(setup: &Setup, cursor: Cursor) -> anyhow::Result<Vec<Batch>> {
    let mut earlier = Vec::new();
    if cursor.next_batch == 1 {
        return Ok(earlier);
    }
    let (head, final_number) = setup.chain.heights().await?;
    let mut from = setup.first_block;
    while from <= head {
        let to = head.min(from + LOG_RANGE_MAX - 1);
        for (event, at) in setup.chain.confirmed(from, to).await? {
            anyhow::ensure!(
                at.block.number <= final_number,
                "batch {} of the registry is not final yet: waiting",
                event.batchNumber
            );
            earlier.push(Batch {
                number: event.batchNumber,
                first_sequence: event.firstSequence,
                job_count: event.jobCount,
                jobs_root: event.jobsRoot,
                signed_after: None,
                reverts: 0,
                state: State::Finalized(Pending::Sealed, at),
            });
        }
        from = to + 1;
    }
    let all = earlier
        .iter()
        .map(|batch| batch.number)
        .eq(1..cursor.next_batch);
    anyhow::ensure!(
        all,
        "the logs from block {} on do not hold all of the registry's {} batches: set \
         REGISTRY_BLOCK to the block it was deployed in",
        setup.first_block,
        cursor.next_batch - 1
    );
    Ok(earlier)
}

/// Takes over with another gas key, once nothing depends on the old one's nonces any more.
pub(super) async fn change_gas_key(
    setup: &Setup,
    session: &Session,
    row: &LaneRow,
) -> anyhow::Result<()> {
    let gas_key = setup.keys.gas.address();
    let next_nonce = setup.chain.pending_nonce(gas_key).await?;
    let mut client = session.client().await?;
    let transaction = session.begin(&mut client).await?;
    let unfinal = batches::unfinal(&transaction, row.id, None).await?;
    let bound = unfinal.iter().find(|batch| {
        !matches!(
            batch.state,
            State::Pending(Pending::Sealed | Pending::Signed { .. } | Pending::Stalled)
        )
    });
    if let Some(batch) = bound {
        anyhow::bail!(
            "batch {} is {} under gas key {}: run with that key until it is final",
            batch.number,
            batch.state.name(),
            row.gas_key
        );
    }
    store::change_gas_key(&transaction, row.id, gas_key, next_nonce).await?;
    transaction.commit().await?;
    Ok(())
}
