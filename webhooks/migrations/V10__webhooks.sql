-- Endpoints, their secrets, the deliveries owed to them, and every attempt.

CREATE TABLE webhooks.endpoints (
    endpoint_id     uuid PRIMARY KEY,
    tenant_id       uuid        NOT NULL,
    url             text        NOT NULL,
    -- A set of the six there are: each event reads this for every endpoint of its tenant.
    events          text[]      NOT NULL CHECK (cardinality(events) BETWEEN 1 AND 6),
    description     text,
    enabled         boolean     NOT NULL DEFAULT true,
    disabled_reason text,
    -- The circuit breaker: open on probation, when one delivery at a time goes out as a probe, the
    -- next at `probe_at`.
    health          text        NOT NULL DEFAULT 'UNTRIED'
        CHECK (health IN ('UNTRIED', 'TRUSTED', 'ON_PROBATION')),
    -- Failed attempts in a row.
    failures        int         NOT NULL DEFAULT 0,
    probe_at        timestamptz,
    CHECK ((health = 'ON_PROBATION') = (probe_at IS NOT NULL)),
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    deleted_at      timestamptz
);
CREATE INDEX endpoints_tenant ON webhooks.endpoints (tenant_id, endpoint_id DESC)
    WHERE deleted_at IS NULL;

-- AES-256-GCM under WEBHOOKS_KEY, bound to the endpoint's id: nonce and ciphertext.
CREATE TABLE webhooks.secrets (
    secret_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint_id uuid        NOT NULL REFERENCES webhooks.endpoints,
    ciphertext  bytea       NOT NULL,
    created_at  timestamptz NOT NULL,
    -- Until when a rotated secret still signs; none for the present one.
    expires_at  timestamptz
);
CREATE INDEX secrets_endpoint ON webhooks.secrets (endpoint_id);

CREATE TABLE webhooks.deliveries (
    message_id       uuid PRIMARY KEY,
    endpoint_id      uuid        NOT NULL REFERENCES webhooks.endpoints,
    tenant_id        uuid        NOT NULL,
    -- The event's identity; one delivery for each endpoint, however often it is told.
    event_source     text        NOT NULL,
    event_id         text        NOT NULL,
    event_type       text,
    job_id           uuid,
    -- The exact bytes that are signed and sent.
    body             text        NOT NULL,
    traceparent      text,
    status           text        NOT NULL
        CHECK (status IN ('PENDING', 'DELIVERED', 'FAILED', 'HELD')),
    attempts         int         NOT NULL DEFAULT 0,
    -- Attempts since the delivery was queued or replayed: what the retry schedule counts.
    tries            int         NOT NULL DEFAULT 0,
    next_attempt_at  timestamptz,
    created_at       timestamptz NOT NULL,
    delivered_at     timestamptz,
    last_error       text,
    lease_owner      uuid,
    lease_epoch      bigint      NOT NULL DEFAULT 0,
    lease_expires_at timestamptz,
    UNIQUE (endpoint_id, event_source, event_id)
);
-- What a claim reads: the first few due to each endpoint, and those under way.
CREATE INDEX deliveries_due ON webhooks.deliveries (endpoint_id, next_attempt_at, message_id)
    WHERE status = 'PENDING';
-- What an endpoint that is enabled again is owed, oldest first: none has a next attempt.
CREATE INDEX deliveries_held ON webhooks.deliveries (endpoint_id, next_attempt_at, message_id)
    WHERE status = 'HELD';
CREATE INDEX deliveries_under_way ON webhooks.deliveries (endpoint_id, lease_expires_at)
    WHERE lease_expires_at IS NOT NULL;
CREATE INDEX deliveries_tenant ON webhooks.deliveries (tenant_id, message_id DESC);
CREATE INDEX deliveries_job ON webhooks.deliveries (job_id, message_id DESC);

CREATE TABLE webhooks.attempts (
    message_id    uuid        NOT NULL REFERENCES webhooks.deliveries,
    attempt       int         NOT NULL,
    started_at    timestamptz NOT NULL,
    -- None of the following while it runs, or when its worker died in the middle.
    duration_ms   bigint,
    status_code   int,
    error         text,
    response_body text,
    PRIMARY KEY (message_id, attempt)
);
