//! One owner at a time, and a fenced one writes nothing.

use std::{collections::HashMap, time::Duration};

use ops::lease::{Lease, LeaseError, LeaseTable, while_leased};
use ops::postgres::Pool;
use ops::testing::{eventually, value};
use proptest::{prelude::*, test_runner::TestRunner};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{DEADLINE, count, database};

const TTL: Duration = Duration::from_secs(30);

async fn expire(client: &deadpool_postgres::Client, name: &str) {
    let sql = "UPDATE probe.leases SET lease_expires_at = clock_timestamp() - interval '1 ms' \
               WHERE name = $1";
    client.execute(sql, &[&name]).await.unwrap();
}

#[tokio::test]
async fn an_expired_owner_is_fenced_by_the_next_epoch() {
    let (_database, pool) = database().await;
    let leases = LeaseTable::named("probe");
    let mut client = pool.get().await.unwrap();
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let mut held = leases
        .claim_named(&client, "lane", first, TTL)
        .await
        .unwrap()
        .unwrap();
    assert!(
        leases
            .claim_named(&client, "lane", second, TTL)
            .await
            .unwrap()
            .is_none()
    );
    leases.renew(&client, &mut held, TTL).await.unwrap();

    expire(&client, "lane").await;
    let next = leases
        .claim_named(&client, "lane", second, TTL)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(next.epoch, held.epoch + 1);
    assert!(matches!(
        leases.renew(&client, &mut held, TTL).await,
        Err(LeaseError::Fenced)
    ));
    leases.release(&client, &held).await.unwrap();
    let transaction = client.transaction().await.unwrap();
    assert!(matches!(
        leases.guard(&transaction, &held).await,
        Err(LeaseError::Fenced)
    ));
    leases.guard(&transaction, &next).await.unwrap();
}

#[tokio::test]
async fn nobody_takes_a_lease_from_under_a_guarded_transaction() {
    let (_database, pool) = database().await;
    let leases = LeaseTable::named("probe");
    let mut owner = pool.get().await.unwrap();
    let short = Duration::from_millis(300);
    let held = leases
        .claim_named(&owner, "lane", Uuid::now_v7(), short)
        .await
        .unwrap()
        .unwrap();
    let transaction = owner.transaction().await.unwrap();
    leases.guard(&transaction, &held).await.unwrap();
    eventually("the lease expires", DEADLINE, || async {
        let sql = "SELECT lease_expires_at < clock_timestamp() FROM probe.leases";
        value::<bool>(&pool, sql).await.then_some(())
    })
    .await;
    let other = pool.get().await.unwrap();
    // Expired, but its owner is still inside the write that the guard allowed.
    assert!(
        leases
            .claim_named(&other, "lane", Uuid::now_v7(), TTL)
            .await
            .unwrap()
            .is_none()
    );
    transaction.commit().await.unwrap();
    assert!(
        leases
            .claim_named(&other, "lane", Uuid::now_v7(), TTL)
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_holder_renews_while_its_guarded_transaction_lasts() {
    let (_database, pool) = database().await;
    let leases = LeaseTable::named("probe");
    let mut owner = pool.get().await.unwrap();
    let mut held = leases
        .claim_named(&owner, "lane", Uuid::now_v7(), TTL)
        .await
        .unwrap()
        .unwrap();
    let transaction = owner.transaction().await.unwrap();
    leases.guard(&transaction, &held).await.unwrap();
    let keeper = pool.get().await.unwrap();
    let renewal = leases.renew(&keeper, &mut held, TTL);
    let renewed = tokio::time::timeout(DEADLINE, renewal).await;
    renewed.expect("the guard holds it up").unwrap();
    leases.guard(&transaction, &held).await.unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Claim(usize),
    Renew(usize),
    Guard(usize),
    Release(usize),
    Expire,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..3_usize).prop_map(Step::Claim),
        (0..3_usize).prop_map(Step::Renew),
        (0..3_usize).prop_map(Step::Guard),
        (0..3_usize).prop_map(Step::Release),
        Just(Step::Expire),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Against the obvious model: at most one holder, epochs only grow, only the holder may act.
#[test]
fn any_interleaving_of_three_owners_keeps_one_holder() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_database, pool) = runtime.block_on(database());
    let mut runner = TestRunner::new(ProptestConfig::with_cases(24));
    runner
        .run(&steps(), |steps| {
            let name = Uuid::now_v7().to_string();
            runtime.block_on(check_steps(&pool, &name, &steps));
            Ok(())
        })
        .unwrap();
}

