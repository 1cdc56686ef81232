-- The tables of the four mechanisms, made once in each service's schema.

CREATE TABLE {schema}.outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic        text        NOT NULL,
    key          bytea       NOT NULL,
    ce_source    text        NOT NULL,
    ce_id        text        NOT NULL,
    ce_type      text        NOT NULL,
    ce_time      timestamptz NOT NULL,
    traceparent  text,
    value        bytea       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    published_at timestamptz
);
CREATE INDEX outbox_unpublished ON {schema}.outbox (id) WHERE published_at IS NULL;
CREATE INDEX outbox_published ON {schema}.outbox (published_at) WHERE published_at IS NOT NULL;

-- What a consumer has taken in. Kafka's own offsets are only for display.
CREATE TABLE {schema}.inbox_offsets (
    consumer    text   NOT NULL,
    topic       text   NOT NULL,
    partition   int    NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (consumer, topic, partition)
);

-- Telling it twice is telling it once: the identities of events already applied.
CREATE TABLE {schema}.inbox_events (
    consumer  text        NOT NULL,
    ce_source text        NOT NULL,
    ce_id     text        NOT NULL,
    seen_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, ce_source, ce_id)
);
CREATE INDEX inbox_events_seen_at ON {schema}.inbox_events (seen_at);

CREATE TABLE {schema}.dead_letters (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer      text        NOT NULL,
    topic         text        NOT NULL,
    partition     int         NOT NULL,
    record_offset bigint      NOT NULL,
    key           bytea,
    headers       jsonb       NOT NULL,
    value         bytea,
    reason        text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX dead_letters_created_at ON {schema}.dead_letters (created_at);
-- Not unique: a topic that was made anew has other records at the same offsets.
CREATE INDEX dead_letters_place
    ON {schema}.dead_letters (consumer, topic, partition, record_offset);

CREATE TABLE {schema}.leases (
    name             text PRIMARY KEY,
    lease_owner      uuid,
    lease_epoch      bigint NOT NULL DEFAULT 0,
    lease_expires_at timestamptz
);

CREATE TABLE {schema}.idempotency_keys (
    tenant_id    uuid        NOT NULL,
    key          text        NOT NULL,
    request_hash bytea       NOT NULL,
    answer       jsonb       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_keys_expires_at ON {schema}.idempotency_keys (expires_at);
