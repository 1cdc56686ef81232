//! The chain takes things back, forgets, grows dear, changes its signers, or is faster than us.

use alloy::{
    consensus::{Transaction as _, TxEnvelope},
    eips::Decodable2718 as _,
    primitives::{Address, B256, Bytes, U256},
    sol_types::SolCall as _,
};
use contracts::registry::JobsRegistry::{pauseCall, setThresholdCall, unpauseCall};
use ops::testing::{eventually, value};
use serde_json::{Value, json};

use crate::{DEADLINE, node::Node, world::World};

const INCLUDED: &str = "SELECT EXISTS (SELECT FROM relayer.batches)\n\
    AND NOT EXISTS (SELECT FROM relayer.batches\n\
     WHERE state NOT IN ('included', 'finalized'))";
const SENT: &str = "SELECT EXISTS (SELECT FROM relayer.transactions WHERE outcome = 'accepted')";

/// The bytes of the newest transaction.
async fn newest_raw(world: &World) -> Vec<u8> {
    let sql = "SELECT raw FROM relayer.transactions ORDER BY nonce DESC, attempt DESC LIMIT 1";
    value(&world.pool, sql).await
}

/// Replaces every block that holds a batch by an empty one.
async fn take_back_all_batches(world: &World) {
    let first = world
        .number("SELECT min(block_number) FROM relayer.batches")
        .await;
    // Two more, for the blocks that are mined while we ask.
    let depth = world.node.head().await - u64::try_from(first).unwrap() + 3;
    world.node.reorg(depth).await;
    let cursor = world.node.cursor(world.registry).await;
    assert_eq!(cursor.nextBatch, 1, "the reorg took them all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_of_included_batches_ends_in_finality_told_once() {
    let mut world = World::on(Node::start()).await;
    world.set("FINALITY", "60");
    let _relayer = world.relayer();
    let mut jobs = world.complete(5, false).await;
    jobs.extend(world.complete(3, true).await);
    let taken = "SELECT count(*) = 8 FROM relayer.confirmations WHERE lane_id IS NOT NULL";
    world.until("all are sealed", taken).await;
    world.until("all are included", INCLUDED).await;
    let nonces = world.number("SELECT count(*) FROM relayer.nonces").await;
    take_back_all_batches(&world).await;
    let told = world.told_once(&jobs).await;
    world.audit(&jobs, &told).await;
    world.assert_proven(&jobs).await;
    let after = world.number("SELECT count(*) FROM relayer.nonces").await;
    assert_eq!(nonces, after, "the same bytes went out again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_of_more_transactions_than_are_looked_at_together_is_made_good() {
    const DEPTH: u64 = 1_000;
    let mut world = World::on(Node::start()).await;
    world.set("FINALITY", DEPTH.to_string());
    let _relayer = world.relayer();
    let jobs = world.complete(70, true).await;
    let included = "SELECT count(*) = 70 FROM relayer.batches WHERE state = 'included'";
    world.until("all are included", included).await;
    take_back_all_batches(&world).await;
    eventually("the chain has them again", DEADLINE, || async {
        (world.node.cursor(world.registry).await.nextBatch == 71).then_some(())
    })
    .await;
    let nonces = world.number("SELECT count(*) FROM relayer.nonces").await;
    assert_eq!(nonces, 70, "the same bytes went out again");
    world.node.mine(DEPTH).await;
    let told = world.told_once(&jobs).await;
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_is_told_once_and_what_waited_goes_on_after_it() {
    let world = World::on(Node::start()).await;
    let (admin, registry) = (world.admin, world.registry);
    let pause: Bytes = pauseCall {}.abi_encode().into();
    world.node.send_as(admin, registry, pause, 50).await;
    eventually("it is paused", DEADLINE, || async {
        world.node.cursor(registry).await.paused.then_some(())
    })
    .await;
    let _relayer = world.relayer();
    let jobs = world.complete(2, true).await;
    let told = async || (world.said("the registry is paused") > 0).then_some(());
    eventually("the pause is told", DEADLINE, told).await;
    let waits = "SELECT count(*) = 2 FROM relayer.batches WHERE state = 'sealed'";
    world.until("what comes meanwhile waits", waits).await;
    let unpause: Bytes = unpauseCall {}.abi_encode().into();
    world.node.send_as(admin, registry, unpause, 50).await;
    let told = world.told_once(&jobs).await;
    world.audit(&jobs, &told).await;
    assert_eq!(world.said("the registry is paused"), 1);
    assert_eq!(world.said("the registry is no longer paused"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_violated_finality_is_mended_and_told_under_the_same_identity() {
    let mut world = World::on(Node::start()).await;
    world.set("FINALITY", "1");
    let _relayer = world.relayer();
    let jobs = world.complete(3, true).await;
    world.told_of(&jobs).await;
    take_back_all_batches(&world).await;
    eventually("the chain has them again", DEADLINE, || async {
        (world.node.cursor(world.registry).await.nextBatch == 4).then_some(())
    })
    .await;
    world
        .until(
            "all are final again",
            "SELECT count(*) = 6 FROM relayer.outbox",
        )
        .await;
    world
        .until(
            "all is told",
            "SELECT bool_and(published_at IS NOT NULL) FROM relayer.outbox",
        )
        .await;
    let more = world.complete(1, true).await;
    let jobs = [jobs, more].concat();
    let told = world.told_of(&jobs).await;
    assert_eq!(
        told.len(),
        4,
        "four identities, however often each was told"
    );
    world.assert_proven(&jobs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_the_pool_drops_is_sent_again_as_it_was() {
    let world = World::on(Node::start()).await;
    world.node.stop_mining().await;
    let _relayer = world.relayer();
    let jobs = world.complete(3, false).await;
    world.until("it is sent", SENT).await;
    let hash = *TxEnvelope::decode_2718_exact(&newest_raw(&world).await)
        .unwrap()
        .tx_hash();
    world
        .node
        .call::<Value>("anvil_dropTransaction", json!([hash]))
        .await;
    eventually("it is in the pool again", DEADLINE, || async {
        let found: Option<Value> = world
            .node
            .call("eth_getTransactionByHash", json!([hash]))
            .await;
        found.map(drop)
    })
    .await;
    world.node.resume_mining().await;
    let told = world.told_of(&jobs).await;
    assert_eq!(
        B256::from_slice(&told.values().next().unwrap()[0].transaction_hash),
        hash
    );
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_gas_grows_dear_the_head_is_offered_more_up_to_the_cap() {
    let mut world = World::on(Node::start()).await;
    world.set("STALL_MS", "300");
    world.set("MAX_FEE_GWEI", "8");
    world.node.stop_mining().await;
    let _relayer = world.relayer();
    let jobs = world.complete(3, true).await;
    world
        .until(
            "all are sent",
            "SELECT count(*) >= 3 FROM relayer.transactions",
        )
        .await;
    let capped = "SELECT max(max_fee_wei) > 7.2e9 AND count(*) > 3 FROM relayer.transactions";
    world
        .until("the head is raised until the cap forbids it", capped)
        .await;
    let highest = world
        .number("SELECT max(max_fee_wei) FROM relayer.transactions")
        .await;
    assert!(highest <= 8_000_000_000);
    let raised = world
        .number(
            "SELECT count(DISTINCT nonce) FROM relayer.transactions\n\
        WHERE attempt > 0",
        )
        .await;
    assert_eq!(raised, 1, "only the head");
    let dear = U256::from(100_000_000_000_u64);
    world
        .node
        .call::<Value>("anvil_setNextBlockBaseFeePerGas", json!([dear]))
        .await;
    world.node.mine(1).await;
    assert_eq!(
        world.node.cursor(world.registry).await.nextBatch,
        1,
        "too dear"
    );
    // An empty block lowers the base fee by an eighth: the same bytes get in at last.
    world.node.mine(20).await;
    world.node.resume_mining().await;
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signers_that_change_under_way_cost_a_revert_and_nothing_else() {
    let world = World::on(Node::start()).await;
    world.node.stop_mining().await;
    let _relayer = world.relayer();
    let jobs = world.complete(2, true).await;
    let sent = "SELECT count(*) = 2 FROM relayer.transactions WHERE outcome = 'accepted'";
    world.until("both are sent", sent).await;
    let input: Bytes = setThresholdCall { required: 3 }.abi_encode().into();
    world
        .node
        .send_as(world.admin, world.registry, input, 50)
        .await;
    world.node.resume_mining().await;
    let told = world.told_once(&jobs).await;
    world.audit(&jobs, &told).await;
    let epochs = world
        .number("SELECT count(DISTINCT signer_epoch) FROM relayer.signatures")
        .await;
    assert_eq!(epochs, 2, "signed again for the new signers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_our_batch_first_confirms_it() {
    let world = World::on(Node::start()).await;
    world.node.stop_mining().await;
    let _relayer = world.relayer();
    let first = world.complete(1, true).await;
    world.until("it is sent", SENT).await;
    let ours = TxEnvelope::decode_2718_exact(&newest_raw(&world).await).unwrap();
    let stranger = Address::repeat_byte(0x77);
    world.node.fund(stranger).await;
    world
        .node
        .send_as(stranger, world.registry, ours.input().clone(), 50)
        .await;
    world.node.resume_mining().await;
    let told = world.told_of(&first).await;
    let transaction = &told.values().next().unwrap()[0].transaction_hash;
    assert_ne!(
        B256::from_slice(transaction),
        *ours.tx_hash(),
        "the stranger's came first"
    );
    let jobs = [first, world.complete(2, true).await].concat();
    let told = world.told_once(&jobs).await;
    world.audit(&jobs, &told).await;
    assert_eq!(
        world.node.next_nonce(world.gas.address()).await,
        4,
        "deployment, revert, two"
    );
}
