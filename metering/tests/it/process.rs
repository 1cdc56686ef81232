//! The program as an operator meets it: configuration, schema, readiness, and the end.

use ops::testing::{TestDatabase, TestProcess, free_address, until_ready};

use crate::app::{App, DEADLINE, output, parse};

#[tokio::test]
async fn ingest_and_api_become_ready_and_end_cleanly_when_told() {
    let app = App::start().await;
    let admin = free_address();
    let mut command = app.command(&["ingest"]);
    let mut ingest = TestProcess::start(command.env("ADMIN_LISTEN", admin.to_string()));
    until_ready(admin, DEADLINE).await;
    let mut api = app.api().await;
    assert_eq!(ingest.terminate(DEADLINE), Some(0));
    assert_eq!(api.terminate(), Some(0));
}

#[tokio::test]
async fn a_process_refuses_a_database_that_was_not_migrated() {
    let app = App::start().await;
    let empty = TestDatabase::create().await;
    let mut command = app.command(&["ingest"]);
    command.env("DATABASE_URL", empty.url());
    assert_eq!(output(command).0, Some(69));
    let mut command = app.command(&["migrate"]);
    command.env("DATABASE_URL", empty.url());
    assert_eq!(output(command).0, Some(0));
    let mut command = app.command(&["check"]);
    command.env("DATABASE_URL", empty.url());
    let (code, said) = output(command);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("postgres: answers") && said.contains("kafka: answers"),
        "{said}"
    );
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_64() {
    let app = App::start().await;
    let mut command = app.command(&["ingest"]);
    command.env_remove("KAFKA_BROKERS");
    assert_eq!(output(command).0, Some(64));
    let mut command = app.command(&["api"]);
    command
        .env("LISTEN", "127.0.0.1:0")
        .env("ASSERTION_KEY", "short");
    assert_eq!(output(command).0, Some(64));
    let mut command = app.command(&["migrate"]);
    command.env("DATABASE_URL", "not a url");
    assert_eq!(output(command).0, Some(64));
    let secret = "postgres://u:hunter2@127.0.0.1/db";
    let cli = parse(&["migrate", "--database-url", secret]).unwrap();
    assert!(!format!("{cli:?}").contains("hunter2"));
}
