//! What may go is gone after one sweep, however much it is, and nothing else.

use ops::retention::sweep;

use crate::{count, database};

#[tokio::test]
async fn one_sweep_deletes_all_that_may_go_and_nothing_else() {
    let (_database, pool) = database().await;
    // Of each table `many` old rows and one that is not old enough; and one row that never left.
    let sql = "\
        INSERT INTO probe.outbox\n    \
        (topic, key, ce_source, ce_id, ce_type, ce_time, value, published_at)\n\
        SELECT 't', '', 's', n, 't', now(), '',\n    \
        now() - CASE n WHEN 0 THEN interval '23 hours' ELSE interval '25 hours' END\n\
        FROM generate_series(0, 12000) AS n;\n\
        INSERT INTO probe.outbox (topic, key, ce_source, ce_id, ce_type, ce_time, value)\n\
        VALUES ('t', '', 's', '-', 't', now() - interval '1 year', '');\n\
        INSERT INTO probe.inbox_events (consumer, ce_source, ce_id, seen_at)\n\
        SELECT 'c', 's', n,\n    \
        now() - CASE n WHEN 0 THEN interval '34 days' ELSE interval '36 days' END\n\
        FROM generate_series(0, 6000) AS n;\n\
        INSERT INTO probe.dead_letters\n    \
        (consumer, topic, partition, record_offset, headers, reason, created_at)\n\
        SELECT 'c', 't', 0, n, '{}', 'r',\n    \
        now() - CASE n WHEN 0 THEN interval '89 days' ELSE interval '91 days' END\n\
        FROM generate_series(0, 2) AS n";
    pool.get().await.unwrap().batch_execute(sql).await.unwrap();
    assert_eq!(sweep(&pool, "probe").await.unwrap(), 12_000 + 6_000 + 2);
    for (table, left) in [("outbox", 2), ("inbox_events", 1), ("dead_letters", 1)] {
        let sql = format!("SELECT count(*) FROM probe.{table}");
        assert_eq!(count(&pool, &sql).await, left, "{table}");
    }
    assert_eq!(sweep(&pool, "probe").await.unwrap(), 0);
}
