-- What is limited and shared per tenant. The row is locked by each create and each end of a job.
CREATE TABLE jobs.tenants (
    tenant_id uuid     PRIMARY KEY,
    -- Jobs that are PENDING or PROCESSING.
    active    bigint   NOT NULL CHECK (active >= 0),
    -- The plan's priority at the last submission: the tenant's weight when slots are shared out.
    weight    smallint NOT NULL CHECK (weight BETWEEN 1 AND 9)
);
CREATE INDEX tenants_with_work ON jobs.tenants (tenant_id) WHERE active > 0;

CREATE TABLE jobs.jobs (
    job_id               uuid        PRIMARY KEY,
    tenant_id            uuid        NOT NULL REFERENCES jobs.tenants,
    subject              text        NOT NULL,
    team                 text,
    job_type             text        NOT NULL,
    -- The exact bytes as sent: they are hashed, never re-encoded.
    payload              bytea       NOT NULL,
    payload_bytes        bigint      NOT NULL,
    salt                 bytea       NOT NULL CHECK (octet_length(salt) = 32),
    content_hash         bytea       NOT NULL CHECK (octet_length(content_hash) = 32),
    submitter            bytea       NOT NULL CHECK (octet_length(submitter) = 20),
    priority             smallint    NOT NULL CHECK (priority BETWEEN 1 AND 9),
    metadata             jsonb       NOT NULL,
    confirmation_mode    text        CHECK (confirmation_mode IN ('batch', 'individual')),
    max_attempts         bigint      NOT NULL CHECK (max_attempts >= 1),
    traceparent          text,
    created_at           timestamptz NOT NULL,
    estimated_completion timestamptz NOT NULL,
    -- Everything above never changes: the answer to a repeated request stands on it.

    status               text        NOT NULL CHECK (status IN
        ('PENDING', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    attempts             bigint      NOT NULL CHECK (attempts BETWEEN 0 AND max_attempts),
    run_after            timestamptz CHECK (run_after IS NOT NULL OR status <> 'PENDING'),
    started_at           timestamptz CHECK (started_at IS NOT NULL OR status <> 'PROCESSING'),
    ended_at             timestamptz,
    compute_ms           bigint,
    -- Exact JSON text, whose hash is sealed.
    result               text        CHECK ((result IS NOT NULL) = (status = 'COMPLETED')),
    error                text        CHECK ((error IS NOT NULL) = (status = 'FAILED')),
    outcome_hash         bytea,
    -- Number of the last event.
    event_number         bigint      NOT NULL CHECK (event_number >= 1),
    updated_at           timestamptz NOT NULL,

    confirmation_status  text        NOT NULL CHECK (confirmation_status IN
        ('NOT_REQUIRED', 'QUEUED', 'FINALIZED')),
    registry             bytea,
    chain_id             bigint,
    batch_number         bigint,
    sequence             bigint,
    transaction_hash     bytea,
    block_number         bigint,
    confirmed_at         timestamptz,

    lease_owner          uuid,
    lease_epoch          bigint      NOT NULL DEFAULT 0,
    lease_expires_at     timestamptz,

    CHECK ((ended_at IS NULL) = (status IN ('PENDING', 'PROCESSING'))),
    CHECK ((confirmed_at IS NULL) = (confirmation_status <> 'FINALIZED'))
);
-- Lists: ids are UUIDv7, so their order is that of creation.
CREATE INDEX jobs_by_tenant ON jobs.jobs (tenant_id, job_id);
CREATE INDEX jobs_by_subject ON jobs.jobs (tenant_id, subject, job_id);
CREATE INDEX jobs_by_status ON jobs.jobs (tenant_id, status, job_id);
CREATE INDEX jobs_by_type ON jobs.jobs (tenant_id, job_type, job_id);
-- Leasing: the head of each tenant's queue.
CREATE INDEX jobs_pending ON jobs.jobs (tenant_id, priority DESC, run_after, job_id)
    WHERE status = 'PENDING';
-- A tenant's share of the slots, and the sweep of lost leases. As small as there are slots; without
-- the expiry, so that a heartbeat touches no index.
CREATE INDEX jobs_processing ON jobs.jobs (tenant_id) WHERE status = 'PROCESSING';

CREATE TABLE jobs.job_events (
    job_id       uuid        NOT NULL REFERENCES jobs.jobs,
    event_number bigint      NOT NULL,
    event_type   text        NOT NULL,
    occurred_at  timestamptz NOT NULL,
    PRIMARY KEY (job_id, event_number)
);
