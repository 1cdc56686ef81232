-- Who may ask, and how much: plans, tenants, API keys, revocations.

CREATE TABLE gateway.plans (
    name        text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    per_minute  int NOT NULL CHECK (per_minute > 0),
    burst       int NOT NULL CHECK (burst > 0),
    per_hour    int NOT NULL CHECK (per_hour > 0),
    active_jobs int NOT NULL CHECK (active_jobs > 0),
    -- Compute units a month; NULL is no limit. Beyond them and the soft buffer, submissions are
    -- refused, or go on as overage.
    monthly_cu     bigint   CHECK (monthly_cu >= 0),
    buffer_percent smallint NOT NULL DEFAULT 10 CHECK (buffer_percent BETWEEN 0 AND 100),
    overage        boolean  NOT NULL DEFAULT false,
    priority    smallint NOT NULL CHECK (priority BETWEEN 1 AND 9),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE gateway.tenants (
    id         uuid PRIMARY KEY,
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    plan       text NOT NULL REFERENCES gateway.plans,
    -- Whether a second job with the same content within a day is refused.
    unique_content boolean NOT NULL DEFAULT false,
    -- Networks that requests may come from; from anywhere if empty.
    allowed    text[] NOT NULL DEFAULT '{}' CHECK (cardinality(allowed) <= 64),
    -- Whether requests must be signed (RFC 9421), beside their credential.
    signed     boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The secret itself is nowhere: only its SHA-256.
CREATE TABLE gateway.api_keys (
    id          uuid PRIMARY KEY,
    tenant_id   uuid NOT NULL REFERENCES gateway.tenants,
    name        text CHECK (length(name) BETWEEN 1 AND 128),
    subject     text NOT NULL,
    team        text,
    submitter   text,
    role        text NOT NULL CHECK (role IN ('developer', 'team_lead', 'admin')),
    scopes      text[] NOT NULL,
    secret_hash bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL,
    revoked_at  timestamptz,
    -- The key that took its place; until expires_at both are good.
    replaced_by uuid REFERENCES gateway.api_keys ON DELETE SET NULL
);
CREATE INDEX api_keys_tenant ON gateway.api_keys (tenant_id, id);
CREATE INDEX api_keys_replaced_by ON gateway.api_keys (replaced_by);

-- When a key was last used, to the minute. No change that gateways need to hear of.
CREATE TABLE gateway.key_uses (
    key_id  uuid PRIMARY KEY REFERENCES gateway.api_keys ON DELETE CASCADE,
    used_at timestamptz NOT NULL
);

-- What a tenant signs its requests with; encrypted, because verifying needs the secret itself.
CREATE TABLE gateway.signing_keys (
    id         uuid PRIMARY KEY,
    tenant_id  uuid NOT NULL REFERENCES gateway.tenants,
    sealed     bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz
);
CREATE INDEX signing_keys_tenant ON gateway.signing_keys (tenant_id);

-- Tokens we did not issue are revoked by naming them, their subject (`tenant/subject`: names are a
-- tenant's own), or the whole tenant.
CREATE TABLE gateway.revocations (
    kind       text NOT NULL CHECK (kind IN ('jti', 'subject', 'tenant')),
    value      text NOT NULL CHECK (length(value) BETWEEN 1 AND 256),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, value),
    CHECK (kind <> 'subject' OR value ~ '^tenant_[0-9a-f]{32}/.')
);

-- Where gateways ever counted: a Redis that is empty under a known prefix was flushed.
CREATE TABLE gateway.redis_prefixes (
    prefix     text PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Versions of upstreams on their way in, and from when on each has which share of the tenants.
CREATE TABLE gateway.rollouts (
    upstream       text PRIMARY KEY,
    version        text NOT NULL
        CHECK (version ~ '^[a-z0-9][a-z0-9._-]{0,62}$' AND version <> 'stable'),
    url            text NOT NULL,
    started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    rolled_back_at timestamptz,
    reason         text
);
CREATE TABLE gateway.rollout_steps (
    upstream  text NOT NULL REFERENCES gateway.rollouts ON DELETE CASCADE,
    starts_at timestamptz NOT NULL,
    percent   smallint NOT NULL CHECK (percent BETWEEN 0 AND 100),
    PRIMARY KEY (upstream, starts_at)
);

-- What is said about routes while gateways run.
CREATE TABLE gateway.routes (
    method        text NOT NULL,
    template      text NOT NULL,
    timeout_ms    int CHECK (timeout_ms > 0),
    deprecated_at timestamptz,
    sunset_at     timestamptz,
    served_after  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (method, template)
);

-- One row: gateways look whether it moved, and load everything only then.
CREATE TABLE gateway.changes (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint NOT NULL,
    -- How often an operator has asked for the issuer's keys to be read again.
    jwks_refreshes bigint NOT NULL DEFAULT 0
);
INSERT INTO gateway.changes (version) VALUES (1);

-- For each row that is another one afterwards: anything else is no news.
CREATE FUNCTION gateway.note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD IS NOT DISTINCT FROM NEW THEN
        RETURN NULL;
    END IF;
    UPDATE gateway.changes SET version = version + 1;
    PERFORM pg_notify('gateway_changes', '');
    RETURN NULL;
END $$;

CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON gateway.plans
    FOR EACH ROW EXECUTE FUNCTION gateway.note_change();
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON gateway.tenants
    FOR EACH ROW EXECUTE FUNCTION gateway.note_change();
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON gateway.api_keys
    FOR EACH ROW EXECUTE FUNCTION gateway.note_change();
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON gateway.signing_keys
    FOR EACH ROW EXECUTE FUNCTION gateway.note_change();
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON gateway.revocations
    FOR EACH ROW EXECUTE FUNCTION gateway.note_change();
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON gateway.rollouts
    FOR EACH ROW EXECUTE FUNCTION gateway.note_change();
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON gateway.rollout_steps
    FOR EACH ROW EXECUTE FUNCTION gateway.note_change();
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON gateway.routes
    FOR EACH ROW EXECUTE FUNCTION gateway.note_change();

INSERT INTO gateway.plans (name, per_minute, burst, per_hour, active_jobs, priority)
VALUES ('default', 100, 20, 10000, 100, 5);
