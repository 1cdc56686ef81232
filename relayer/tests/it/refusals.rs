//! What the commands refuse, with which exit code and in which words.

use std::process::{Command, Output};

use crate::{
    node::Node,
    world::{World, random_key},
};

/// The exit code, and what was said on standard error.
fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_does_not_fit_is_refused() {
    let world = World::on(Node::shared()).await;
    let (code, said) = outcome(&mut world.command("check"));
    assert_eq!(code, Some(0), "{said}");
    let refused = [
        ("CHAIN_ID", "1", 64, "CHAIN_ID says 1"),
        (
            "REGISTRY_ADDRESS",
            "0x00000000000000000000000000000000000000aa",
            64,
            "relayer deploy",
        ),
        ("RPC_URL", "http://127.0.0.1:1/k3y", 69, "cannot be reached"),
        ("RPC_URL", "nonsense", 64, "not a URL"),
        ("GAS_KEY_FILE", "/nonexistent", 64, "/nonexistent"),
        ("BATCH_MAX_JOBS", "0", 64, "--batch-max-jobs"),
        ("KAFKA_BROKERS", "127.0.0.1:1", 69, "Kafka does not answer"),
        ("DATABASE_URL", "postgres://u:s3cret@127.0.0.1:1/d", 69, ""),
    ];
    for (variable, value, expected, words) in refused {
        let (code, said) = outcome(world.command("check").env(variable, value));
        assert_eq!(code, Some(expected), "{variable}={value}: {said}");
        assert!(said.contains(words), "{variable}={value}: {said}");
        assert!(!said.contains("k3y") && !said.contains("s3cret"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_named_twice_is_refused() {
    let world = World::on(Node::shared()).await;
    let twice = format!("{0},{0}", world.node.url);
    let (code, said) = outcome(world.command("check").env("RPC_URL", twice));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("twice"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_names_an_admin_who_is_not_the_gas_key() {
    let world = World::on(Node::shared()).await;
    let (code, said) = outcome(&mut world.command("deploy"));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("--admin"), "{said}");
    let gas_key = world.gas.address().to_string();
    let (code, said) = outcome(world.command("deploy").args(["--admin", &gas_key]));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("--admin is the gas key"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_the_registry_does_not_know_are_refused() {
    let world = World::on(Node::shared()).await;
    world.write_keys("attesters", &[random_key(), random_key()]);
    let (code, said) = outcome(&mut world.command("run"));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("wants 2 attesters"), "{said}");
    world.write_keys("attesters", std::slice::from_ref(&world.gas));
    let (code, said) = outcome(&mut world.command("run"));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("also an attester"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_behind_the_registry_is_refused() {
    let world = World::on(Node::start()).await;
    let relayer = world.relayer();
    let jobs = world.complete(1, true).await;
    world.told_of(&jobs).await;
    drop(relayer);
    let client = world.pool.get().await.unwrap();
    client
        .execute(
            "UPDATE relayer.lanes SET next_batch = 1, next_sequence = 1",
            &[],
        )
        .await
        .unwrap();
    let (code, said) = outcome(&mut world.command("run"));
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("restored from a backup"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_not_there_is_refused_until_migrated() {
    let world = World::on(Node::shared()).await;
    let client = world.pool.get().await.unwrap();
    client
        .batch_execute("DROP SCHEMA relayer CASCADE")
        .await
        .unwrap();
    let (code, said) = outcome(&mut world.command("run"));
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("run `migrate` first"), "{said}");
    for _ in 0..2 {
        let (code, said) = outcome(&mut world.command("migrate"));
        assert_eq!(code, Some(0), "{said}");
    }
    let (code, said) = outcome(&mut world.command("check"));
    assert_eq!(code, Some(0), "{said}");
}
