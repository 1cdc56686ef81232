//! Processes that die, and two at once: every job is confirmed once all the same.

use std::time::Duration;

use contracts::id::JobId;
use ops::testing::{TestProcess, value};

use crate::{node::Node, world::World};

/// What the relayer is doing, the statement before which it is stopped, and of which rows.
type Moment = (&'static str, &'static str, &'static str);

/// One in the middle of each of its steps.
const MOMENTS: [Moment; 8] = [
    ("taking in", "INSERT ON relayer.confirmations", ""),
    ("sealing", "INSERT ON relayer.batches", ""),
    ("signing", "INSERT ON relayer.signatures", ""),
    ("writing down", "INSERT ON relayer.transactions", ""),
    ("noting what was sent", "UPDATE ON relayer.transactions", ""),
    (
        "seeing it included",
        "UPDATE ON relayer.batches",
        "WHEN (NEW.state = 'included')",
    ),
    ("announcing", "INSERT ON relayer.outbox", ""),
    ("marking what was told", "UPDATE ON relayer.outbox", ""),
];
const HOLD: &str = "CREATE FUNCTION relayer.hold() RETURNS trigger LANGUAGE plpgsql AS\n\
    'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END'";
const HELD: &str = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory'\n\
    AND NOT granted AND database = (\n\
     SELECT oid FROM pg_database WHERE datname = current_database()))";
/// Ends what the killed process had begun, and frees its leases: a test waits for what it is about.
const AFTERMATH: &str = "SELECT pg_terminate_backend(pid) FROM pg_locks\n\
    WHERE locktype = 'advisory' AND NOT granted AND database = (\n\
     SELECT oid FROM pg_database WHERE datname = current_database());\n\
    DROP TRIGGER hold ON {table};\n\
    SELECT pg_advisory_unlock(1);\n\
    UPDATE relayer.leases SET lease_expires_at = NULL, lease_owner = NULL";

const TAKEN_IN: &str = "SELECT count(*) FROM relayer.confirmations";
const UNDER_WAY: &str = "SELECT EXISTS (SELECT FROM relayer.confirmations WHERE lane_id IS NULL)\n\
    OR EXISTS (SELECT FROM relayer.batches WHERE state <> 'finalized')\n\
    OR EXISTS (SELECT FROM relayer.outbox WHERE published_at IS NULL)";

/// Has jobs completed and kills the relayer in the middle of working on them; returns the jobs.
async fn kill_while(world: &World, relayer: &mut TestProcess, moment: Moment) -> Vec<JobId> {
    let (what, statement, when) = moment;
    let holder = world.pool.get().await.unwrap();
    let hold = format!(
        "SELECT pg_advisory_lock(1);\n\
         CREATE TRIGGER hold BEFORE {statement} FOR EACH ROW {when}\n\
         EXECUTE FUNCTION relayer.hold()"
    );
    holder.batch_execute(&hold).await.unwrap();
    let mut jobs = world.complete(9, false).await;
    jobs.extend(world.complete(2, true).await);
    world.until(what, HELD).await;
    relayer.kill();
    let table = statement.split(' ').next_back().unwrap();
    let aftermath = AFTERMATH.replace("{table}", table);
    holder.batch_execute(&aftermath).await.unwrap();
    jobs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_any_step_every_job_is_confirmed_once() {
    let mut world = World::on(Node::start()).await;
    world.set("BATCH_MAX_JOBS", "8");
    world
        .pool
        .get()
        .await
        .unwrap()
        .batch_execute(HOLD)
        .await
        .unwrap();
    let mut relayer = world.relayer();
    let mut jobs = Vec::new();
    for moment in MOMENTS {
        jobs.extend(kill_while(&world, &mut relayer, moment).await);
        let taken_in = world.number(TAKEN_IN).await;
        let in_flight = taken_in < i64::try_from(jobs.len()).unwrap()
            || value::<bool>(&world.pool, UNDER_WAY).await;
        assert!(in_flight, "nothing was left to do: {}", moment.0);
        relayer = world.relayer();
    }
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
    let told = world.told_once(&jobs).await;
    world.audit(&jobs, &told).await;
    one.kill();
    // Whichever held the leases, the other is left, and waits for them at most.
    jobs.extend(world.complete(10, false).await);
    let told = world.told_once(&jobs).await;
    world.audit(&jobs, &told).await;
}
