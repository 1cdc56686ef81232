//! The intake: what one tenant with many endpoints costs everyone else.

use contracts::id::TenantId;
use webhooks::store::queue;

use crate::app::{App, now, telling};

/// As many as a tenant may have.
const ENDPOINTS: i64 = 100;

#[tokio::test]
async fn events_for_many_endpoints_are_queued_in_few_statements() {
    let app = App::start().await;
    app.execute(&format!(
        "INSERT INTO webhooks.endpoints (endpoint_id, tenant_id, url, events, enabled,
            created_at, updated_at)
        SELECT gen_random_uuid(), '{}', 'https://example.com/',
            CASE n WHEN 0 THEN '{{job.failed}}'::text[] ELSE '{{job.completed}}' END,
            n % 2 = 0, now(), now()
        FROM generate_series(0, {ENDPOINTS}) n;
        CREATE SEQUENCE statements START 0 MINVALUE 0;
        SELECT nextval('statements');
        CREATE FUNCTION count_statement() RETURNS trigger LANGUAGE plpgsql
            AS $$BEGIN PERFORM nextval('statements'); RETURN NULL; END$$;
        CREATE TRIGGER count_statement AFTER INSERT ON webhooks.deliveries
            EXECUTE FUNCTION count_statement()",
        app.tenant.uuid()
    ))
    .await;
    let mut events: Vec<_> = (0..60)
        .map(|nth| telling(app.tenant, &nth.to_string()))
        .collect();
    events.push(telling(app.tenant, "0"));
    events.push(telling(TenantId::generate(now()), "stranger"));
    let mut client = app.pool.get().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    queue::queue(&transaction, &events, now()).await.unwrap();
    transaction.commit().await.unwrap();

    let count = |condition: &'static str| {
        let sql = format!("SELECT count(*) FROM webhooks.deliveries WHERE {condition}");
        let app = &app;
        async move { app.count(&sql).await }
    };
    let half = 60 * ENDPOINTS / 2;
    assert_eq!(
        count("status = 'HELD' AND next_attempt_at IS NULL").await,
        half
    );
    assert_eq!(
        count("status = 'PENDING' AND next_attempt_at <= now()").await,
        half
    );
    let own_body = "body = '{\"id\":\"' || event_id || '\"}'";
    assert_eq!(count(own_body).await, 2 * half);
    // Each of 5,000 deliveries at most; one for each delivery would be 6,100.
    assert_eq!(app.count("SELECT last_value FROM statements").await, 2);
}
