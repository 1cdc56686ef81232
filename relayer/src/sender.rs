//! Gets batches onto the chain: sign, write down nonce and bytes, send, and send again until the
//! chain has gone past the nonce.
//!
//! What is outstanding is a matter of nonces, not of batches: a batch that someone else sent for us
//! still leaves our own transaction behind, and everything after it waits for that nonce.

use alloy::primitives::{Address, TxKind};
use anyhow::Context as _;
use tracing::{error, info, warn};

use crate::{
    batch::{Batch, Pending, State},
    chain,
    classify::Verdict,
    fees::{Fees, Market},
    lane::Lane,
    nonce::Nonce,
    sight::{Terms, View},
    store::{batches, transactions},
    transaction::{Attempt, Order, Outstanding, Step, gas_limit},
};

/// Most batches in the nodes' pools at a time, in nonce order.
const IN_FLIGHT_MAX: usize = 8;

/// Sends what is not on the chain. Old work goes on even where new work cannot begin.
pub(crate) async fn act(lane: &mut Lane, view: &View, unfinal: &[Batch]) -> anyhow::Result<()> {
    let begun = begin(lane, view, unfinal).await;
    send_outstanding(lane, view, unfinal).await?;
    begun
}

/// Signs and writes down batches that have no transaction, in order. A batch never overtakes the
/// one before it, since the contract would refuse it.
async fn begin(lane: &mut Lane, view: &View, unfinal: &[Batch]) -> anyhow::Result<()> {
    let terms = view
        .terms()
        .context("the endpoints do not agree on the registry's signers, or whether it is paused")?;
    note_pause(lane, terms.paused);
    if terms.paused {
        return Ok(());
    }
    let in_flight =
        |batch: &&Batch| matches!(batch.state, State::Pending(Pending::Broadcast { .. }));
    let mut room = IN_FLIGHT_MAX.saturating_sub(unfinal.iter().filter(in_flight).count());
    for batch in unfinal {
        let State::Pending(pending) = batch.state else {
            continue;
        };
        match pending {
            Pending::Broadcast { .. } => continue,
            Pending::Stalled => anyhow::bail!(
                "batch {} is stalled after {} reverts, and what is behind it waits: find the \
                 cause, then run `relayer resume`",
                batch.number,
                batch.reverts
            ),
            Pending::Sealed | Pending::Signed { .. } => {}
        }
        if room == 0 {
            break;
        }
        if batch.number < view.next_batch() {
            anyhow::ensure!(
                batch.signed_after.is_some(),
                "the registry is past batch {}, which was never sent from this database",
                batch.number
            );
            // Its log has not been seen yet, or only by an endpoint that others contradict.
            break;
        }
        let allowed = allowed(lane, terms).await?;
        let signed = sign(lane, terms, *batch, pending, &allowed).await?;
        write_down(lane, view, terms, signed, &allowed).await?;
        room -= 1;
    }
    Ok(())
}

/// A pause is somebody's decision, and restarting us ends none: it is told, by a gauge and once in
/// the log, and does not make us unready.
fn note_pause(lane: &mut Lane, paused: bool) {
    metrics::gauge!("relayer_registry_paused").set(u8::from(paused));
    if paused == lane.paused {
        return;
    }
    lane.paused = paused;
    if paused {
        warn!("the registry is paused: nothing new is sent until its admin lets it go on");
    } else {
        info!("the registry is no longer paused");
    }
}

/// Has the batch signed for the present epoch by those who may. Signing again what was signed
/// already changes nothing.
async fn sign(
    lane: &Lane,
    terms: Terms,
    mut batch: Batch,
    pending: Pending,
    allowed: &[Address],
) -> anyhow::Result<Batch> {
    let epoch = terms.signer_epoch;
    let pending = match pending {
        Pending::Signed { epoch: signed } if signed == epoch => pending,
        Pending::Signed { .. } => pending.voided()?.signed(epoch)?,
        Pending::Sealed | Pending::Broadcast { .. } | Pending::Stalled => pending.signed(epoch)?,
    };
    let confirmation = batch.confirmation(epoch);
    let threshold = usize::from(terms.threshold);
    let (chain_id, registry) = (lane.key.chain_id, lane.key.registry);
    let signatures =
        lane.keys
            .attesters
            .sign(&confirmation, chain_id, registry, allowed, threshold);
    let signatures = signatures.ok_or_else(|| {
        anyhow::anyhow!(
            "the registry wants {threshold} attesters, {} are here",
            allowed.len()
        )
    })?;
    batch.state = State::Pending(pending);
    batch.signed_after = batch.signed_after.or(Some(lane.final_block));
    let now = lane.clock.now();
    let mut client = lane.session.client().await?;
    let transaction = lane.session.begin(&mut client).await?;
    batches::insert_signatures(&transaction, lane.id, batch.number, epoch, &signatures, now)
        .await?;
    batches::save(&transaction, lane.id, &batch, now).await?;
    transaction.commit().await?;
    Ok(batch)
}

/// Our attesters that may sign in the present epoch. Asked once an epoch, and again where the
/// answer leaves too few or a batch reverted: one wrong answer must not stay.
async fn allowed(lane: &mut Lane, terms: Terms) -> anyhow::Result<Vec<Address>> {
    if let Some((epoch, allowed)) = &lane.confirmers
        && *epoch == terms.signer_epoch
    {
        return Ok(allowed.clone());
    }
    let allowed = lane
        .chain
        .confirmers(&lane.keys.attesters.addresses())
        .await?;
    if allowed.len() >= usize::from(terms.threshold) {
        lane.confirmers = Some((terms.signer_epoch, allowed.clone()));
    }
    Ok(allowed)
}

