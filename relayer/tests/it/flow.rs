//! Completions in, finality out.

use contracts::{
    event::{Failed, Kind},
    id::{JobId, TenantId},
};
use ops::clock::Clock;

use crate::{node::Node, world::World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_become_final_proven_and_told_once() {
    let world = World::on(Node::shared()).await;
    let relayer = world.relayer();
    let mut jobs = world.complete(40, false).await;
    jobs.extend(world.complete(3, true).await);
    // A failure is sealed too.
    let failed = JobId::generate(Clock::system().now());
    let Some(Kind::Completed(completed)) = world.completion(failed, false).kind else {
        unreachable!("completion() completes")
    };
    let kind = Kind::Failed(Failed {
        seal: completed.seal,
        ..Failed::default()
    });
    world.publish(&[world.event(failed, 3, kind)]).await;
    jobs.push(failed);

    let told = world.told_once(&jobs).await;
    world.audit(&jobs, &told).await;
    world.assert_proven(&jobs).await;
    assert_eq!(world.proof(failed).await.leaf.status, 2);
    drop(relayer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_told_twice_is_one_leaf() {
    let world = World::on(Node::start()).await;
    let _relayer = world.relayer();
    let [job] = world.complete(1, false).await.try_into().unwrap();
    let again = world.completion(job, false);
    let mut renumbered = world.completion(job, false);
    renumbered.event_number = 9;
    world.publish(&[again, renumbered]).await;
    // The last one in shows that everything before it was taken in: same key, same partition.
    world.told_of(&[job]).await;
    let after = world.complete(1, true).await;
    let jobs = [&[job][..], &after].concat();
    let seen = "SELECT count(*) = 3 FROM relayer.inbox_events";
    world.until("all three identities are known", seen).await;
    let told = world.told_once(&jobs).await;
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_closes_at_its_size() {
    let mut world = World::on(Node::start()).await;
    world.set("BATCH_MAX_JOBS", "10");
    world.set("BATCH_MAX_AGE_MS", "600000");
    let _relayer = world.relayer();
    let jobs = world.complete(30, false).await;
    let told = world.told_of(&jobs).await;
    assert_eq!(told.len(), 3);
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_was_used_before_is_taken_over_with_its_history() {
    let world = World::on(Node::start()).await;
    let relayer = world.relayer();
    let earlier = world.complete(5, true).await;
    world.told_of(&earlier).await;
    drop(relayer);
    let world = world.with_new_database().await;
    let _relayer = world.relayer();
    let jobs = world.complete(3, true).await;
    let told = world.told_of(&jobs).await;
    assert!(told.values().all(|batches| batches[0].batch_number > 5));
    world.assert_proven(&jobs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_jobs_that_go_alone_hold_up_neither_shared_batches_nor_other_tenants() {
    let world = World::on(Node::start()).await;
    world.node.stop_mining().await;
    let _relayer = world.relayer();
    let flood = world.complete(30, true).await;
    // What fits into the pool and the row behind it is full of the flood.
    let full = "SELECT count(*) >= 15 FROM relayer.batches";
    world.until("no more single jobs fit", full).await;
    let theirs = TenantId::generate(Clock::system().now());
    let of_other = |individual| {
        let job = JobId::generate(Clock::system().now());
        let mut event = world.completion(job, individual);
        event.tenant_id = theirs.to_string();
        (job, event)
    };
    let (shared, in_batch) = of_other(false);
    let (alone, by_itself) = of_other(true);
    world.publish(&[in_batch, by_itself]).await;
    let place = |job: JobId| {
        let job = job.uuid();
        format!("SELECT batch_number FROM relayer.confirmations WHERE job_id = '{job}'")
    };
    let sealed = format!("SELECT ({}) IS NOT NULL", place(shared));
    world.until("the shared batch finds a place", &sealed).await;
    world.node.resume_mining().await;
    let jobs = [flood, vec![shared, alone]].concat();
    let told = world.told_once(&jobs).await;
    let number = world.number(&place(alone)).await;
    assert!(
        number <= 20,
        "the other tenant's turn came at batch {number}"
    );
    let batches: i64 = i64::try_from(told.len()).unwrap();
    assert_eq!(batches, 32, "each of the flood goes alone");
}