async fn check_steps(pool: &Pool, name: &str, steps: &[Step]) {
    let leases = LeaseTable::named("probe");
    let owners: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
    let mut client = pool.get().await.unwrap();
    let mut held: HashMap<usize, Lease<String>> = HashMap::new();
    let mut holder: Option<usize> = None;
    let mut epoch = 0;
    for step in steps {
        match *step {
            Step::Claim(who) => {
                let got = leases
                    .claim_named(&client, name, owners[who], TTL)
                    .await
                    .unwrap();
                assert_eq!(got.is_some(), holder.is_none());
                if let Some(lease) = got {
                    assert!(lease.epoch > epoch);
                    epoch = lease.epoch;
                    holder = Some(who);
                    held.insert(who, lease);
                }
            }
            Step::Renew(who) => {
                if let Some(lease) = held.get_mut(&who) {
                    let renewed = leases.renew(&client, lease, TTL).await;
                    assert_eq!(renewed.is_ok(), holder == Some(who) && lease.epoch == epoch);
                }
            }
            Step::Guard(who) => {
                if let Some(lease) = held.get(&who) {
                    let transaction = client.transaction().await.unwrap();
                    let allowed = leases.guard(&transaction, lease).await.is_ok();
                    assert_eq!(allowed, holder == Some(who) && lease.epoch == epoch);
                }
            }
            Step::Release(who) => {
                if let Some(lease) = held.remove(&who) {
                    leases.release(&client, &lease).await.unwrap();
                    if lease.epoch == epoch {
                        holder = None;
                    }
                }
            }
            Step::Expire => {
                expire(&client, name).await;
                holder = None;
            }
        }
    }
}

/// Writes its epoch under the lease until it is over or fenced.
async fn write_epochs(
    pool: Pool,
    leases: LeaseTable,
    lease: Lease<String>,
    over: CancellationToken,
) -> anyhow::Result<()> {
    let mut client = pool.get().await?;
    while !over.is_cancelled() {
        let transaction = client.transaction().await?;
        leases.guard(&transaction, &lease).await?;
        let sql = "INSERT INTO probe.writes (epoch) VALUES ($1)";
        transaction.execute(sql, &[&lease.epoch]).await?;
        transaction.commit().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_and_the_fenced_owner_writes_nothing_more() {
    let (_database, pool) = database().await;
    let sql = "CREATE TABLE probe.writes (id bigint GENERATED ALWAYS AS IDENTITY, epoch bigint)";
    pool.get().await.unwrap().batch_execute(sql).await.unwrap();
    let leases = LeaseTable::named("probe");
    let stop = CancellationToken::new();
    let start = || {
        let (pool, leases, stop) = (pool.clone(), leases.clone(), stop.clone());
        tokio::spawn(async move {
            let ttl = Duration::from_secs(2);
            while_leased(&pool, &leases, "lane", ttl, &stop, |lease, over| {
                write_epochs(pool.clone(), leases.clone(), lease, over)
            })
            .await
        })
    };
    let tasks = [start(), start()];
    for epoch in 1..6 {
        let sql = format!("SELECT count(*) FROM probe.writes WHERE epoch = {epoch}");
        eventually(&sql, DEADLINE, || async {
            (count(&pool, &sql).await > 0).then_some(())
        })
        .await;
        // As if the owner had been paused past its expiry: it does not know, and goes on writing.
        expire(&pool.get().await.unwrap(), "lane").await;
    }
    stop.cancel();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let sql = "SELECT count(*) FROM (SELECT epoch < lag(epoch) OVER (ORDER BY id) AS late \
               FROM probe.writes) writes WHERE late";
    assert_eq!(
        count(&pool, sql).await,
        0,
        "an older epoch wrote after a newer one"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_hangs_past_its_lease_is_dropped_and_the_lease_is_free_again() {
    let (_database, pool) = database().await;
    let leases = LeaseTable::named("probe");
    let (stop, ttl) = (CancellationToken::new(), Duration::from_millis(500));
    let (begun, mut beginnings) = tokio::sync::mpsc::unbounded_channel();
    let hang = |lease: Lease<String>, _over| {
        begun.send(lease.epoch).unwrap();
        std::future::pending()
    };
    let running = while_leased(&pool, &leases, "lane", ttl, &stop, hang);
    let watching = async {
        let first = beginnings.recv().await.unwrap();
        expire(&pool.get().await.unwrap(), "lane").await;
        let second = tokio::time::timeout(DEADLINE, beginnings.recv()).await;
        stop.cancel();
        (first, second.unwrap().unwrap())
    };
    let (ended, (first, second)) = tokio::join!(running, watching);
    ended.unwrap();
    assert!(first < second);
}
