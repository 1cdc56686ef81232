//! Closes batches: sequence numbers are given in the transaction that inserts the batch and moves
//! the lane's cursor, so they have no gaps.

use jiff::SignedDuration;
use tracing::info;

use crate::{
    batch::{Batch, Pending, State},
    close::{Turn, Waiting},
    confirmation,
    lane::Lane,
    store::{self, batches, confirmations},
};

/// While so many batches wait to be sent, none is closed: what waits then shares fewer, larger
/// ones.
const UNSENT_MAX: usize = 8;
/// So many of these places are never taken by a job that goes alone: a shared batch that is due
/// finds one, however many of those wait.
const KEPT_FOR_SHARED: usize = 1;

/// Closes what is due: shared batches by size or age, jobs that go alone at once; by turns where
/// both wait, and the jobs that go alone by turns of their tenants.
pub(crate) async fn seal(lane: &mut Lane) -> anyhow::Result<()> {
    let policy = lane.options.close_policy();
    let client = lane.session.client().await?;
    let unfinal = batches::unfinal(&client, lane.id, None).await?;
    let is_unsent = |batch: &&Batch| {
        matches!(
            batch.state,
            State::Pending(Pending::Sealed | Pending::Signed { .. })
        )
    };
    let mut room = UNSENT_MAX.saturating_sub(unfinal.iter().filter(is_unsent).count());
    while room > 0 {
        let waiting = confirmations::waiting(&client, policy.max_jobs).await?;
        metrics::gauge!("relayer_jobs_waiting").set(waiting.count);
        let now = lane.clock.now();
        let oldest = waiting
            .oldest
            .map_or(SignedDuration::ZERO, |at| now.duration_since(at));
        let shared = policy.closes(Waiting {
            count: waiting.count,
            oldest,
        });
        let alone = waiting.individual && room > KEPT_FOR_SHARED;
        let Some(turn) = lane.turn.next(shared, alone) else {
            break;
        };
        seal_one(lane, turn, policy.max_jobs).await?;
        lane.turn = turn.other();
        room -= 1;
    }
    Ok(())
}

async fn seal_one(lane: &mut Lane, turn: Turn, max: u32) -> anyhow::Result<()> {
    let mut client = lane.session.client().await?;
    let transaction = lane.session.begin(&mut client).await?;
    let jobs = match turn {
        Turn::Shared => confirmations::lock_oldest(&transaction, max).await?,
        Turn::Alone => confirmations::lock_alone(&transaction, lane.alone_last).await?,
    };
    let row = lane.row(&transaction).await?;
    let Some(tree) = confirmation::tree(&jobs, row.next_sequence) else {
        return Ok(());
    };
    let batch = Batch {
        number: row.next_batch,
        first_sequence: row.next_sequence,
        job_count: u32::try_from(jobs.len()).unwrap_or(max),
        jobs_root: tree.root(),
        signed_after: None,
        reverts: 0,
        state: State::Pending(Pending::Sealed),
    };
    let Batch {
        number,
        first_sequence,
        job_count,
        ..
    } = batch;
    batches::insert(&transaction, lane.id, &batch, lane.clock.now()).await?;
    confirmations::join_batch(&transaction, lane.id, number, first_sequence, &jobs).await?;
    let next_sequence = first_sequence + u64::from(job_count);
    store::advance_cursor(&transaction, lane.id, number + 1, next_sequence).await?;
    transaction.commit().await?;
    if let (Turn::Alone, Some(job)) = (turn, jobs.first()) {
        lane.alone_last = job.tenant_id.uuid();
    }
    info!(
        batch.number = number,
        batch.jobs = job_count,
        batch.first_sequence,
        "sealed"
    );
    metrics::counter!("relayer_batches_sealed_total").increment(1);
    metrics::counter!("relayer_jobs_sealed_total").increment(job_count.into());
    Ok(())
}
