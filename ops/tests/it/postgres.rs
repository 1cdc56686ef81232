//! What errors of Postgres mean, and what is told of them.

use ops::{
    config::DatabaseOptions,
    postgres::{connect, explain, is_conflict, is_outage},
    testing::free_address,
};

use crate::database;

#[tokio::test]
async fn a_database_that_is_gone_is_an_outage_and_a_refusal_is_not() {
    let (_database, pool) = database().await;
    let nowhere = DatabaseOptions {
        database_url: format!("postgres://u:p@{}/d", free_address()).into(),
        database_connections: 1,
    };
    let unreachable = connect(&nowhere, "test").unwrap().get().await.unwrap_err();
    assert!(is_outage(&unreachable), "{unreachable}");

    let (ours, other) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    let pid = "SELECT pg_backend_pid()";
    let pid: i32 = ours.query_one(pid, &[]).await.unwrap().get(0);
    let kill = "SELECT pg_terminate_backend($1)";
    other.execute(kill, &[&pid]).await.unwrap();
    for _ in 0..2 {
        let broken = ours.simple_query("SELECT 1").await.unwrap_err();
        let told = anyhow::Error::from(broken).context("read a job");
        assert!(is_outage(told.as_ref()), "{told:#}");
    }

    let sql = "INSERT INTO probe.leases (name) VALUES ('secret')";
    other.execute(sql, &[]).await.unwrap();
    let refused = other.execute(sql, &[]).await.unwrap_err();
    assert!(!is_outage(&refused) && !is_conflict(&refused), "{refused}");
}

#[tokio::test]
async fn an_explanation_has_the_message_and_the_state_but_no_row() {
    let (_database, pool) = database().await;
    let client = pool.get().await.unwrap();
    let sql = "INSERT INTO probe.leases (name) VALUES ('secret')";
    client.execute(sql, &[]).await.unwrap();
    let refused = client.execute(sql, &[]).await.unwrap_err();
    let told = explain(&anyhow::Error::from(refused).context("take a lease"));
    assert!(told.starts_with("take a lease: "), "{told}");
    assert!(told.contains("leases_pkey"), "{told}");
    assert!(told.contains("23505"), "{told}");
    assert!(!told.contains("secret"), "{told}");
}