/// Takes a nonce for the signed batch and keeps the transaction's bytes; nobody has seen them yet.
async fn write_down(
    lane: &Lane,
    view: &View,
    terms: Terms,
    batch: Batch,
    allowed: &[Address],
) -> anyhow::Result<()> {
    let State::Pending(pending @ Pending::Signed { epoch }) = batch.state else {
        anyhow::bail!(
            "batch {} is {}, not signed",
            batch.number,
            batch.state.name()
        );
    };
    let mut client = lane.session.client().await?;
    let threshold = terms.threshold;
    let of = (batch.number, epoch);
    let signatures = batches::signatures(&client, lane.id, of, allowed, threshold).await?;
    let gas_limit = gas_limit(signatures.len());
    let input = chain::confirm_batch(batch.confirmation(epoch), signatures);
    let gas_key = lane.keys.gas.address();
    if batch.number == view.next_batch() {
        // Only the next batch can be tried without sending it; a refusal would cost gas for ever.
        lane.chain.simulate(gas_key, &input, gas_limit).await?;
    }
    let transaction = lane.session.begin(&mut client).await?;
    let own_next = lane.row(&transaction).await?.next_nonce;
    let nonce = Nonce::for_new_work(own_next, view.agreed_nonce())?;
    let fees = Fees::first(view.market(), lane.options.fee_cap());
    let to = TxKind::Call(lane.key.registry);
    let order = Order {
        chain_id: lane.key.chain_id,
        to,
        input,
        gas_limit,
    };
    let attempt = Attempt::first(order, batch.number, nonce, fees, &lane.keys.gas);
    let sent = Batch {
        state: State::Pending(pending.sent(nonce)?),
        ..batch
    };
    let now = lane.clock.now();
    let taken =
        transactions::take_nonce(&transaction, lane.id, gas_key, nonce, batch.number).await?;
    anyhow::ensure!(taken, "nonce {nonce} is not the lane's to give");
    transactions::insert(&transaction, lane.id, gas_key, &attempt, now).await?;
    batches::save(&transaction, lane.id, &sent, now).await?;
    transaction.commit().await?;
    info!(batch.number, tx.nonce = %nonce, tx.hash = %attempt.hash, "written down");
    Ok(())
}

/// Sends the transactions whose nonces the chain has not gone past, where they are due.
async fn send_outstanding(lane: &Lane, view: &View, unfinal: &[Batch]) -> anyhow::Result<()> {
    let client = lane.session.client().await?;
    let gas_key = lane.keys.gas.address();
    let pending = unfinal.iter().filter_map(|batch| match batch.state {
        State::Pending(Pending::Broadcast { nonce, .. }) => Some(nonce),
        _ => None,
    });
    let (from, pooled_below) = (view.unspent_from(pending.min()), view.pooled_below());
    let outstanding = transactions::outstanding(&client, lane.id, gas_key, from).await?;
    drop(client);
    let gap = outstanding
        .first()
        .map_or(0, |it| Nonce::gap(from, it.attempt.nonce));
    metrics::gauge!("relayer_nonce_gap").set(u32::try_from(gap).unwrap_or(u32::MAX));
    if gap > 0 {
        warn!(
            nonce.gap = gap,
            "the chain waits for nonces of the gas key that are not ours"
        );
    }
    let stall = lane.options.stall();
    for it in outstanding {
        let now = lane.clock.now();
        let is_head = view.waits_for(it.attempt.nonce);
        match it.step(now, is_head, pooled_below, stall) {
            Step::Wait => {}
            Step::Send => send(lane, &it.attempt).await?,
            Step::Raise => raise(lane, view.market(), &it).await?,
        }
    }
    Ok(())
}

/// Replaces a transaction by one that offers more; at the cap its own bytes go out again.
async fn raise(lane: &Lane, market: Market, it: &Outstanding) -> anyhow::Result<()> {
    let now = lane.clock.now();
    let Some(fees) = it.attempt.fees.raised(market, lane.options.fee_cap()) else {
        metrics::counter!("relayer_fee_cap_reached_total").increment(1);
        return if it.is_fresh(now) {
            Ok(())
        } else {
            send(lane, &it.attempt).await
        };
    };
    let attempt = it.attempt.at_price(fees, &lane.keys.gas)?;
    let mut client = lane.session.client().await?;
    let transaction = lane.session.begin(&mut client).await?;
    transactions::insert(
        &transaction,
        lane.id,
        lane.keys.gas.address(),
        &attempt,
        now,
    )
    .await?;
    transaction.commit().await?;
    drop(client);
    warn!(
        batch.number = attempt.batch_number, tx.nonce = %attempt.nonce,
        tx.max_fee_wei = fees.max_fee, "stalled: offering more"
    );
    metrics::counter!("relayer_fee_raises_total").increment(1);
    send(lane, &attempt).await
}

async fn send(lane: &Lane, attempt: &Attempt) -> anyhow::Result<()> {
    let verdict = lane.chain.send(&attempt.raw).await;
    metrics::counter!("relayer_sends_total", "verdict" => verdict.as_str()).increment(1);
    match verdict {
        Verdict::Fund => error!(
            gas.address = %lane.keys.gas.address(), "the gas key cannot pay: fund it"
        ),
        Verdict::Refused => error!(
            batch.number = attempt.batch_number, tx.hash = %attempt.hash,
            "every endpoint refuses these bytes: a person must look"
        ),
        Verdict::Accepted | Verdict::Reconcile | Verdict::RaiseFees | Verdict::Retry => {}
    }
    let client = lane.session.client().await?;
    transactions::note_sent(&client, attempt.hash, verdict, lane.clock.now()).await?;
    Ok(())
}
