//! Processes that die, and two at once: every job is confirmed once all the same.

use std::time::Duration;

use ops::testing::TestProcess;

use crate::{
    DEADLINE,
    node::Node,
    world::{World, assert_told_once},
};

/// Kills the relayer at the moments when what it does is half done, as the tables show them.
async fn kill_when(world: &World, relayer: &mut TestProcess, what: &str, sql: &str) {
    world.until(what, sql).await;
    relayer.kill();
    // The killed process's leases need not run out: a test waits for what it is about.
    let client = world.pool.get().await.unwrap();
    let free = "UPDATE relayer.leases SET lease_expires_at = NULL, lease_owner = NULL";
    client.execute(free, &[]).await.unwrap();
    *relayer = world.relayer();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_every_job_is_confirmed_once() {
    let mut world = World::on(Node::start()).await;
    world.set("BATCH_MAX_JOBS", "8");
    let mut relayer = world.relayer();
    let mut jobs = Vec::new();
    let moments = [
        (
            "some are taken in",
            "SELECT EXISTS (SELECT FROM relayer.confirmations)",
        ),
        (
            "a batch is on its way",
            "SELECT EXISTS (SELECT FROM relayer.transactions)",
        ),
        (
            "a transaction is written down, or all are final",
            "SELECT EXISTS (SELECT FROM relayer.transactions WHERE broadcast_at IS NULL)\n\
             OR NOT EXISTS (SELECT FROM relayer.batches WHERE state <> 'finalized')",
        ),
        (
            "a batch is included, or all are final",
            "SELECT EXISTS (SELECT FROM relayer.batches WHERE state = 'included')\n\
             OR NOT EXISTS (SELECT FROM relayer.batches WHERE state <> 'finalized')",
        ),
        (
            "one is final",
            "SELECT EXISTS (SELECT FROM relayer.batches WHERE state = 'finalized')",
        ),
    ];
    for (what, sql) in moments {
        jobs.extend(world.complete(36, false).await);
        jobs.extend(world.complete(4, true).await);
        kill_when(&world, &mut relayer, what, sql).await;
    }
    assert_eq!(jobs.len(), 200);
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
    world.assert_proven(&jobs[..10]).await;
    assert_eq!(
        relayer.terminate(Duration::from_secs(20)),
        Some(0),
        "SIGTERM ends it cleanly"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_at_once_confirm_once_and_one_takes_over_from_the_other() {
    let world = World::on(Node::start()).await;
    let mut one = world.relayer();
    let _two = world.relayer();
    let mut jobs = world.complete(30, false).await;
    jobs.extend(world.complete(10, true).await);
    let told = world.told_of(&jobs).await;
    assert_told_once(&told);
    world.audit(&jobs, &told).await;
    one.kill();
    // Whichever held the leases, the other is left, and waits for them at most.
    jobs.extend(world.complete(10, false).await);
    let told = tokio::time::timeout(DEADLINE, world.told_of(&jobs))
        .await
        .unwrap();
    assert_told_once(&told);
    world.audit(&jobs, &told).await;
}
