-- Usage as it happened, what it adds up to, and what it costs.

-- Raw events, append only: what every aggregate and invoice must add up to. The identity is
-- (source, event_id, meter, unit); event_time is the time inside event_id, so that a repeat,
-- whatever its other fields say, falls into the same partition and is recognised there.
CREATE TABLE metering.events (
    source      text        NOT NULL,
    event_id    text        NOT NULL,
    meter       text        NOT NULL,
    unit        text        NOT NULL,
    event_time  timestamptz NOT NULL,
    tenant_id   uuid        NOT NULL,
    quantity    numeric     NOT NULL CHECK (quantity >= 0),
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    job_id      uuid,
    request_id  uuid,
    endpoint    text,
    status_code int,
    dimensions  jsonb       NOT NULL,
    PRIMARY KEY (source, event_id, meter, unit, event_time)
) PARTITION BY RANGE (event_time);
CREATE INDEX events_by_tenant
    ON metering.events (tenant_id, occurred_at, source, event_id, meter, unit);

-- The days that have a partition of metering.events. Its rows are also the turn of those who make
-- one: who inserts the day makes the partition, in the transaction that first needs it.
CREATE TABLE metering.event_days (
    day        date PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Facts that were not counted, because dedupe no longer (or not yet) vouches for their time. An
-- operator decides on them.
CREATE TABLE metering.quarantine (
    source         text        NOT NULL,
    event_id       text        NOT NULL,
    meter          text        NOT NULL,
    unit           text        NOT NULL,
    event_time     timestamptz NOT NULL,
    tenant_id      uuid        NOT NULL,
    quantity       numeric     NOT NULL,
    occurred_at    timestamptz NOT NULL,
    job_id         uuid,
    request_id     uuid,
    endpoint       text,
    status_code    int,
    dimensions     jsonb       NOT NULL,
    reason         text        NOT NULL,
    quarantined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, event_id, meter, unit)
);

-- The sums of the raw events by the hour in which they occurred, kept in their transaction.
CREATE TABLE metering.aggregates (
    tenant_id    uuid        NOT NULL,
    meter        text        NOT NULL,
    unit         text        NOT NULL,
    window_start timestamptz NOT NULL,
    quantity     numeric     NOT NULL,
    events       bigint      NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, window_start, meter, unit)
);

-- Up to when each consumer has taken in everything that Kafka had.
CREATE TABLE metering.progress (
    consumer text        PRIMARY KEY,
    as_of    timestamptz NOT NULL
);

-- Price plans are data. A graduated price: the included units cost nothing, each unit beyond them
-- costs what its tier says; up_to counts the units beyond the included ones, NULL is the last tier.
CREATE TABLE metering.price_plans (
    name     text PRIMARY KEY,
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$')
);
CREATE TABLE metering.prices (
    plan     text    NOT NULL REFERENCES metering.price_plans,
    meter    text    NOT NULL,
    unit     text    NOT NULL,
    included numeric NOT NULL CHECK (included >= 0),
    PRIMARY KEY (plan, meter, unit)
);
CREATE TABLE metering.price_tiers (
    plan       text    NOT NULL,
    meter      text    NOT NULL,
    unit       text    NOT NULL,
    position   int     NOT NULL,
    up_to      numeric CHECK (up_to > 0),
    unit_price numeric NOT NULL CHECK (unit_price >= 0),
    PRIMARY KEY (plan, meter, unit, position),
    FOREIGN KEY (plan, meter, unit) REFERENCES metering.prices
);

INSERT INTO metering.price_plans (name, currency) VALUES ('standard', 'USD');
INSERT INTO metering.prices (plan, meter, unit, included) VALUES
    ('standard', 'API_USAGE', 'CALL', 1000),
    ('standard', 'JOB_SUBMISSION', 'COMPUTE_UNIT', 100),
    ('standard', 'JOB_COMPLETION', 'JOB', 10),
    ('standard', 'JOB_COMPLETION', 'MILLISECOND', 10000),
    ('standard', 'BLOCKCHAIN_CONFIRMATION', 'CONFIRMATION', 0);
INSERT INTO metering.price_tiers (plan, meter, unit, position, up_to, unit_price) VALUES
    ('standard', 'API_USAGE', 'CALL', 1, 100000, 0.0005),
    ('standard', 'API_USAGE', 'CALL', 2, 1000000, 0.0003),
    ('standard', 'API_USAGE', 'CALL', 3, NULL, 0.0001),
    ('standard', 'JOB_SUBMISSION', 'COMPUTE_UNIT', 1, 10000, 0.002),
    ('standard', 'JOB_SUBMISSION', 'COMPUTE_UNIT', 2, 100000, 0.0015),
    ('standard', 'JOB_SUBMISSION', 'COMPUTE_UNIT', 3, NULL, 0.001),
    ('standard', 'JOB_COMPLETION', 'JOB', 1, 1000, 0.01),
    ('standard', 'JOB_COMPLETION', 'JOB', 2, 10000, 0.008),
    ('standard', 'JOB_COMPLETION', 'JOB', 3, NULL, 0.005),
    ('standard', 'JOB_COMPLETION', 'MILLISECOND', 1, NULL, 0.00001),
    ('standard', 'BLOCKCHAIN_CONFIRMATION', 'CONFIRMATION', 1, 1000, 0.05),
    ('standard', 'BLOCKCHAIN_CONFIRMATION', 'CONFIRMATION', 2, 10000, 0.03),
    ('standard', 'BLOCKCHAIN_CONFIRMATION', 'CONFIRMATION', 3, NULL, 0.02);
